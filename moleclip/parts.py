"""The files of all parts of --part, joined into one, with no row lost or twice."""

import csv
import gzip
import heapq
import re
import zlib
from operator import itemgetter
from pathlib import Path

import click
import numpy as np

from moleclip.files import check_output, one_line, open_text, save_table, save_whole
from moleclip.molecules import BLOCK, Part


def all_parts(names):
    """Return the files of all parts of an input as paths, in order; they are named by --part.

    Raises click.ClickException if one is missing, or one isn't of them.
    """
    found = re.fullmatch(r"(.*)-\d+-of-(\d+)(\.\w+(\.gz)?)", names[0])
    if not found:
        raise click.ClickException(f"{names[0]}: is not named as --part does: NAME-1-of-8.csv")
    whole, count = Path(found[1] + found[3]), int(found[2])
    paths, given = [Part(i, count).named(whole) for i in range(1, count + 1)], [*map(Path, names)]
    for path in sorted({*paths} ^ {*given}):
        wrong = "this part is missing" if path in paths else f"is none of the {count} of {whole}"
        raise click.ClickException(f"{path}: {wrong}")
    return paths


def join_tables(paths, out):
    """Join the CSVs of all parts into one in the order of the rows; return their number.

    Raises click.ClickException unless each row is there once.
    """
    tables, rows = [read_part(path) for path in paths], 0
    headers = [cells for _, _, cells in map(next, tables)]

    def in_order():
        nonlocal rows
        for row, path, cells in heapq.merge(*tables, key=itemgetter(0)):
            if row != rows:
                lacks = f"{paths[rows // BLOCK % len(paths)]}: row {rows} is missing"
                twice = f"{path}: row {row} is there twice"
                raise click.ClickException(twice if row < rows else lacks)
            rows += 1
            yield cells

    for path, header in zip(paths, headers):
        if header != headers[0] or header[0] != "row":
            raise click.ClickException(f"{path}: its columns are not those of {paths[0]}")
    save_table(out, headers[0], in_order())
    return rows


def read_part(path):
    """Yield (row, path, cells) of each line of a part's CSV; of its header first, as row -1."""
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [""])
            yield -1, path, header
            for cells in reader:
                if len(cells) != len(header) or not cells[0].isdecimal():
                    raise csv.Error(f"line {reader.line_num} is no row of predict.py's")
                yield int(cells[0]), path, cells
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise click.ClickException(f"{path}: damaged: {one_line(error)}") from None


def join_parts(names, out):
    """Join what all parts of an input gave, CSVs or embeddings, and say so."""
    paths = all_parts(names)
    check_output(out, *paths)
    if paths[0].suffix != ".npy":
        rows = join_tables(paths, out)
    elif out.suffix == ".npy":
        rows = join_embeddings(paths, out)
    else:
        raise click.ClickException(f"-o {out}: embeddings need a name that ends in .npy")
    click.echo(f"{out}: {rows} rows of {len(paths)} parts")


def join_embeddings(paths, out):
    """Join the embeddings of all parts into one .npy in the order of the rows; return their number.

    Raises click.ClickException if a part has not the rows that it should have.
    """
    parts = [Part(i, len(paths)) for i in range(1, len(paths) + 1)]
    arrays = [read_embeddings(path) for path in paths]
    rows = sum(map(len, arrays))
    for path, part, array in zip(paths, parts, arrays):
        if array.shape != (part.size(rows), arrays[0].shape[1]):
            raise click.ClickException(f"{path}: lacks rows, or another part does")

    def write(name):
        shape = rows, arrays[0].shape[1]
        joined = np.lib.format.open_memmap(name, "w+", "<f4", shape, version=(1, 0))
        for part, array in zip(parts, arrays):
            for i, block in enumerate(part.blocks(rows)):
                its = slice(block * BLOCK, (block + 1) * BLOCK)
                joined[its] = array[i * BLOCK : (i + 1) * BLOCK]

    save_whole(out, write)
    return rows


def read_embeddings(path):
    """Return embeddings as a memory map, float32 (n, width). Raises click.ClickException."""
    try:
        array = np.load(path, mmap_mode="r")
        if array.dtype != np.float32 or array.ndim != 2:
            raise ValueError
        return array
    except (OSError, ValueError, EOFError):
        raise click.ClickException(f"{path}: damaged, or no embeddings of predict.py") from None
