"""Which encoder has the better features, without a look at any test molecule.

    python benchmarks/probe.py dinov2-small.safetensors encoder.pt   # half a minute each

What pretraining's settings were chosen by. Ridge regression on frozen features of plain drawings,
in five folds of those molecules of five sets that stand in no test part of the seeds 1 to 5 (whole
scaffolds in a fold where the set has a scaffold split): RMSE in standard deviations of the label,
mean over targets. Adds to benchmarks/results/probe.csv.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, ROOT, read_csv, record
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moleclip.device import pick_device
from moleclip.drawing import draw, layout
from moleclip.embedder import Embedder
from moleclip.molecules import parse, scaffold
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.weights import load_checkpoint, load_encoder

SETS = {  # split, and at most how many molecules
    "esol": ("scaffold", None),
    "freesolv": ("scaffold", None),
    "dhbd": ("random", 600),
    "nhcs": ("random", None),
    "phosphines_yield": ("random", None),
}


def known_part(name):
    """Return (SMILES, labels float64 (n, targets), group of each) of a set's untested molecules.

    Those are in no test part of the seeds 1 to 5.
    """
    split, most = SETS[name]
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    usable = [i for i, problem in enumerate(data.problems) if not problem]
    tested = set()
    for seed in range(1, 6):
        tested.update(make_split(data, usable, split, seed, warn=False)["test"])
    known = [i for i in usable if i not in tested]
    rows = np.sort(np.random.default_rng(0).permutation(known)[:most])
    smiles = [data.smiles[i] for i in rows]
    groups = [scaffold(one) or one for one in smiles] if split == "scaffold" else smiles
    return smiles, data.labels[rows], np.unique(groups, return_inverse=True)[1]


def error(features, labels, groups):
    """Return the RMSE of ridge regression in standard deviations of the label."""
    model, folds = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 16))), GroupKFold(5)
    told = cross_val_predict(model, features, labels, groups=groups, cv=folds)
    squares = np.square(told.reshape(labels.shape) - labels).mean(0)
    return float((np.sqrt(squares) / labels.std(0)).mean())


def probe(path, sets, drawn):
    """Return one encoder's row of the results."""
    encoder, device = load_encoder(path).eval(), pick_device()
    embedder = Embedder(encoder.to(device), device, None)
    step = load_checkpoint(path).get("step", "") if path.endswith(".pt") else ""
    row = {"encoder": Path(path).stem, "step": step}
    for name, (_, labels, groups) in sets.items():
        with torch.no_grad():
            features = embedder.embed_batch(drawn[name], None).cpu().numpy()
        row[name] = error(features, labels, groups)
    return row


def main(paths):
    sets = {name: known_part(name) for name in SETS}
    drawn = {
        name: np.stack([draw(layout(parse(one))) for one in smiles])
        for name, (smiles, _, _) in sets.items()
    }
    rows = [probe(path, sets, drawn) for path in paths]
    before = read_csv(RESULTS / "probe.csv")
    record("probe", before + rows, ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
