"""How long finetuning takes here: seconds an epoch on ESOL and DHBD, whole and frozen, and what drawing once saves.

    python benchmarks/finetune.py                    # about 5 minutes on 2 cores; writes benchmarks/results/finetune.csv

Each figure is the median of some training steps on real drawings, times the steps of an epoch; the frozen figure is embedding all
molecules, once for a run, and an epoch of the head. Sides that are compared take turns.
"""

import time

import numpy as np
import torch
from record import ROOT, record  # which puts the project's own scripts before these

import finetune
from moleclip.augment import N_UNIFORMS
from moleclip.device import Alone, pick_precision
from moleclip.encoder import Embedder
from moleclip.model import Model, mlp
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.training import FeatureSource, Loss, PictureSource, adam, take_step, train
from moleclip.weights import load_encoder

STEPS, SOME = 4, 256


def steps(model, pictures, rows, labels, augment, dtype):
    """Return the seconds of some training steps of 64 molecules."""
    source = PictureSource(
        model, pictures, Embedder(model.encoder, torch.device("cpu"), dtype, augment, 64), Alone()
    )
    optimizers = [adam(model.encoder, 5e-6), adam(model.head, 4e-4)]
    scaler, random, times = torch.amp.GradScaler("cpu", enabled=False), np.random.default_rng(0), []
    for _ in range(STEPS):
        batch = random.choice(rows, 64, replace=False)
        began = time.perf_counter()
        take_step(
            source,
            batch,
            random.random((64, N_UNIFORMS)),
            labels[batch],
            Loss("regression"),
            optimizers,
            scaler,
        )
        times.append(time.perf_counter() - began)
    return times[1:]


def looks(model, pictures, rows):
    """Return the seconds that embedding a molecule takes, in fp32."""
    source = PictureSource(
        model, pictures, Embedder(model.encoder, torch.device("cpu"), None, "none", 64), Alone()
    )
    began = time.perf_counter()
    source.features(rows)
    return (time.perf_counter() - began) / len(rows)


def head_epoch(count, rows):
    """Return the seconds of one epoch of the head alone."""
    head, table, labels = (
        mlp(512, 1),
        torch.randn(count, 512),
        np.random.default_rng(0).random((count, 1)),
    )
    began = time.perf_counter()
    train(
        FeatureSource(head, table),
        labels,
        {"train": rows, "val": rows[:64]},
        Loss("regression"),
        [adam(head, 4e-4)],
        3,
        64,
        0,
        "head",
    )
    return (time.perf_counter() - began) / 3


def main():
    dtype, rows = pick_precision("auto", torch.device("cpu"))[0], []
    for name in ("esol", "dhbd"):
        data = Data(str(ROOT / "data" / f"{name}.csv"))
        count = len(data)
        train = make_split(data, range(count), "random", 1)["train"]
        some = sorted(train[:SOME])
        data.molecules = [data.molecules[i] for i in some]
        began = time.perf_counter()
        pictures = finetune.draw_rows(data)
        drawing = (time.perf_counter() - began) / len(some)
        labels, epoch = torch.from_numpy(data.labels).float(), -(-len(train) // 64)
        for size in ("tiny", "small"):
            models = {
                tokens: Model(load_encoder(f"scratch:{size}"), 1) for tokens in ("all", "inked")
            }
            for tokens, model in models.items():
                model.encoder.arch["tokens"] = tokens
            for tokens, model in models.items():
                step, look = (
                    float(np.median(steps(model, pictures, some, labels, "default", dtype))),
                    looks(model, pictures, some[:128]),
                )
                rows.append(
                    {
                        "set": name,
                        "molecules": count,
                        "encoder": f"ViT {size}, patch 16",
                        "tokens": tokens,
                        "seconds an epoch": step * epoch,
                        "frozen: seconds to embed all": look * count,
                        "frozen: seconds an epoch": head_epoch(count, train),
                        "drawing all once, seconds": drawing * count,
                    }
                )
    record("finetune", rows, ("torch", "openai-clip", "rdkit"))


if __name__ == "__main__":
    main()
