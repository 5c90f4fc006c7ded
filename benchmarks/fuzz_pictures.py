"""Hostile files of pictures through predict.py: what can't be read is told, and no row shifts.

    python benchmarks/fuzz_pictures.py                      # 1,000 files; 2 minutes
    python benchmarks/fuzz_pictures.py --files 50 --seed 1

Files that are damaged, lie about their kind, size or colours, hold no molecule or many, or aren't
files at all; every fifth is a sound drawing. predict.py has to end well, with a line for each file
in the order of names, sound ones predicted as they are alone, and each other one with a number or
an error of one line. Prints what was wrong, with a tally of what was refused and why; exit code 1
if anything was. Writes benchmarks/results/fuzz_pictures.txt, if no fewer than the default.
"""

import io
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter

import click
import numpy as np
from fuzz import keep, known_smiles, shorten, show
from PIL import Image, ImageDraw, ImageOps
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT, RUNS, read_csv, surroundings

from moleclip.pictures import pictures_in

FILES, PLANTED = 1000, 5  # every so many files one is sound
NAMES = ("{}", "{} copy", "=1+1 {}", "-o {}", 'a,b;"{}"', "µ😀 {}", "two\nlines {}", "{}.x")
SAVED = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")
MODES = ("1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F", "YCbCr")
TARGET = "value"
STAND_IN = "finetune.py --init scratch:nano --freeze --epochs 2 --features picture"


def drawing(rng, smiles):
    """Return a drawing of a random size and proportion, as Pillow's."""
    sides = [rng.randrange(120, 500) for _ in range(2)]
    canvas = rdMolDraw2D.MolDraw2DCairo(*sides)
    canvas.DrawMolecule(Chem.MolFromSmiles(smiles))
    canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")


def saved(picture, kind="PNG", **options):
    """Return a picture as a file's bytes."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, data):
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width, height, depth, colour):
    """Return the start of a PNG that says it is so large."""
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start)


def damaged(rng, data):
    """Return bytes with a part lost, doubled or exchanged."""
    at, length = rng.randrange(len(data)), rng.choice([1, 1, 4, 100])
    other = rng.randbytes(length)
    return rng.choice([
        data[:at],
        data[at:],
        data[:at] + other + data[at + length :],
        data[:at] + other + data[at:],
        data[:at] + data[at + length :],
        data + data[at:],
    ])  # fmt: skip


def lying(rng, picture):
    """Return the bytes of a PNG that promises another size, or hides much in little."""
    size = rng.choice([(2**31 - 1, 1), (60_000, 60_000), (0, 0), (7071, 7071), (1, 2**31 - 1)])
    whole = saved(picture)
    after = whole[33:]  # its own header
    return rng.choice([
        lambda: header(*size, 8, 2) + after,
        lambda: header(picture.width, picture.height, rng.choice([0, 3, 16, 255]), 2) + after,
        lambda: header(picture.width, picture.height, 8, rng.randrange(8)) + after,
        lambda: whole[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) + after,
        lambda: whole[:33] + chunk(b"iCCP", b"a\0\0" + rng.randbytes(200)) + after,
        lambda: whole[:33] + chunk(b"tRNS", rng.randbytes(5)) + after,
    ])()  # fmt: skip


def strange(rng, picture):
    """Return a picture that is none of a molecule, or one as nobody draws it."""
    wide, high = rng.choice([(1, 1), (1, 3000), (3000, 1), (2, 2), (300, 200), (5000, 4000)])
    paper = [rng.randrange(256) for _ in range(3)]
    noise = np.frombuffer(rng.randbytes(300 * 200 * 3), np.uint8).reshape(200, 300, 3)
    sheet = Image.new("RGB", (900, 700), tuple(paper))
    for _ in range(rng.choice([1, 2, 9])):
        sheet.paste(picture, (rng.randrange(800), rng.randrange(600)))
    lines = Image.new("RGB", (400, 400), "white")
    pen, ends = ImageDraw.Draw(lines), [rng.randrange(400) for _ in range(200)]
    pen.line(ends, fill=tuple(paper), width=rng.choice([1, 9, 60]))
    frames = ImageOps.expand(ImageOps.expand(picture, 20, "white"), rng.choice([1, 9, 80]), 0)
    return rng.choice([
        lambda: Image.new("RGB", (wide, high), tuple(paper)),
        lambda: Image.fromarray(noise),
        lambda: sheet,
        lambda: lines,
        lambda: frames,
        lambda: ImageOps.invert(picture),
        lambda: picture.resize((max(1, picture.width // 20), picture.height)),
        lambda: picture.resize([side * 14 for side in picture.size]),
        lambda: picture.crop((0, 0, *(side // 3 for side in picture.size))),
    ])()  # fmt: skip


def contents(rng, picture):
    """Return the bytes of a hostile file."""
    mode = rng.choice(MODES)
    turned = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
    fits = "TIFF" if mode in ("CMYK", "F", "YCbCr") else "PNG"
    exif = b"Exif\0\0" + rng.randbytes(60)
    sound = saved(picture, rng.choice(["PNG", "JPEG"]))
    return rng.choice([
        lambda: damaged(rng, sound),
        lambda: damaged(rng, sound),
        lambda: damaged(rng, damaged(rng, sound)),
        lambda: lying(rng, picture),
        lambda: saved(strange(rng, picture), rng.choice(["PNG", "JPEG"])),
        lambda: saved(strange(rng, picture)),
        lambda: saved(turned, fits),
        lambda: saved(picture.convert("CMYK"), "JPEG"),
        lambda: saved(picture.quantize(rng.choice([2, 8, 256])), "PNG", transparency=0),
        lambda: saved(picture, "JPEG", quality=rng.choice([1, 10]), exif=exif),
        lambda: saved(picture, "PNG", save_all=True, append_images=[picture] * 3),
        lambda: saved(picture, rng.choice(SAVED)),
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><circle r='9'/></svg>",
        lambda: rng.randbytes(rng.choice([0, 1, 8, 5000])),
        lambda: sound[:8] + rng.randbytes(500),
    ])()  # fmt: skip


def write_file(rng, path, smiles):
    """Write one hostile file; of some names there is no file, but a folder, a link or a pipe."""
    kind = rng.randrange(60)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(rng.choice([path.name, "nowhere.png", "/dev/zero", "/dev/null"]))
    elif kind == 2:
        os.mkfifo(path)
    else:
        path.write_bytes(contents(rng, drawing(rng, smiles)))


def write_files(folder, count, seed):
    """Fill a folder with files; return {name: SMILES} of the sound ones."""
    known, sound = known_smiles(), {}
    for number in range(count):
        rng = random.Random(f"{seed} picture {number}")
        smiles = rng.choice(known)
        suffix = rng.choice([".png", ".png", ".jpg", ".jpeg", ".PNG", ".gif", ".svg"])
        path = folder / (rng.choice(NAMES).replace("{}", str(number)) + suffix)
        if number % PLANTED == PLANTED - 1:
            path = folder / f"sound {number}.png"
            path.write_bytes(saved(drawing(rng, smiles)))
            sound[path.name] = smiles
        else:
            write_file(rng, path, smiles)
    return sound


def told(model, folder, out):
    """Return (lines, what predict.py said, its exit code) for a folder of pictures."""
    command = [sys.executable, ROOT / "predict.py", model, folder, "-o", out, "--provider", "cpu"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace")
    return read_csv(out) if out.exists() else [], done.stderr, done.returncode


def check(model, desk, count, seed, target=TARGET):
    """Return (findings, tally of what became of the files) of so many hostile files."""
    folder, alone = desk / "pictures", desk / "alone"
    folder.mkdir(parents=True), alone.mkdir()
    sound = write_files(folder, count, seed)
    for name in sound:
        shutil.copy(folder / name, alone)
    lines, said, code = told(model, folder, desk / "all.csv")
    expected = {line["name"]: line[target] for line in told(model, alone, desk / "alone.csv")[0]}
    found = [f"exit code {code}: {said[-300:]}"] if code else []
    found += ["a traceback"] if "Traceback" in said else []
    names, tally = [path.name for path in pictures_in(folder)], Counter()
    if [line["name"] for line in lines] != names:
        found.append(f"{len(lines)} lines for {len(names)} files, or in another order")
    for line in lines:
        value, error = line[target], line["error"]
        tally[shorten(error) if error else "read"] += 1
        whole = math.isfinite(float(value or "nan"))
        if whole == bool(error) or "\n" in error:
            found.append(f"{line['name']!r} is {value!r}, {error!r}")
        if line["name"] in sound and not whole or not like(value, expected.get(line["name"])):
            found.append(f"{line['name']!r} is {value!r}, alone {expected.get(line['name'])!r}")
    return found, tally


def like(value, alone):
    """Tell whether two predictions are the same, if there is one alone."""
    return alone is None or math.isclose(float(value or "nan"), float(alone or "nan"), abs_tol=1e-4)


def stand_in(desk):
    """Return the path of a small exported model of pictures, which knows nothing."""
    table = desk / "table.csv"
    rows = [f"{smiles},{len(smiles)}" for smiles in known_smiles()[:40]]
    table.write_text("\n".join([f"smiles,{TARGET}", *rows]) + "\n")
    words = [*STAND_IN.split(), "--data", table, "-o", desk / "run"]
    for command in (words, ["export.py", desk / "run", "-o", desk / "model.onnx"]):
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return desk / "model.onnx"


@click.command(help=__doc__)
@click.option("--files", default=FILES, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other files.")
def main(files, seed):
    desk, facts = RUNS / "fuzz-pictures", surroundings(("rdkit", "pillow"))
    shutil.rmtree(desk, ignore_errors=True)
    desk.mkdir(parents=True)
    findings, tally = check(stand_in(desk), desk, files, seed)
    said = show(f"{files} files", findings, tally)
    if files >= FILES:
        keep("fuzz_pictures", facts, said)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
