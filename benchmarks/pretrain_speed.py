"""How fast pretraining is here, in what memory, and whether the loader keeps up.

    python benchmarks/pretrain_speed.py       # 4 minutes on 2 cores; writes results/pretrain.csv

Each size and precision is a process of its own (so that its memory is its own) and trains real
drawings, plain and styled, with the default augmentation, in steps of 48 molecules that memory
holds whole (the optimiser's time is spread as in steps of 256; gradient caching, where memory asks
for it, does a third more work). The first step is not counted. The loader is timed in the same run.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import ROOT, record

from moleclip.device import ALONE, memory_used, pick_precision
from moleclip.movement import N_UNIFORMS
from moleclip.pairs import ShardPairs
from moleclip.trainstate import TrainState
from moleclip.weights import load_encoder
from pretrain import backward

RUNS = [
    ("tiny", "fp32", "inked"),
    ("tiny", "bf16", "inked"),
    ("small", "fp32", "inked"),
    ("small", "bf16", "inked"),
    ("base", "fp32", "inked"),
    ("base", "bf16", "inked"),
    ("small", "bf16", "all"),
    ("base", "bf16", "all"),
]
MOLECULES, STEPS = 48, 3  # timed: steps of 96 pictures, enough for slices of like ink
PICTURES = 512  # of a real step, over which the optimiser's time is spread
CONFIG = {
    "seed": 0,
    "lr": (5e-6, 5e-6),
    "decay": 0,
    "loss": {"contrastive": 1, "classes": 1},
    "temperature": 1 / 15,
    "augment": "default",
    "micro_batch": 2 * MOLECULES,
}


def new_state(size, precision, tokens, labels):
    """Return pretraining's state before the first step, on the CPU."""
    encoder, device = load_encoder(f"scratch:{size}"), torch.device("cpu")
    encoder.arch["tokens"] = tokens
    dtype, _ = pick_precision(precision, device)
    return TrainState.start("", CONFIG, ALONE, encoder, labels, device, dtype)


def seconds_a_picture(state, pictures):
    """Return the median seconds that a picture takes in training, without the first step's."""
    times, updates = [], []
    for step in range(STEPS):
        members = np.arange(step * MOLECULES, (step + 1) * MOLECULES)
        batch = pictures.load(members, 0)
        random = np.random.default_rng(step).random((2 * MOLECULES, N_UNIFORMS))
        began = time.perf_counter()
        backward(state, batch._replace(random=random))
        learned = time.perf_counter()
        state.update_weights(STEPS)
        times.append((learned - began) / (2 * MOLECULES))
        updates.append((time.perf_counter() - learned) / PICTURES)
    return float(np.median(times[1:]) + np.median(updates[1:]))


def loader_rate(pictures):
    """Return the pictures a second that are read from shards in random order."""
    began = time.perf_counter()
    for _ in range(3):
        pictures.load(np.random.default_rng(0).permutation(len(pictures))[:256], 0)
    return 3 * 512 / (time.perf_counter() - began)


def measure(folder, size, precision, tokens):
    """Train a few steps; return {"rate": images/s, "memory": GB, "loader": images/s}."""
    pictures = ShardPairs(Path(folder) / "shards", Path(folder) / "labels.npz")
    state = new_state(size, precision, tokens, pictures.labels)
    rate, loader = 1 / seconds_a_picture(state, pictures), loader_rate(pictures)
    return {"rate": rate, "memory": memory_used(torch.device("cpu")), "loader": loader}


def measured(folder, size, precision, tokens):
    """Return what `measure` does, in a process of its own."""
    command = [sys.executable, __file__, str(folder), size, precision, tokens]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder):
    """Make shards/ and labels.npz of 600 molecules in a folder."""
    source = Path(folder) / "some.smi"
    lines = (ROOT / "data" / "chembl_3000.smi").read_text().splitlines()[600:1200]
    source.write_text("\n".join(lines) + "\n")
    for words in (
        ["render.py", source, "-o", f"{folder}/shards"],
        ["cluster.py", source, "--k", "30", "--k", "100", "-o", f"{folder}/labels.npz"],
    ):
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        for size, precision, tokens in RUNS:
            found = measured(folder, size, precision, tokens)
            row = {"encoder": f"ViT {size}, patch 16", "precision": precision, "tokens": tokens}
            row["training images/s"] = found["rate"]
            row["peak memory, GB"] = found["memory"]
            row["loader, images/s"] = found["loader"]
            row["loader / training"] = found["loader"] / found["rate"]
            rows.append(row)
    record("pretrain", rows, ("torch", "openai-clip", "numpy"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
