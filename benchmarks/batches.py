"""How much a prediction depends on --batch, in fp32 and int8: the largest difference in units of the label's scale.

    python benchmarks/batches.py demo/runs/esol     # under a minute on 2 cores after make demo; writes benchmarks/results/batches.csv

Drawings of the first 1,500 rows of data/dhbd.csv: molecules unlike those of training, of all sizes, in batches of 1, 8 and 64.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from record import ROOT, record  # which puts the project's own scripts before this one

import export
import predict
from moleclip.molecules import read_molecules

ROWS, BATCHES = 1500, (1, 8, 64)


def read_values(path, targets):
    """Return the predictions of a predictions.csv, float64 (readable rows, targets)."""
    lines = [line for line in csv.DictReader(open(path, newline="")) if not line["error"]]
    return np.array([[float(line[name]) for name in targets] for line in lines])


def main(run):
    checkpoint, rows = torch.load(Path(run) / "model.pt", map_location="cpu", weights_only=True), []
    targets, spread = checkpoint["targets"], checkpoint["spread"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        smiles = [molecule.smiles for molecule in read_molecules(str(ROOT / "data" / "dhbd.csv"))][
            :ROWS
        ]
        (folder / "some.smi").write_text("\n".join(smiles) + "\n")
        for precision in ("fp32", "int8"):
            model, found = folder / f"{precision}.onnx", {}
            export.main.main(
                [run, "-o", str(model), "--precision", precision], standalone_mode=False
            )
            for batch in BATCHES:
                out = folder / f"{precision}-{batch}.csv"
                predict.main.main(
                    [
                        str(model),
                        str(folder / "some.smi"),
                        "-o",
                        str(out),
                        "--batch",
                        str(batch),
                        "--provider",
                        "cpu",
                    ],
                    standalone_mode=False,
                )
                found[batch] = read_values(out, targets)
            moved = {
                batch: np.abs(found[batch] - found[BATCHES[-1]]) / spread for batch in BATCHES[:-1]
            }
            rows.append(
                {"precision": precision, "molecules": len(smiles)}
                | {
                    f"largest, {batch} against {BATCHES[-1]}": float(values.max())
                    for batch, values in moved.items()
                }
                | {
                    f"mean, {batch} against {BATCHES[-1]}": float(values.mean())
                    for batch, values in moved.items()
                }
            )
    record("batches", rows, ("onnxruntime-gpu", "rdkit", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo/runs/esol")
