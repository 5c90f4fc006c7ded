"""A transformer over tokens: a small one over SMILES, that is taught their language first."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moleclip.tokens import MASK, PAD, SIZE, padded_tokens
from moleclip.training import warmup_cosine

SMILES_ARCH = {
    "vocabulary": SIZE,
    "width": 256,
    "layers": 4,
    "heads": 8,
    "hidden": 1024,
    "positions": 200,
    "eps": 1e-5,
}
HIDDEN, RATE, BATCH = 0.15, 5e-4, 64  # of masked language modelling
DROPOUT = 0.1
NEAR = 7  # tokens that are seen together at once


class Layer(nn.Module):
    """Attention, then two linear layers, each after a LayerNorm of its own."""

    def __init__(self, arch):
        super().__init__()
        width, self.heads = arch["width"], arch["heads"]
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, arch["hidden"]), nn.Linear(arch["hidden"], width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, arch["eps"]) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, there):
        """Return (n, tokens, width) of the same; there: bool (n, 1, 1, tokens)."""
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        looked = F.scaled_dot_product_attention(*parts, attn_mask=there)
        x = x + self.dropout(self.mixed(looked.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class TokenEncoder(nn.Module):
    """Token numbers to the mean of what the last layer makes of them.

    arch: {"vocabulary", "width", "layers", "heads", "hidden", "positions", "eps"}.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch, width = arch, arch["width"]
        self.words = nn.Embedding(arch["vocabulary"], width)
        self.places = nn.Embedding(arch["positions"], width)
        # Its neighbours say most of what a token is: attention takes long to find them.
        self.near = nn.Conv1d(width, width, NEAR, padding=NEAR // 2)
        self.norm, self.dropout = nn.LayerNorm(width, arch["eps"]), nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch["layers"]))
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, 0, 0.02)

    def each(self, tokens):
        """Return (n, tokens, width) of token numbers, int64 (n, tokens)."""
        known = tokens != PAD
        there = known[:, None, None]
        places = self.places.weight[: tokens.shape[1]]
        x = (self.words(tokens) + places) * known[:, :, None]
        x = self.dropout(x + F.gelu(self.near(x.transpose(1, 2))).transpose(1, 2))
        for layer in self.layers:
            x = layer(x, there)
        return self.norm(x)

    def forward(self, tokens):
        """Return float32 (n, width) of token numbers, int64 (n, tokens), filled up with PAD."""
        there = (tokens != PAD)[:, :, None].float()
        return (self.each(tokens) * there).sum(1) / there.sum(1).clamp(min=1)


def learn_language(encoder, views, seed, epochs, say):
    """Teach a TokenEncoder over SMILES to tell tokens that are hidden from it, in place.

    views: of each molecule a list of token numbers of its spellings, one of which is seen an epoch.
    """
    torch.manual_seed(seed)
    tell = nn.Linear(encoder.arch["width"], encoder.arch["vocabulary"])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *tell.parameters()], RATE)
    steps, order = max(1, len(views) // BATCH), np.random.default_rng(seed)
    encoder.train()
    for epoch in range(epochs):
        right = total = 0.0
        for step, part in enumerate(np.array_split(order.permutation(len(views)), steps)):
            done = (epoch * steps + step) / (epochs * steps)
            optimizer.param_groups[0]["lr"] = RATE * warmup_cosine(done)
            spellings = [views[i][order.integers(len(views[i]))] for i in part]
            tokens = torch.from_numpy(padded_tokens(spellings))
            hidden = torch.from_numpy(order.random(tokens.shape) < HIDDEN) & (tokens != PAD)
            told = tell(encoder.each(tokens.masked_fill(hidden, MASK))[hidden])
            loss = F.cross_entropy(told, tokens[hidden])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += (told.argmax(1) == tokens[hidden]).sum().item()
            total += len(told)
        say(f"epoch {epoch + 1} of the language: {right / total:.3f} of hidden tokens are told")
