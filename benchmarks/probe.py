"""Which encoder has the better features, without a look at any test molecule: what pretraining's settings were chosen by.

    python benchmarks/probe.py dinov2-small.safetensors encoder.pt     # half a minute each on 2 cores; adds to results/probe.csv

Ridge regression on frozen features of plain drawings, in five folds of those molecules of five sets that stand in no test part of
the seeds 1 to 5 (whole scaffolds in a fold where the set has a scaffold split): RMSE in standard deviations of the label, mean over targets.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from record import ROOT, record  # which puts the project's own scripts before these
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moleclip.device import pick_device
from moleclip.drawing import draw, layout
from moleclip.encoder import Embedder
from moleclip.molecules import parse, scaffold
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.weights import load_checkpoint, load_encoder

SETS = {
    "esol": ("scaffold", None),
    "freesolv": ("scaffold", None),
    "dhbd": ("random", 600),
    "nhcs": ("random", None),
    "phosphines_yield": ("random", None),
}
RESULTS = ROOT / "benchmarks" / "results" / "probe.csv"


def known_part(name):
    """Return (SMILES, labels float64 (n, targets), group of each) of molecules that are in no test part of the seeds 1 to 5."""
    split, most = SETS[name]
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    usable = [i for i, problem in enumerate(data.problems) if not problem]
    tested = {
        i for seed in range(1, 6) for i in make_split(data, usable, split, seed, warn=False)["test"]
    }
    rows = np.sort(
        np.random.default_rng(0).permutation([i for i in usable if i not in tested])[:most]
    )
    groups = [
        scaffold(data.smiles[i]) or data.smiles[i] if split == "scaffold" else data.smiles[i]
        for i in rows
    ]
    return (
        [data.smiles[i] for i in rows],
        data.labels[rows],
        np.unique(groups, return_inverse=True)[1],
    )


def error(features, labels, groups):
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 16)))
    told = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5)).reshape(
        labels.shape
    )
    return float((np.sqrt(np.square(told - labels).mean(0)) / labels.std(0)).mean())


def main(paths):
    sets = {name: known_part(name) for name in SETS}
    drawn = {
        name: np.stack([draw(layout(parse(one))) for one in smiles])
        for name, (smiles, _, _) in sets.items()
    }
    rows = []
    for path in paths:
        encoder, device = load_encoder(path).eval(), pick_device()
        eye = Embedder(encoder.to(device), device, None)
        with torch.no_grad():
            found = {
                name: eye.embed_batch(index, None).cpu().numpy() for name, index in drawn.items()
            }
        step = load_checkpoint(path).get("step", "") if path.endswith(".pt") else ""
        rows.append(
            {"encoder": Path(path).stem, "step": step}
            | {name: error(found[name], *sets[name][1:]) for name in SETS}
        )
    before = list(csv.DictReader(open(RESULTS, newline=""))) if RESULTS.exists() else []
    record("probe", before + rows, ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
