"""What a molecule is asked for by: encoders of each modality, and ACML's projection."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moleclip.encoder import Encoder
from moleclip.spectra import vector_width
from moleclip.transformer import TokenEncoder

FEATURES = 512  # numbers of each encoder
EPOCHS, BATCH, RATE, NOISE = 40, 128, 1e-3, 0.2  # of the autoencoder


class Projection(nn.Module):
    """Features to the space that both sides share: ACML's stack of two cells."""

    def __init__(self, width, out, dropout=0.1):
        super().__init__()
        self.cells = nn.ModuleList([Cell(width, FEATURES, dropout), Cell(FEATURES, out, dropout)])

    def forward(self, x):
        """Return (n, out) of (n, width)."""
        for cell in self.cells:
            x = cell(x)
        return x


class Cell(nn.Module):
    """y = LayerNorm(p + Dropout(W GELU(p))) of p = V x."""

    def __init__(self, width, out, dropout):
        super().__init__()
        self.into, self.on = nn.Linear(width, out), nn.Linear(out, out)
        self.norm, self.dropout = nn.LayerNorm(out), nn.Dropout(dropout)

    def forward(self, x):
        """Return (n, out) of (n, width)."""
        p = self.into(x)
        return self.norm(p + self.dropout(self.on(F.gelu(p))))


class SpectrumEncoder(nn.Module):
    """Vectors of spectra, see spectra.py, to 512 numbers."""

    def __init__(self, modality):
        super().__init__()
        width = vector_width(modality)
        self.net = nn.Sequential(
            *(nn.Linear(width, FEATURES), nn.LayerNorm(FEATURES), nn.GELU(), nn.Dropout(NOISE)),
            *(nn.Linear(FEATURES, FEATURES), nn.LayerNorm(FEATURES), nn.GELU()),
        )

    def forward(self, vectors):
        """Return float32 (n, 512) of float32 (n, vector_width)."""
        return self.net(vectors)


class PictureEncoder(nn.Module):
    """Pictures as predict.py gives them to 512 numbers, by an encoder that is never changed."""

    def __init__(self, arch):
        super().__init__()
        self.encoder = Encoder(arch)

    def forward(self, images):
        """Return float32 (n, 512) of uint8 (n, 224, 224, 3)."""
        return self.encoder(images.permute(0, 3, 1, 2).float() / 255).float()


def new_query(modality, arch=None):
    """Return (encoder of a modality, how many numbers it gives). arch: of it, if it has one."""
    if modality == "picture":
        return PictureEncoder(arch), arch["args"]["output_dim"]
    if modality in ("smiles", "text"):
        return TokenEncoder(arch), arch["width"]
    return SpectrumEncoder(modality), FEATURES


def learn_spectra(encoder, vectors, seed, say):
    """Teach a SpectrumEncoder, without labels, to give spectra back that it sees with noise.

    vectors: float32 (n, vector_width). ACML pretrains its encoders of spectra as autoencoders.
    """
    torch.manual_seed(seed)
    back = nn.Linear(FEATURES, vectors.shape[1])
    parameters = [*encoder.parameters(), *back.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=1e-3)
    scale, order = vectors.std(0).clamp(min=vectors.std() / 10), np.random.default_rng(seed)
    steps = math.ceil(len(vectors) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    encoder.train()
    for _ in range(EPOCHS):
        total = 0.0
        for part in np.array_split(order.permutation(len(vectors)), steps):
            batch = vectors[part]
            told = back(encoder(F.dropout(batch, NOISE)))
            loss = ((told - batch) / scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
    say(f"autoencoder: {total:.3f} of the variance of spectra is not given back")
