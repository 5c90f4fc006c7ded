"""What the model is shown: a molecule's drawings and its likeness to the training molecules, or a picture made to look like a drawing; and the page of both.

predict.py's worker processes run `prepare`; export.py takes the fingerprints from here. This file has no command of its own.
"""

import base64
import csv
import io
import itertools
import json
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator

import render

BITS, RADIUS = 2048, 2      # of the Morgan fingerprints (ECFP4), as in finetune.py's baselines
MARGIN = 10                 # pixels that RDKit leaves on the longer sides of a drawing (median of 120 molecules; 8 to 11)
LINE = 2.0                  # pixels: RDKit's line width in the plain drawing
MAX_PIXELS = 50_000_000     # of a picture: 150 MB when decoded; more is a mistake or an attack
INK = 40                    # of 255: what is this much darker than the paper, in any colour, is ink and not its noise
KINDS = (".png", ".jpg", ".jpeg")
REPORTED = 5000             # rows in the page of --html: 15 MB; no browser likes a larger one


# ---------------------------------------------------------------------------------------------------------------------
# Likeness to the training molecules


@cache
def generator():
    return rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)


def fingerprint(molecule):
    """Return a molecule's Morgan fingerprint, packed: uint8 (256,)."""
    return np.packbits(generator().GetFingerprintAsNumPy(molecule), bitorder="little")


@cache
def training(path):
    """Return the packed fingerprints of a .npy file, uint8 (n, 256), as RDKit's vectors."""
    vectors = []
    for row in np.load(path, allow_pickle=False):
        vector = DataStructs.ExplicitBitVect(BITS)
        vector.SetBitsFromList(np.flatnonzero(np.unpackbits(row, bitorder="little")).tolist())
        vectors.append(vector)
    return vectors


def nearest(molecule, sketch):
    """Return the Tanimoto similarity of a molecule to the closest of the sketch in a .npy file."""
    return max(DataStructs.BulkTanimotoSimilarity(generator().GetFingerprint(molecule), training(sketch)))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures from elsewhere


def fit(path):
    """Return the picture of a molecule in a file as `render.draw` would draw it, palette indices, uint8 (224, 224). Raises Rejected."""
    ink = to_black_on_white(read_picture(path))
    dark = (ink < 255 - INK).any(2)
    if not dark.any():
        raise render.Rejected("nothing is drawn on it")
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    room = render.SIZE - 2 * MARGIN
    scale = room / max(box[2] - box[0], box[3] - box[1])
    image = Image.fromarray(ink).crop(box)
    # A large drawing's lines would fade when it shrinks: they are made as wide as the plain drawing's first.
    missing = (LINE / scale - line_width(dark[box[1]:box[3], box[0]:box[2]])) / 2
    if scale < 1 and missing >= 0.5:
        reach = min(round(missing), 25)
        image = ImageOps.expand(image, reach, "white").filter(ImageFilter.MinFilter(2 * reach + 1))
        scale = room / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    sheet = Image.new("RGB", (render.SIZE, render.SIZE), "white")
    sheet.paste(image.resize(size, Image.Resampling.LANCZOS), [(render.SIZE - side) // 2 for side in size])
    red, green, blue = np.moveaxis(np.asarray(sheet).astype(np.uint32), 2, 0)
    return render.to_index(red << 16 | green << 8 | blue)


def read_picture(path):
    """Return a PNG or JPEG on white paper, uint8 (height, width, 3). Raises Rejected for what is not a picture, or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")                   # Pillow only warns of a decompression bomb
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise render.Rejected(f"{image.width} x {image.height} pixels are too many; make it smaller than {MAX_PIXELS // 10**6} million")
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):               # 16 bits a pixel; Pillow would clip them at 255
                    image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
                image = image.convert("RGBA")
                paper = Image.new("RGBA", image.size, paper_under(image))
                return np.asarray(Image.alpha_composite(paper, image).convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise render.Rejected(f"too many pixels; make it smaller than {MAX_PIXELS // 10**6} million") from None
    except FileNotFoundError:
        raise render.Rejected("no such file") from None
    except (OSError, ValueError, SyntaxError, EOFError, Warning) as error:
        reason = "not a PNG or JPEG picture" if isinstance(error, Image.UnidentifiedImageError) else f"damaged: {str(error)[:100]}"
        raise render.Rejected(reason) from None


def paper_under(image):
    """Return the colour that a transparent picture was meant to lie on: black under light ink, else white."""
    pixels = np.asarray(image)
    solid = pixels[pixels[..., 3] > 127]
    transparent = len(solid) < 0.8 * pixels[..., 3].size
    return "black" if transparent and len(solid) and np.median(solid[:, :3].max(1)) > 200 and np.median(solid[:, :3].min(1)) > 150 else "white"


def to_black_on_white(pixels):
    """Return RGB pixels, uint8 (height, width, 3), with the paper made white; a dark picture's lightness is inverted, its hues stay."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = np.median(rim, 0)
    values = pixels.astype(np.float32)
    if paper.mean() < 128:
        turn = lambda colour: colour + 255 - colour.max(-1, keepdims=True) - colour.min(-1, keepdims=True)       # HSL's lightness
        values, paper = turn(values), turn(paper)
    return (values * (255 / np.maximum(paper, 64))).clip(0, 255).round().astype(np.uint8)


def line_width(dark):
    """Return the typical width of the lines in bool (height, width), in pixels: half of the ink lies in lines narrower than that."""
    across, down = run_lengths(dark), run_lengths(dark.T).T
    return float(np.median(np.minimum(across, down)[dark]))


def run_lengths(dark):
    """Return for each pixel of bool (height, width) the length of the horizontal run of ink it lies in, int (height, width)."""
    flat = np.pad(dark, ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))    # begin and end of each run in turn
    begins, ends = edges[::2] + 1, edges[1::2] + 1
    lengths = np.zeros(flat.size, np.int64)
    lengths[flat] = np.repeat(ends - begins, ends - begins)
    return lengths.reshape(dark.shape[0], -1)[:, 1:-1]


# ---------------------------------------------------------------------------------------------------------------------
# The task of predict.py's worker processes


def prepare(item, views=1, max_atoms=render.MAX_ATOMS, patch=0, sketch=None, pictures=False):
    """Return ([zlib stream of a picture, ...], [its patches with ink, ...], nearest or None), or the reason why not, as a string.

    item: (row, SMILES or path of a picture, problem). patch: side of the model's patches if ink matters to its speed, else 0.
    sketch: .npy file of training fingerprints.
    """
    row, text, problem = item
    try:
        if problem:
            raise render.Rejected(problem)
        if pictures:
            drawn, likeness = [fit(text)], None
        else:
            molecule = render.parse(text, max_atoms)
            likeness = nearest(molecule, sketch) if sketch else None
            molecule = render.layout(molecule)
            drawn = [render.draw(molecule, render.random_style(0, row, view) if view else render.Style()) for view in range(views)]
        return [render.deflate(index) for index in drawn], [inked(index, patch) for index in drawn], likeness
    except render.Rejected as reason:
        return str(reason)


def inked(index, patch):
    """Return how many patches of an index picture, uint8 (224, 224), are not plain paper."""
    count = render.SIZE // patch if patch else 0
    return int(index.reshape(count, patch, count, patch).any((1, 3)).sum()) if patch else 0


# ---------------------------------------------------------------------------------------------------------------------
# The page of --html


def write_report(path, table, title, targets, files, workers, **options):
    """Write one self-contained page of the first rows of a finished predictions.csv, each with its picture as the model saw it.

    targets: the columns to stress; files: of picture input, by row; options: those of `prepare`.
    """
    csv.field_size_limit(1 << 24)
    with open(table, newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.reader(stream)
        header, lines = next(reader), list(itertools.islice(reader, REPORTED))
        more = sum(1 for _ in reader)
    molecules = [render.Molecule(int(line[0]), 0, str(files[int(line[0])]) if files else line[1], line[2], problem=line[-1]) for line in lines]
    drawn = render.parallel("pictures:prepare", molecules, workers, pictures=bool(files), **options)
    images = ["" if isinstance(result, str) else png(render.inflate(result[0][0])) for _, result in drawn]
    data = json.dumps({"title": title, "columns": header, "targets": targets, "more": more, "rows": lines, "images": images})
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")       # nothing in it can end the script or begin a tag
    page = (render.HERE / "page.html").read_text(encoding="utf-8").replace('"DATA"', data)
    render.save_whole(path, lambda name: name.write_text(page, encoding="utf-8"))


def png(index):
    """Return an index picture, uint8 (224, 224), as a small PNG in base64: its colours rounded to a few, which the eye can't tell."""
    used, packed = np.unique(index, return_inverse=True)
    image, text = Image.fromarray(packed.reshape(index.shape).astype(np.uint8), "P"), io.BytesIO()
    image.putpalette(render.palette()[used].tobytes())
    image.save(text, "PNG", optimize=True)
    return base64.b64encode(text.getvalue()).decode()
