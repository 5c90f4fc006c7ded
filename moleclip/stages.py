"""A run in two stages, frozen heads first and finetuning after them, and which of them is kept.

The validation part decides. There a finetuned model stands against the frozen head of the same
kind as the chosen one that learned from the training part alone: neither took a weight from it.
"""

import csv
import math

import numpy as np

from moleclip.choice import Study, predict_with
from moleclip.files import save_table
from moleclip.runs import number_text
from moleclip.table import LabelScale

FEWEST = 20  # validation molecules below which nothing is decided, and the frozen head stays
VALIDATED = "validation.csv"  # in a seed's folder: what `save_validation` writes


def too_few(splits):
    """Return why validation parts can't decide, or "". splits: {seed: split}."""
    count = min(len(split["val"]) for split in splits.values())
    if count >= FEWEST:
        return ""
    return (
        f"{count} validation molecules are fewer than {FEWEST}, too few to tell whether finetuning "
        "gains anything; --head mlp finetunes all the same"
    )


def without_validation(study, candidate):
    """Return predictions of the validation part, (n, targets), by a head of the training part.

    An MLP's epochs are chosen by the validation part, as a finetuned model's are.
    """
    rows, alone = study.split["val"], study
    if candidate.kind != "mlp":
        parts = (study.split | {"val": []}, study.seed, study.kind)
        given = (study.embedding, study.counts, study.rates, study.encoded)
        alone = Study(study.data, *parts, *given)
    return predict_with(alone.fit(candidate).head, *study.of(candidate.inputs, rows))[0]


def save_validation(folder, data, rows, predicted):
    """Write validation.csv of predictions (rows, targets) by a head of the training part."""
    header = ["row", *(f"predicted_{name}" for name in data.targets)]
    lines = [[row, *map(number_text, values)] for row, values in zip(rows, predicted)]
    save_table(folder / VALIDATED, header, lines)


def read_validation(folder):
    """Return {row: predictions (targets,)} of a folder's validation.csv."""
    with open(folder / VALIDATED, newline="") as stream:
        _, *lines = csv.reader(stream)
    return {int(row): np.array(values, float) for row, *values in lines}


def row_losses(data, split, predicted):
    """Return {row: loss} of predictions {row: (targets,)} of the validation part.

    Absolute error in standard deviations of training's labels, or cross entropy; the mean over a
    row's known labels.
    """
    unit, found = LabelScale.of(data.labels[split["train"]]).std, {}
    for row in split["val"]:
        apart = np.abs(data.labels[row] - predicted[row])
        known = ~np.isnan(apart)
        losses = apart / unit
        if data.task == "classification":
            losses = -np.log(np.clip(1 - apart, 1e-7, 1))
        if known.any():
            found[row] = float(losses[known].mean())
    return found


def decide(data, frozen, finetuned):
    """Return what metrics.json says of which is kept, "finetuned" or "frozen", and why.

    frozen, finetuned: for each seed (split, {row: (targets,)}) of validation rows. Finetuned is
    kept if its loss is lower by more than one standard error of the mean of paired differences.
    A molecule that several seeds validate on counts once, with the mean of its losses.
    """
    pairs = {}
    for (split, before), (_, after) in zip(frozen, finetuned):
        one, other = (row_losses(data, split, told) for told in (before, after))
        for row in one:
            pairs.setdefault(row, []).append((one[row], other[row]))
    losses = np.array([np.mean(found, 0) for found in pairs.values()])
    (before, after), gains = losses.mean(0), losses[:, 0] - losses[:, 1]
    error = float(gains.std(ddof=1) / math.sqrt(len(gains)))
    kept = bool(gains.mean() > error)
    loss = "cross entropy" if data.task == "classification" else "MAE in SD of the label"
    why = (
        f"on {len(gains)} validation molecules the {loss} of the finetuned model is {after:.4g}, "
        f"of the frozen head {before:.4g}; the difference of {before - after:.3g} is "
        f"{'more' if kept else 'not more'} than its standard error of {error:.2g}"
    )
    facts = {"loss": loss, "frozen": float(before), "finetuned": float(after)}
    facts |= {"standard_error": error, "molecules": len(gains)}
    return {"kept": "finetuned" if kept else "frozen", "why": why} | facts
