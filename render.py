"""Draw molecules for the encoder: SMILES in, indexed-colour NPZ shards out.

    python render.py data/chembl_3000.smi                     # shards/, two views of each molecule
    python render.py library.csv --smiles-column SMILES -o shards --views 4 --workers 8
    zcat huge.smi.gz | python render.py - -o shards

View 0 is the plain drawing, the others are drawn in a random style. This script also owns what the
others share: reading molecules from files, drawing one, and processes that survive RDKit's crashes.
"""

import csv
import gzip
import hashlib
import importlib
import io
import itertools
import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image
from rdkit import Chem, RDLogger, rdBase
from rdkit.Chem.Draw import rdMolDraw2D
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SIZE = 224          # pixels: the resolution of CLIP's image encoders
SHARD = 1024        # rows of the input that one shard covers, readable or not
MAX_ATOMS = 150     # heavy atoms; beyond it bonds are thinner than a pixel and layout takes up to seconds
TIME_LIMIT = 60     # seconds for one molecule: a backstop only, MAX_ATOMS decides first

# The colours of RDKit's default atom palette, by atomic number; every other element is drawn black.
ATOM_COLOURS = {6: (0, 0, 0), 7: (0, 0, 255), 8: (255, 0, 0), 9: (51, 204, 204), 15: (255, 128, 0), 16: (204, 204, 0),
                17: (0, 205, 0), 35: (128, 76, 26), 53: (161, 31, 240)}
FONTS = [f"DejaVu{face}.ttf" for face in (
    "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "SansMono", "SansMono-Bold", "SansMono-Oblique",
    "SansMono-BoldOblique", "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")] + [
    "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf",
    "cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]


class Rejected(Exception):
    """A molecule that can't be drawn; the message is the reason given to the user."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading molecules


class Molecule(NamedTuple):
    row: int            # 0-based position among the input's data rows, unreadable ones included
    line: int           # 1-based line of the file, for messages
    smiles: str         # as written
    name: str = ""      # what follows the SMILES in .smi and .txt
    fields: dict = {}   # every column of a .csv or .tsv record
    problem: str = ""   # why the row can't be used, if that shows while reading


def find_input(path):
    """Return `path` if it exists (or is `-`), else the file of that name in data/, saying so on standard error."""
    bundled = HERE / "data" / path
    if str(path) == "-" or Path(path).exists():
        return str(path)
    for candidate in (bundled, bundled.with_name(bundled.name + ".gz")):
        if candidate.is_file():
            found = os.path.relpath(candidate)
            click.echo(f"{path} is not here; taking {found}", err=True)
            return found
    raise click.ClickException(f"{path}: no such file, here or in data/")


def open_bytes(path):
    """Open a file or standard input (`-`) for reading bytes, inflating gzip, which is recognised by content."""
    try:
        raw = sys.stdin.buffer if path == "-" else open(path, "rb")
        stream = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
        return io.BufferedReader(gzip.GzipFile(fileobj=stream)) if stream.peek(2)[:2] == b"\x1f\x8b" else stream
    except OSError as error:
        raise click.ClickException(f"{path}: can't be read ({error.strerror})") from None


def open_text(path):
    """Open a UTF-8 file (a byte-order mark is skipped); bytes that are not UTF-8 pass through unchanged."""
    stream = open_bytes(path)
    if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise click.ClickException(f"{path}: is UTF-16; save it as UTF-8 (in Excel: \"CSV UTF-8\")")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def input_kind(path, smiles_column=None):
    """Return "lines" (.smi, .txt) or "table" (.csv, .tsv), by name; standard input is a table if a column is named."""
    if path == "-":
        return "table" if smiles_column else "lines"
    kind = {".smi": "lines", ".txt": "lines", ".csv": "table", ".tsv": "table"}.get(
        Path(path.removesuffix(".gz")).suffix.lower())
    if kind is None:
        raise click.ClickException(f"{path}: unknown kind of file; use .smi, .txt, .csv or .tsv, gzipped or not")
    return kind


def find_smiles_column(path, header, wanted=None):
    """Return the name of the SMILES column of a table; `wanted` must exist if given."""
    if wanted:
        if wanted in header:
            return wanted
        raise click.ClickException(f"{path}: no column {wanted!r}; it has {', '.join(map(repr, header))}")
    exact = [name for name in header if name.strip().lower() in ("smiles", "smi")]
    likely = exact or [name for name in header if "smiles" in name.lower()]
    if len(likely) == 1:
        return likely[0]
    found = f"several columns may hold SMILES ({', '.join(likely)})" if likely else "no SMILES column"
    raise click.ClickException(f"{path}: {found}; name it with --smiles-column. Columns: {', '.join(header)}")


def read_molecules(path, smiles_column=None):
    """Yield every row of a .smi, .txt, .csv or .tsv file, or of standard input (`-`), as a `Molecule`, streaming.

    Raises click.ClickException for a file that can't be read, is empty or has no SMILES column. A row that can't be
    used is yielded all the same, with its `problem`, so that rows never shift.
    """
    count = 0
    reader = read_table if input_kind(path, smiles_column) == "table" else read_lines
    try:
        with open_text(path) as stream:
            for molecule in reader(path, stream, smiles_column):
                count += 1
                yield molecule
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise click.ClickException(f"{path}: the gzip file is truncated or damaged after row {count - 1}") from None
    except csv.Error as error:
        raise click.ClickException(f"{path}: not a readable table after row {count - 1}: {error}") from None
    if not count:
        raise click.ClickException(f"{path}: is empty")


def read_lines(path, stream, smiles_column=None):
    for row, text in enumerate(stream):
        smiles, _, name = text.strip().replace("\t", " ", 1).partition(" ")
        yield Molecule(row, row + 1, smiles, name.strip(), problem="" if smiles else "empty line")


def read_table(path, stream, smiles_column=None):
    first = stream.readline()
    delimiter = max("\t,;", key=first.count) if first.strip() else ","
    header = next(csv.reader([first], delimiter=delimiter), [])
    if not first.strip():
        raise click.ClickException(f"{path}: is empty, or its first line is")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise click.ClickException(f"{path}: two columns are named {twice!r}; rename one")
    column = find_smiles_column(path, header, smiles_column)
    reader = csv.reader(stream, delimiter=delimiter)
    row, line = 0, 2
    for record in reader:
        if any(cell.strip() for cell in record):
            extra = record[len(header):]
            fields = dict(zip(header, record))
            smiles, problem = fields.get(column, "").strip(), ""
            if len(record) < len(header) or any(extra):
                problem = (f"{len(record)} fields where the header has {len(header)} "
                           "(a field that holds the delimiter needs quotes)")
            elif not smiles:
                problem = f"no SMILES in column {column!r}"
            yield Molecule(row, line, smiles, "", fields, problem)
            row += 1
        line = reader.line_num + 2


def input_facts(path, smiles_column=None):
    """Return {"input": name, "sha256": of the inflated bytes, "rows": count} of a molecule file: what joins two files."""
    digest = hashlib.sha256()
    try:
        with open_bytes(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise click.ClickException(f"{path}: the gzip file is truncated or damaged") from None
    rows = sum(1 for _ in read_molecules(path, smiles_column))
    return {"input": Path(path).name, "sha256": digest.hexdigest(), "rows": rows}


# ---------------------------------------------------------------------------------------------------------------------
# Drawing one molecule


class Style(NamedTuple):
    """How a molecule is drawn; the defaults are RDKit's, None meaning that RDKit decides (MoleCLIP, plain view)."""
    line_width: int = 2
    font_size: int | None = None            # pixels
    bond_length: float | None = None        # pixels
    multiple_bond_offset: float = 0.15      # of the bond length
    rotation: float = 0.0                   # degrees
    font: str | None = None                 # a file name out of FONTS


def random_style(seed, row, view):
    """Return the random style of a row's view; the same arguments always give the same one (ranges: MoleCLIP, 9)."""
    u = np.random.default_rng([seed, row, view])
    return Style(int(u.integers(2, 6)), int(u.integers(14, 25)), u.uniform(20, 100), u.uniform(0.1, 0.4),
                 u.uniform(0, 360), FONTS[u.integers(len(FONTS))])


@cache
def font_path(name):
    """Return the full path of a font that matplotlib ships. RDKit would silently fall back to its own."""
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name if spec else None
    if path is None or not path.is_file():
        raise click.ClickException(f"font {name} not found: pip install matplotlib, which ships it")
    return str(path)


def parse(smiles, max_atoms=MAX_ATOMS):
    """Return RDKit's molecule for a SMILES, its atoms in canonical order. Raises Rejected, with the reason."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise Rejected(why_unreadable(smiles))
    if not molecule.GetNumAtoms():
        raise Rejected("no atoms")
    if molecule.GetNumHeavyAtoms() > max_atoms:
        raise Rejected(f"{molecule.GetNumHeavyAtoms()} heavy atoms, more than --max-atoms {max_atoms}")
    # Layout depends on the order of the atoms; the canonical order makes two spellings of a molecule one picture.
    molecule = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
    if molecule is None:
        raise Rejected("RDKit can't read its own canonical SMILES of this molecule")
    return molecule


def why_unreadable(smiles):
    """Return one line that says why RDKit refuses a SMILES."""
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return "not a valid SMILES (syntax)"
    problems = Chem.DetectChemistryProblems(molecule)
    return f"not a valid molecule: {problems[0].Message()}" if problems else "not a valid SMILES"


def layout(molecule):
    """Return the molecule kekulised, with wedges and 2D coordinates, ready for `draw`. Raises Rejected."""
    try:
        return rdMolDraw2D.PrepareMolForDrawing(molecule)
    except (ValueError, RuntimeError):
        try:
            return rdMolDraw2D.PrepareMolForDrawing(molecule, kekulize=False)
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"RDKit can't lay it out: {str(error).splitlines()[0]}") from None


@cache
def palette():
    """Return the 256 colours of a drawing, uint8 (256, 3): 0 is white, then each atom colour blended into white."""
    hues = list(ATOM_COLOURS.values())
    steps = [255 - 29 * (len(hues) - 1)] + [29] * (len(hues) - 1)
    colours = [np.full((1, 3), 255.0)]
    for hue, count in zip(hues, steps):
        share = np.arange(1, count + 1)[:, None] / count
        colours.append(255 + share * (np.array(hue) - 255))
    return np.concatenate(colours).round().astype(np.uint8)


@cache
def nearest_index():
    """Return the palette index nearest to every colour of 6 bits a channel, uint8 (64 * 64 * 64,)."""
    level = np.arange(64) * 255 / 63                                     # so that 0 and 255 stay exact
    red, green, blue = np.meshgrid(level, level, level, indexing="ij")
    colours = np.stack([red, green, blue], -1).reshape(-1, 3).astype(np.float32)
    known = palette().astype(np.float32)
    index = [(np.square(known).sum(1) - 2 * part @ known.T).argmin(1) for part in np.array_split(colours, 64)]
    return np.concatenate(index).astype(np.uint8)


def to_index(rgb):
    """Return RGB pixels, uint8 (..., 3), as palette indices, uint8 (...)."""
    key = (rgb >> 2).astype(np.int32)
    return nearest_index()[(key[..., 0] << 12) | (key[..., 1] << 6) | key[..., 2]]


def to_rgb(index):
    """Return palette indices, uint8 (...), as RGB pixels, uint8 (..., 3)."""
    return palette()[index]


def draw(molecule, style=Style()):
    """Draw a molecule that `layout` prepared, as palette indices, uint8 (224, 224). 0 is the white background.

    Training and deployment both see exactly what this function returns. Raises Rejected.
    """
    canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
    options = canvas.drawOptions()
    options.includeMetadata = False
    options.prepareMolsBeforeDrawing = False                             # `layout` did it, once for all views
    options.bondLineWidth = style.line_width
    options.multipleBondOffset = style.multiple_bond_offset
    options.rotate = style.rotation
    if style.font_size:
        options.minFontSize = options.maxFontSize = style.font_size
    if style.bond_length:
        options.fixedBondLength = style.bond_length
    if style.font:
        options.fontFile = font_path(style.font)
    try:
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
    except (ValueError, RuntimeError) as error:
        raise Rejected(f"RDKit can't draw it: {str(error).splitlines()[0]}") from None
    return to_index(np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText()))))


def draw_views(item, views=1, seed=0, max_atoms=MAX_ATOMS):
    """Draw one molecule in `views` styles. `item` is (row, SMILES, problem); the row seeds the random styles.

    Returns [zlib stream of a uint8 (224, 224) index picture, ...], or the reason for which it can't, as a string.
    """
    row, smiles, problem = item
    try:
        if problem:
            raise Rejected(problem)
        molecule = layout(parse(smiles, max_atoms))
        styles = [Style()] + [random_style(seed, row, view) for view in range(1, views)]
        return [deflate(draw(molecule, style)) for style in styles]
    except Rejected as reason:
        return str(reason)


def deflate(index):
    """Return the zlib stream of an index picture. Run lengths alone give level 6's size in a third of its time."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return packer.compress(index.tobytes()) + packer.flush()


def inflate(stream):
    """Return the index picture, uint8 (224, 224), of one zlib stream."""
    return np.frombuffer(zlib.decompress(stream), np.uint8).reshape(SIZE, SIZE)


# ---------------------------------------------------------------------------------------------------------------------
# Processes that are watched from outside: RDKit may crash or never return, and neither can be caught from inside


class WorkerDied(Exception):
    pass


class Worker:
    """A process that applies `task` ("module:function") to lists of items; killed when one takes too long."""

    def __init__(self, task, options):
        self.command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import render; "
                        f"render.serve({task!r}, {options!r})"]
        self.process = None

    def ask(self, items, limit):
        """Return the list of results, or raise WorkerDied with what happened; the next call starts a new process."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        slow = threading.Event()
        timer = threading.Timer(limit, lambda: (slow.set(), self.process.kill()))
        timer.start()
        try:
            pickle.dump(items, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.close()
            raise WorkerDied(f"took longer than {limit} s" if slow.is_set() else f"crashed RDKit (exit {code})") from None
        finally:
            timer.cancel()

    def close(self):
        process, self.process = self.process, None
        if process:
            process.kill()
            process.stdout.close()
            return process.wait()


def serve(task, options):
    """The loop of a worker process: lists of items in on standard input, lists of results out on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                         # the parent decides
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                                        # nothing else may write between the replies
    RDLogger.DisableLog("rdApp.*")
    module, name = task.split(":")
    function = getattr(importlib.import_module(module), name)
    while True:
        try:
            items = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([function(item, **options) for item in items], replies)
        replies.flush()


def parallel(task, items, workers=None, group=32, limit=TIME_LIMIT, **options):
    """Yield (item, result of `task`) in the order of `items`, computed by worker processes.

    task: "module:function" of this folder, called as function(item, **options). items: any iterable; it is read no
    further ahead than the workers need. An item that kills or stalls its process has the reason as its result (a
    string); all others are unharmed.
    """
    workers = workers or default_workers()
    idle = queue.SimpleQueue()
    crew = [Worker(task, options) for _ in range(workers)]
    for worker in crew:
        idle.put(worker)

    def work(batch):
        worker = idle.get()
        try:
            return worker.ask(batch, limit)
        except WorkerDied:
            return [alone(worker, item) for item in batch]               # finds the culprit, spares the rest
        finally:
            idle.put(worker)

    def alone(worker, item):
        try:
            return worker.ask([item], limit)[0]
        except WorkerDied as reason:
            return str(reason)

    items = iter(items)
    pending = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(pending) < 3 * workers and (batch := list(itertools.islice(items, group))):
                pending.append((batch, pool.submit(work, batch)))
            if not pending:
                return
            batch, results = pending.popleft()
            yield from zip(batch, results.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.close()


def default_workers():
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_all(molecules, workers=None, **options):
    """Yield (molecule, result) of `draw_views` for an iterable of `Molecule`, in order, in parallel."""
    kept = deque()

    def items():
        for molecule in molecules:
            kept.append(molecule)
            yield molecule.row, molecule.smiles, molecule.problem

    for _, result in parallel("render:draw_views", items(), workers, **options):
        yield kept.popleft(), result


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def save_whole(path, write):
    """Call write(temporary path), then rename to `path`: a file under its final name is always whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise click.ClickException(f"{path}: can't be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_json(path, facts):
    save_whole(path, lambda name: name.write_text(json.dumps(facts, indent=2) + "\n"))


def save_arrays(path, **arrays):
    """Write an uncompressed .npz, whole or not at all. The same arrays give the same bytes."""

    def write(name):
        with open(name, "wb") as stream:
            np.savez(stream, **arrays)

    save_whole(path, write)


def read_arrays(path, wanted):
    """Return the arrays of an uncompressed .npz as a dict, `data` as a memory map: only what is touched is read.

    Raises click.ClickException if the file is truncated, of another kind, or lacks one of the names in `wanted`.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name != "data":
                    with archive.open(info) as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                    continue
                with archive.open(info) as member:
                    np.lib.format.read_magic(member)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                    header = member.tell()
                with open(path, "rb") as stream:                         # the archive's local entry has its own lengths
                    stream.seek(info.header_offset + 26)
                    start = info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4))) + header
                if info.compress_type != zipfile.ZIP_STORED or dtype != np.uint8:
                    raise ValueError
                arrays[name] = np.memmap(path, dtype, "r", start, shape) if shape[0] else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise click.ClickException(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, struct.error):
        raise click.ClickException(f"{path}: truncated, or not a file that numpy can read; make it again") from None
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise click.ClickException(f"{path}: has no array {missing[0]!r}, so it was not made by this project's scripts")
    return arrays


def read_shard(path):
    """Return a shard as a dict: data (memory map), offsets, palette, row, views, smiles; see `picture`."""
    return read_arrays(path, ("data", "offsets", "palette", "row", "views", "smiles"))


def picture(shard, molecule, view=0):
    """Return view `view` of the shard's `molecule`-th molecule as palette indices, uint8 (224, 224)."""
    number = molecule * int(shard["views"]) + view
    begin, end = shard["offsets"][number:number + 2]
    return inflate(shard["data"][begin:end])


def write_shard(path, rows, smiles, streams, rejected, views):
    """Write one shard. streams: views * len(rows) zlib streams. rejected: [row, line, smiles, reason] lists."""
    save_arrays(path, data=np.frombuffer(b"".join(streams), np.uint8),
                offsets=np.cumsum([0] + [len(stream) for stream in streams], dtype=np.int64), palette=palette(),
                row=np.array(rows, np.int64), views=np.int64(views), smiles=np.array(smiles, np.str_),
                rejected=np.frombuffer(json.dumps(rejected).encode(), np.uint8))


def draw_shards(molecules, out, views, seed, workers, max_atoms):
    """Draw the molecules into out/shard-*.npz, yielding once for each molecule."""
    drawn = draw_all(molecules, workers, views=views, seed=seed, max_atoms=max_atoms)
    for number, members in itertools.groupby(drawn, lambda pair: pair[0].row // SHARD):
        rows, smiles, streams, rejected = [], [], [], []
        for molecule, result in members:
            if isinstance(result, str):
                rejected.append([molecule.row, molecule.line, molecule.smiles, result])
            else:
                rows.append(molecule.row)
                smiles.append(molecule.smiles)
                streams += result
            yield molecule
        write_shard(out / f"shard-{number:05d}.npz", rows, smiles, streams, rejected, views)


def write_rejected(out, shards):
    """Gather the shards' rejected rows into out/rejected.csv and return (drawn, rejected) counts."""
    drawn = refused = 0

    def write(name):
        nonlocal drawn, refused
        with open(name, "w", newline="", errors="surrogateescape") as stream:
            table = csv.writer(stream)
            table.writerow(["row", "line", "smiles", "reason"])
            for path in shards:
                shard = read_arrays(path, ("row", "rejected"))
                rejected = json.loads(shard["rejected"].tobytes())
                table.writerows(rejected)
                drawn += len(shard["row"])
                refused += len(rejected)

    save_whole(out / "rejected.csv", write)
    return drawn, refused


def check_folder(out, facts, resume):
    """Refuse a folder that holds shards of another input or other options, or any shards without --resume."""
    manifest = out / "manifest.json"
    if not out.exists() or not (manifest.exists() or any(out.glob("shard-*.npz"))):
        return
    if not resume:
        raise click.ClickException(f"{out}: already holds shards; go on with --resume, or give another folder with -o")
    try:
        before = json.loads(manifest.read_text())
    except (OSError, ValueError):
        raise click.ClickException(f"{out}: its manifest.json can't be read; draw into another folder with -o") from None
    for key in ("sha256", "rows", "views", "seed", "max_atoms", "rdkit"):
        if before.get(key) != facts[key]:
            raise click.ClickException(f"{out}: holds shards with {key} {before.get(key)}, not {facts[key]}; "
                                       "give another folder with -o")


@click.command()
@click.argument("source")
@click.option("-o", "--out", default="shards", show_default=True, type=click.Path(path_type=Path), help="Folder for the shards.")
@click.option("--views", default=2, show_default=True, type=click.IntRange(1), help="Drawings of each molecule; the first is plain.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random styles.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Drawing processes.  [default: one a core]")
@click.option("--max-atoms", default=MAX_ATOMS, show_default=True, type=click.IntRange(1), help="Reject molecules with more heavy atoms.")
@click.option("--resume", is_flag=True, help="Go on in a folder that an interrupted run left.")
@click.option("--smiles-column", help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]")
def main(source, out, views, seed, workers, max_atoms, resume, smiles_column):
    """Draw the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not, or - for standard input) into shards."""
    source = find_input(source)
    if source == "-" and resume:
        raise click.UsageError("--resume needs a file: standard input can't be read twice")
    facts = ({"input": "-", "sha256": None, "rows": None} if source == "-" else input_facts(source, smiles_column)) | {
        "views": views, "seed": seed, "max_atoms": max_atoms, "rdkit": rdBase.rdkitVersion, "complete": False}
    check_folder(out, facts, resume)
    save_json(out / "manifest.json", facts)
    done = {int(path.stem.split("-")[1]) for path in out.glob("shard-*.npz")}
    molecules = (m for m in read_molecules(source, smiles_column) if m.row // SHARD not in done)
    bar = tqdm(total=facts["rows"], unit=" molecules", desc="drawing", disable=None)
    bar.update(sum(min(SHARD, (facts["rows"] or 0) - number * SHARD) for number in done))
    for _ in draw_shards(molecules, out, views, seed, workers, max_atoms):
        bar.update()
    bar.close()
    drawn, refused = write_rejected(out, sorted(out.glob("shard-*.npz")))
    if not drawn:
        raise click.ClickException(f"{source}: none of its {refused} rows could be drawn; the reasons are in {out}/rejected.csv")
    save_json(out / "manifest.json", facts | {"rows": drawn + refused, "drawn": drawn, "rejected": refused, "complete": True})
    click.echo(f"{out}: {drawn} molecules in {views} views" + (f", {refused} rejected, see {out}/rejected.csv" if refused else ""))


if __name__ == "__main__":
    main()
