"""Transformers over tokens: a small one over SMILES, taught their language first, and BERT.

BERT (Devlin et al., arXiv:1810.04805) reads texts, from files in Hugging Face's layout.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moleclip.files import one_line
from moleclip.tokens import LONGEST, MASK, PAD, SIZE, padded_tokens
from moleclip.training import warmup_cosine
from moleclip.weights import load_checkpoint, read_safetensors

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
NUMBERS = ("embeddings.position_ids", "bert.embeddings.position_ids")  # of BERT: 0, 1, 2, ...


class Layer(nn.Module):
    """Attention, then two linear layers, each after a LayerNorm of its own; in BERT before it."""

    def __init__(self, arch):
        super().__init__()
        width, self.heads, self.bert = arch["width"], arch["heads"], arch.get("bert")
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, arch["hidden"]), nn.Linear(arch["hidden"], width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, arch["eps"]) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, there):
        """Return (n, tokens, width) of the same; there: bool (n, 1, 1, tokens)."""
        if self.bert:
            x = self.norm1(x + self.looked(x, there))
            return self.norm2(x + self.thought(x))
        x = x + self.looked(self.norm1(x), there)
        return x + self.thought(self.norm2(x))

    def looked(self, x, there):
        """Return what attention makes of x."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        looked = F.scaled_dot_product_attention(*parts, attn_mask=there)
        return self.dropout(self.mixed(looked.transpose(1, 2).flatten(2)))

    def thought(self, x):
        """Return what the two linear layers make of x."""
        return self.dropout(self.down(F.gelu(self.up(x))))


class TokenEncoder(nn.Module):
    """Token numbers to the mean of what the last layer makes of them.

    arch: {"vocabulary", "width", "layers", "heads", "hidden", "positions", "eps"}, and "bert" if it
    is one.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch, width = arch, arch["width"]
        self.words = nn.Embedding(arch["vocabulary"], width)
        self.places = nn.Embedding(arch["positions"], width)
        # Its neighbours say most of what a token is: attention takes long to find them.
        conv = nn.Identity if arch.get("bert") else nn.Conv1d
        self.near = conv(width, width, NEAR, padding=NEAR // 2)
        self.norm, self.dropout = nn.LayerNorm(width, arch["eps"]), nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch["layers"]))
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, 0, 0.02)

    def each(self, tokens):
        """Return (n, tokens, width) of token numbers, int64 (n, tokens)."""
        known = tokens != PAD
        there = known[:, None, None]
        places = self.places.weight[: tokens.shape[1]]
        if self.arch.get("bert"):
            x = self.dropout(self.norm(self.words(tokens) + places))
            for layer in self.layers:
                x = layer(x, there)
            return x
        x = (self.words(tokens) + places) * known[:, :, None]
        x = self.dropout(x + F.gelu(self.near(x.transpose(1, 2))).transpose(1, 2))
        for layer in self.layers:
            x = layer(x, there)
        return self.norm(x)

    def forward(self, tokens):
        """Return float32 (n, width) of token numbers, int64 (n, tokens), filled up with PAD."""
        there = (tokens != PAD)[:, :, None].float()
        return (self.each(tokens) * there).sum(1) / there.sum(1).clamp(min=1)

    def learn_last(self, count):
        """Let the last layers learn; the embeddings, too, where that is all of them."""
        whole = count >= len(self.layers)
        self.requires_grad_(whole)
        for layer in self.layers[-count:]:
            layer.requires_grad_(True)

    def train_last(self, count):
        """Let dropout work in the last layers alone."""
        self.train(count >= len(self.layers))
        for layer in self.layers[-count:] if count else ():
            layer.train()


def load_bert(folder):
    """Return the TokenEncoder of a BERT in Hugging Face's layout. Raises click.ClickException."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        wanted = {"model_type": "bert", "hidden_act": "gelu", "pad_token_id": PAD}
        for name, value in wanted.items():
            if config.get(name, value) != value:
                raise ValueError(f"its {name} is {config[name]}, not {value}")
        encoder = TokenEncoder(bert_arch(config))
        path = folder / "model.safetensors"
        if path.is_file():
            source = read_safetensors(path, NUMBERS)
        else:
            source = load_checkpoint(path.with_name("pytorch_model.bin"))
        source = {name.removeprefix("bert."): value for name, value in source.items()}
        encoder.load_state_dict(bert_weights(source, len(encoder.layers)))
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise click.ClickException(
            f"{folder}: holds no BERT in Hugging Face's layout, config.json, model.safetensors "
            f"and tokenizer.json ({one_line(error)})"
        ) from None
    return encoder.eval()


def bert_arch(config):
    """Return the arch of a TokenEncoder by BERT's config.json."""
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "positions": min(config["max_position_embeddings"], LONGEST["text"]),
        "eps": config["layer_norm_eps"],
        "bert": True,
    }


def bert_weights(source, layers):
    """Return a BERT's weights by TokenEncoder's names, those that it uses."""
    at, found = "embeddings.", {}
    found["words.weight"] = source[f"{at}word_embeddings.weight"]
    # BERT tells two sentences apart; here all are the first.
    first = source[f"{at}token_type_embeddings.weight"][0]
    found["places.weight"] = (source[f"{at}position_embeddings.weight"] + first)[: LONGEST["text"]]
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = source[f"{at}LayerNorm.{kind}"]
        for i in range(layers):
            of, to = f"encoder.layer.{i}.", f"layers.{i}."
            parts = [source[f"{of}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            found[f"{to}qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in (
                ("mixed", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("up", "intermediate.dense"),
                ("down", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                found[f"{to}{ours}.{kind}"] = source[f"{of}{theirs}.{kind}"]
    return {name: value.float() for name, value in found.items()}


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
