"""How good predictions are: metrics of one seed, their summary over seeds, and their table."""

import math

import click
import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn import metrics as skm

from moleclip.affinity import concordance
from moleclip.files import save_table

MAIN = {"regression": "MAE", "classification": "ROC-AUC"}  # what methods are compared by
MODEL = "this model"
FROZEN = "frozen head"  # beside a model that was finetuned after it: no baseline


def score(truth, predicted, task, paired=False):
    """Return the metrics of one target as a dict; one that is undefined is left out.

    truth: 1-d, NaN where unknown; predicted: 1-d; paired: those that affinities have, too.
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
        if paired:
            result["MSE"] = skm.mean_squared_error(truth, predicted)
            if np.ptp(truth) > 0:
                result["concordance"] = concordance(truth, predicted)
    return {name: float(value) for name, value in result.items()}


def score_all(truth, predicted, targets, task, unit=1.0, paired=False):
    """Return {"pooled": {...}, "targets": {name: {...}}} of arrays (n, targets).

    Pooled MAE, RMSE and MSE are over all known labels, in `unit` (targets,) of each; the others are
    means over the targets for which they are defined.
    """
    columns = zip(targets, truth.T, predicted.T)
    each = {name: score(wanted, told, task, paired) for name, wanted, told in columns}
    pooled = {}
    for name in {name: None for scores in each.values() for name in scores}:
        values = [scores[name] for scores in each.values() if name in scores]
        pooled[name] = float(np.mean(values))
        if len(values) < len(targets):
            pooled[f"{name} defined for"] = len(values)
    if task == "regression":
        every = score((truth / unit).ravel(), (predicted / unit).ravel(), task, paired)
        pooled |= {name: every[name] for name in ("MAE", "RMSE", "MSE") if name in every}
    return {"pooled": pooled, "targets": each}


def against_mean(known, truth, predicted, task):
    """Return a model's error divided by that of always saying the mean of `known`.

    known, truth, predicted: labels (n, targets) of training and of another part; rows without a
    prediction, NaN, are left out. The error is MAE or cross entropy, the result a mean over
    targets; None where a part has one class.
    """
    ratios = []
    for t, column in enumerate(truth.T):
        there = ~np.isnan(column) & ~np.isnan(predicted[:, t])
        values, mean = column[there], np.nanmean(known[:, t])
        if task == "classification" and len(set(values)) < 2:
            continue
        plain = mean_error(values, np.full(len(values), mean), task) if len(values) else 0
        if plain:
            ratios.append(mean_error(values, predicted[there, t], task) / plain)
    return float(np.mean(ratios)) if ratios else None


def mean_error(truth, predicted, task):
    """Return the mean absolute error, or the cross entropy of probabilities."""
    if task == "regression":
        return np.abs(truth - predicted).mean()
    right = np.where(truth == 1, predicted, 1 - predicted)
    return -np.log(np.clip(right, 1e-7, 1)).mean()


def bootstrap(truth, methods, task, unit=1.0):
    """Return {baseline: {"mean", "low", "high"}}: how far the first method's score is from its.

    low and high bound 95% of the differences over resampled test molecules.
    """
    result = {}
    for name, (mean, *drawn) in differences(truth, methods, task, unit).items():
        drawn = np.array(drawn)[~np.isnan(drawn)]
        if len(drawn) and not np.isnan(mean):
            low, high = np.percentile(drawn, [2.5, 97.5])
            result[name] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return result


def differences(truth, methods, task, unit=1.0):
    """Return {baseline: the first method's score less its, (1 + draws,)}.

    The first is of the test molecules as they are, the others of resampled ones, the same for all.
    The score is MAIN's, pooled. truth, and each method's predictions: (n, targets).
    """
    draws = int(np.clip(2e7 / len(truth), 200, 1000))
    random = np.random.default_rng(0)
    weights = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), draws)
    weights = np.concatenate([np.ones((1, len(truth))), weights])
    found = {name: resampled(truth, each, weights, task, unit) for name, each in methods.items()}
    first, *others = found
    return {name: found[first] - found[name] for name in others}


def resampled(truth, predicted, weights, task, unit):
    """Return the pooled MAE or mean ROC-AUC under each row of weights (draws, n), (draws,)."""
    if task == "regression":
        errors, known = np.abs((predicted - truth) / unit), ~np.isnan(truth)
        return weights @ np.nansum(errors, 1) / np.maximum(weights @ known.sum(1), 1)
    areas = [
        area(column[there], predicted[there, t], weights[:, there])
        for t, column in enumerate(truth.T)
        for there in [~np.isnan(column)]
        if len(set(column[there])) == 2
    ]
    return np.mean(areas, 0) if areas else np.full(len(weights), np.nan)


def area(truth, predicted, weights):
    """Return the ROC-AUC under each row of weights (draws, n), NaN where one class has none."""
    order = np.argsort(predicted)
    starts = np.unique(predicted[order], return_index=True)[1]
    ranked, positive = weights[:, order], truth[order] == 1
    ups = np.add.reduceat(ranked * positive, starts, axis=1)
    downs = np.add.reduceat(ranked * ~positive, starts, axis=1)
    won = (ups * (np.cumsum(downs, 1) - downs / 2)).sum(1)
    pairs = ups.sum(1) * downs.sum(1)
    return np.where(pairs > 0, won / np.maximum(pairs, 1e-9), np.nan)


def difference(runs, task, fixed=False):
    """Return {"metric", "baseline", "mean", "low", "high", "over"}: model less best baseline.

    runs: what each seed's metrics.json holds. Over seeds, each of which compares on one split; of
    one seed over its test molecules. None if there is nothing to compare with.
    """
    metric, pooled = MAIN[task], {}
    for name in runs[0]["test"]:
        values = [run["test"].get(name, {}).get("pooled", {}).get(metric) for run in runs]
        if None not in values:
            pooled[name] = np.array(values)
    baselines = [name for name in pooled if name not in (MODEL, FROZEN)]
    if MODEL not in pooled or not baselines:
        return None
    sign = 1 if task == "regression" else -1
    best = min(baselines, key=lambda name: sign * pooled[name].mean())
    facts = {"metric": metric, "baseline": best}
    if len(runs) == 1:
        drawn = runs[0].get("bootstrap", {}).get(best)
        return drawn and facts | drawn | {"over": "its test molecules, resampled"}
    over = "trainings on one split" if fixed else "seeds"
    found = summarise((pooled[MODEL] - pooled[best]).tolist())
    bounds = {"low": found["mean"] - found["ci95"], "high": found["mean"] + found["ci95"]}
    return facts | {"mean": found["mean"], **bounds, "over": f"{len(runs)} {over}"}


def summarise(values):
    """Return {"mean", "sd", "ci95", "seeds"} of a metric's values over seeds.

    ci95: half the width of the 95% t-interval; sd and ci95 are None for one seed.
    """
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"mean": mean, "sd": None, "ci95": None, "seeds": 1}
    sd = float(np.std(values, ddof=1)) if np.ptp(values) > 1e-12 * abs(mean) else 0.0
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


def mean_ci(summary, digits=4, seeds=None):
    """Return a summary as text: mean ± half the 95% interval; of how many seeds if not of all."""
    interval = "" if summary["ci95"] is None else f" ± {summary['ci95']:.2g}"
    count = f" ({summary['seeds']})" if seeds and summary["seeds"] != seeds else ""
    return f"{summary['mean']:.{digits}g}{interval}{count}"


def counted(table):
    """Return of how many seeds a table's numbers are, at most."""
    return max(
        [found["seeds"] for scores in table.values() for found in scores["pooled"].values()] or [1]
    )


def table_title(table, fixed=False):
    """Return what the numbers of a table are. fixed: all seeds have the same split."""
    seeds = counted(table)
    if seeds == 1:
        return "test part"
    over = "trainings on one split" if fixed else "seeds"
    return f"test part, mean ± 95% of {seeds} {over}"


def print_table(table, fixed=False, unit="", compared=None):
    """Print each method's pooled test metrics, each target's main one, and what differs.

    fixed: all seeds have the same split. unit: of pooled errors. compared: of `difference`.
    """
    methods, seeds = list(table), counted(table)
    click.echo()
    print_lines(table_title(table, fixed), {name: table[name]["pooled"] for name in methods}, seeds)
    targets = table[methods[0]]["targets"]
    if unit:
        click.echo(f"MAE and RMSE are in {unit}")
    if len(targets) > 1:
        main = [name for name in MAIN.values() if name in table[methods[0]]["pooled"]]
        lines = {
            target: {name: table[name]["targets"][target].get(main[0]) for name in methods}
            for target in (targets if main else ())
        }
        click.echo()
        print_lines(f"{main[0] if main else ''} of each target", lines, seeds)
    if compared:
        click.echo(f"\n{difference_text(compared)}")
    if fixed and seeds > 1:
        click.echo("the split is fixed: the intervals are of training alone, not of the molecules")


def difference_text(found):
    """Return what `difference` found, in a line."""
    span = f"{found['low']:+.3g} to {found['high']:+.3g}"
    shown = "" if found["low"] > 0 or found["high"] < 0 else ": no difference is shown"
    return (
        f"{MODEL} less {found['baseline']}, {found['metric']}: {found['mean']:+.3g}, "
        f"95% {span} over {found['over']}{shown}"
    )


def print_lines(title, lines, seeds):
    """Print {name: {column: summary or None}}, a line each."""
    names = list({name: None for found in lines.values() for name in found})
    rows = [[title, *names]]
    for first, found in lines.items():
        cells = [mean_ci(found[n], seeds=seeds) if found.get(n) else "-" for n in names]
        rows.append([first[:40], *cells])
    widths = [max(map(len, column)) + 2 for column in zip(*rows)]
    for first, *cells in rows:
        columns = [f"{cell:>{max(18, width)}s}" for cell, width in zip(cells, widths[1:])]
        click.echo(f"{first:{widths[0]}s}" + "".join(columns))


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
