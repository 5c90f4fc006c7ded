"""What the training of one seed gave, measured on its test part."""

from dataclasses import dataclass, field

import numpy as np

from moleclip.calibration import (
    LEVEL,
    calibration_curve,
    class_facts,
    conformal_scores,
    half_widths,
    interval_facts,
)
from moleclip.metrics import MODEL, against_mean, best_epoch, bootstrap, score_all
from moleclip.table import LabelScale

DEVIATIONS = "standard deviations of each target's labels in training"


@dataclass
class SeedResult:
    """What the training of one seed gave."""

    seed: int
    split: dict  # {"train": [...], "val": [...], "test": [...]} of row numbers
    history: list  # one dict an epoch; of a head that cross-validation chose none
    predicted: dict  # {row: (targets,)} in the label's unit, as predictions.csv has them
    metrics: dict  # what metrics.json holds
    sure: dict = field(default_factory=dict)  # {"spread", "low", "high": {row: (targets,)}}
    intervals: dict = field(default_factory=dict)  # conformal scores, as model.pt has them

    def part_of(self):
        """Return {row: "train", "val" or "test"}."""
        return {row: part for part, rows in self.split.items() for row in rows}


def make_result(data, seed, split, history, predicted, compared):
    """Return the SeedResult of a model's predictions {row: (targets,)} after training.

    compared: {name: predictions of the test part, (n, targets)} of other methods. Intervals are by
    split conformal on the validation part, whose labels chose the epoch and nothing else.
    """
    best, known = best_epoch(history), data.labels[split["train"]]
    validated, truth = taken(predicted, split["val"]), data.labels[split["val"]]
    facts = {
        "seed": seed,
        "best_epoch": best["epoch"],
        "val_loss": best["val_loss"],
        "val_against_mean": against_mean(known, truth, validated, data.task),
    }
    intervals, sure = {}, {}
    if data.task == "regression":
        scores = conformal_scores(truth, validated, np.ones_like(validated))
        if any(scores):
            intervals = {"scores": scores, "normalised": False}
            sure = bounds_of(scores, predicted)
    return tested(data, split, history, predicted, compared, facts, sure, intervals)


def make_chosen_result(data, seed, split, predicted, spreads, chosen):
    """Return the SeedResult of a head that cross-validation chose, its Chosen.

    predicted, spreads: {row: (targets,)}.
    """
    truth = data.labels[sorted(split["train"] + split["val"])]
    facts = {
        "seed": seed,
        "best_epoch": None,
        "val_loss": chosen.facts["among"][chosen.facts["chosen"]],
        "val_against_mean": against_mean(truth, truth, chosen.held, data.task),
        "head": chosen.facts,
    }
    sure = {}
    if data.task == "regression":
        sure = {"spread": spreads} | bounds_of(chosen.intervals["scores"], predicted, spreads)
    split_facts = (facts, sure, chosen.intervals)
    return tested(data, split, [], predicted, chosen.compared, *split_facts)


def bounds_of(scores, predicted, spreads=None):
    """Return {"low", "high": {row: (targets,)}} of predictions {row: (targets,)}, at LEVEL."""
    widths = half_widths(scores, LEVEL)
    half = {row: widths if spreads is None else widths * spreads[row] for row in predicted}
    return {
        "low": {row: values - half[row] for row, values in predicted.items()},
        "high": {row: values + half[row] for row, values in predicted.items()},
    }


def taken(values, rows):
    """Return values {row: (targets,)} of some rows, (rows, targets)."""
    return np.stack([values[row] for row in rows])


def tested(data, split, history, predicted, compared, facts, sure, intervals):
    """Return the SeedResult of a model, measured on the test part. intervals: conformal scores."""
    truth, known = data.labels[split["test"]], data.labels[split["train"]]
    unit = 1.0 if data.one_column() else LabelScale.of(known).std
    methods = {MODEL: taken(predicted, split["test"])} | compared
    metrics = facts | {
        "pooled_unit": "the label's" if data.one_column() else DEVIATIONS,
        "test": {
            name: score_all(truth, values, data.targets, data.task, unit, bool(data.pairs))
            for name, values in methods.items()
        },
        "bootstrap": bootstrap(truth, methods, data.task, unit),
        "sizes": {part: len(rows) for part, rows in split.items()},
        "rejected": sum(map(bool, data.problems)),
    }
    told, pooled = methods[MODEL], metrics["test"][MODEL]["pooled"]
    if "low" in sure:
        low, high = (taken(sure[name], split["test"]) for name in ("low", "high"))
        pooled |= interval_facts(truth / unit, told / unit, (high - low) / 2 / unit)
    elif "head" in facts and data.task == "classification":
        pooled |= class_facts(truth, told)
    if pooled.keys() & {"coverage", "Brier"}:
        spread = np.ones_like(told)
        if "spread" in sure:
            spread = taken(sure["spread"], split["test"])
        scores = intervals.get("scores")
        metrics["calibration"] = calibration_curve(truth, told, spread, scores)
    # As read_result has them: an interrupted run aggregates the same.
    split = {part: sorted(rows) for part, rows in split.items()}
    rounded = [as_written(values) for values in (predicted, *sure.values())]
    sure = dict(zip(sure, rounded[1:]))
    return SeedResult(facts["seed"], split, history, rounded[0], metrics, sure, intervals)


def as_written(values):
    """Return {row: (targets,)} with the digits that predictions.csv has."""
    return {
        row: np.array([float(f"{value:.7g}") for value in each]) for row, each in values.items()
    }
