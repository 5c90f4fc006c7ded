"""How fast predict.py is, from a SMILES file to the CSV, against the original's way (SVG, cairosvg, PIL, torch eager in fp32, batches of 64).

    pip install -r benchmarks/requirements.txt
    python benchmarks/predict.py                    # about 5 minutes on 2 cores; writes benchmarks/results/predict.csv
    python benchmarks/predict.py 0.1                # a tenth of the molecules, to try it

Random weights of each size, drug-like molecules evenly spread over their file. The sides take turns, and a ratio is the median over
the turns. predict.py's time has everything in it but Python's imports: reading the file, starting its workers, loading the model.
The original's has neither imports nor the loading of the model; all its steps run in one process, as they did there.
"""

import csv
import io
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import cairosvg
import numpy as np
import onnx
import torch
from PIL import Image
from rdkit import Chem, RDLogger
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT, record  # which puts the project's own scripts before this one

import export
import predict
from moleclip.model import Model, load_model, save_model
from moleclip.molecules import MAX_ATOMS, read_molecules
from moleclip.pixels import SIZE
from moleclip.weights import load_encoder

MOLECULES = {"tiny": 400, "small": 200, "base": 80}
TURNS = 3
BATCH = 64  # of the original


def fabricate(folder, size, tokens):
    """Write model.pt with random weights, as finetune.py would write it, and return its path."""
    encoder = load_encoder(f"scratch:{size}")
    encoder.arch["tokens"] = tokens
    data = SimpleNamespace(targets=["value"], task="regression", smiles_column="smiles")
    path = folder / f"{size}-{tokens}.pt"
    save_model(path, Model(encoder, 1), data, {"max_atoms": MAX_ATOMS}, {})
    return path


def export_both(folder, path):
    """Export a model.pt in fp32 and int8 and return {precision: path}. The graph is traced once."""
    deployed, checkpoints = export.combine([path])
    graph, files = export.to_onnx(deployed, "fp32"), {}
    for precision in ("fp32", "int8"):
        files[precision] = folder / f"{path.stem}-{precision}.onnx"
        model = graph if precision == "fp32" else export.to_int8(onnx.load(files["fp32"]))
        export.save_onnx(model, files[precision], export.metadata(deployed, checkpoints, precision))
    return files


def original(model, source, out):
    """Predict a SMILES file as the original's code does, one step after the other in one process."""
    pictures, lines = [], source.read_text().split()
    for smiles in lines:
        canvas = rdMolDraw2D.MolDraw2DSVG(SIZE, SIZE)
        canvas.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles(smiles)))
        canvas.FinishDrawing()
        png = cairosvg.svg2png(bytestring=canvas.GetDrawingText().encode())
        pictures.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    values = []
    with torch.no_grad():
        for i in range(0, len(pictures), BATCH):
            pixels = (
                torch.from_numpy(np.stack(pictures[i : i + BATCH])).permute(0, 3, 1, 2).float()
                / 255
            )
            values += model.unscale(model(pixels), "regression").tolist()
    with open(out, "w", newline="") as stream:
        csv.writer(stream).writerows([smiles, *value] for smiles, value in zip(lines, values))


def seconds(function, *words):
    began = time.perf_counter()
    function(*words)
    return time.perf_counter() - began


def ours(model, source, out):
    predict.main.main(
        [str(model), str(source), "-o", str(out), "--provider", "cpu"], standalone_mode=False
    )


def one_size(folder, size, count):
    """Return the rows of one size of encoder: each way with its molecules a second, and against the original's."""
    lines = [m.smiles for m in read_molecules(str(ROOT / "data" / "druglike_20000.smi.gz"))]
    source = folder / f"{size}.smi"
    source.write_text("\n".join(lines[:: len(lines) // count][:count]) + "\n")
    ways = {}
    for tokens in ("inked", "all") if size == "base" else ("inked",):
        ways |= {
            (tokens, precision): path
            for precision, path in export_both(folder, fabricate(folder, size, tokens)).items()
        }
    model, _ = load_model(fabricate(folder, size, "all"))
    rates = {"original": []} | {way: [] for way in ways}
    for _ in range(TURNS):
        rates["original"].append(count / seconds(original, model, source, folder / "original.csv"))
        for way, path in ways.items():
            rates[way].append(count / seconds(ours, path, source, folder / "ours.csv"))
    rows = [
        {
            "encoder": f"ViT {size}, patch 16",
            "way": "the original's",
            "tokens": "all",
            "precision": "fp32",
            "molecules/s": float(np.median(rates["original"])),
            "times the original": 1.0,
            "molecules": count,
        }
    ]
    for (tokens, precision), values in ((way, rates[way]) for way in ways):
        rows.append(
            {
                "encoder": f"ViT {size}, patch 16",
                "way": "predict.py",
                "tokens": tokens,
                "precision": precision,
                "molecules/s": float(np.median(values)),
                "times the original": float(np.median(np.array(values) / rates["original"])),
                "molecules": count,
            }
        )
    return rows


if __name__ == "__main__":
    RDLogger.DisableLog("rdApp.*")
    share, rows = float(sys.argv[1]) if len(sys.argv) > 1 else 1, []
    with tempfile.TemporaryDirectory() as folder:
        for size, count in MOLECULES.items():
            rows += one_size(Path(folder), size, max(8, int(share * count)))
    if share == 1:
        record("predict", rows, ("torch", "onnxruntime-gpu", "rdkit", "cairosvg", "numpy"))
    else:
        print("\n".join("   ".join(map(str, row.values())) for row in rows))
