"""Counted words and fragments beside the encoders of texts and molecules.

What is counted comes into a side's features by a learned map ("maps"), and has a place of its own
by canonical correlation ("cca"), which learns in a moment and overfits less than a network.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moleclip.correlation import correlate
from moleclip.texts import LARGE

MAPPED, JOINT = 64, 256  # numbers of a map, and of a place
LOST = 0.2  # part of what is counted that a map doesn't see in training


class Counted(nn.Module):
    """What is counted on one side, float32 (n, size), as features and as places."""

    def __init__(self, size, beside):
        super().__init__()
        self.map = self.cca = None
        if "maps" in beside:
            self.map, self.norm = nn.Linear(size, MAPPED), nn.LayerNorm(MAPPED)
            nn.init.normal_(self.map.weight, 0, 1 / LARGE)
        if "cca" in beside:
            self.cca = nn.Linear(size, JOINT).requires_grad_(False)
            nn.init.zeros_(self.cca.weight)
            nn.init.zeros_(self.cca.bias)

    def mapped(self, counts):
        """Return features, (n, MAPPED)."""
        return F.gelu(self.norm(self.map(F.dropout(counts, LOST, self.training))))

    def placed(self, counts):
        """Return places, (n, JOINT), of length 1."""
        return F.normalize(self.cca(counts), dim=1)


@torch.no_grad()
def fit_places(one, other, counts, others):
    """Set the canonical correlation of two Counted by n pairs of rows, float32 (n, size) each.

    The first side's rows are centred.
    """
    middle = counts.mean(0)
    pairs = (F.normalize(rows, dim=1).numpy() for rows in (counts - middle, others))
    for side, weights in zip((one, other), map(torch.from_numpy, correlate(*pairs, JOINT))):
        side.cca.weight.zero_()
        # only directions count: large numbers keep their digits in half precision
        side.cca.weight[: weights.shape[1]] = weights.T / weights.abs().max()
    one.cca.bias.copy_(-(one.cca.weight @ middle))
