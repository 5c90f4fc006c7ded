"""How fast and how faithful render.py draws: against the original's way (SVG, cairosvg, PIL), side by side in one run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/render.py                     # about 6 minutes on 2 cores; writes benchmarks/results/render.csv

500 DHBDs and 500 drug-like molecules, two views each, the same pictures on both sides. The sides take turns molecule by molecule in
blocks of 50, and a ratio is the median over the blocks, so that a machine whose speed drifts does both sides the same harm.
"""

import gzip
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cairosvg
import numpy as np
from PIL import Image
from rdkit import Chem, RDLogger
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT, record  # which puts the project's own render.py before this one

from moleclip.drawing import Style, draw, draw_views, font_path, layout, random_style
from moleclip.molecules import Rejected, parse, read_molecules
from moleclip.pixels import SIZE, cairo_tap, deflate, inflate, pixels_of, to_index, to_rgb
from moleclip.shards import picture, read_shard

BLOCK = 50


def molecules():
    """Return 500 DHBDs and 500 drug-like SMILES, evenly spread over their files, as (row, SMILES) in turns."""
    dhbd = [m.smiles for m in read_molecules(str(ROOT / "data" / "dhbd.csv"))][::13][:500]
    druglike = gzip.open(ROOT / "data" / "druglike_20000.smi.gz", "rt").read().split()[::40][:500]
    return list(enumerate(itertools.chain.from_iterable(zip(dhbd, druglike))))


def styled(options, style):
    options.prepareMolsBeforeDrawing, options.bondLineWidth = False, style.line_width
    options.multipleBondOffset, options.rotate = style.multiple_bond_offset, style.rotation
    if style.font:
        options.minFontSize = options.maxFontSize = style.font_size
        options.fixedBondLength, options.fontFile = style.bond_length, font_path(style.font)


def original(row, smiles):
    """Return both views as RGB, drawn as the original code does: each view from its SMILES, by way of SVG and PNG."""
    pictures = []
    for view in (0, 1):
        molecule = rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles(smiles))
        canvas = rdMolDraw2D.MolDraw2DSVG(SIZE, SIZE)
        styled(canvas.drawOptions(), random_style(0, row, view) if view else Style())
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
        png = cairosvg.svg2png(bytestring=canvas.GetDrawingText().encode())
        pictures.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    return pictures


def reference(molecule, style):
    """Return RDKit's own RGB picture, decoded from its PNG."""
    canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
    styled(canvas.drawOptions(), style)
    canvas.DrawMolecule(molecule)
    canvas.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB"))


def timed(function, items):
    began = time.perf_counter()
    results = [function(item) for item in items]
    return time.perf_counter() - began, results


def speed(items):
    """Return rows on the whole path from SMILES to stored picture, one core, and how far the pictures are apart."""
    canonical = [
        (row, Chem.CanonSmiles(smiles)) for row, smiles in items
    ]  # the original lays out atoms as written
    times, off = [], []
    for start in range(0, len(canonical), BLOCK):
        block = canonical[start : start + BLOCK]
        theirs, pictures = timed(lambda item: original(*item), block)
        ours, streams = timed(lambda item: draw_views((*item, ""), 2, level=8), block)
        tap, cairo_tap = cairo_tap, lambda: None
        by_png, _ = timed(lambda item: draw_views((*item, ""), 2, level=8), block)
        cairo_tap = tap
        times.append((theirs, ours, by_png))
        off += [
            np.abs(to_rgb(inflate(s)).astype(int) - p).mean()
            for pair, pics in zip(streams, pictures)
            for s, p in zip(pair, pics)
        ]
    times = 2 * BLOCK / np.array(times)
    rate = np.median(times, 0)
    return [
        {"figure": "original's way, one core", "value": rate[0], "unit": "images/s"},
        {"figure": "render.py, one core", "value": rate[1], "unit": "images/s"},
        {
            "figure": "render.py / original",
            "value": np.median(times[:, 1] / times[:, 0]),
            "unit": "times",
        },
        {
            "figure": "render.py by way of RDKit's PNG / original",
            "value": np.median(times[:, 2] / times[:, 0]),
            "unit": "times",
        },
        {
            "figure": "mean difference from the original's pictures",
            "value": float(np.mean(off)),
            "unit": "of 255",
        },
    ]


def stages(items):
    """Return rows on where a picture's time goes, in ms an image (two views share what is done once for a molecule)."""
    spent = dict.fromkeys(
        (
            "parse, canonical order",
            "layout",
            "draw",
            "take the pixels",
            "palette indices",
            "zlib level 8",
            "zlib run lengths",
            "RDKit's PNG, encode and decode (not used)",
        ),
        0.0,
    )

    def clock(name, function, *words):
        began = time.perf_counter()
        result = function(*words)
        spent[name] += time.perf_counter() - began
        return result

    def paint(molecule, style):
        canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
        canvas.drawOptions().includeMetadata = False
        styled(canvas.drawOptions(), style)
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
        return canvas

    for row, smiles in items:
        molecule = clock("layout", layout, clock("parse, canonical order", parse, smiles))
        for view in (0, 1):
            canvas = clock("draw", paint, molecule, random_style(0, row, view) if view else Style())
            pixels = clock("take the pixels", pixels_of, canvas)
            index = clock("palette indices", to_index, pixels)
            clock("zlib level 8", deflate, index, 8)
            clock("zlib run lengths", deflate, index)
            clock(
                "RDKit's PNG, encode and decode (not used)",
                lambda: Image.open(io.BytesIO(canvas.GetDrawingText())).load(),
            )
    return [
        {"figure": f"stage: {name}", "value": 1000 * seconds / (2 * len(items)), "unit": "ms/image"}
        for name, seconds in spent.items()
    ]


def fidelity():
    """Return rows on the difference of decoded pictures from RDKit's own, over samples of all shipped sets."""
    sums, worst, pixels, count = 0.0, 0.0, 0, 0
    for name in ("dhbd.csv", "esol.csv", "chembl_3000.smi", "druglike_20000.smi.gz"):
        everything = list(read_molecules(str(ROOT / "data" / name)))
        for m in everything[:: max(1, len(everything) // 250)]:
            try:
                molecule = layout(parse(m.smiles))
            except Rejected:
                continue
            for style in (Style(), random_style(0, m.row, 1)):
                off = np.abs(to_rgb(draw(molecule, style)).astype(int) - reference(molecule, style))
                sums, worst, pixels, count = (
                    sums + off.mean(),
                    max(worst, off.mean()),
                    pixels + (off.max(-1) > 16).mean(),
                    count + 1,
                )
    return [
        {
            "figure": f"mean absolute error, {count} pictures of 4 sets",
            "value": sums / count,
            "unit": "of 255",
        },
        {"figure": "the same, worst picture", "value": worst, "unit": "of 255"},
        {"figure": "pixels off by more than 16", "value": 100 * pixels / count, "unit": "%"},
    ]


def whole_runs(items):
    """Return rows on the command itself with 1 and 2 workers, the size on disk, and loading against decoding PNG."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "all.smi"
        source.write_text("\n".join(smiles for _, smiles in items * 4) + "\n")
        for turn in range(5):
            pair = []
            for workers in (1, 2):
                out = Path(folder) / f"{turn}-{workers}"
                began = time.perf_counter()
                subprocess.run(
                    [
                        sys.executable,
                        ROOT / "render.py",
                        source,
                        "-o",
                        out,
                        "--workers",
                        str(workers),
                    ],
                    check=True,
                    capture_output=True,
                )
                pair.append(time.perf_counter() - began)
            times.append(pair[0] / pair[1])
        size = sum(path.stat().st_size for path in out.glob("shard-*.npz")) / (2 * 4 * len(items))
        shard = read_shard(out / "shard-00000.npz")
        load = loading(shard)
    return [
        {
            "figure": "2 workers / 1 worker, whole command on 4,000 molecules",
            "value": float(np.median(times)),
            "unit": "times",
        },
        {"figure": "shards on disk", "value": size / 1000, "unit": "kB/image"},
    ] + load


def loading(shard):
    count = 500
    pngs = []
    for i in range(count):
        packed = io.BytesIO()
        Image.fromarray(to_rgb(picture(shard, i))).save(packed, "PNG")
        pngs.append(packed)
    rates = []
    for _ in range(7):
        ours, _ = timed(lambda i: picture(shard, i), range(count))
        as_rgb, _ = timed(lambda i: to_rgb(picture(shard, i)), range(count))
        theirs, _ = timed(lambda png: np.asarray(Image.open(png)), pngs)
        rates.append((count / ours, theirs / ours, theirs / as_rgb))
    rate, ratio, rgb = np.median(rates, 0)
    return [
        {"figure": "loading from a shard, one core", "value": rate, "unit": "images/s"},
        {
            "figure": "loading / decoding the same pictures from PNG",
            "value": ratio,
            "unit": "times",
        },
        {"figure": "the same, made RGB on the CPU", "value": rgb, "unit": "times"},
    ]


if __name__ == "__main__":
    RDLogger.DisableLog("rdApp.*")
    os.environ["OMP_NUM_THREADS"] = "1"
    items = molecules()
    draw_views((0, "CCO", ""), 2)  # tables and fonts are made once
    record(
        "render",
        speed(items) + stages(items) + fidelity() + whole_runs(items),
        ("rdkit", "numpy", "pillow", "cairosvg"),
    )
