"""Draw molecules for the encoder: SMILES in, indexed-colour NPZ shards out.

    python render.py data/chembl_3000.smi                     # shards/, two views of each molecule
    python render.py library.csv --smiles-column SMILES -o shards --views 4 --workers 8
    python render.py library.csv --preview grid.png           # just look at the first ones

View 0 is the plain drawing, the others are drawn in a random style. Whoever draws, draws with `draw`: training and
deployment see the same picture.
"""

import ctypes
import importlib.util
import io
import itertools
import json
import mmap
import struct
import sys
import textwrap
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image, ImageDraw
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D
from tqdm import tqdm

from molecules import (HERE, Molecule, ahead, check_output, default_workers, find_input, find_smiles_column, input_facts, input_kind,     # noqa: F401
                       parallel, parse_part, read_arrays, read_molecules, save_arrays, save_json, save_table, save_whole)

SIZE = 224          # pixels: the resolution of CLIP's image encoders
SHARD = 1024        # rows of the input that one shard covers, readable or not
MAX_ATOMS = 150     # heavy atoms; beyond it bonds are thinner than a pixel and layout takes up to seconds

# The colours of RDKit's default atom palette, by atomic number; every other element is drawn black.
ATOM_COLOURS = {6: (0, 0, 0), 7: (0, 0, 255), 8: (255, 0, 0), 9: (51, 204, 204), 15: (255, 128, 0), 16: (204, 204, 0),
                17: (0, 205, 0), 35: (128, 76, 26), 53: (161, 31, 240)}
R_GROUPS = (6, 8, 7, 16, 9, 17, 35, 53)         # R1..R8 of --r-groups, by atomic number
FONTS = [f"DejaVu{face}.ttf" for face in (
    "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "SansMono", "SansMono-Bold", "SansMono-Oblique",
    "SansMono-BoldOblique", "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")] + [
    "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf",
    "cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]


class Rejected(Exception):
    """A molecule that can't be drawn; the message is the reason given to the user."""


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


def replace_terminals(molecule):
    """Return the molecule with its terminal, singly bonded C, O, N, S, F, Cl, Br, I as R1..R8 (MoleCLIP's R-replacement).

    They become xenon, which RDKit draws black, under a label of their own.
    """
    changed = Chem.RWMol(molecule)
    for atom in changed.GetAtoms():
        bonds = atom.GetBonds()
        if atom.GetAtomicNum() in R_GROUPS and len(bonds) == 1 and bonds[0].GetBondType() == Chem.BondType.SINGLE:
            atom.SetProp("_displayLabel", f"R{R_GROUPS.index(atom.GetAtomicNum()) + 1}")
            atom.SetAtomicNum(54)
            atom.SetNoImplicit(True)
            for reset in (atom.SetNumExplicitHs, atom.SetFormalCharge, atom.SetIsotope, atom.SetAtomMapNum, atom.SetNumRadicalElectrons):
                reset(0)
    Chem.SanitizeMol(changed, Chem.SANITIZE_ALL ^ Chem.SANITIZE_FINDRADICALS)       # a dot beside each label otherwise
    return changed.GetMol()


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
    steps = [18] + [22] * (len(hues) - 1)                               # more would cost bytes, fewer over 0.15 of 255
    colours = [np.full((1, 3), 255.0)]
    for hue, count in zip(hues, steps):
        share = np.arange(1, count + 1)[:, None] / count
        colours.append(255 + share * (np.array(hue) - 255))
    unused = 256 - 1 - sum(steps)
    return np.concatenate(colours + [np.zeros((unused, 3))]).round().astype(np.uint8)


@cache
def nearest_index():
    """Return the palette index nearest to every colour of 6 bits a channel, uint8 (64 * 64 * 64,)."""
    level = np.arange(64) * 255 / 63                                     # so that 0 and 255 stay exact
    red, green, blue = np.meshgrid(level, level, level, indexing="ij")
    colours = np.stack([red, green, blue], -1).reshape(-1, 3).astype(np.float32)
    known = palette().astype(np.float32)
    index = [(np.square(known).sum(1) - 2 * part @ known.T).argmin(1) for part in np.array_split(colours, 64)]
    return np.concatenate(index).astype(np.uint8)


def to_index(pixels):
    """Return 32-bit pixels 0x??RRGGBB, uint32 (...), as palette indices, uint8 (...)."""
    index = np.zeros(pixels.size, np.uint8)
    flat = pixels.ravel() & 0xFFFFFF
    ink = np.flatnonzero(flat != 0xFFFFFF)                # 5% of a drawing: the rest is white, index 0
    flat = flat[ink]
    index[ink] = nearest_index()[flat >> 6 & 0x3F000 | flat >> 4 & 0xFC0 | flat >> 2 & 0x3F]
    return index.reshape(pixels.shape)


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
    return to_index(pixels_of(canvas))


def pixels_of(canvas):
    """Return a finished canvas as uint32 (224, 224), 0x??RRGGBB: straight from cairo if possible, else through its PNG."""
    tap = cairo_tap()
    if tap:
        return tap(canvas)
    with Image.open(io.BytesIO(canvas.GetDrawingText())) as image:
        return np.frombuffer(image.tobytes("raw", "BGRX"), np.uint32).reshape(SIZE, SIZE)


@cache
def cairo_tap():
    """Return a function canvas -> pixels that spares the PNG, 60% of the time a drawing takes, or None where it can't work.

    RDKit hands a drawing out only as PNG, written by cairo_surface_write_to_png_stream. For the time of that call the
    entry of this function in the import table of RDKit's library is exchanged for one of ours, which is given the
    surface and copies its pixels. Where the platform differs or a trial drawing is not the same, the PNG remains.
    """
    try:
        slot, cairo = find_import("libRDKitMolDraw2D", b"cairo_surface_write_to_png_stream"), ctypes.CDLL(mapped("libcairo")[1])
        data = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("cairo_image_surface_get_data", cairo))
        flush = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("cairo_surface_flush", cairo))
        copies = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        def take(surface, write, closure):
            flush(surface)
            copies.append(ctypes.string_at(data(surface), SIZE * SIZE * 4))
            return 0

        def tap(canvas):
            ours, theirs = ctypes.cast(take, ctypes.c_void_p).value, slot.value
            slot.value = ours
            try:
                canvas.GetDrawingText()
            finally:
                slot.value = theirs
            return np.frombuffer(copies.pop(), np.uint32).reshape(SIZE, SIZE)

        canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
        canvas.drawOptions().includeMetadata = False
        canvas.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles("OC(=O)c1ccc(Cl)nc1")))
        canvas.FinishDrawing()
        png = np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB"))
        same = (tap(canvas).view(np.uint8).reshape(SIZE, SIZE, 4)[..., 2::-1] == png).all()
        return tap if same else None
    except (OSError, LookupError, ValueError, AttributeError, RuntimeError, StopIteration):
        return None


def mapped(name):
    """Return (base address, path) of the library whose file name begins so, from this process's memory map (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and Path(path[0]).name.startswith(name) and int(offset, 16) == 0:
            return int(span.split("-")[0], 16), path[0]
    raise LookupError(name)


def find_import(library, symbol):
    """Return the writable slot (c_uint64) through which a mapped ELF library calls `symbol`. Raises LookupError, OSError."""
    base, _ = mapped(library)
    if sys.byteorder != "little" or struct.calcsize("P") != 8 or ctypes.string_at(base, 5) != b"\x7fELF\x02":
        raise LookupError(library)

    def read(address, form):
        return struct.unpack(form, ctypes.string_at(address, struct.calcsize(form)))

    (table,), (width, count) = read(base + 32, "<Q"), read(base + 54, "<HH")
    headers = [read(base + table + i * width, "<IIQQ") for i in range(count)]
    dynamic, tags = next(base + address for kind, _, _, address in headers if kind == 2), {}     # PT_DYNAMIC
    while (entry := read(dynamic, "<QQ"))[0]:
        tags[entry[0]] = entry[1]
        dynamic += 16
    place = {tag: value if value > base else base + value for tag, value in tags.items()}
    for first, size in ((23, 2), (7, 8)):                                # DT_JMPREL, DT_PLTRELSZ; DT_RELA, DT_RELASZ
        for relocation in range(place.get(first, 0), place.get(first, 0) + tags.get(size, 0), 24):
            offset, info = read(relocation, "<QQ")
            (name,) = read(place[6] + 24 * (info >> 32), "<I")           # DT_SYMTAB
            if info >> 32 and ctypes.string_at(place[5] + name, len(symbol) + 1) == symbol + b"\0":      # DT_STRTAB
                page = (base + offset) // mmap.PAGESIZE * mmap.PAGESIZE
                if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3):
                    raise OSError(ctypes.get_errno(), "mprotect")
                return ctypes.c_uint64.from_address(base + offset)
    raise LookupError(symbol)


def draw_views(item, views=1, seed=0, max_atoms=MAX_ATOMS, r_groups=False, level=None):
    """Draw one molecule in `views` styles. `item` is (row, SMILES, problem); the row seeds the random styles.

    Returns [zlib stream of a uint8 (224, 224) index picture, ...], or the reason for which it can't, as a string.
    """
    row, smiles, problem = item
    try:
        if problem:
            raise Rejected(problem)
        molecule = parse(smiles, max_atoms)
        molecule = layout(replace_terminals(molecule) if r_groups else molecule)
        styles = [Style()] + [random_style(seed, row, view) for view in range(1, views)]
        return [deflate(draw(molecule, style), level) for style in styles]
    except Rejected as reason:
        return str(reason)


def deflate(index, level=None):
    """Return the zlib stream of an index picture: run lengths only (0.1 ms), or at a level, 8 saving 5% for 1 ms."""
    packer = zlib.compressobj(level or 6, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY if level else zlib.Z_RLE)
    return packer.compress(index.tobytes()) + packer.flush()


def inflate(stream):
    """Return the index picture, uint8 (224, 224), of one zlib stream."""
    return np.frombuffer(zlib.decompress(stream), np.uint8).reshape(SIZE, SIZE)


def draw_all(molecules, workers=None, **options):
    """Yield (molecule, result) of `draw_views` for an iterable of `Molecule`, in order, in parallel."""
    return parallel("render:draw_views", molecules, workers, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def read_shard(path):
    """Return a shard as a dict: data (memory map), offsets, palette, row, views, smiles; see `picture`."""
    shard = read_arrays(path, ("data", "offsets", "palette", "row", "views", "smiles"))
    row, offsets, number = shard["row"], shard["offsets"], int(Path(path).stem.rpartition("-")[2])
    if not (shard["views"].ndim == 0 and row.dtype == offsets.dtype == np.int64 and offsets.shape == (len(row) * int(shard["views"]) + 1,)
            and offsets[-1] == len(shard["data"]) and (np.diff(offsets) > 0).all() and (row // SHARD == number).all()):
        raise click.ClickException(f"{path}: its arrays don't fit together; draw it again with render.py --resume after deleting it")
    return shard | {"smiles": np.char.decode(shard["smiles"], "ascii"), "path": path}


def picture(shard, molecule, view=0):
    """Return view `view` of the shard's `molecule`-th molecule as palette indices, uint8 (224, 224)."""
    number = molecule * int(shard["views"]) + view
    begin, end = shard["offsets"][number:number + 2]
    try:
        return inflate(shard["data"][begin:end])
    except (ValueError, zlib.error):
        raise click.ClickException(f"{shard['path']}: the picture of row {shard['row'][molecule]} is damaged; delete the shard and "
                                   "draw it again with render.py --resume") from None


def write_shard(path, rows, smiles, streams, rejected, views):
    """Write one shard. streams: views * len(rows) zlib streams. rejected: [row, line, smiles, reason] lists."""
    save_arrays(path, data=np.frombuffer(b"".join(streams), np.uint8),
                offsets=np.cumsum([0] + [len(stream) for stream in streams], dtype=np.int64), palette=palette(),
                row=np.array(rows, np.int64), views=np.int64(views), smiles=np.array(smiles, "S"),
                rejected=np.frombuffer(json.dumps(rejected).encode(), np.uint8))


def draw_shards(molecules, out, workers, **options):
    """Draw the molecules into out/shard-*.npz, yielding once for each molecule; options are those of `draw_views`."""
    drawn = draw_all(molecules, workers, level=8, **options)
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
        write_shard(shard_path(out, number), rows, smiles, streams, rejected, options["views"])


def shard_path(folder, number):
    return Path(folder) / f"shard-{number:05d}.npz"


def write_rejected(path, shards):
    """Gather the rejected rows of shards into a CSV and return (drawn, rejected) counts."""
    counts = [0, 0]

    def rows():
        for shard in shards:
            arrays = read_arrays(shard, ("row", "rejected"))
            rejected = json.loads(arrays["rejected"].tobytes())
            counts[0] += len(arrays["row"])
            counts[1] += len(rejected)
            yield from rejected

    save_table(path, ["row", "line", "smiles", "reason"], rows())
    return counts


def read_manifest(folder):
    """Return what made a folder of shards, the manifests of all parts merged, once every part is complete.

    Raises click.ClickException if the folder holds no shards, or not all of them.
    """
    folder = Path(folder)
    manifests = [load_json(path) for path in sorted(folder.glob("manifest*.json"))]
    if not manifests:
        raise click.ClickException(f"{folder}/: holds no shards; draw them first: python render.py data/chembl_3000.smi -o {folder}")
    first = manifests[0]
    missing = {i + 1 for i in range(first["parts"])} - {m["part"] for m in manifests if m["complete"]}
    if missing:
        which = f" --part {min(missing)}/{first['parts']}" if first["parts"] > 1 else ""
        raise click.ClickException(f"{folder}/: the drawing was not finished; go on with render.py{which} --resume")
    return first | {count: sum(m[count] for m in manifests) for count in ("drawn", "rejected")}


FACTS = ("sha256", "rows", "smiles_column", "views", "seed", "max_atoms", "r_groups", "rdkit", "parts")     # equal in all shards of a folder


def load_json(path):
    """Return a manifest. Raises click.ClickException if it is damaged."""
    try:
        manifest = json.loads(path.read_text())
        whole = [manifest[key] for key in ("views", "part", "parts")] + [manifest[key] for key in ("rows", "drawn", "rejected") if manifest["complete"]]
        if all(type(number) is int and number >= 0 for number in whole) and all(key in manifest for key in FACTS):
            return manifest
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise click.ClickException(f"{path}: damaged or of another kind; draw the shards again into another folder")


def check_folder(out, manifest, facts, resume):
    """Refuse a folder that holds shards of another input or other options, or this part's without --resume."""
    if manifest.exists() and not resume:
        raise click.ClickException(f"{out}: already holds these shards, or a part of them; go on with --resume, or start afresh elsewhere with -o")
    manifests = sorted(out.glob("manifest*.json"))
    if not manifests and any(out.glob("shard-*.npz")):
        raise click.ClickException(f"{out}: holds shards without a manifest; give another folder with -o")
    for path in manifests:
        before = load_json(path)
        for key in FACTS:
            if before[key] != facts[key]:
                raise click.ClickException(f"{out}: holds shards with {key} {before[key]}, not {facts[key]}; start afresh in another folder with -o")


def preview(molecules, path, workers, count=12, **options):
    """Write a PNG grid: a line for each of the first molecules with its row and SMILES, a column for each view."""
    rows = [pair for pair in draw_all(itertools.islice(molecules, count), workers, **options)]
    sheet = Image.new("RGB", (options["views"] * (SIZE + 8) + 8, len(rows) * (SIZE + 28)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (molecule, result) in enumerate(rows):
        top, room = i * (SIZE + 28), options["views"] * 36 - 4           # letters that fit
        label = f"{molecule.row}  {molecule.name or molecule.smiles}"
        pen.text((10, top + 6), label if len(label) <= room else label[:room - 3] + "...", "black", font_size=13)
        for view, stream in enumerate([] if isinstance(result, str) else result):
            sheet.paste(Image.fromarray(to_rgb(inflate(stream))), (8 + view * (SIZE + 8), top + 24))
        if isinstance(result, str):
            pen.text((10, top + 40), "\n".join(textwrap.wrap(result, room)), "firebrick", font_size=13)
        pen.line((0, top, sheet.width, top), "lightgrey")
    save_whole(path, lambda name: sheet.save(name, "PNG"))
    click.echo(f"{path}: {len(rows)} molecules, a row of {options['views']} views each")


@click.command()
@click.argument("source")
@click.option("-o", "--out", default="shards", show_default=True, type=click.Path(path_type=Path), help="Folder for the shards.")
@click.option("--views", default=2, show_default=True, type=click.IntRange(1), help="Drawings of each molecule; the first is plain.")
@click.option("--r-groups", is_flag=True, help="Draw terminal, singly bonded atoms as R1 to R8.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of the random styles.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Drawing processes.  [default: one a core]")
@click.option("--part", default=None, callback=parse_part, help="I/N: draw every N-th shard from the I-th, for a job array.")
@click.option("--max-atoms", default=MAX_ATOMS, show_default=True, type=click.IntRange(1), help="Reject molecules with more heavy atoms.")
@click.option("--resume", is_flag=True, help="Go on in a folder that an interrupted run left.")
@click.option("--preview", "grid", default=None, type=click.Path(path_type=Path), help="Only draw the first molecules into this PNG, to look at.")
@click.option("--smiles-column", help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]")
def main(source, out, workers, part, resume, grid, smiles_column, **options):
    """Draw the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not, or - for standard input) into shards."""
    source, (index, parts) = find_input(source), part
    if grid:
        return preview(read_molecules(source, smiles_column), grid, workers, **options)
    if source == "-" and (resume or parts > 1):
        raise click.UsageError("--resume and --part need a file: standard input can't be read twice")
    facts = ({"input": "-", "sha256": None, "rows": None, "smiles_column": smiles_column} if source == "-" else input_facts(source, smiles_column)) | options | {
        "rdkit": rdBase.rdkitVersion, "part": index, "parts": parts, "complete": False}
    tail = f"-{index}-of-{parts}" if parts > 1 else ""
    manifest, rejects = out / f"manifest{tail}.json", out / f"rejected{tail}.csv"
    check_folder(out, manifest, facts, resume)
    for font in FONTS if options["views"] > 1 else ():
        font_path(font)
    save_json(manifest, facts)
    mine = lambda number: number % parts == index - 1
    done = {number for path in out.glob("shard-*.npz") if mine(number := int(path.stem.split("-")[1]))}
    rows = facts["rows"] and sum(min(SHARD, facts["rows"] - first) for first in range(0, facts["rows"], SHARD) if mine(first // SHARD))
    bar = tqdm(total=rows, unit=" molecules", desc="drawing", disable=None)
    bar.update(sum(min(SHARD, (facts["rows"] or 0) - number * SHARD) for number in done))
    wanted = (m for m in read_molecules(source, smiles_column) if mine(m.row // SHARD) and m.row // SHARD not in done)
    last = -1
    for molecule in draw_shards(wanted, out, workers, **options):
        last = molecule.row
        bar.update()
    bar.close()
    total = facts["rows"] or last + 1
    drawn, refused = write_rejected(rejects, [shard_path(out, n) for n in range(-(-total // SHARD)) if mine(n)])
    if not drawn and parts == 1:
        for path in (manifest, *out.glob("shard-*.npz")):                 # so that the mended file can be drawn here
            path.unlink()
        raise click.ClickException(f"{source}: none of its {refused} rows could be drawn; the reasons are in {rejects}")
    save_json(manifest, facts | {"rows": total, "drawn": drawn, "rejected": refused, "complete": True})
    click.echo(f"{out}: {drawn} molecules in {options['views']} views" + (f", {refused} rejected, see {rejects}" if refused else ""))


if __name__ == "__main__":
    main()
