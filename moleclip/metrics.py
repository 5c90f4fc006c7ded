"""TODO"""

import math

import click
import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn import metrics as skm

from moleclip.files import save_table


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
        pooled |= {
            k: v
            for k, v in score(truth.ravel(), predicted.ravel(), task).items()
            if k in ("MAE", "RMSE")
        }
    return {"pooled": pooled, "targets": each}


def summarise(values):
    """Return mean, SD, and the half width of the 95% t-interval of a metric's values over seeds (None for one seed)."""
    n, mean = len(values), float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if n > 1 else None
    return {
        "mean": mean,
        "sd": sd,
        "ci95": float(student.ppf(0.975, n - 1) * sd / math.sqrt(n)) if n > 1 else None,
        "seeds": n,
    }


def over_seeds(runs):
    """Return {method: {"pooled": {metric: summary}, "targets": {target: {metric: summary}}}} of runs' metrics.json."""
    table = {}
    for method, first in runs[0]["test"].items():
        if not all(method in run["test"] for run in runs):
            continue
        places = [("pooled", None)] + [("targets", name) for name in first["targets"]]
        table[method] = {"pooled": {}, "targets": {}}
        for part, target in places:
            scores = [
                run["test"][method][part] if target is None else run["test"][method][part][target]
                for run in runs
            ]
            names = {name: None for each in scores for name in each if "defined" not in name}
            found = {
                name: summarise([each[name] for each in scores if name in each]) for name in names
            }
            if target is None:
                table[method][part] = found
            else:
                table[method][part][target] = found
    return table


def mean_ci(summary, digits=4):
    return f"{summary['mean']:.{digits}g}" + (
        f" ± {summary['ci95']:.2g}" if summary["ci95"] is not None else ""
    )


def print_table(table, seeds):
    """Print one line a method with its pooled test metrics, and this model's line for each target."""
    names = list(next(iter(table.values()))["pooled"])
    title = "test part" + (f", mean ± 95% of {seeds} seeds" if seeds > 1 else "")
    rows = [(method, scores["pooled"]) for method, scores in table.items()]
    model, scores = next(iter(table.items()))
    if len(scores["targets"]) > 1:
        rows += [(f"  {target}"[:40], found) for target, found in scores["targets"].items()]
    wide = max(len(title), *(len(name) for name, _ in rows)) + 2
    cells = [[mean_ci(found[n]) if n in found else "-" for n in names] for _, found in rows]
    widths = [max(16, *(len(row[i]) for row in cells)) + 2 for i in range(len(names))]
    click.echo(
        f"\n{title:{wide}s}" + "".join(f"{name:>{width}s}" for name, width in zip(names, widths))
    )
    for place, ((name, _), row) in enumerate(zip(rows, cells)):
        if place == len(table):
            click.echo(f"{model}, each target")
        click.echo(
            f"{name:{wide}s}" + "".join(f"{cell:>{width}s}" for cell, width in zip(row, widths))
        )


def save_scores(path, table):
    """Write scores.csv: one line for each method, target ("" for all pooled) and metric."""
    lines = []
    for method, scores in table.items():
        for target, found in [("", scores["pooled"]), *scores["targets"].items()]:
            lines += [
                [
                    method,
                    target,
                    name,
                    *("" if s[key] is None else f"{s[key]:.6g}" for key in ("mean", "sd", "ci95")),
                    s["seeds"],
                ]
                for name, s in found.items()
            ]
    save_table(path, ["method", "target", "metric", "mean", "sd", "ci95", "seeds"], lines)


def best_epoch(history):
    """Return the epoch of lowest validation loss; ties take the later one, as in the paper."""
    return min(reversed(history), key=lambda h: (not math.isfinite(h["val_loss"]), h["val_loss"]))
