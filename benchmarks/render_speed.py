"""How fast and how faithful render.py draws, against the original's way, side by side in one run.

    pip install -r requirements-extra.txt
    python benchmarks/render_speed.py         # 6 minutes on 2 cores; writes results/render.csv

500 DHBDs and 500 drug-like molecules, two views each, the same pictures on both sides. The sides
take turns molecule by molecule in blocks of 50, and a ratio is the median over the blocks, so that
a machine whose speed drifts does both sides the same harm.
"""

import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from original import decoded, original_picture, sample, set_style
from PIL import Image
from rdkit import Chem, RDLogger
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT, record

from moleclip.drawing import draw, draw_views, layout
from moleclip.molecules import Rejected, parse, read_molecules
from moleclip.pixels import SIZE, deflate, inflate, pixels_of, to_index, to_rgb
from moleclip.shards import picture, read_shard
from moleclip.styles import Style, random_style

BLOCK = 50
TURNS = 5  # of the whole command with one worker and with two


def molecules():
    """Return 500 DHBDs and 500 drug-like SMILES, as (row, SMILES) in turns."""
    sets = sample("dhbd.csv", 500), sample("druglike_20000.smi.gz", 500)
    return list(enumerate(itertools.chain.from_iterable(zip(*sets))))


def styles(row):
    """Return the style of the plain view, and of a row's other one."""
    return Style(), random_style(0, row, 1)


def figure(name, value, unit):
    """Return one row of the results."""
    return {"figure": name, "value": float(value), "unit": unit}


def timed(function, items):
    """Return (seconds, results) of a function of each item."""
    began = time.perf_counter()
    results = [function(item) for item in items]
    return time.perf_counter() - began, results


def rdkit_canvas(molecule, style):
    """Return RDKit's finished canvas of a molecule that `layout` prepared."""
    canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
    canvas.drawOptions().includeMetadata = False
    set_style(canvas.drawOptions(), style)
    canvas.DrawMolecule(molecule)
    canvas.FinishDrawing()
    return canvas


def speed(items):
    """Return rows on the way from SMILES to stored picture, one core, and on the difference."""
    theirs = lambda item: [original_picture(item[1], style) for style in styles(item[0])]
    ours = lambda item: draw_views(*item, views=2, level=8)
    # The original lays out atoms in the order they are written in.
    canonical = [(row, Chem.CanonSmiles(smiles)) for row, smiles in items]
    times, off = [], []
    for start in range(0, len(canonical), BLOCK):
        block = canonical[start : start + BLOCK]
        slow, pictures = timed(theirs, block)
        fast, streams = timed(ours, block)
        with mock.patch("moleclip.pixels.cairo_tap", lambda: None):
            by_png, _ = timed(ours, block)
        times.append((slow, fast, by_png))
        for one, other in zip(itertools.chain(*streams), itertools.chain(*pictures)):
            off.append(np.abs(to_rgb(inflate(one)).astype(int) - other).mean())
    times = 2 * BLOCK / np.array(times)
    original, drawn, _ = np.median(times, 0)
    _, ratio, png_ratio = np.median(times / times[:, :1], 0)
    return [
        figure("original's way, one core", original, "images/s"),
        figure("render.py, one core", drawn, "images/s"),
        figure("render.py / original", ratio, "times"),
        figure("render.py by way of RDKit's PNG / original", png_ratio, "times"),
        figure("mean difference from the original's pictures", np.mean(off), "of 255"),
    ]


def through_png(canvas):
    """Encode a canvas as PNG and decode it again."""
    Image.open(io.BytesIO(canvas.GetDrawingText())).load()


class Clock:
    """The seconds that calls of functions took, by name."""

    def __init__(self):
        self.spent = {}

    def __call__(self, name, function, *words):
        """Return the function's result."""
        began = time.perf_counter()
        result = function(*words)
        self.spent[name] = self.spent.get(name, 0) + time.perf_counter() - began
        return result


def stages(items):
    """Return rows on where a picture's time goes, in ms an image.

    Two views share what is done once for a molecule.
    """
    clock = Clock()
    for row, smiles in items:
        molecule = clock("parse, canonical order", parse, smiles)
        molecule = clock("layout", layout, molecule)
        for style in styles(row):
            canvas = clock("draw", rdkit_canvas, molecule, style)
            drawn = clock("take the pixels", pixels_of, canvas)
            index = clock("palette indices", to_index, drawn)
            clock("zlib level 8", deflate, index, 8)
            clock("zlib run lengths", deflate, index)
            clock("RDKit's PNG, encode and decode (not used)", through_png, canvas)
    each = {name: 1000 * seconds / (2 * len(items)) for name, seconds in clock.spent.items()}
    return [figure(f"stage: {name}", value, "ms/image") for name, value in each.items()]


def fidelity():
    """Return rows on the difference from RDKit's own pictures, over samples of all shipped sets."""
    errors, shares = [], []
    for name in ("dhbd.csv", "esol.csv", "chembl_3000.smi", "druglike_20000.smi.gz"):
        everything = list(read_molecules(str(ROOT / "data" / name)))
        for one in everything[:: max(1, len(everything) // 250)]:
            try:
                molecule = layout(parse(one.smiles))
            except Rejected:
                continue
            for style in styles(one.row):
                exact = decoded(rdkit_canvas(molecule, style).GetDrawingText())
                off = np.abs(to_rgb(draw(molecule, style)).astype(int) - exact)
                errors.append(off.mean())
                shares.append((off.max(-1) > 16).mean())
    title = f"mean absolute error, {len(errors)} pictures of 4 sets"
    return [
        figure(title, np.mean(errors), "of 255"),
        figure("the same, worst picture", max(errors), "of 255"),
        figure("pixels off by more than 16", 100 * np.mean(shares), "%"),
    ]


def whole_runs(items):
    """Return rows on the command itself with 1 and 2 workers, the size on disk, and loading."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "all.smi", Path(folder) / "shards"
        source.write_text("\n".join(smiles for _, smiles in items * 4) + "\n")
        for turn in range(TURNS):
            one, two = (
                seconds_to_render(source, f"{out}-{turn}-{workers}", workers) for workers in (1, 2)
            )
            ratios.append(one / two)
        shards = list(Path(f"{out}-0-2").glob("shard-*.npz"))
        size = sum(path.stat().st_size for path in shards) / (2 * 4 * len(items))
        load = loading(read_shard(min(shards)))
    title = "2 workers / 1 worker, whole command on 4,000 molecules"
    rows = [
        figure(title, np.median(ratios), "times"),
        figure("shards on disk", size / 1000, "kB/image"),
    ]
    return rows + load


def seconds_to_render(source, out, workers):
    """Return how long render.py takes for a file."""
    words = ["render.py", source, "-o", out, "--workers", workers]
    began = time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def loading(shard, count=500):
    """Return rows on loading pictures from a shard, against decoding them from PNG."""
    pngs = [io.BytesIO() for _ in range(count)]
    for i, packed in enumerate(pngs):
        Image.fromarray(to_rgb(picture(shard, i))).save(packed, "PNG")
    rates = []
    for _ in range(7):
        ours, _ = timed(lambda i: picture(shard, i), range(count))
        as_rgb, _ = timed(lambda i: to_rgb(picture(shard, i)), range(count))
        theirs, _ = timed(lambda png: np.asarray(Image.open(png)), pngs)
        rates.append((count / ours, theirs / ours, theirs / as_rgb))
    rate, ratio, rgb = np.median(rates, 0)
    return [
        figure("loading from a shard, one core", rate, "images/s"),
        figure("loading / decoding the same pictures from PNG", ratio, "times"),
        figure("the same, made RGB on the CPU", rgb, "times"),
    ]


def main():
    RDLogger.DisableLog("rdApp.*")
    os.environ["OMP_NUM_THREADS"] = "1"
    items = molecules()
    draw_views(0, "CCO", views=2)  # tables and fonts are made once
    rows = speed(items) + stages(items) + fidelity() + whole_runs(items)
    record("render", rows, ("rdkit", "numpy", "pillow", "cairosvg"))


if __name__ == "__main__":
    main()
