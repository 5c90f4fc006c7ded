"""The graph encoder: a shallow graph isomorphism network with bonds in its messages.

Xu et al., arXiv:1810.00826; bonds as Hu et al., arXiv:1905.12265, have them. ACML (JCIM 2025,
10.1021/acs.jcim.5c00430) teaches it what a frozen encoder of another modality knows.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moleclip.graphs import ATOM_SIZES, BOND_SIZE

LAYERS, WIDTH, OUT = 5, 160, 512  # ACML's has five layers of 64
DROPOUT = 0.1
MANY = 20  # atoms of a molecule: their sum is divided by it
SHIFTS = {"nmr13c": (100.0, 50.0), "nmr1h": (4.0, 2.0)}  # middle and spread in ppm


class Layer(nn.Module):
    """One round of messages: each atom adds what its neighbours and the bonds to them say."""

    def __init__(self, width):
        super().__init__()
        self.bonds = nn.Embedding(BOND_SIZE, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x, bonds, kinds):
        """Return the atoms' new numbers, (N, width), of the old."""
        said = F.relu(x.index_select(0, bonds[:, 0]) + self.bonds(kinds))
        heard = torch.zeros_like(x).index_add(0, bonds[:, 1], said)
        return x + self.mlp(x + heard)


class Gin(nn.Module):
    """Graphs to features of molecules, (graphs, out), and of atoms, (N, width), float32.

    arch: {"width", "layers", "out"}. The features are not normalised.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch, width = arch, arch["width"]
        self.atoms = nn.ModuleList(nn.Embedding(size, width) for size in ATOM_SIZES)
        self.layers = nn.ModuleList(Layer(width) for _ in range(arch["layers"]))
        self.pooled = nn.Sequential(nn.Linear(2 * width, 512), nn.LayerNorm(512), nn.GELU())
        self.out = nn.Linear(512, arch["out"])

    def forward(self, atoms, bonds, kinds, owner, counts):
        """Return (features, atoms' features) of the arrays of Graphs, as tensors."""
        x = self.read_atoms(atoms, bonds, kinds)
        return self.read_pooled(pool(x, owner, counts)), x

    def read_atoms(self, atoms, bonds, kinds):
        """Return what all rounds of messages make of the atoms, (N, width)."""
        atoms, kinds = atoms.long(), kinds.long()
        x = sum(table(atoms[:, i]) for i, table in enumerate(self.atoms))
        for layer in self.layers:
            x = layer(x, bonds, kinds)
        return x

    def read_pooled(self, pooled):
        """Return the features of molecules, (graphs, out), by what `pool` gives."""
        return self.out(self.pooled(pooled))


def pool(x, owner, counts):
    """Return mean and sum of the atoms of each graph, (graphs, 2 width), of their (N, width)."""
    total = x.new_zeros(counts.shape[0], x.shape[1])
    total = total.index_add(0, owner, x)
    return torch.cat([total / counts[:, None], total / MANY], 1)


class Shifts(nn.Module):
    """Chemical shifts of atoms from their features: one number for each nucleus, in ppm."""

    def __init__(self, width):
        super().__init__()
        self.told = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(SHIFTS)))
        middle, spread = zip(*SHIFTS.values())
        self.register_buffer("middle", torch.tensor(middle), persistent=False)
        self.register_buffer("spread", torch.tensor(spread), persistent=False)

    def forward(self, x):
        """Return (N, nuclei) of (N, width)."""
        return self.told(x) * self.spread + self.middle
