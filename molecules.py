"""What all stations stand on: molecules read from files as a stream, processes that survive RDKit's crashes, whole files.

The scripts take these from render.py, which owns reading and drawing; this file has no command of its own.
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
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rdkit import RDLogger

HERE = Path(__file__).resolve().parent
TIME_LIMIT = 60     # seconds for one molecule: a backstop only, render.py's cap on atoms decides first


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
    try:
        if str(path) == "-" or Path(path).is_file():
            return str(path)
        if Path(path).is_dir():
            raise click.ClickException(f"{path}: is a folder; give a file of molecules")
        for candidate in (HERE / "data" / path, HERE / "data" / f"{path}.gz"):
            if candidate.is_file():
                found = os.path.relpath(candidate)
                click.echo(f"{path} is not here; taking {found}", err=True)
                return found
    except (OSError, ValueError):                              # a name too long, or one that holds a NUL
        pass
    raise click.ClickException(f"{str(path)[:200]}: no such file, here or in data/")


def open_bytes(path):
    """Open a file or standard input (`-`) for reading bytes, inflating gzip, which is recognised by content."""
    try:
        raw = getattr(sys.stdin, "buffer", None) if path == "-" else open(path, "rb")
        if raw is None:
            raise click.ClickException("standard input is closed; give a file")
        return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
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
        raise click.ClickException(f"{path}: the gzip file is truncated or damaged (after {count} good rows)") from None
    except csv.Error as error:
        raise click.ClickException(f"{path}: not a readable table after {count} good rows: {error}") from None
    if not count:
        raise click.ClickException(f"{path}: is empty" + (" but for its header" if reader is read_table else ""))


def read_lines(path, stream, smiles_column=None):
    for row, text in enumerate(stream):
        smiles, name, *_ = [*text.strip().split(None, 1), "", ""]
        yield Molecule(row, row + 1, smiles, name, problem="" if smiles else "empty line")


def read_table(path, stream, smiles_column=None):
    first = stream.readline()
    if not first.strip():
        raise click.ClickException(f"{path}: is empty, or its first line is; a table begins with its column names")
    csv.field_size_limit(1 << 24)
    reader = csv.reader(itertools.chain([first], stream), delimiter=max("\t,;", key=first.count), strict=True)
    header = next(reader)
    check_header(path, header)
    column, row, line = find_smiles_column(path, header, smiles_column), 0, reader.line_num + 1
    for record in reader:
        if any(cell.strip() for cell in record):
            fields = dict.fromkeys(header, "") | dict(zip(header, record))
            smiles, problem = fields.get(column, "").strip(), ""
            if len(record) < len(header) or any(record[len(header):]):
                problem = f"{len(record)} fields where the header has {len(header)} (a field that holds the delimiter needs quotes)"
            elif not smiles:
                problem = f"no SMILES in column {column!r}"
            if reader.line_num > line:
                several = f"{path}: lines {line} to {reader.line_num} are one record, because of a quote that is opened in one and closed in another"
                if problem or "\n" in smiles:
                    raise click.ClickException(f"{several}; remove the stray quote, or double it")
                click.echo(f"warning: {several}", err=True)
            yield Molecule(row, line, smiles, "", fields, problem)
            row += 1
        line = reader.line_num + 1


def check_header(path, header):
    for name in header:
        if header.count(name) > 1:
            raise click.ClickException(f"{path}: two columns are named {name!r}; rename one")
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            raise click.ClickException(f"{path}: the column names are not UTF-8; save the table as UTF-8 (in Excel: \"CSV UTF-8\")")


def input_facts(path, smiles_column=None):
    """Return {"input": name, "sha256": of the inflated bytes, "rows": count, "smiles_column"} of a molecule file.

    Two files made from the same input agree in these; that is how a later station knows that they belong together.
    """
    digest, rows = hashlib.sha256(), 0
    for _ in read_molecules(path, smiles_column):
        rows += 1
    with open_bytes(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"input": Path(path).name, "sha256": digest.hexdigest(), "rows": rows, "smiles_column": smiles_column}


def parse_part(context, parameter, value):
    """Return (I, N) of --part I/N; (1, 1) without it."""
    words = (value or "1/1").split("/")
    if len(words) != 2 or not all(word.isdigit() for word in words) or not 1 <= int(words[0]) <= int(words[1]):
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 2/8")
    return int(words[0]), int(words[1])


# ---------------------------------------------------------------------------------------------------------------------
# Processes that are watched from outside: RDKit may crash or never return, and neither can be caught from inside


class WorkerDied(Exception):
    """A worker process ended or was killed; the message says why."""


class Worker:
    """A process that applies `task` ("module:function") to lists of items; killed when one takes too long."""

    def __init__(self, task, options):
        self.command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import molecules; "
                        f"molecules.serve({task!r}, {options!r})"]
        self.process, self.closed = None, False

    def start(self):
        if self.closed:
            raise WorkerDied("the run was ended")
        # A session of its own: Ctrl-C is for the parent alone, which then ends its workers.
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            pickle.load(self.process.stdout)
        except (EOFError, OSError):
            raise click.ClickException(f"a worker process can't start (exit {self.close()}); its message stands above") from None

    def ask(self, items, limit):
        """Return the list of results, or raise WorkerDied; the next call starts a new process."""
        if self.process is None:
            self.start()
        slow = threading.Event()
        timer = threading.Timer(limit, lambda: (slow.set(), self.process.kill()))
        timer.start()
        try:
            pickle.dump(items, self.process.stdin)
            self.process.stdin.flush()
            reply = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.close()
            raise WorkerDied(f"took longer than {limit} s" if slow.is_set() else f"crashed RDKit (exit {code})") from None
        except AttributeError:                                           # closed meanwhile
            raise WorkerDied("the run was ended") from None
        finally:
            timer.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self):
        process, self.process = self.process, None
        if process:
            process.kill()
            process.stdout.close()
            return process.wait()


def serve(task, options):
    """The loop of a worker process: lists of items in on standard input, lists of results out on standard output."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                                        # nothing else may write between the replies
    RDLogger.DisableLog("rdApp.*")
    module, name = task.split(":")
    function, reply = getattr(importlib.import_module(module), name), "ready"
    while True:
        pickle.dump(reply, replies)
        replies.flush()
        try:
            items = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = [attempt(function, item, options) for item in items]
        except click.ClickException as error:                            # nothing a row is to blame for: a missing font
            reply = error


def attempt(function, item, options):
    """Return function(item), or as a string what went wrong: no row may end the run."""
    try:
        return function(item, **options)
    except (ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        return f"RDKit failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def parallel(task, molecules, workers=None, group=32, limit=TIME_LIMIT, **options):
    """Yield (molecule, result) for an iterable of `Molecule`, in its order, computed by worker processes.

    task: "module:function" of this folder, called as function((row, smiles, problem), **options). The iterable is read
    no further ahead than the workers need. A molecule that kills or stalls its process has the reason as its result (a
    string); all others are unharmed.
    """
    workers = workers or default_workers()
    crew, idle = [Worker(task, options) for _ in range(workers)], queue.SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def solve(worker, items):
        try:
            return worker.ask(items, limit)
        except WorkerDied as reason:                                     # one by one: finds the culprit, spares the rest
            return [str(reason)] if len(items) == 1 or worker.closed else [solve(worker, [item])[0] for item in items]

    def work(batch):
        worker = idle.get()
        try:
            return solve(worker, [(m.row, m.smiles, m.problem) for m in batch])
        finally:
            idle.put(worker)

    source, pending, pool = iter(molecules), deque(), ThreadPoolExecutor(workers)
    try:
        while True:
            while len(pending) < 3 * workers and (batch := list(itertools.islice(source, group))):
                pending.append((batch, pool.submit(work, batch)))
            if not pending:
                return
            batch, results = pending.popleft()
            yield from zip(batch, results.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.closed = True
            worker.close()


def ahead(items, room):
    """Yield the items of a generator that a thread of its own reads in advance, at most `room` of them."""
    ready, space, ended = queue.SimpleQueue(), threading.Semaphore(room), threading.Event()

    def read():
        try:
            for item in items:
                space.acquire()
                if ended.is_set():
                    break
                ready.put((item, None))
            ready.put((None, StopIteration()))
        except BaseException as error:                       # raised again where the items are wanted
            ready.put((None, error))
        finally:
            items.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error:
                raise error
            space.release()
            yield item
    finally:
        ended.set()
        space.release()
        thread.join(5)


def default_workers():
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole or not there


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
        raise click.ClickException(f"{path}: can't be written ({parent} is not a folder you may write to)")


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
