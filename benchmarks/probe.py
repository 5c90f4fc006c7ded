"""Which encoder has the better features, without a look at any test molecule.

    python benchmarks/probe.py ecfp dinov2-small.safetensors encoder.pt   # a minute each

What pretraining's settings were chosen by. Ridge regression on frozen features of plain drawings,
in five folds of those molecules of eight sets that stand in no test part of the seeds 1 to 5 (whole
scaffolds in a fold where the set has a scaffold split): the mean absolute error in the label's unit
(of a classes' 0 and 1, too), mean over targets. "ecfp" names counts of ECFP4 instead of an encoder.
Adds to benchmarks/results/probe.csv.
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
from moleclip.features import morgan
from moleclip.molecules import parse, scaffold
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.weights import load_checkpoint, load_encoder

SETS = {  # split, and at most how many molecules
    "esol": ("scaffold", None),
    "freesolv": ("scaffold", None),
    "bace": ("scaffold", None),
    "bbbp": ("scaffold", None),
    "dhbd": ("random", 1600),
    "kraken": ("random", None),
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
    """Return the mean absolute error of ridge regression in the label's unit."""
    model, folds = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 16))), GroupKFold(5)
    told = cross_val_predict(model, features, labels, groups=groups, cv=folds)
    return float(np.abs(told.reshape(labels.shape) - labels).mean())


def counts(smiles):
    """Return log counts of ECFP4, float32 (n, 2048)."""
    found = [morgan().GetCountFingerprintAsNumPy(parse(one)) for one in smiles]
    return np.log1p(np.stack(found)).astype(np.float32)


def features_by(path):
    """Return a function of (SMILES, drawings) that gives features, and the encoder's step."""
    if path == "ecfp":
        return lambda smiles, drawn: counts(smiles), ""
    encoder, device = load_encoder(path).eval(), pick_device()
    embedder = Embedder(encoder.to(device), device, None)

    def embed(smiles, drawn):
        with torch.no_grad():
            return embedder.embed_batch(drawn, None).cpu().numpy()

    return embed, load_checkpoint(path).get("step", "") if path.endswith(".pt") else ""


def main(paths):
    sets = {name: known_part(name) for name in SETS}
    drawn = {
        name: np.stack([draw(layout(parse(one))) for one in smiles])
        for name, (smiles, _, _) in sets.items()
    }
    for path in paths:
        see, step = features_by(path)
        row = {"encoder": Path(path).stem, "step": step}
        for name, (smiles, labels, groups) in sets.items():
            row[name] = error(see(smiles, drawn[name]), labels, groups)
        print(row, flush=True)
        before = [
            old for old in read_csv(RESULTS / "probe.csv") if old["encoder"] != Path(path).stem
        ]
        record("probe", [*before, row], ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
