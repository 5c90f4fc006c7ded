"""How good a finetuned model is: metrics, tables, predictions and the picture of a run, and which of a grid is kept; finetune.py takes these."""

import csv
import json
import math
import shutil
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn import metrics as skm

import render
from table import PARTS

SHOWN = 8               # targets with a panel of their own in report.png
WORST = 6               # test molecules drawn in it


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def score(truth, predicted, task):
    """Return the metrics of one target (1-d arrays, NaN where unknown); one that is undefined is left out."""
    known = ~np.isnan(truth)
    truth, predicted = truth[known].astype(float), predicted[known].astype(float)
    result = {}
    if task == "classification":
        if len(set(truth)) == 2:
            result["ROC-AUC"] = skm.roc_auc_score(truth, predicted)
            result["PR-AUC"] = skm.average_precision_score(truth, predicted)
        if len(truth):
            result["accuracy"] = np.mean((predicted > 0.5) == truth)
    elif len(truth):
        result["MAE"] = skm.mean_absolute_error(truth, predicted)
        result["RMSE"] = math.sqrt(skm.mean_squared_error(truth, predicted))
        if np.ptp(truth) > 0 and len(truth) > 1:
            result["R2"] = skm.r2_score(truth, predicted)
            if np.ptp(predicted) > 0:
                result["Spearman"] = spearmanr(truth, predicted).statistic
    return {name: float(value) for name, value in result.items()}


def score_all(truth, predicted, targets, task):
    """Return {"pooled": {...}, "targets": {name: {...}}}.

    Pooled MAE and RMSE are over all known labels, the others are means over the targets for which they are defined.
    """
    each = {name: score(truth[:, t], predicted[:, t], task) for t, name in enumerate(targets)}
    pooled = {}
    for name in {name: None for scores in each.values() for name in scores}:
        values = [scores[name] for scores in each.values() if name in scores]
        pooled[name] = float(np.mean(values))
        if len(values) < len(targets):
            pooled[f"{name} defined for"] = len(values)
    if task == "regression":
        pooled |= {k: v for k, v in score(truth.ravel(), predicted.ravel(), task).items() if k in ("MAE", "RMSE")}
    return {"pooled": pooled, "targets": each}


def summarise(values):
    """Return mean, SD, and the half width of the 95% t-interval of a metric's values over seeds (None for one seed)."""
    n, mean = len(values), float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if n > 1 else None
    return {"mean": mean, "sd": sd, "ci95": float(student.ppf(0.975, n - 1) * sd / math.sqrt(n)) if n > 1 else None, "seeds": n}


def over_seeds(runs):
    """Return {method: {"pooled": {metric: summary}, "targets": {target: {metric: summary}}}} of runs' metrics.json."""
    table = {}
    for method, first in runs[0]["test"].items():
        if not all(method in run["test"] for run in runs):
            continue
        places = [("pooled", None)] + [("targets", name) for name in first["targets"]]
        table[method] = {"pooled": {}, "targets": {}}
        for part, target in places:
            scores = [run["test"][method][part] if target is None else run["test"][method][part][target] for run in runs]
            names = {name: None for each in scores for name in each if "defined" not in name}
            found = {name: summarise([each[name] for each in scores if name in each]) for name in names}
            if target is None:
                table[method][part] = found
            else:
                table[method][part][target] = found
    return table


def shown(summary, digits=4):
    return f"{summary['mean']:.{digits}g}" + (f" ± {summary['ci95']:.2g}" if summary["ci95"] is not None else "")


def print_table(table, seeds):
    """Print one line a method with its pooled test metrics, and this model's line for each target."""
    names = list(next(iter(table.values()))["pooled"])
    title = "test part" + (f", mean ± 95% of {seeds} seeds" if seeds > 1 else "")
    rows = [(method, scores["pooled"]) for method, scores in table.items()]
    model, scores = next(iter(table.items()))
    if len(scores["targets"]) > 1:
        rows += [(f"  {target}"[:40], found) for target, found in scores["targets"].items()]
    wide = max(len(title), *(len(name) for name, _ in rows)) + 2
    cells = [[shown(found[n]) if n in found else "-" for n in names] for _, found in rows]
    widths = [max(16, *(len(row[i]) for row in cells)) + 2 for i in range(len(names))]
    click.echo(f"\n{title:{wide}s}" + "".join(f"{name:>{width}s}" for name, width in zip(names, widths)))
    for place, ((name, _), row) in enumerate(zip(rows, cells)):
        if place == len(table):
            click.echo(f"{model}, each target")
        click.echo(f"{name:{wide}s}" + "".join(f"{cell:>{width}s}" for cell, width in zip(row, widths)))


def save_scores(path, table):
    """Write scores.csv: one line for each method, target ("" for all pooled) and metric."""
    lines = []
    for method, scores in table.items():
        for target, found in [("", scores["pooled"]), *scores["targets"].items()]:
            lines += [[method, target, name, *("" if s[key] is None else f"{s[key]:.6g}" for key in ("mean", "sd", "ci95")), s["seeds"]] for name, s in found.items()]
    render.save_table(path, ["method", "target", "metric", "mean", "sd", "ci95", "seeds"], lines)


# ---------------------------------------------------------------------------------------------------------------------
# Predictions


def save_predictions(path, data, runs, best=0):
    """Write one line for every row of the input: row, smiles, split, then truth and prediction of each target, and error.

    runs: one dict for each seed, with "split" and "predicted" {row: (targets,)}. Split and prediction are those of run `best`, which
    is the model beside the file; with several runs there follow mean and SD of their predictions, and in how many the row was tested.
    """
    part_of = [{row: part for part, rows in run["split"].items() for row in rows} for run in runs]
    kinds = ("true", "predicted") + (("mean", "sd") if len(runs) > 1 else ())
    header = ["row", "smiles", "split"] + [f"{kind}_{name}" for name in data.targets for kind in kinds] + ["tested"] * (len(runs) > 1) + ["error"]
    lines = []
    for row, smiles in enumerate(data.smiles):
        cells = []
        for t in range(len(data.targets)):
            values = [run["predicted"][row][t] for run in runs if row in run["predicted"]]
            found = [data.labels[row, t], values[best] if values else math.nan]
            if len(runs) > 1:
                found += [np.mean(values), np.std(values, ddof=1)] if values else [math.nan] * 2
            cells += ["" if np.isnan(value) else f"{value:.7g}" for value in found]
        tested = [sum(parts.get(row) == "test" for parts in part_of)] * (len(runs) > 1)
        lines.append([row, smiles, part_of[best].get(row, ""), *cells, *tested, data.problems[row]])
    render.save_table(path, header, lines)


# ---------------------------------------------------------------------------------------------------------------------
# The run folder


def finished(folder, config):
    """Tell whether a seed's folder is complete. Raises click.ClickException if it was begun with other settings."""
    there = load_facts(folder / "config.json") if (folder / "config.json").exists() else None
    wanted = json.loads(json.dumps(config))
    other = [key for key in wanted if there is not None and there.get(key) != wanted[key]]
    if other:
        raise click.ClickException(f"{folder}: part of an unfinished run with another {other[0]} ({there.get(other[0])}, now {wanted[other[0]]}); "
                                   "delete the run's folder, or give another one with -o")
    return (folder / "metrics.json").exists()


def load_facts(path):
    """Return the dict of a JSON file of a run folder. Raises click.ClickException."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise click.ClickException(f"{path}: damaged; delete its folder {path.parent} and finetune again") from None


def read_run(folder, data):
    """Return what plots and aggregates take of a seed's folder: seed, split, predicted {row: (targets,)}, history."""
    with open(folder / "predictions.csv", newline="", errors="surrogateescape") as stream:
        lines = list(csv.DictReader(stream))
    with open(folder / "history.csv", newline="") as stream:
        history = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(stream)]
    split = {part: [int(line["row"]) for line in lines if line["split"] == part] for part in PARTS}
    names = [f"predicted_{name}" for name in data.targets]
    predicted = {int(line["row"]): np.array([float(line[name]) for name in names]) for line in lines if line[names[0]]}
    return load_facts(folder / "metrics.json") | {"split": split, "predicted": predicted, "history": history}


def aggregate(out, data, seeds, config, pictures):
    """Write the aggregate over seeds, and a copy of the model that is best on validation; return the table of test scores."""
    runs = [read_run(out / f"seed-{seed}", data) for seed in seeds]
    best = min(range(len(runs)), key=lambda i: runs[i]["val_loss"])
    source, table = out / f"seed-{seeds[best]}" / "model.pt", over_seeds(runs)
    render.save_whole(out / "model.pt", lambda target: shutil.copyfile(source, target))
    part_of = [{row: part for part, rows in run["split"].items() for row in rows} for run in runs]
    rows = sorted(set().union(*part_of))
    render.save_table(out / "splits.csv", ["row", "split"] + [f"seed_{seed}" for seed in seeds],
                      [[row, part_of[best].get(row, "")] + [parts.get(row, "") for parts in part_of] for row in rows])
    render.save_table(out / "history.csv", ["seed", *runs[0]["history"][0]], [[run["seed"], *(f"{value:.10g}" for value in h.values())] for run in runs for h in run["history"]])
    save_predictions(out / "predictions.csv", data, runs, best)
    save_scores(out / "scores.csv", table)
    plot_report(out / "report.png", data, runs, table, pictures)
    render.save_json(out / "config.json", config)
    keys = ("seed", "best_epoch", "val_loss", "test", "sizes", "rejected")
    render.save_json(out / "metrics.json", {"best_seed": seeds[best], "test": table, "runs": [{key: run[key] for key in keys} for run in runs]})
    return table


def cell_folder(out, cell, alone):
    return out if alone else out / "grid" / "_".join(f"{key.replace('_', '-')}-{value:g}" if key != "augment" else f"{key}-{value}" for key, value in cell.items())


def choose(out, cells, seeds):
    """Return (mean validation loss of each cell so far, the place of the best), and drop the models of the others."""
    values = [[load_facts(cell_folder(out, cell, False) / f"seed-{seed}" / "metrics.json")["val_loss"] for seed in seeds] for cell in cells]
    losses = [float(np.mean(row)) for row in values]
    best = int(np.argmin(losses))
    for i, cell in enumerate(cells):
        for seed in seeds if i != best else ():
            for name in ("model.pt", "predictions.csv", "splits.csv", "history.csv", "scores.csv", "report.png"):
                (cell_folder(out, cell, False) / f"seed-{seed}" / name).unlink(missing_ok=True)
    return losses, best


def finish_grid(out, cells, seeds):
    """Write grid.csv and move the winner's seeds to their place; return the winner."""
    losses, best = choose(out, cells, seeds)
    lines = []
    for i, cell in enumerate(cells):
        runs = [load_facts(cell_folder(out, cell, False) / f"seed-{seed}" / "metrics.json") for seed in seeds]
        test = {name: s["mean"] for name, s in over_seeds(runs)["this model"]["pooled"].items()}
        lines.append([*cell.values(), f"{losses[i]:.6g}", "yes" if i == best else "", *(f"{value:.6g}" for value in test.values())])
    render.save_table(out / "grid.csv", [*cells[0], "val_loss", "chosen", *(f"test_{name}" for name in test)], lines)
    for seed in seeds:
        shutil.copytree(cell_folder(out, cells[best], False) / f"seed-{seed}", out / f"seed-{seed}", dirs_exist_ok=True)
        (cell_folder(out, cells[best], False) / f"seed-{seed}" / "model.pt").unlink(missing_ok=True)
    click.echo(f"chosen on validation out of {len(cells)}: " + ", ".join(f"{key} {value}" for key, value in cells[best].items()) + f"; all in {out}/grid.csv")
    return cells[best]


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def plot_report(path, data, runs, table, pictures):
    """Draw report.png of one or several seeds: the table, learning curves, errors, each target, and the worst test molecules.

    runs: dicts with "seed", "split", "predicted", "history"; table: of `over_seeds`; pictures: {row: uint8 (224, 224)}.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    tested = [(run, row) for run in runs for row in run["split"]["test"]]
    panels, columns = data.targets[:SHOWN], 4
    lines = 0 if len(panels) == 1 else -(-len(panels) // columns)          # a single target stands in the top row
    heights = [3.6] + [3.4 * lines] * (lines > 0) + [2.6]
    figure = plt.figure(figsize=(16, sum(heights)), layout="constrained")
    top, *middle, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    axes = top.subplots(1, 3 + (lines == 0), width_ratios=(1.8, 1, 1, 1)[:3 + (lines == 0)])
    draw_table(axes[0], table, f"{Path(data.path).name}: test part" + (f", mean ± 95% interval of {len(runs)} seeds" if len(runs) > 1 else ""))
    draw_curves(axes[1], runs)
    draw_errors(axes[2], data, tested)
    if len(data.targets) > SHOWN:
        middle[0].suptitle(f"the first {SHOWN} of {len(data.targets)} targets; scores.csv has all", fontsize=11)
    grid = [*axes[3:], *(axis for part in middle for axis in part.subplots(lines, columns, squeeze=False).ravel())]
    for t, axis in enumerate(grid):
        if t < len(panels):
            draw_target(axis, data, runs, t, table)
        else:
            axis.axis("off")
    draw_worst(bottom, data, tested, pictures)
    render.save_whole(path, lambda name: figure.savefig(name, dpi=100, format="png"))
    plt.close(figure)


def draw_table(axis, table, title):
    names = list(next(iter(table.values()))["pooled"])
    cells = [[shown(scores["pooled"][n], 3) if n in scores["pooled"] else "-" for n in names] for scores in table.values()]
    axis.axis("off")
    drawn = axis.table(cells, rowLabels=list(table), colLabels=names, loc="center", cellLoc="right", edges="horizontal", bbox=(0.24, 0.1, 0.76, 0.75))
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_edgecolor("0.8")
        cell.get_text().set_fontweight("bold" if line == 1 else "normal")
    axis.set_title(title, fontsize=11, parse_math=False)


def draw_curves(axis, runs):
    for i, run in enumerate(runs):
        epochs, best = [h["epoch"] for h in run["history"]], best_epoch(run["history"])
        axis.plot(epochs, [h["train_loss"] for h in run["history"]], color="C0", lw=1, label=None if i else "train")
        axis.plot(epochs, [h["val_loss"] for h in run["history"]], color="C1", lw=1, label=None if i else "validation")
        axis.plot(best["epoch"], best["val_loss"], "o", color="C1", ms=5, label=None if i else "epoch kept")
    axis.set(title="loss", xlabel="epoch")
    axis.legend(frameon=False, fontsize=8)


def best_epoch(history):
    """Return the epoch of lowest validation loss; ties take the later one, as in the paper."""
    return min(reversed(history), key=lambda h: (not math.isfinite(h["val_loss"]), h["val_loss"]))


def draw_errors(axis, data, tested):
    """Draw the distribution of test errors, or of the probabilities given to each class."""
    truth = np.array([data.labels[row] for _, row in tested]).ravel()
    predicted = np.array([run["predicted"][row] for run, row in tested]).ravel()
    if data.task == "classification":
        for label in (0, 1):
            axis.hist(predicted[truth == label], bins=np.linspace(0, 1, 21), alpha=0.6, label=f"truth {label}")
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
    values = np.concatenate([[run["predicted"][row][t] for row in run["split"]["test"]] for run in runs])
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
    axis.set_title(f"{name[:40]}, test\n" + "   ".join(f"{k} {s['mean']:.3g}" for k, s in scores.items()), fontsize=9, parse_math=False)


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
        axis.imshow(render.to_rgb(pictures[row]))
        axis.set_title(f"row {row}" + (f", {data.targets[t][:16]}" if len(data.targets) > 1 else "") +
                       f"\ntruth {data.labels[row, t]:.3g}, predicted {value:.3g}", fontsize=9, parse_math=False)
