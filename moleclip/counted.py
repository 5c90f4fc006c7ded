"""Counted words and fragments beside the encoders of texts and molecules.

What is counted comes into a side's features by a learned map ("maps"), and has a place of its own
by canonical correlation ("cca"), which learns in a moment and overfits less than a network: alone
while the network learns, and in the end together with what both encoders have learned.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moleclip.correlation import correlate
from moleclip.texts import LARGE

MAPPED, JOINT = 64, 256  # numbers of a map, and of a place
LOST = 0.2  # part of what is counted that a map doesn't see in training


class Counted(nn.Module):
    """What is counted on one side, float32 (n, size), as features and as places.

    width: numbers of that side's encoder, which stand beside the counts where places are.
    """

    def __init__(self, size, width, beside):
        super().__init__()
        self.map = self.cca = None
        if "maps" in beside:
            self.map, self.norm = nn.Linear(size, MAPPED), nn.LayerNorm(MAPPED)
            nn.init.normal_(self.map.weight, 0, 1 / LARGE)
        if "cca" in beside:
            self.cca = nn.Linear(size + width, JOINT, bias=False).requires_grad_(False)
            nn.init.zeros_(self.cca.weight)
            self.register_buffer("middle", torch.zeros(size + width))
            self.register_buffer("spread", torch.ones(width))

    def mapped(self, counts):
        """Return features, (n, MAPPED)."""
        return F.gelu(self.norm(self.map(F.dropout(counts, LOST, self.training))))

    def joined(self, counts, known):
        """Return (n, size + width): counts and the encoder's numbers, each of length 1."""
        middles = self.middle.tensor_split([counts.shape[1]])
        parts = counts - middles[0], (known - middles[1]) / self.spread
        return torch.cat([F.normalize(part, dim=1) for part in parts], 1)

    def placed(self, counts, known):
        """Return places, (n, JOINT), of length 1."""
        return F.normalize(self.cca(self.joined(counts, known)), dim=1)


@torch.no_grad()
def fit_places(fragments, words, molecules, texts):
    """Set the canonical correlation of two Counted by n pairs.

    molecules, texts: (counts, the encoder's numbers) of each, float32 (n, size) and (n, width).
    Counts of words alone are not centred.
    """
    for side, (counts, known), centred in ((fragments, molecules, 1.0), (words, texts, 0.0)):
        side.middle.copy_(torch.cat([centred * counts.mean(0), known.mean(0)]))
        side.spread.copy_(known.std(0).clamp(min=1e-4))
    rows = (fragments.joined(*molecules).numpy(), words.joined(*texts).numpy())
    for side, weights in zip((fragments, words), map(torch.from_numpy, correlate(*rows, JOINT))):
        side.cca.weight.zero_()
        # only directions count: large numbers keep their digits in half precision
        side.cca.weight[: weights.shape[1]] = weights.T / weights.abs().max()
