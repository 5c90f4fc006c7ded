"""The pictures that stations leave beside their results."""

import re
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn import metrics as skm

from moleclip.files import save_whole
from moleclip.metrics import MODEL, best_epoch, counted, mean_ci, table_title
from moleclip.pixels import inflate, to_rgb

SHOWN = 8  # targets with a panel of their own in report.png
WORST = 6  # test molecules drawn in it


def plot_sweep(path, table, knee, subject):
    """Draw sweep.png: (k, inertia per molecule) rows against log K, with the knee marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    axis.plot(*zip(*table), "o-", color="tab:blue", ms=5)
    axis.set(
        xscale="log",
        ylim=(0, 1.08 * table[0][1]),
        xlabel="number of clusters K (log scale)",
        ylabel="inertia per molecule\n(squared distance to its cluster's centre)",
    )
    ticks = [k for k in (3, 10, 30, 100, 300, 1000, 3000) if k <= 1.2 * table[-1][0]]
    axis.set_xticks(ticks, [f"{k:,}" for k in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    title = "The more clusters, the closer their molecules; no clear knee"
    if knee:
        title = f"Past {knee:,} clusters, each further one gains less than the average"
        mark_knee(axis, table, knee)
    axis.set_title(title, fontsize=13, loc="left", pad=24)
    small = {"fontsize": 9, "color": "dimgrey"}
    axis.text(0, 1.03, subject, transform=axis.transAxes, parse_math=False, **small)
    save_whole(path, lambda name: figure.savefig(name, dpi=130, format="png"))
    plt.close(figure)


def mark_knee(axis, table, knee):
    """Mark the knee of a sweep, with the same curve on a linear axis beside it.

    On the log axis alone, the curve seems to fall on past the knee.
    """
    height, red = dict(table)[knee], {"color": "tab:red"}
    axis.axvline(knee, lw=1, ls="--", **red)
    axis.plot(knee, height, "o", ms=9, **red)
    beside = {"xytext": (10, 14), "textcoords": "offset points", "fontsize": 12}
    axis.annotate(f"knee: K = {knee:,}", (knee, height), **beside, **red)
    inset = axis.inset_axes((0.08, 0.1, 0.36, 0.36))
    inset.plot(*zip(*table), "-", color="tab:blue", lw=1.5)
    inset.plot(*zip(table[0], table[-1]), ":", color="grey", lw=1)
    inset.plot(knee, height, "o", ms=6, **red)
    inset.set_title("the same, K on a linear scale", fontsize=8, color="dimgrey")
    inset.tick_params(labelsize=7)


def plot_report(path, data, results, table, drawn, note=""):
    """Draw report.png of one or several seeds.

    The table, learning curves, errors, each target, and the worst test molecules. results:
    SeedResults; table: of `over_seeds`; drawn: a function that gives {row: zlib stream} of rows;
    note: stands above the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels, columns = data.targets[:SHOWN], 4
    lines = -(-len(panels) // columns) * (len(panels) > 1)  # one target stands in the top row
    heights = [3.6, 3.4 * lines, 2.6] if lines else [3.6, 2.6]
    figure = plt.figure(figsize=(16, sum(heights)), layout="constrained")
    top, *middle, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    widths = (1.8, 1, 1) if lines else (1.8, 1, 1, 1)
    first, second, third, *grid = top.subplots(1, len(widths), width_ratios=widths)
    for part in middle:
        grid += list(part.subplots(lines, columns, squeeze=False).ravel())
    fixed = all(result.split == results[0].split for result in results)
    name = Path(data.path).name
    name = name if len(name) < 60 else f"{name[:56]} ..."
    notes = [*textwrap.wrap(chosen_heads(results), 78), *textwrap.wrap(note, 78)]
    title = "\n".join([name, *notes, table_title(table, fixed)])
    draw_table(first, table, title)
    (draw_curves if results[0].history else draw_calibration)(second, results)
    draw_errors(third, data, results)
    if len(data.targets) > SHOWN:
        note = f"the first {SHOWN} of {len(data.targets)} targets; scores.csv has all"
        middle[0].suptitle(note, fontsize=11)
    for t, axis in enumerate(grid):
        if t < len(panels):
            draw_target(axis, data, results, t, table)
        else:
            axis.axis("off")
    draw_worst(bottom, data, results, drawn)
    save_whole(path, lambda name: figure.savefig(name, dpi=100, format="png"))
    plt.close(figure)


def chosen_heads(results):
    """Return which heads were chosen, among how many and by what; of the MLP what it looks at."""
    heads = [result.metrics["head"] for result in results if "head" in result.metrics]
    if not heads:
        features = results[0].metrics.get("features")  # of pictures nothing is said
        return f"MLP on {features}" if features else ""
    counts = Counter(head["chosen"] for head in heads)
    several = len(heads) > 1
    names = [f"{name} ({count} seeds)" if several else name for name, count in counts.items()]
    loss = np.mean([head["among"][head["chosen"]] for head in heads])
    among = f"best of {len(heads[0]['among'])} on {heads[0]['held_out']}"
    return f"{', '.join(names)}: {among}, {heads[0]['loss']} {loss:.3g}"


def tested(results):
    """Yield (row, prediction (targets,)) of the test parts of SeedResults."""
    for result in results:
        for row in result.split["test"]:
            yield row, result.predicted[row]


def draw_table(axis, table, title):
    """Draw the pooled scores, a line for each method; an interval stands below its mean."""
    names, seeds, cells = list(next(iter(table.values()))["pooled"]), counted(table), []
    for scores in table.values():
        found = scores["pooled"]
        line = [mean_ci(found[n], 3, seeds) if n in found else "-" for n in names]
        cells.append([text.replace(" ", "\n", 1) for text in line])
    methods = [name.replace(" + ", " +\n") for name in table]
    heads = [name.replace(" ", "\n") for name in names]
    axis.axis("off")
    look = {"loc": "center", "cellLoc": "right", "edges": "horizontal"}
    box = (0.24, 0.02, 0.76, 0.9)
    drawn = axis.table(cells, rowLabels=methods, colLabels=heads, bbox=box, **look)
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_edgecolor("0.8")
        cell.get_text().set_fontweight("bold" if line == 1 else "normal")
    size = 11 if title.count("\n") < 2 else 9  # where it has notes
    axis.set_title(title, fontsize=size, parse_math=False)


def draw_curves(axis, results):
    """Draw each seed's training and validation loss against the epoch."""
    for i, result in enumerate(results):
        names = [None] * 3 if i else ["train", "validation", "epoch kept"]
        epochs, best = [h["epoch"] for h in result.history], best_epoch(result.history)
        train, val = ([h[key] for h in result.history] for key in ("train_loss", "val_loss"))
        axis.plot(epochs, train, color="C0", lw=1, label=names[0])
        axis.plot(epochs, val, color="C1", lw=1, label=names[1])
        axis.plot(best["epoch"], best["val_loss"], "o", color="C1", ms=5, label=names[2])
    axis.set(title="loss", xlabel="epoch")
    axis.legend(frameon=False, fontsize=8)


def draw_calibration(axis, results):
    """Draw how often intervals of each level held the truth, or positives at each probability."""
    for result in results:
        curve = result.metrics.get("calibration")
        if curve:
            axis.plot(*zip(*curve), "o-", color="C0", lw=1, ms=3, alpha=0.8)
    axis.plot([0, 1], [0, 1], "k--", lw=0.8)
    classes = any("Brier" in result.metrics["test"][MODEL]["pooled"] for result in results)
    wanted = ("probability", "share of positives") if classes else ("interval", "labels inside")
    axis.set(title="calibration, test", xlabel=wanted[0], ylabel=wanted[1])


def draw_errors(axis, data, results):
    """Draw the distribution of test errors, or of the probabilities given to each class."""
    rows, values = zip(*tested(results))
    truth, predicted = data.labels[list(rows)].ravel(), np.array(values).ravel()
    words = data.classes[0] if len(set(data.classes)) == 1 and data.classes[0] else (0, 1)
    if data.task == "classification":
        bins = np.linspace(0, 1, 21)
        for label in (0, 1):
            named = f"truth {words[label]}"
            axis.hist(predicted[truth == label], bins=bins, alpha=0.6, label=named)
        title, what = "predicted probability, test", f"probability of {words[1]}"
        axis.set(title=title, xlabel=what, ylabel="molecules")
        axis.legend(frameon=False, fontsize=8)
    else:
        error = (predicted - truth)[~np.isnan(truth)]
        axis.hist(error, bins=min(40, max(8, len(error) // 8)), color="C0", alpha=0.8)
        axis.axvline(0, color="k", lw=0.8)
        unit = f", {data.units[0]}" if data.one_column() and data.units[0] else ""
        axis.set(title="error, test", xlabel=f"prediction - truth{unit}", ylabel="labels")


def draw_target(axis, data, results, t, table):
    """Draw a target's test part: prediction against truth, or the ROC and precision-recall."""
    name = data.targets[t]
    rows, values = zip(*tested(results))
    truth, values = data.labels[list(rows), t], np.array(values)[:, t]
    known = ~np.isnan(truth)
    truth, values = truth[known], values[known]
    if data.task == "classification" and len(set(truth)) == 2:
        axis.plot(*skm.roc_curve(truth, values)[:2], label="ROC")
        precision, recall, _ = skm.precision_recall_curve(truth, values)
        axis.plot(recall, precision, label="precision (y), recall (x)")
        axis.plot([0, 1], [0, 1], "k--", lw=0.8)
        axis.set(xlabel="false positive rate / recall", ylabel="true positive rate / precision")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    elif data.task == "regression" and len(truth):
        axis.scatter(truth, values, s=14, alpha=0.6, edgecolors="none")
        low, high = min(truth.min(), values.min()), max(truth.max(), values.max())
        axis.plot([low, high], [low, high], "k--", lw=0.8)
        unit = f", {data.units[t]}" if data.units[t] else ""
        axis.set(xlabel=f"truth{unit}", ylabel=f"prediction{unit}")
    scores = table[MODEL]["targets"][name]
    numbers = [f"{metric} {s['mean']:.3g}" for metric, s in scores.items()]
    pairs = ["   ".join(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    title = "\n".join([f"{name[:40]}, test", *pairs])
    axis.set_title(title, fontsize=9, parse_math=False)


def draw_worst(figure, data, results, drawn):
    """Draw the test molecules furthest from the truth, with the numbers of their worst target."""
    scale = np.nanstd(data.labels, 0)
    scale[~(scale > 0) | (data.task == "classification")] = 1
    worst = {}
    for row, values in tested(results):
        error = np.abs(values - data.labels[row]) / scale
        if not np.isnan(error).all():
            t = int(np.nanargmax(error))
            worst[row] = max(worst.get(row, (-1,)), (error[t], t, values[t]))
    axes = figure.subplots(1, WORST)
    figure.suptitle("test molecules furthest from the truth", fontsize=11)
    order = sorted(worst, key=lambda row: -worst[row][0])[:WORST]
    for axis in axes:
        axis.axis("off")
    pictures = drawn(order)
    for axis, row in zip(axes, order):
        _, t, value = worst[row]
        name = f", {data.targets[t][:16]}" if len(data.targets) > 1 else ""
        truth, words = data.labels[row, t], data.classes[t]
        truth = words[int(truth)][:16] if words else f"{truth:.3g}"
        numbers = f"truth {truth}, predicted {value:.3g}"
        if row in pictures:
            axis.imshow(to_rgb(inflate(pictures[row])))
        axis.set_title(f"row {row}{name}\n{numbers}", fontsize=9, parse_math=False)


def plot_curves(path, log):
    """Draw the loss parts of a pretraining log, training and held-out, against the step.

    A log that ends before its first training entry gives no picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    training = [entry for entry in log if "loss" in entry]
    held = [entry for entry in log if "held_out_retrieval" in entry]
    if not training:
        return
    names = [n for n in training[0] if re.fullmatch(r"contrastive|descriptors|maccs|k\d+", n)]
    size, panels = (3.4 * (len(names) + 1), 3), len(names) + 1
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained")
    steps, held_steps = ([entry["step"] for entry in part] for part in (training, held))
    width = max(1, len(training) // 12)
    label = f"training, mean of {width}" if width > 1 else "training"
    for axis, name in zip(axes, names):
        values = np.array([entry[name] for entry in training])
        axis.plot(steps, values, color="C0", alpha=0.3, lw=0.8)
        smooth = [values[max(0, i - width + 1) : i + 1].mean() for i in range(len(values))]
        axis.plot(steps, smooth, color="C0", label=label)
        values = [entry[f"held_out_{name}"] for entry in held]
        axis.plot(held_steps, values, "o-", color="C1", label="held out")
        axis.set(title=f"{name} loss", xlabel="step")
    values = [100 * entry["held_out_retrieval"] for entry in held]
    axes[-1].plot(held_steps, values, "o-", color="C1")
    axes[-1].set(title="held-out view-to-view top-1, %", xlabel="step", ylim=(0, 100))
    axes[0].legend()
    save_whole(path, lambda name: figure.savefig(name, dpi=110, format="png"))
    plt.close(figure)
