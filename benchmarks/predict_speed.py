"""How fast predict.py is, from a SMILES file to the CSV, against the original's way.

    pip install -r requirements-extra.txt
    python benchmarks/predict_speed.py        # 5 minutes on 2 cores; writes results/predict.csv
    python benchmarks/predict_speed.py 1 small    # one of tiny, small, base; the others stay
    python benchmarks/predict_speed.py 0.1    # a tenth of the molecules, to try it

The original's way: SVG, cairosvg, PIL, torch eager in fp32, batches of 64. Random weights of each
size, drug-like molecules evenly spread over their file. The sides take turns, and a ratio is the
median over the turns. predict.py's time has everything in it but Python's imports: reading the
file, starting its workers, loading the model. The original's has neither imports nor the loading of
the model; all its steps run in one process, as they did there.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from original import original_picture, sample
from rdkit import RDLogger
from record import RESULTS, ROOT, print_row, read_csv, record
from tokens import write_start

import export
import finetune
import predict
from moleclip.model import load_model

MOLECULES = {"tiny": 400, "small": 200, "base": 80}
PRECISIONS = ("fp32", "int8")
PACKAGES = ("torch", "onnxruntime-gpu", "rdkit", "cairosvg", "numpy")
TURNS = 3
BATCH = 64  # of the original


def fabricate(folder, size, tokens):
    """Return the model.pt of a random encoder and a head that saw a few molecules of ESOL."""
    table, name = folder / "esol.csv", f"{size}-{tokens}"
    if (folder / name).exists():
        return folder / name / "model.pt"
    lines = (ROOT / "data" / "esol.csv").read_text().splitlines()[:41]
    table.write_text("\n".join(lines) + "\n")
    write_start(folder / f"{name}.pt", f"scratch:{size}", tokens)
    words = ["--data", table, "--init", folder / f"{name}.pt", "-o", folder / name]
    words = [str(word) for word in words] + ["--freeze", "--epochs", "1"]
    finetune.run(finetune.main.make_context("finetune.py", words), with_baselines=False)
    return folder / name / "model.pt"


def export_model(path, precision):
    """Export a model.pt and return the ONNX file's path. Random weights may be off the bounds."""
    out = path.with_name(f"{precision}.onnx")
    words = [str(path), "-o", str(out), "--precision", precision, "--force", "--no-fingerprints"]
    export.main.main(words, standalone_mode=False)
    return out


def original(model, source, out):
    """Predict a SMILES file as the original does, one step after the other in one process."""
    lines = source.read_text().split()
    pictures = [original_picture(smiles) for smiles in lines]
    values = []
    with torch.no_grad():
        for start in range(0, len(pictures), BATCH):
            batch = torch.from_numpy(np.stack(pictures[start : start + BATCH]))
            pixels = batch.permute(0, 3, 1, 2).float() / 255
            values += model.unscale(model.head(model.encoder(pixels)), "regression").tolist()
    with open(out, "w", newline="") as stream:
        csv.writer(stream).writerows([smiles, *value] for smiles, value in zip(lines, values))


def ours(model, source, out):
    """Predict a SMILES file by predict.py."""
    words = [str(model), str(source), "-o", str(out), "--provider", "cpu"]
    predict.main.main(words, standalone_mode=False)


def rate(function, model, source, out, count):
    """Return the molecules a second of one side."""
    began = time.perf_counter()
    function(model, source, out)
    return count / (time.perf_counter() - began)


def one_size(folder, size, count):
    """Return the rows of one size of encoder: molecules a second, and against the original's."""
    source = folder / f"{size}.smi"
    source.write_text("\n".join(sample("druglike_20000.smi.gz", count)) + "\n")
    ways = {}
    for tokens in ("inked", "all") if size == "base" else ("inked",):
        path = fabricate(folder, size, tokens)
        ways |= {(tokens, precision): export_model(path, precision) for precision in PRECISIONS}
    model, _ = load_model(fabricate(folder, size, "all"))
    theirs, rates = [], {way: [] for way in ways}
    for _ in range(TURNS):
        theirs.append(rate(original, model, source, folder / "original.csv", count))
        for way, path in ways.items():
            rates[way].append(rate(ours, path, source, folder / "ours.csv", count))
    sides = {("the original's", "all", "fp32"): theirs}
    sides |= {("predict.py", *way): rates[way] for way in ways}
    return [
        dict(zip(("encoder", "way", "tokens", "precision"), (f"ViT {size}, patch 16", *side)))
        | {
            "molecules/s": float(np.median(found)),
            "times the original": float(np.median(np.array(found) / theirs)),
            "molecules": count,
        }
        for side, found in sides.items()
    ]


def main(share, sizes):
    rows = {}
    for row in read_csv(RESULTS / "predict.csv"):
        rows.setdefault(row["encoder"], []).append(row)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            found = one_size(Path(folder), size, max(8, int(share * MOLECULES[size])))
            rows[found[0]["encoder"]] = found
            if share == 1:
                record("predict", sum(rows.values(), []), PACKAGES)
                continue
            for row in found:
                print_row(row)


if __name__ == "__main__":
    RDLogger.DisableLog("rdApp.*")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2:] or list(MOLECULES))
