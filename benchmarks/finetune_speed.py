"""How long finetuning takes here: seconds an epoch, whole and frozen, and what drawing once saves.

    python benchmarks/finetune_speed.py       # 5 minutes on 2 cores; writes results/finetune.csv

On ESOL and the DHBDs. Each figure is the median of some training steps on real drawings, times the
steps of an epoch; the frozen figure is embedding all molecules, once for a run, and an epoch of the
head. Sides that are compared take turns.
"""

import time

import numpy as np
import torch
from record import ROOT, record

from moleclip.device import ALONE, pick_precision
from moleclip.embedder import Embedder
from moleclip.experiment import read_rows
from moleclip.model import Model, mlp
from moleclip.movement import N_UNIFORMS
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.training import (
    EncoderSource,
    FeatureSource,
    Loss,
    Objective,
    Plan,
    Progress,
    adam,
    take_step,
    train,
)
from moleclip.weights import load_encoder

CPU = torch.device("cpu")
STEPS, SOME, LOOKED = 4, 256, 128  # steps that are timed, molecules drawn, molecules embedded
BATCH = 64
HEAD_EPOCHS = 3


def picture_source(model, pictures, dtype, level):
    """Return a model's pictures as the training loop takes them."""
    return EncoderSource(model, pictures, Embedder(model.encoder, CPU, dtype, level, BATCH), ALONE)


def seconds_a_step(source, objective, rows):
    """Return the median seconds of some training steps, without the first."""
    optimizers = [adam(source.model.encoder, 5e-6), adam(source.model.head, 4e-4)]
    state = Progress(source.model, optimizers, torch.amp.GradScaler("cpu", enabled=False))
    random, times = np.random.default_rng(0), []
    for _ in range(STEPS):
        batch = random.choice(rows, BATCH, replace=False)
        numbers = random.random((BATCH, N_UNIFORMS))
        began = time.perf_counter()
        take_step(source, batch, numbers, objective, state)
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def seconds_to_embed(source, rows):
    """Return the seconds that embedding a molecule takes, in fp32."""
    began = time.perf_counter()
    source.features(rows)
    return (time.perf_counter() - began) / len(rows)


def seconds_of_head(count, rows):
    """Return the seconds of one epoch of the head alone."""
    head, features = mlp(512, 1), torch.randn(count, 512)
    labels = torch.from_numpy(np.random.default_rng(0).random((count, 1))).float()
    objective = Objective(labels, {"train": rows, "val": rows[:64]}, Loss("regression"))
    plan = Plan(HEAD_EPOCHS, BATCH, 0, "head")
    began = time.perf_counter()
    train(FeatureSource(head, features), objective, [adam(head, 4e-4)], plan)
    return (time.perf_counter() - began) / HEAD_EPOCHS


def one_set(name, dtype):
    """Return the rows of one set: each size of encoder, with all and with inked tokens."""
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    count, part = len(data), make_split(data, range(len(data)), "random", 1)["train"]
    some, steps = sorted(part[:SOME]), -(-len(part) // BATCH)
    data.molecules = [data.molecules[i] for i in some]
    began = time.perf_counter()
    pictures = read_rows(data)[0]["picture"]
    drawing = (time.perf_counter() - began) / len(some)
    labels = torch.from_numpy(data.labels).float()
    objective = Objective(labels, {"train": some}, Loss("regression"))
    rows = []
    for size in ("tiny", "small"):
        for tokens in ("all", "inked"):
            model = Model(load_encoder(f"scratch:{size}"), 1)
            model.encoder.arch["tokens"] = tokens
            whole = picture_source(model, pictures, dtype, "default")
            frozen = picture_source(model, pictures, None, "none")
            row = {"set": name, "molecules": count, "encoder": f"ViT {size}, patch 16"}
            row["tokens"] = tokens
            row["seconds an epoch"] = seconds_a_step(whole, objective, some) * steps
            look = seconds_to_embed(frozen, some[:LOOKED])
            row["frozen: seconds to embed all"] = look * count
            row["frozen: seconds an epoch"] = seconds_of_head(count, part)
            row["drawing all once, seconds"] = drawing * count
            rows.append(row)
    return rows


def main():
    dtype, _ = pick_precision("auto", CPU)
    rows = [row for name in ("esol", "dhbd") for row in one_set(name, dtype)]
    record("finetune", rows, ("torch", "openai-clip", "rdkit"))


if __name__ == "__main__":
    main()
