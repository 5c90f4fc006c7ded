"""How fast pretraining is here: images a second and peak memory for each size and precision, and whether the loader keeps up.

    python benchmarks/pretrain.py                    # about 4 minutes on 2 cores; writes benchmarks/results/pretrain.csv

Each configuration is a process of its own (so that its memory is its own) and trains real drawings, plain and styled, with the
default augmentation, in steps of 48 molecules that memory holds whole (the optimiser's time is spread as in steps of 256; gradient
caching, where memory asks for it, does a third more work). The first step is not counted. The loader is timed in the same run.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import ROOT, record  # which puts the project's own pretrain.py before this one

from moleclip.augment import N_UNIFORMS
from moleclip.device import Distributed, memory_used, pick_precision
from moleclip.encoder import Embedder
from moleclip.pairs import ShardPairs
from moleclip.weights import load_encoder

RUNS = [
    (size, precision, "inked")
    for size in ("tiny", "small", "base")
    for precision in ("fp32", "bf16")
] + [("small", "bf16", "all"), ("base", "bf16", "all")]
MOLECULES, STEPS = 48, 3  # timed: steps of 96 pictures, enough for slices of like ink
PICTURES = 512  # of a real step, over which the optimiser's time is spread


def one_run(folder, size, precision, tokens):
    """Train a few steps and print {"rate": images/s, "memory": GB, "loader": images/s} as JSON."""
    import torch

    import pretrain

    pictures = ShardPairs(Path(folder) / "shards", Path(folder) / "labels.npz")
    encoder = load_encoder(f"scratch:{size}")
    encoder.arch["tokens"] = tokens
    heads = torch.nn.ModuleDict(
        {name: torch.nn.Linear(512, count) for name, count in pictures.labels.outputs.items()}
    )
    device, (dtype, _) = torch.device("cpu"), pick_precision(precision, torch.device("cpu"))
    eye = Embedder(encoder, device, dtype, "default", 2 * MOLECULES)
    optimizers = [
        torch.optim.Adam(module.parameters(), 5e-6, fused=True) for module in (encoder, heads)
    ]
    world, scaler, times, updates = (
        Distributed(),
        torch.amp.GradScaler("cpu", enabled=False),
        [],
        [],
    )
    for step in range(STEPS):
        views, labels = pictures.load(np.arange(step * MOLECULES, (step + 1) * MOLECULES), 0)
        began = time.perf_counter()
        pretrain.backward(
            eye,
            heads,
            views,
            np.random.default_rng(step).random((2 * MOLECULES, N_UNIFORMS)),
            labels,
            world,
            15,
            {"contrastive": 1, "classes": 1},
            scaler,
        )
        times.append((time.perf_counter() - began) / (2 * MOLECULES))
        began = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        updates.append((time.perf_counter() - began) / PICTURES)
    began = time.perf_counter()
    for _ in range(3):
        pictures.load(np.random.default_rng(0).permutation(len(pictures))[:256], 0)
    loader = 3 * 512 / (time.perf_counter() - began)
    print(
        json.dumps(
            {
                "rate": 1 / float(np.median(times[1:]) + np.median(updates[1:])),
                "memory": memory_used(device),
                "loader": loader,
            }
        )
    )


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "some.smi"
        source.write_text(
            "\n".join((ROOT / "data" / "chembl_3000.smi").read_text().splitlines()[600:1200]) + "\n"
        )
        for command in (
            ["render.py", source, "-o", f"{folder}/shards"],
            ["cluster.py", source, "--k", "30", "--k", "100", "-o", f"{folder}/labels.npz"],
        ):
            subprocess.run(
                [sys.executable, ROOT / command[0], *command[1:]], check=True, capture_output=True
            )
        for size, precision, tokens in RUNS:
            done = subprocess.run(
                [sys.executable, __file__, folder, size, precision, tokens],
                check=True,
                capture_output=True,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {
                    "encoder": f"ViT {size}, patch 16",
                    "precision": precision,
                    "tokens": tokens,
                    "training images/s": found["rate"],
                    "peak memory, GB": found["memory"],
                    "loader, images/s": found["loader"],
                    "loader / training": found["loader"] / found["rate"],
                }
            )
    record("pretrain", rows, ("torch", "openai-clip", "numpy"))


if __name__ == "__main__":
    one_run(*sys.argv[1:]) if len(sys.argv) > 1 else main()
