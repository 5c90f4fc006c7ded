"""How much a prediction depends on --batch, in fp32 and int8, in units of the label's scale.

    python benchmarks/batches.py demo/runs/esol     # a minute on 2 cores, after make demo

Drawings of the first 1,500 rows of data/dhbd.csv: molecules unlike those of training, of all sizes,
in batches of 1, 8 and 64. Writes benchmarks/results/batches.csv.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from record import ROOT, read_csv, record

import export
import predict
from moleclip.molecules import read_molecules
from moleclip.weights import load_checkpoint

ROWS, BATCHES, WHOLE = 1500, (1, 8), 64


def predicted(model, source, batch, targets):
    """Return the predictions in batches of that size, float64 (readable rows, targets)."""
    out = model.with_suffix(f".{batch}.csv")
    words = [str(model), str(source), "-o", str(out), "--batch", str(batch), "--provider", "cpu"]
    predict.main.main(words, standalone_mode=False)
    lines = [line for line in read_csv(out) if not line["error"]]
    return np.array([[float(line[name]) for name in targets] for line in lines])


def differences(folder, run, source, precision, targets, scale):
    """Return one row of the results: how far small batches are from one of 64."""
    model = folder / f"{precision}.onnx"
    words = [run, "-o", str(model), "--precision", precision]
    export.main.main(words, standalone_mode=False)
    whole = predicted(model, source, WHOLE, targets)
    moved = {b: np.abs(predicted(model, source, b, targets) - whole) / scale for b in BATCHES}
    row = {"precision": precision, "molecules": ROWS}
    for title, summary in (("largest", np.max), ("mean", np.mean)):
        for batch, values in moved.items():
            row[f"{title}, {batch} against {WHOLE}"] = float(summary(values))
    return row


def main(run):
    checkpoint = load_checkpoint(Path(run) / "model.pt")
    molecules = list(read_molecules(str(ROOT / "data" / "dhbd.csv")))[:ROWS]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = folder / "some.smi"
        source.write_text("\n".join(molecule.smiles for molecule in molecules) + "\n")
        facts = checkpoint["targets"], checkpoint["spread"].numpy()
        rows = [differences(folder, run, source, each, *facts) for each in ("fp32", "int8")]
    record("batches", rows, ("onnxruntime-gpu", "rdkit", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo/runs/esol")
