"""What a step of pretraining costs more when every drawn atom is asked.

    python benchmarks/atoms_speed.py       # 3 minutes on 2 cores; writes results/atoms_speed.csv

The bundled encoder's size in bf16 with inked tokens, 32 molecules of real drawings in two views a
step, on the same molecules in turns: with the paper's two tasks, and with atoms, fingerprint and
electronic beside them (of charges that are made up, which take as long). Forward, backward and both
optimisers; the first two steps are not counted. Two lines more have the pool in both.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pretrain_speed import CONFIG, prepare
from record import ROOT, record

from moleclip.device import ALONE, pick_precision
from moleclip.movement import N_UNIFORMS
from moleclip.pairs import ShardPairs
from moleclip.trainstate import TrainState
from moleclip.weights import load_encoder
from pretrain import backward

MOLECULES, STEPS = 32, 8
PAPER = {"contrastive": 1, "classes": 1}
WAYS = {
    "the paper's tasks": PAPER,
    "with atoms": PAPER | dict.fromkeys(("atoms", "fingerprint", "electronic"), 0.1),
}


def add_atoms(folder):
    """Draw the molecules of pretrain_speed.py with places, and label their atoms."""
    source = f"{folder}/some.smi"
    for words in (
        ["render.py", source, "--atoms", "-o", f"{folder}/placed"],
        ["cluster.py", source, "--k", "30", "--k", "100", "--atoms", "-o", f"{folder}/atoms.npz"],
    ):
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    arrays, random = dict(np.load(f"{folder}/atoms.npz")), np.random.default_rng(0)
    rows, atoms = len(arrays["k30"]), arrays["atom_offsets"][-1]
    arrays["electronic"] = random.normal(size=(rows, 4)).astype(np.float32)
    for name in ("atom_charge", "atom_charge_h"):
        arrays[name] = random.normal(size=atoms).astype(np.float16)
    np.savez(f"{folder}/atoms.npz", **arrays)


def new_run(folder, tasks, pool):
    """Return (state before the first step, pictures) of some tasks."""
    pictures = ShardPairs(Path(folder) / "placed", Path(folder) / "atoms.npz", tasks)
    encoder, device = load_encoder("bundled"), torch.device("cpu")
    if pool:
        encoder.add_pool()
    dtype, _ = pick_precision("bf16", device)
    config = CONFIG | {"loss": tasks, "micro_batch": 2 * MOLECULES}
    return TrainState.start("", config, ALONE, encoder, pictures.labels, device, dtype), pictures


def seconds(state, pictures, step):
    """Return how long one step takes."""
    members = np.arange(step * MOLECULES, (step + 1) * MOLECULES)
    batch = pictures.load(members, 0)
    random = np.random.default_rng(step).random((2 * MOLECULES, N_UNIFORMS))
    began = time.perf_counter()
    backward(state, batch._replace(random=random))
    state.update_weights(STEPS)
    return time.perf_counter() - began


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        add_atoms(folder)
        for pool in (False, True):
            runs = [new_run(folder, tasks, pool) for tasks in WAYS.values()]
            times = [[seconds(*run, step) for run in runs] for step in range(STEPS)][2:]
            rates = 2 * MOLECULES / np.median(times, 0)
            ratio = float(np.median([after / before for before, after in times]))
            row = {"pool": "cls+mean" if pool else "cls"}
            row |= {f"{name}, images/s": float(rate) for name, rate in zip(WAYS, rates)}
            rows.append(row | {"seconds, with to without": ratio, "steps": len(times)})
    record("atoms_speed", rows, ("torch", "openai-clip", "numpy"))


if __name__ == "__main__":
    main()
