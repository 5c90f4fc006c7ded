"""The held-out folds of training and validation rows, by which heads are compared."""

import numpy as np

from moleclip.affinity import held_out_groups
from moleclip.splits import by_molecule, by_scaffold

TENTHS, FOLDS = 10, 5  # a fold is two tenths


def tenths_of(data, rows, kind, seed, split=None):
    """Return the tenth, 0 to 9, of each row, int (n,): whole molecules, whole scaffolds if asked.

    kind: of the split; split: of pairs, which are held out as its test part is. Groups are shuffled
    and, the largest first, each put where fewest are.
    """
    groups = groups_of(data, rows, kind) if split is None else held_out_groups(data, rows, split)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes, tenths = np.zeros(TENTHS), {}
    for i in sorted(order, key=lambda i: -len(groups[i])):
        least = int(np.argmin(sizes))
        sizes[least] += len(groups[i])
        tenths |= dict.fromkeys(groups[i], least)
    return np.array([tenths[row] for row in rows])


def groups_of(data, rows, kind):
    """Return the rows that a fold holds out whole: scaffolds if asked, or molecules.

    A scaffold of more than a tenth, often that of all molecules without a ring, is never tested
    by a scaffold split. Held out whole it would ask for more than the test part does: its
    molecules are dealt one by one.
    """
    if "scaffold" not in kind:
        return by_molecule(rows, data)
    groups = []
    for group in by_scaffold(rows, data.smiles):
        large = len(group) * TENTHS > len(rows)
        groups += by_molecule(group, data) if large else [group]
    return groups
