"""Pixels: the 256 colours of drawings, how cairo hands them over and we pack them; runs of ink."""

import base64
import ctypes
import io
import mmap
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

SIZE = 224  # pixels: the resolution of CLIP's image encoders
# ELF's numbers for what import_slot looks at, as in elf.h
PT_DYNAMIC = 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
# The colours of RDKit's default atom palette, by atomic number; every other element is drawn black.
ATOM_COLOURS = {
    6: (0, 0, 0),
    7: (0, 0, 255),
    8: (255, 0, 0),
    9: (51, 204, 204),
    15: (255, 128, 0),
    16: (204, 204, 0),
    17: (0, 205, 0),
    35: (128, 76, 26),
    53: (161, 31, 240),
}


@cache
def palette():
    """Return the 256 colours of a drawing, uint8 (256, 3).

    0 is white; then each atom colour, blended into white.
    """
    hues = list(ATOM_COLOURS.values())
    steps = [18] + [22] * (len(hues) - 1)  # more would cost bytes, fewer over 0.15 of 255
    colours = [np.full((1, 3), 255.0)]
    for hue, count in zip(hues, steps):
        share = np.arange(1, count + 1)[:, None] / count
        colours.append(255 + share * (np.array(hue) - 255))
    unused = 256 - 1 - sum(steps)
    return np.concatenate(colours + [np.zeros((unused, 3))]).round().astype(np.uint8)


@cache
def nearest_index():
    """Return the palette index nearest to each colour of 6 bits a channel, uint8 (64 ** 3,)."""
    level = np.arange(64) * 255 / 63  # so that 0 and 255 stay exact
    red, green, blue = np.meshgrid(level, level, level, indexing="ij")
    colours = np.stack([red, green, blue], -1).reshape(-1, 3).astype(np.float32)
    known = palette().astype(np.float32)
    lengths = np.square(known).sum(1)
    parts = np.array_split(colours, 64)
    index = [(lengths - 2 * part @ known.T).argmin(1) for part in parts]
    return np.concatenate(index).astype(np.uint8)


def to_index(pixels):
    """Return 32-bit pixels 0x??RRGGBB, uint32 (...), as palette indices, uint8 (...)."""
    index = np.zeros(pixels.size, np.uint8)
    flat = pixels.ravel() & 0xFFFFFF
    ink = np.flatnonzero(flat != 0xFFFFFF)  # 5% of a drawing: the rest is white, index 0
    flat = flat[ink]
    index[ink] = nearest_index()[flat >> 6 & 0x3F000 | flat >> 4 & 0xFC0 | flat >> 2 & 0x3F]
    return index.reshape(pixels.shape)


def to_rgb(index):
    """Return palette indices, uint8 (...), as RGB pixels, uint8 (..., 3)."""
    return palette()[index]


def deflate(index, level=None):
    """Return the zlib stream of an index picture: run lengths only (0.1 ms), or at a level.

    Level 8 saves 5% for 1 ms.
    """
    strategy = zlib.Z_DEFAULT_STRATEGY if level else zlib.Z_RLE
    packer = zlib.compressobj(level or 6, zlib.DEFLATED, 15, 9, strategy)
    return packer.compress(index.tobytes()) + packer.flush()


def inflate(stream):
    """Return the index picture, uint8 (224, 224), of one zlib stream."""
    return np.frombuffer(zlib.decompress(stream), np.uint8).reshape(SIZE, SIZE)


def png(index):
    """Return an index picture, uint8 (224, 224), as PNG in base64, with the colours it has."""
    used, packed = np.unique(index, return_inverse=True)
    image, text = Image.fromarray(packed.reshape(index.shape).astype(np.uint8), "P"), io.BytesIO()
    image.putpalette(palette()[used].tobytes())
    image.save(text, "PNG", optimize=True)
    return base64.b64encode(text.getvalue()).decode()


def line_width(dark):
    """Return the typical width of the lines in bool (height, width), in pixels.

    Half of the ink lies in runs shorter than that.
    """
    return float(np.median(np.minimum(run_lengths(dark), run_lengths(dark.T).T)[dark]))


def run_lengths(dark):
    """Return for each pixel how long a horizontal run of ink it lies in, int (height, width)."""
    edges = run_edges(dark)
    lengths, each = np.zeros(dark.shape, int), edges[1::2] - edges[::2]
    lengths[dark] = np.repeat(each, each)
    return lengths


def run_edges(dark):
    """Return where each horizontal run of bool (height, width) begins and ends, in turn."""
    return np.flatnonzero(np.diff(np.pad(dark, ((0, 0), (1, 1))).ravel().astype(np.int8)))


def connected_components(dark):
    """Return (runs, label) of the ink in bool (height, width).

    runs: each horizontal run as (row, begin, end), int (n, 3); label: its component, int (n,).
    """
    wide = dark.shape[1] + 2
    edges = run_edges(dark)
    begin, end = edges[::2] + 1, edges[1::2] + 1
    # The runs of the next row that a run touches are those from `first` to before `last`.
    first = np.searchsorted(end, begin + wide)
    last = np.searchsorted(begin, end + wide, "right")
    touched = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(begin)), touched)
    nth = np.arange(touched.sum()) - np.repeat(np.cumsum(touched) - touched, touched)
    label = spread_labels(len(begin), above, nth + np.repeat(first, touched))
    runs = [begin // wide, begin % wide - 1, end - begin // wide * wide - 1]
    return np.stack(runs, 1), np.unique(label, return_inverse=True)[1]


def spread_labels(count, above, below):
    """Return a label for each of so many runs, int (count,): equal where pairs of runs join."""
    label = np.arange(count)
    while True:
        lowest, before = np.minimum(label[above], label[below]), label.copy()
        for ends in (label[above], label[below], above, below):
            np.minimum.at(label, ends, lowest)
        label = label[label]
        if (label == before).all():
            return label


def pixels_of(canvas):
    """Return a finished canvas as 0x??RRGGBB, uint32 (224, 224).

    They come straight from cairo if possible, else through its PNG.
    """
    tap = cairo_tap()
    if tap:
        return tap(canvas)
    with Image.open(io.BytesIO(canvas.GetDrawingText())) as image:
        return np.frombuffer(image.tobytes("raw", "BGRX"), np.uint32).reshape(SIZE, SIZE)


@cache
def cairo_tap():
    """Return a function canvas -> pixels that spares the PNG, 60% of the time a drawing takes.

    None where the platform differs or a trial drawing is not the same: the PNG remains.
    """
    try:
        tap = open_tap()
        canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
        canvas.drawOptions().includeMetadata = False
        trial = Chem.MolFromSmiles("OC(=O)c1ccc(Cl)nc1")
        canvas.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(trial))
        canvas.FinishDrawing()
        wanted = np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB"))
        pixels = tap(canvas).view(np.uint8).reshape(SIZE, SIZE, 4)
        return tap if (pixels[..., 2::-1] == wanted).all() else None
    except (OSError, LookupError, ValueError, AttributeError, RuntimeError, StopIteration):
        return None


def open_tap():
    """Return the function of `cairo_tap`, untried. Raises whatever a strange platform does.

    RDKit hands a drawing out only as PNG, written by cairo_surface_write_to_png_stream. For the
    time of that call the entry of this function in the import table of RDKit's library is
    exchanged for one of ours, which is given the surface and copies its pixels.
    """
    slot = import_slot("libRDKitMolDraw2D", b"cairo_surface_write_to_png_stream")
    cairo = ctypes.CDLL(mapped_library("libcairo")[1])
    pointer = ctypes.c_void_p
    data = ctypes.CFUNCTYPE(pointer, pointer)(("cairo_image_surface_get_data", cairo))
    flush = ctypes.CFUNCTYPE(None, pointer)(("cairo_surface_flush", cairo))
    copies = []

    @ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer)
    def take(surface, write, closure):
        flush(surface)
        copies.append(ctypes.string_at(data(surface), SIZE * SIZE * 4))
        return 0

    def tap(canvas):
        ours, theirs = ctypes.cast(take, pointer).value, slot.value
        slot.value = ours
        try:
            canvas.GetDrawingText()
        finally:
            slot.value = theirs
        return np.frombuffer(copies.pop(), np.uint32).reshape(SIZE, SIZE)

    return tap


def mapped_library(name):
    """Return (base address, path) of the library whose file name begins so, as mapped (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and Path(path[0]).name.startswith(name) and int(offset, 16) == 0:
            return int(span.split("-")[0], 16), path[0]
    raise LookupError(name)


def import_slot(library, symbol):
    """Return the slot through which a mapped ELF library calls `symbol`, a writable c_uint64.

    Raises LookupError if there is none, OSError if it can't be made writable.
    """
    base, _ = mapped_library(library)
    wide = sys.byteorder == "little" and struct.calcsize("P") == 8
    if not wide or ctypes.string_at(base, 5) != b"\x7fELF\x02":
        raise LookupError(library)
    tags = dynamic_tags(base)
    place = {tag: value if value > base else base + value for tag, value in tags.items()}
    symbols, names = place[DT_SYMTAB], place[DT_STRTAB]
    for first, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
        begin = place.get(first, 0)
        for relocation in range(begin, begin + tags.get(size, 0), 24):
            offset, info = peek(relocation, "<QQ")
            (name,) = peek(symbols + 24 * (info >> 32), "<I")
            if info >> 32 and ctypes.string_at(names + name, len(symbol) + 1) == symbol + b"\0":
                make_writable(base + offset)
                return ctypes.c_uint64.from_address(base + offset)
    raise LookupError(symbol)


def dynamic_tags(base):
    """Return {tag: value} of the dynamic section of the ELF library mapped at `base`."""
    (table,), (width, count) = peek(base + 32, "<Q"), peek(base + 54, "<HH")
    headers = [peek(base + table + i * width, "<IIQQ") for i in range(count)]
    address = next(base + address for kind, _, _, address in headers if kind == PT_DYNAMIC)
    tags = {}
    while True:
        tag, value = peek(address, "<QQ")
        if not tag:
            return tags
        tags[tag] = value
        address += 16


def peek(address, form):
    """Return what lies at an address of this process, unpacked."""
    return struct.unpack(form, ctypes.string_at(address, struct.calcsize(form)))


def make_writable(address):
    """Let this process write to the page of an address. Raises OSError."""
    page = ctypes.c_void_p(address // mmap.PAGESIZE * mmap.PAGESIZE)
    library = ctypes.CDLL(None, use_errno=True)
    if library.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
