"""How sure a prediction is: intervals from held-out residuals, probabilities from scores.

Conformal prediction: an interval is as wide as the errors were on molecules that a model had not
learned from (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005). Errors are
divided by the head's own spread first, so that it decides which molecules get the wider ones (Lei,
G'Sell, Rinaldo, Tibshirani, Wasserman, JASA 2018, 113, 1094, section 5.2). Errors of five folds
are taken together, as CV+ does (Barber, Candes, Ramdas, Tibshirani, Ann. Stat. 2021, 49, 486),
around the prediction of the one model that learned from all; CV+'s own bound would need the five.
"""

import math

import numpy as np

LEVEL = 0.9  # of the intervals in a run folder, and of predict.py where it is not told
LEAST = 20  # held-out labels below which there are no intervals
KEPT = 1000  # scores of a target that a file keeps
BINS = 10  # of the calibration error


def conformal_scores(truth, predicted, spread):
    """Return for each target the sorted |truth - predicted| / spread of known labels, as lists.

    All: (n, targets), truth NaN where unknown; predictions are of models that had not learned from
    the row, NaN where there are none, as of an MLP for most rows. At most KEPT scores, evenly among
    the ranks and the largest; none below LEAST of them.
    """
    scores = []
    for t in range(truth.shape[1]):
        known = ~np.isnan(truth[:, t]) & ~np.isnan(predicted[:, t])
        found = np.sort(np.abs(truth[known, t] - predicted[known, t]) / spread[known, t])
        if len(found) > KEPT:
            found = found[np.linspace(0, len(found) - 1, KEPT).round().astype(int)]
        scores.append([float(f"{x:.6g}") for x in found] if len(found) >= LEAST else [])
    return scores


def half_widths(scores, level):
    """Return by how many spreads an interval reaches to each side, float64 (targets,).

    scores: of `conformal_scores`. It holds a share `level` of molecules like those that the scores
    are of: the ceil((n + 1) level)-th smallest score. NaN where so few scores can't tell.
    """
    widths = np.full(len(scores), np.nan)
    for t, found in enumerate(scores):
        rank = math.ceil((len(found) + 1) * level)
        if 0 < rank <= len(found):
            widths[t] = found[rank - 1]
    return widths


def pooled(members):
    """Return the scores of several models' conformal scores, taken together by target.

    A target has some only where each member has.
    """
    joined = []
    for lists in zip(*members):
        found = np.sort(np.concatenate([np.array(each) for each in lists]))
        if len(found) > KEPT:
            found = found[np.linspace(0, len(found) - 1, KEPT).round().astype(int)]
        joined.append(found.tolist() if all(map(len, lists)) else [])
    return joined


def platt(scores, labels):
    """Return (slope, offset) so that sigmoid(slope score + offset) is a probability.

    scores, labels: (n,), of 0 and 1. Platt, Advances in Large Margin Classifiers 1999, with his
    smoothed targets; Newton's method as Lin, Lin, Weng, Machine Learning 2007, 68, 267. The slope
    is never negative.
    """
    ups, downs = (labels == 1).sum(), (labels == 0).sum()
    target = np.where(labels == 1, (ups + 1) / (ups + 2), 1 / (downs + 2))
    inputs = np.stack([scores, np.ones(len(scores))], 1)
    found = np.array([0.0, math.log((ups + 1) / (downs + 1))])

    def loss(at):
        logits = inputs @ at
        return (np.logaddexp(0, logits) - target * logits).sum()

    for _ in range(100):
        chance = 1 / (1 + np.exp(-(inputs @ found)))
        slope = inputs.T @ (chance - target)
        curve = inputs.T @ (inputs * (chance * (1 - chance))[:, None]) + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(curve, slope), 1.0
        while size > 1e-6 and loss(found - size * step) > loss(found) - 1e-4 * size * slope @ step:
            size /= 2
        found = found - size * step
        if np.abs(slope).max() < 1e-6 * len(scores):
            break
    if found[0] < 0:  # worse than chance: no score is better than one that misleads
        return 0.0, math.log((ups + 1) / (downs + 1))
    return float(found[0]), float(found[1])


def platt_each(scores, labels):
    """Return (slopes, offsets) of `platt` for each target, of labels (n, targets), NaN: unknown."""
    pairs = []
    for told, wanted in zip(scores.T, labels.T):
        known = ~np.isnan(wanted)
        pairs.append(platt(told[known], wanted[known]))
    slopes, offsets = np.array(pairs).T
    return slopes, offsets


def interval_facts(truth, predicted, half):
    """Return {"coverage", "width"} of intervals predicted +- half on known labels, {} without any.

    All (n, targets), NaN where unknown. width: the mean, in the label's unit.
    """
    known = ~np.isnan(truth) & ~np.isnan(half)
    if not known.any():
        return {}
    inside = np.abs(truth - predicted)[known] <= half[known]
    return {"coverage": float(inside.mean()), "width": float(2 * half[known].mean())}


def calibration_curve(truth, predicted, spread, scores):
    """Return [[wanted, found], ...] of test predictions, (n, targets), for a plot.

    Shares of labels inside intervals of each level by conformal scores; without scores, of classes,
    mean probability and share of positives in bins of like size.
    """
    known, curve = ~np.isnan(truth), []
    if scores is None:
        order = np.argsort(predicted[known], kind="stable")
        for part in np.array_split(order, min(BINS, len(order))):
            curve.append([float(x[known][part].mean()) for x in (predicted, truth)])
        return curve
    for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        half = half_widths(scores, level) * spread
        found = interval_facts(truth, predicted, half)
        if found:
            curve.append([level, found["coverage"]])
    return curve


def class_facts(truth, chance):
    """Return {"Brier", "calibration error"} of probabilities, (n, targets); {} without labels.

    The calibration error is the mean distance of probability and share of positives in BINS bins of
    like size (Naeini, Cooper, Hauskrecht, AAAI 2015, there of like width).
    """
    known = ~np.isnan(truth)
    truth, chance = truth[known], chance[known]
    if not len(truth):
        return {}
    order = np.argsort(chance, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    apart = sum(abs(truth[part].mean() - chance[part].mean()) * len(part) for part in parts)
    brier = float(((truth - chance) ** 2).mean())
    return {"Brier": brier, "calibration error": float(apart / len(truth))}
