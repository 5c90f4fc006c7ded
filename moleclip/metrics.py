"""How good predictions are: metrics of one seed, their summary over seeds, and their table."""

import math

import click
import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn import metrics as skm

from moleclip.files import save_table


def score(truth, predicted, task):
    """Return the metrics of one target as a dict; one that is undefined is left out.

    truth: 1-d, NaN where unknown; predicted: 1-d.
    """
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
    """Return {"pooled": {...}, "targets": {name: {...}}} of arrays (n, targets).

    Pooled MAE and RMSE are over all known labels, the others are means over the targets for
    which they are defined.
    """
    each = {name: score(truth[:, t], predicted[:, t], task) for t, name in enumerate(targets)}
    pooled = {}
    for name in {name: None for scores in each.values() for name in scores}:
        values = [scores[name] for scores in each.values() if name in scores]
        pooled[name] = float(np.mean(values))
        if len(values) < len(targets):
            pooled[f"{name} defined for"] = len(values)
    if task == "regression":
        every = score(truth.ravel(), predicted.ravel(), task)
        pooled |= {name: every[name] for name in ("MAE", "RMSE") if name in every}
    return {"pooled": pooled, "targets": each}


def summarise(values):
    """Return {"mean", "sd", "ci95", "seeds"} of a metric's values over seeds.

    ci95: half the width of the 95% t-interval; sd and ci95 are None for one seed.
    """
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"mean": mean, "sd": None, "ci95": None, "seeds": 1}
    sd = float(np.std(values, ddof=1))
    half = float(student.ppf(0.975, n - 1) * sd / math.sqrt(n))
    return {"mean": mean, "sd": sd, "ci95": half, "seeds": n}


def summarise_all(scores):
    """Return {metric: summary} of one dict of metrics for each seed."""
    names = {name: None for each in scores for name in each if "defined" not in name}
    return {name: summarise([each[name] for each in scores if name in each]) for name in names}


def over_seeds(runs):
    """Return {method: {"pooled": {metric: summary}, "targets": {target: {metric: summary}}}}.

    runs: what each seed's metrics.json holds. Only methods that all of them have.
    """
    table = {}
    for method, first in runs[0]["test"].items():
        if all(method in run["test"] for run in runs):
            scores = [run["test"][method] for run in runs]
            table[method] = {
                "pooled": summarise_all([each["pooled"] for each in scores]),
                "targets": {
                    name: summarise_all([each["targets"][name] for each in scores])
                    for name in first["targets"]
                },
            }
    return table


def mean_ci(summary, digits=4):
    """Return a summary as text: mean ± half the 95% interval."""
    interval = "" if summary["ci95"] is None else f" ± {summary['ci95']:.2g}"
    return f"{summary['mean']:.{digits}g}{interval}"


def print_table(table, seeds):
    """Print each method's pooled test metrics, a line each, then this model's for each target."""
    names = list(next(iter(table.values()))["pooled"])
    title = "test part" + (f", mean ± 95% of {seeds} seeds" if seeds > 1 else "")
    rows = [(method, scores["pooled"]) for method, scores in table.items()]
    model, scores = next(iter(table.items()))
    if len(scores["targets"]) > 1:
        rows += [(f"  {target}"[:40], found) for target, found in scores["targets"].items()]
    wide = max(len(title), *(len(name) for name, _ in rows)) + 2
    cells = [[mean_ci(found[n]) if n in found else "-" for n in names] for _, found in rows]
    widths = [max(16, *(len(row[i]) for row in cells)) + 2 for i in range(len(names))]

    def print_line(first, row):
        columns = [f"{cell:>{width}s}" for cell, width in zip(row, widths)]
        click.echo(f"{first:{wide}s}" + "".join(columns))

    click.echo()
    print_line(title, names)
    for place, ((name, _), row) in enumerate(zip(rows, cells)):
        if place == len(table):
            click.echo(f"{model}, each target")
        print_line(name, row)


def save_scores(path, table):
    """Write scores.csv: a line for each method, target ("" for all pooled) and metric."""
    keys, lines = ("mean", "sd", "ci95"), []
    for method, scores in table.items():
        for target, found in [("", scores["pooled"]), *scores["targets"].items()]:
            for name, summary in found.items():
                values = ["" if summary[key] is None else f"{summary[key]:.6g}" for key in keys]
                lines.append([method, target, name, *values, summary["seeds"]])
    save_table(path, ["method", "target", "metric", *keys, "seeds"], lines)


def best_epoch(history):
    """Return the epoch of lowest validation loss; ties take the later one, as in the paper."""
    return min(reversed(history), key=lambda h: (not math.isfinite(h["val_loss"]), h["val_loss"]))
