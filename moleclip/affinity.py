"""Pairs of molecule and protein: what is held out together, and how well they are put in order."""

import numpy as np

from moleclip.molecules import canonical, scaffold


def held_out_groups(data, rows, split):
    """Return these rows in groups that folds hold out whole, in the order of first rows.

    As the split's test part is: whole scaffolds where it shares none with training, else whole
    molecules, else whole proteins, else pairs.
    """
    smiles, names = data.smiles, data.proteins
    for key in (
        lambda row: scaffold(smiles[row]),
        lambda row: canonical(smiles[row]),
        lambda row: names[row],
        lambda row: (canonical(smiles[row]), names[row]),
    ):
        if not {key(row) for row in split["train"]} & {key(row) for row in split["test"]}:
            break
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def concordance(truth, predicted):
    """Return the concordance index of predictions (n,), NaN where all of the truth is the same.

    The share of pairs with different truth that are predicted in the right order; a pair that is
    predicted alike counts half (Gonen, Heller, Biometrika 2005, 92, 965). Exact.
    """
    told = np.unique(predicted, return_inverse=True)[1].ravel()
    known = np.unique(truth, return_inverse=True)[1].ravel()
    both = known * (told.max() + 1) + told
    different = tied_pairs(np.zeros(len(known))) - tied_pairs(known)
    if not different:
        return float("nan")
    # of equal truth the highest prediction first, so that no pair of those seems to rise
    rising = rising_pairs(told[np.lexsort((-told, known))])
    alike = tied_pairs(told) - tied_pairs(both)
    return (rising + alike / 2) / different


def tied_pairs(values):
    """Return how many pairs of values (n,) are equal."""
    counts = np.unique(values, return_counts=True)[1].astype(object)  # of any size
    return int((counts * (counts - 1) // 2).sum())


def rising_pairs(ranks):
    """Return how many pairs of ranks (n,), whole numbers from 0, have the lower one before.

    By merging sorted blocks of 1, 2, 4, ...; what fills the last up rises over nothing.
    """
    size = 1 << max(0, len(ranks) - 1).bit_length()
    filled = np.full(size, -1)
    filled[: len(ranks)] = ranks
    step, total, width = int(ranks.max()) + 2, 0, 1
    while width < size:
        blocks = filled.reshape(-1, 2, width)
        apart = np.arange(len(blocks))[:, None] * step  # a block's numbers lie above those before
        left, right = (blocks[:, i] + 1 + apart for i in (0, 1))
        below = np.searchsorted(left.ravel(), right.ravel(), "left").reshape(right.shape)
        total += int((below - np.arange(len(blocks))[:, None] * width).sum())
        filled, width = np.sort(filled.reshape(-1, 2 * width), 1, "stable").ravel(), 2 * width
    return total
