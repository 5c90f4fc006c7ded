"""TODO"""

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
    """Return the 256 colours of a drawing, uint8 (256, 3): 0 is white, then each atom colour blended into white."""
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
    """Return the palette index nearest to every colour of 6 bits a channel, uint8 (64 * 64 * 64,)."""
    level = np.arange(64) * 255 / 63  # so that 0 and 255 stay exact
    red, green, blue = np.meshgrid(level, level, level, indexing="ij")
    colours = np.stack([red, green, blue], -1).reshape(-1, 3).astype(np.float32)
    known = palette().astype(np.float32)
    index = [
        (np.square(known).sum(1) - 2 * part @ known.T).argmin(1)
        for part in np.array_split(colours, 64)
    ]
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
    """Return the zlib stream of an index picture: run lengths only (0.1 ms), or at a level, 8 saving 5% for 1 ms."""
    packer = zlib.compressobj(
        level or 6, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY if level else zlib.Z_RLE
    )
    return packer.compress(index.tobytes()) + packer.flush()


def inflate(stream):
    """Return the index picture, uint8 (224, 224), of one zlib stream."""
    return np.frombuffer(zlib.decompress(stream), np.uint8).reshape(SIZE, SIZE)


def png(index):
    """Return an index picture, uint8 (224, 224), as a small PNG in base64: its colours rounded to a few, which the eye can't tell."""
    used, packed = np.unique(index, return_inverse=True)
    image, text = Image.fromarray(packed.reshape(index.shape).astype(np.uint8), "P"), io.BytesIO()
    image.putpalette(palette()[used].tobytes())
    image.save(text, "PNG", optimize=True)
    return base64.b64encode(text.getvalue()).decode()


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
        slot, cairo = (
            import_slot("libRDKitMolDraw2D", b"cairo_surface_write_to_png_stream"),
            ctypes.CDLL(mapped_library("libcairo")[1]),
        )
        data = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
            ("cairo_image_surface_get_data", cairo)
        )
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
        canvas.DrawMolecule(
            rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles("OC(=O)c1ccc(Cl)nc1"))
        )
        canvas.FinishDrawing()
        png = np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB"))
        same = (tap(canvas).view(np.uint8).reshape(SIZE, SIZE, 4)[..., 2::-1] == png).all()
        return tap if same else None
    except (OSError, LookupError, ValueError, AttributeError, RuntimeError, StopIteration):
        return None


def mapped_library(name):
    """Return (base address, path) of the library whose file name begins so, from this process's memory map (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and Path(path[0]).name.startswith(name) and int(offset, 16) == 0:
            return int(span.split("-")[0], 16), path[0]
    raise LookupError(name)


def import_slot(library, symbol):
    """Return the writable slot (c_uint64) through which a mapped ELF library calls `symbol`. Raises LookupError, OSError."""
    base, _ = mapped_library(library)
    if (
        sys.byteorder != "little"
        or struct.calcsize("P") != 8
        or ctypes.string_at(base, 5) != b"\x7fELF\x02"
    ):
        raise LookupError(library)

    def read(address, form):
        return struct.unpack(form, ctypes.string_at(address, struct.calcsize(form)))

    (table,), (width, count) = read(base + 32, "<Q"), read(base + 54, "<HH")
    headers = [read(base + table + i * width, "<IIQQ") for i in range(count)]
    dynamic, tags = (
        next(base + address for kind, _, _, address in headers if kind == 2),
        {},
    )  # PT_DYNAMIC
    while (entry := read(dynamic, "<QQ"))[0]:
        tags[entry[0]] = entry[1]
        dynamic += 16
    place = {tag: value if value > base else base + value for tag, value in tags.items()}
    for first, size in ((23, 2), (7, 8)):  # DT_JMPREL, DT_PLTRELSZ; DT_RELA, DT_RELASZ
        for relocation in range(place.get(first, 0), place.get(first, 0) + tags.get(size, 0), 24):
            offset, info = read(relocation, "<QQ")
            (name,) = read(place[6] + 24 * (info >> 32), "<I")  # DT_SYMTAB
            if (
                info >> 32 and ctypes.string_at(place[5] + name, len(symbol) + 1) == symbol + b"\0"
            ):  # DT_STRTAB
                page = (base + offset) // mmap.PAGESIZE * mmap.PAGESIZE
                if ctypes.CDLL(None, use_errno=True).mprotect(
                    ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3
                ):
                    raise OSError(ctypes.get_errno(), "mprotect")
                return ctypes.c_uint64.from_address(base + offset)
    raise LookupError(symbol)
