"""Canonical correlation."""

import numpy as np

from moleclip.correlation import correlate


def test_correlation_finds_what_two_sides_share():
    random = np.random.default_rng(0)
    shared = random.normal(size=(400, 3))
    sides = [
        np.hstack([shared @ random.normal(size=(3, 5)), random.normal(size=(400, n))])
        for n in (40, 500)  # fewer columns than rows, and more
    ]
    sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    one, other = (side[:300] @ w for side, w in zip(sides, correlate(*(s[:300] for s in sides), 3)))
    both = np.corrcoef(one.T, other.T)[:3, 3:]
    assert np.diag(both).min() > 0.8 and np.abs(both - np.diag(np.diag(both))).max() < 0.2
