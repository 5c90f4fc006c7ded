"""TODO"""

from pathlib import Path

import numpy as np
from sklearn import metrics as skm

from moleclip.files import save_whole
from moleclip.metrics import best_epoch, mean_ci
from moleclip.pixels import to_rgb

SHOWN = 8  # targets with a panel of their own in report.png
WORST = 6  # test molecules drawn in it


def plot_sweep(path, table, knee, subject):
    """Draw inertia per molecule, (k, inertia per molecule) rows, against log K, with the knee marked."""
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
        height = dict(table)[knee]
        title = f"Past {knee:,} clusters, each further one gains less than the average"
        axis.axvline(knee, color="tab:red", lw=1, ls="--")
        axis.plot(knee, height, "o", color="tab:red", ms=9)
        axis.annotate(
            f"knee: K = {knee:,}",
            (knee, height),
            (10, 14),
            textcoords="offset points",
            color="tab:red",
            fontsize=12,
        )
        inset = axis.inset_axes(
            (0.08, 0.1, 0.36, 0.36)
        )  # on the log axis alone, the curve seems to fall on past the knee
        inset.plot(*zip(*table), "-", color="tab:blue", lw=1.5)
        inset.plot(*zip(table[0], table[-1]), ":", color="grey", lw=1)
        inset.plot(knee, height, "o", color="tab:red", ms=6)
        inset.set_title("the same, K on a linear scale", fontsize=8, color="dimgrey")
        inset.tick_params(labelsize=7)
    axis.set_title(title, fontsize=13, loc="left", pad=24)
    axis.text(
        0, 1.03, subject, transform=axis.transAxes, fontsize=9, color="dimgrey", parse_math=False
    )
    save_whole(path, lambda name: figure.savefig(name, dpi=130, format="png"))
    plt.close(figure)


def plot_report(path, data, runs, table, pictures):
    """Draw report.png of one or several seeds: the table, learning curves, errors, each target, and the worst test molecules.

    runs: dicts with "seed", "split", "predicted", "history"; table: of `over_seeds`; pictures: {row: uint8 (224, 224)}.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tested = [(run, row) for run in runs for row in run["split"]["test"]]
    panels, columns = data.targets[:SHOWN], 4
    lines = (
        0 if len(panels) == 1 else -(-len(panels) // columns)
    )  # a single target stands in the top row
    heights = [3.6] + [3.4 * lines] * (lines > 0) + [2.6]
    figure = plt.figure(figsize=(16, sum(heights)), layout="constrained")
    top, *middle, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    axes = top.subplots(1, 3 + (lines == 0), width_ratios=(1.8, 1, 1, 1)[: 3 + (lines == 0)])
    draw_table(
        axes[0],
        table,
        f"{Path(data.path).name}: test part"
        + (f", mean ± 95% interval of {len(runs)} seeds" if len(runs) > 1 else ""),
    )
    draw_curves(axes[1], runs)
    draw_errors(axes[2], data, tested)
    if len(data.targets) > SHOWN:
        middle[0].suptitle(
            f"the first {SHOWN} of {len(data.targets)} targets; scores.csv has all", fontsize=11
        )
    grid = [
        *axes[3:],
        *(axis for part in middle for axis in part.subplots(lines, columns, squeeze=False).ravel()),
    ]
    for t, axis in enumerate(grid):
        if t < len(panels):
            draw_target(axis, data, runs, t, table)
        else:
            axis.axis("off")
    draw_worst(bottom, data, tested, pictures)
    save_whole(path, lambda name: figure.savefig(name, dpi=100, format="png"))
    plt.close(figure)


def draw_table(axis, table, title):
    names = list(next(iter(table.values()))["pooled"])
    cells = [
        [mean_ci(scores["pooled"][n], 3) if n in scores["pooled"] else "-" for n in names]
        for scores in table.values()
    ]
    axis.axis("off")
    drawn = axis.table(
        cells,
        rowLabels=list(table),
        colLabels=names,
        loc="center",
        cellLoc="right",
        edges="horizontal",
        bbox=(0.24, 0.1, 0.76, 0.75),
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_edgecolor("0.8")
        cell.get_text().set_fontweight("bold" if line == 1 else "normal")
    axis.set_title(title, fontsize=11, parse_math=False)


def draw_curves(axis, runs):
    for i, run in enumerate(runs):
        epochs, best = [h["epoch"] for h in run["history"]], best_epoch(run["history"])
        axis.plot(
            epochs,
            [h["train_loss"] for h in run["history"]],
            color="C0",
            lw=1,
            label=None if i else "train",
        )
        axis.plot(
            epochs,
            [h["val_loss"] for h in run["history"]],
            color="C1",
            lw=1,
            label=None if i else "validation",
        )
        axis.plot(
            best["epoch"],
            best["val_loss"],
            "o",
            color="C1",
            ms=5,
            label=None if i else "epoch kept",
        )
    axis.set(title="loss", xlabel="epoch")
    axis.legend(frameon=False, fontsize=8)


def draw_errors(axis, data, tested):
    """Draw the distribution of test errors, or of the probabilities given to each class."""
    truth = np.array([data.labels[row] for _, row in tested]).ravel()
    predicted = np.array([run["predicted"][row] for run, row in tested]).ravel()
    if data.task == "classification":
        for label in (0, 1):
            axis.hist(
                predicted[truth == label],
                bins=np.linspace(0, 1, 21),
                alpha=0.6,
                label=f"truth {label}",
            )
        axis.set(title="predicted probability, test", xlabel="probability of 1", ylabel="molecules")
        axis.legend(frameon=False, fontsize=8)
    else:
        error = (predicted - truth)[~np.isnan(truth)]
        axis.hist(error, bins=min(40, max(8, len(error) // 8)), color="C0", alpha=0.8)
        axis.axvline(0, color="k", lw=0.8)
        axis.set(title="error, test", xlabel="prediction - truth", ylabel="labels")


def draw_target(axis, data, runs, t, table):
    """Draw a target's test part: prediction against truth, or the ROC and precision-recall curves."""
    name = data.targets[t]
    truth = np.concatenate([data.labels[run["split"]["test"], t] for run in runs])
    values = np.concatenate(
        [[run["predicted"][row][t] for row in run["split"]["test"]] for run in runs]
    )
    truth, values = truth[known := ~np.isnan(truth)], values[known]
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
        axis.set(xlabel="truth", ylabel="prediction")
    scores = table["this model"]["targets"][name]
    axis.set_title(
        f"{name[:40]}, test\n" + "   ".join(f"{k} {s['mean']:.3g}" for k, s in scores.items()),
        fontsize=9,
        parse_math=False,
    )


def draw_worst(figure, data, tested, pictures):
    """Draw the test molecules that the model gets most wrong, with truth and prediction of the worst target."""
    scale = np.nanstd(data.labels, 0)
    scale[~(scale > 0) | (data.task == "classification")] = 1
    worst = {}
    for run, row in tested:
        error = np.abs(run["predicted"][row] - data.labels[row]) / scale
        if not np.isnan(error).all():
            t = int(np.nanargmax(error))
            worst[row] = max(worst.get(row, (-1,)), (error[t], t, run["predicted"][row][t]))
    axes = figure.subplots(1, WORST)
    figure.suptitle("test molecules furthest from the truth", fontsize=11)
    order = sorted(worst, key=lambda row: -worst[row][0])[:WORST]
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, order):
        _, t, value = worst[row]
        axis.imshow(to_rgb(pictures[row]))
        axis.set_title(
            f"row {row}"
            + (f", {data.targets[t][:16]}" if len(data.targets) > 1 else "")
            + f"\ntruth {data.labels[row, t]:.3g}, predicted {value:.3g}",
            fontsize=9,
            parse_math=False,
        )


def plot_curves(path, log):
    """Draw the loss parts, training and held-out, against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    training, held = [e for e in log if "loss" in e], [e for e in log if "held_out_retrieval" in e]
    if not training:  # left before the first line of the log
        return
    names = [
        name
        for name in training[0]
        if name in ("contrastive", "descriptors", "maccs")
        or (name[0] == "k" and name[1:].isdigit())
    ]
    figure, axes = plt.subplots(
        1, len(names) + 1, figsize=(3.4 * (len(names) + 1), 3), layout="constrained"
    )
    width = max(1, len(training) // 12)
    for axis, name in zip(axes, names):
        values = np.array([e[name] for e in training])
        axis.plot([e["step"] for e in training], values, color="C0", alpha=0.3, lw=0.8)
        smooth = [values[max(0, i - width + 1) : i + 1].mean() for i in range(len(values))]
        axis.plot(
            [e["step"] for e in training],
            smooth,
            color="C0",
            label=f"training, mean of {width}" if width > 1 else "training",
        )
        axis.plot(
            [e["step"] for e in held],
            [e[f"held_out_{name}"] for e in held],
            "o-",
            color="C1",
            label="held out",
        )
        axis.set(title=f"{name} loss", xlabel="step")
    axes[-1].plot(
        [e["step"] for e in held], [100 * e["held_out_retrieval"] for e in held], "o-", color="C1"
    )
    axes[-1].set(title="held-out view-to-view top-1, %", xlabel="step", ylim=(0, 100))
    axes[0].legend()
    save_whole(path, lambda name: figure.savefig(name, dpi=110, format="png"))
    plt.close(figure)
