"""TODO"""

import csv
import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent


def check_output(path, *inputs):
    """Refuse, before any work is done, an output that can't be written or is one of the inputs. Raises click.ClickException."""
    path = Path(path)
    if not path.name or path.is_dir():
        raise click.ClickException(f"-o {path}: is a folder; give the name of a file")
    for source in inputs:
        if path.exists() and Path(source).exists() and os.path.samefile(path, source):
            raise click.ClickException(f"-o {path}: is the input itself; give another name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise click.ClickException(
            f"{path}: can't be written ({parent} is not a folder you may write to)"
        )


def save_whole(path, write):
    """Call write(temporary path), then rename to `path`: a file under its final name is always whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise click.ClickException(
            f"{path}: can't be written ({error.strerror or error})"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_json(path, facts):
    save_whole(path, lambda name: name.write_text(json.dumps(facts, indent=2) + "\n"))


def save_table(path, header, rows):
    """Write a CSV from any iterable of rows, whole or not at all."""

    def write(name):
        with open(name, "w", newline="", errors="surrogateescape") as stream:
            table = csv.writer(stream)
            table.writerow(header)
            table.writerows(rows)

    save_whole(path, write)


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
                with open(path, "rb") as stream:  # the archive's local entry has its own lengths
                    stream.seek(info.header_offset + 26)
                    start = (
                        info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4))) + header
                    )
                if info.compress_type != zipfile.ZIP_STORED or dtype != np.uint8:
                    raise ValueError
                arrays[name] = (
                    np.memmap(path, dtype, "r", start, shape) if shape[0] else np.zeros(0, np.uint8)
                )
    except FileNotFoundError:
        raise click.ClickException(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, struct.error):
        raise click.ClickException(
            f"{path}: truncated, or not a file that numpy can read; make it again"
        ) from None
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise click.ClickException(
            f"{path}: has no array {missing[0]!r}, so it was not made by this project's scripts"
        )
    return arrays


def one_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
