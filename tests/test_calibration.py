"""Intervals and probabilities: how wide, how often right, and what too few molecules can't tell."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moleclip.calibration import (
    class_facts,
    conformal_scores,
    half_widths,
    interval_facts,
    platt,
    pooled,
)


def test_the_rank_of_a_conformal_interval():
    """The ceil((n + 1) level)-th smallest score; below 20 labels, or beyond the last rank, none."""
    truth = np.stack([np.arange(1.0, 21), np.r_[np.arange(1.0, 20), np.nan]], 1)
    scores = conformal_scores(truth, np.zeros_like(truth), np.full_like(truth, 0.5))
    assert scores[0] == [2.0 * k for k in range(1, 21)] and scores[1] == []
    assert half_widths(scores, 0.9)[0] == 2 * 19 and half_widths(scores, 0.5)[0] == 2 * 11
    assert np.isnan(half_widths(scores, 0.99)).all()
    assert pooled([scores, scores])[0] == sorted(scores[0] * 2) and pooled([scores])[1] == []


def test_rows_without_a_held_out_prediction_are_not_scored():
    """An MLP has some for a tenth alone: 30 scores of 3,000 rows, none of them not-a-number."""
    truth, predicted = np.ones((3000, 1)), np.full((3000, 1), np.nan)
    predicted[::100, 0] = np.linspace(1, 2, 30)
    scores = conformal_scores(truth, predicted, np.ones_like(truth))
    assert scores[0] == pytest.approx(np.linspace(0, 1, 30), rel=1e-5)
    assert half_widths(scores, 0.9) == pytest.approx([scores[0][27]])


def test_intervals_hold_as_many_as_they_say():
    """Errors twice as large where the spread is: a fifth of a percent off 90% of 20,000."""
    random = np.random.default_rng(0)
    spread = random.choice([1.0, 2.0], (21000, 1))
    truth = spread * random.standard_normal((21000, 1))
    held, rest = slice(1000), slice(1000, None)
    scores = conformal_scores(truth[held], 0 * truth[held], spread[held])
    half = half_widths(scores, 0.9) * spread[rest]
    found = interval_facts(truth[rest], 0 * truth[rest], half)
    assert found["coverage"] == pytest.approx(0.9, abs=0.02)
    assert found["width"] == pytest.approx(2 * 1.645 * 1.5, rel=0.06)
    assert interval_facts(truth[rest], 0 * half, np.full_like(half, np.nan)) == {}


def test_platt_is_logistic_regression_on_smoothed_targets():
    random = np.random.default_rng(1)
    labels = (random.random(4000) < 0.3).astype(float)
    scores = labels + random.standard_normal(4000)
    slope, offset = platt(scores, labels)
    model = LogisticRegression(C=1e9).fit(scores[:, None], labels)
    assert slope == pytest.approx(model.coef_.item(), rel=0.02)
    assert offset == pytest.approx(model.intercept_.item(), rel=0.02)
    chance = 1 / (1 + np.exp(-(slope * scores + offset)))
    found = class_facts(labels[:, None], chance[:, None])
    assert found["calibration error"] < 0.03 and 0.1 < found["Brier"] < 0.2
    slope, offset = platt(-scores, labels)  # misleading scores are not turned round
    assert slope == 0 and 1 / (1 + np.exp(-offset)) == pytest.approx(labels.mean(), abs=0.01)
    slope, offset = platt(10 * labels, labels)  # nor is a separation made certain
    assert 0.99 < 1 / (1 + np.exp(-(10 * slope + offset))) < 1
