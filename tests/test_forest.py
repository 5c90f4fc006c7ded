"""The forest in tensors says what scikit-learn's trees say."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from moleclip import forest
from moleclip.features import count_fingerprints
from moleclip.forest import fit_forest, grow, rounded_down
from moleclip.table import Data, LabelScale


def test_tensors_say_what_the_trees_say(monkeypatch):
    """Two targets of one pattern and one of another, on counts and on real numbers."""
    monkeypatch.setattr(forest, "TREES", 12)
    data = Data(str(ROOT / "data" / "esol.csv"))
    counts = torch.from_numpy(count_fingerprints(data.smiles[:60]))
    random = np.random.default_rng(0)
    embedding = torch.from_numpy(random.standard_normal((60, 8))).float()
    one = data.labels[:60]
    labels = np.concatenate([one, one**2, one + 1], 1)
    labels[::3, 2] = np.nan
    folds = np.arange(60) % 5
    head, scores, spreads = fit_forest(embedding, counts, labels, folds, "regression", 1)
    assert np.isnan(scores[::3, 2]).all() and (np.nan_to_num(spreads, nan=1) > 0).all()
    with torch.no_grad():
        mean, spread = (x.numpy() for x in head(embedding, counts))
    inputs = np.concatenate([embedding.numpy(), counts.numpy()], 1)
    scale = LabelScale.of(labels)
    values = scale.standardise(labels)  # the last digit decides between branchings as good
    for rows, targets in ((np.arange(60), [0, 1]), (np.flatnonzero(np.arange(60) % 3), [2])):
        trees = grow(inputs[rows], values[np.ix_(rows, targets)], 12, 1)
        told = np.stack([tree.predict(inputs).reshape(60, -1) for tree in trees])
        wanted = told.mean(0) * scale.std[targets] + scale.mean[targets]
        assert mean[:, targets] == pytest.approx(wanted, abs=1e-4)
        assert (spread[:, targets] >= told.std(0) * scale.std[targets] - 1e-4).all()


def test_thresholds_part_the_same_numbers_in_float32():
    random = np.random.default_rng(0)
    low = random.standard_normal(1000).astype(np.float32)
    high = np.nextafter(low, np.float32(np.inf))
    between = (low.astype(float) + high.astype(float)) / 2
    rounded = rounded_down(between)
    assert rounded.dtype == np.float32 and (low <= rounded).all() and (high > rounded).all()
