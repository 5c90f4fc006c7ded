"""Files: opened, inflated, written whole or not at all; what is wrong with one, in a line."""

import csv
import gzip
import importlib
import io
import json
import math
import os
import struct
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import click
import numpy as np

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
UTF8 = 'UTF-8 (in Excel: "CSV UTF-8")'
SAID = set()  # what say_once has printed, or is about


def open_bytes(path):
    """Open a file or standard input (`-`) for reading bytes; gzip is recognised by its content.

    Raises click.ClickException if it can't be read.
    """
    try:
        if path == "-" and sys.stdin is None:
            raise click.ClickException("standard input is closed; give a file")
        # Not sys.stdin's own: a thread that waits for it would break the interpreter's shutdown.
        raw = os.fdopen(os.dup(0), "rb") if path == "-" else open(path, "rb")
        gzipped = raw.peek(2)[:2] == b"\x1f\x8b"
    except OSError as error:
        raise click.ClickException(f"{path}: can't be read ({error.strerror})") from None
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if gzipped else raw


def open_text(path):
    """Open a UTF-8 file, skipping a byte-order mark; bytes that are not UTF-8 pass unchanged."""
    stream = open_bytes(path)
    if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise click.ClickException(f"{path}: is UTF-16; save it as {UTF8}")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def library(name, path):
    """Return an optional library. Raises click.ClickException if it isn't there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise click.ClickException(
            f"{path}: needs {package}, which is not installed: pip install {package}"
        ) from None


def check_output(path, *inputs):
    """Refuse, before any work is done, an output that can't be written or is one of the inputs.

    Raises click.ClickException.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise click.ClickException(f"-o {path}: is a folder; give the name of a file")
    for source in inputs:
        if path.exists() and Path(source).exists() and os.path.samefile(path, source):
            raise click.ClickException(f"-o {path}: is the input itself; give another name")
    folders = final_path(path).absolute().parents
    parent = next(folder for folder in folders if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        why = f"{parent} is not a folder you may write to"
        raise click.ClickException(f"{path}: can't be written ({why})")


def final_path(path):
    """Return the file that is written under this name: a link's target, so that the link stays.

    Raises click.ClickException for what is there and no regular file, such as a device.
    """
    path = Path(path)
    final = Path(os.path.realpath(path)) if path.is_symlink() else path
    if final.is_symlink() or (path.exists() and not path.is_file()):
        raise click.ClickException(f"{path}: is no regular file; give the name of one")
    return final


def packed(path, data):
    """Return bytes as they stand in a file of that name: gzipped if it ends in .gz.

    Gzipped pieces may follow each other in one file.
    """
    return gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data


def open_locked(path):
    """Open an incomplete file, or a new one, to which no other run writes. The lock ends with it.

    Raises click.ClickException.
    """
    final = path.with_suffix("")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            with suppress(FileNotFoundError):
                lock(stream)
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                    return stream
            stream.close()  # a run that was ending has renamed or removed it meanwhile
    except BlockingIOError:
        raise click.ClickException(
            f"{final}: another run is writing it; wait for its end, or give another name"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{final}: can't be written ({error.strerror})") from None


def lock(stream):
    """Lock an open file for this run alone. Raises BlockingIOError if another run has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def save_whole(path, write):
    """Call write(temporary path), then rename that file to `path`, which so is always whole.

    Raises click.ClickException where the disk refuses; nothing is left behind then.
    """
    path = final_path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        raise click.ClickException(f"{path}: can't be written ({why})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_json(path, facts):
    """Write facts as indented JSON, whole or not at all."""
    save_whole(path, lambda name: name.write_text(json.dumps(facts, indent=2) + "\n"))


def save_table(path, header, rows):
    """Write a CSV from any iterable of rows, whole or not at all; gzipped if it ends in .gz."""

    def write(name):
        with open(name, "wb") as raw:
            zipped = Path(path).suffix == ".gz"
            target = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if zipped else raw
            with io.TextIOWrapper(target, "utf-8", "surrogateescape", newline="") as stream:
                table = csv.writer(stream)
                table.writerow(header)
                table.writerows(rows)

    save_whole(path, write)


def kept_columns(path, header, smiles, taken):
    """Return {column of a table: its name beside our own} for all but those of SMILES and name.

    smiles: the column used, or None; taken: names of ours. Raises click.ClickException.
    """
    named = next((name for name in header if name.strip().lower() == "name"), None)
    shown = {"smiles": smiles, "name": named}  # that stand in columns of ours
    kept = {}
    for name in header:
        if shown.get(name) != name:
            kept[name] = f"input_{name}" if name in taken else name
    for name in kept.values():
        if list(kept.values()).count(name) > 1:
            raise click.ClickException(
                f"{path}: two kept columns would be called {name!r}; rename one"
            )
    return kept


def save_arrays(path, **arrays):
    """Write an uncompressed .npz, whole or not at all. The same arrays give the same bytes."""

    def write(name):
        with open(name, "wb") as stream:
            np.savez(stream, **arrays)

    save_whole(path, write)


def read_arrays(path, wanted, mapped=("data",)):
    """Return the arrays of an uncompressed .npz as a dict, those named in `mapped` as memory maps.

    Of a memory map only what is touched is read. Raises click.ClickException if the file is
    truncated, of another kind, or lacks one of the names in `wanted`.
    """
    arrays = {}
    try:
        whole = np.memmap(path, mode="r")  # one map a file: each keeps the file open
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                read = map_member if name in mapped else read_member
                arrays[name] = read(whole, archive, info)
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


def read_member(whole, archive, info):
    """Return an array of a .npz."""
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def map_member(whole, archive, info):
    """Return an array of a .npz as a part of its map, uint8 (bytes,).

    Raises ValueError if it is not stored as it is.
    """
    with archive.open(info) as member:
        np.lib.format.read_magic(member)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        header = member.tell()
    size = math.prod(shape) * dtype.itemsize
    stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == header + size
    if not stored or fortran or dtype.hasobject:
        raise ValueError("not stored as it is")
    if not size:
        return np.zeros(shape, dtype)
    # the archive's local entry has lengths of its own
    lengths = struct.unpack_from("<HH", whole, info.header_offset + 26)
    start = info.header_offset + 30 + sum(lengths) + header
    return whole[start : start + size].view(dtype).reshape(shape)


def say_once(text, about=""):
    """Print a line to stderr, unless it was printed before, or another about the same."""
    if (about or text) not in SAID:
        SAID.add(about or text)
        click.echo(text, err=True)


def one_line(error):
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
