"""The kinds of file that molecules come in: opened, inflated, read as records without rows."""

import csv
import gzip
import io
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import click

SUFFIXES = {".smi": "lines", ".txt": "lines", ".csv": "table", ".tsv": "table"}
UTF8 = 'UTF-8 (in Excel: "CSV UTF-8")'


class Record(NamedTuple):
    """One molecule of a file, as it stands there."""

    line: int  # 1-based, for messages
    smiles: str
    name: str = ""  # what follows the SMILES in .smi and .txt
    fields: dict = {}  # every column of a table's record
    problem: str = ""  # why it can't be used, if that shows while reading


def open_bytes(path):
    """Open a file or standard input (`-`) for reading bytes; gzip is recognised by its content.

    Raises click.ClickException if it can't be read.
    """
    try:
        raw = getattr(sys.stdin, "buffer", None) if path == "-" else open(path, "rb")
        if raw is None:
            raise click.ClickException("standard input is closed; give a file")
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


def input_kind(path, smiles_column=None):
    """Return "lines" (.smi, .txt) or "table" (.csv, .tsv), by the file's name.

    Standard input is a table if a column is named.
    """
    if path == "-":
        return "table" if smiles_column else "lines"
    kind = SUFFIXES.get(Path(path.removesuffix(".gz")).suffix.lower())
    if kind is None:
        known = "use .smi, .txt, .csv or .tsv, gzipped or not"
        raise click.ClickException(f"{path}: unknown kind of file; {known}")
    return kind


def find_smiles_column(path, header, wanted=None):
    """Return the name of the SMILES column of a table; `wanted` must exist if given.

    Raises click.ClickException if it doesn't, or if none or several look like one.
    """
    if wanted:
        if wanted in header:
            return wanted
        columns = ", ".join(map(repr, header))
        raise click.ClickException(f"{path}: no column {wanted!r}; it has {columns}")
    exact = [name for name in header if name.strip().lower() in ("smiles", "smi")]
    likely = exact or [name for name in header if "smiles" in name.lower()]
    if len(likely) == 1:
        return likely[0]
    found = "no SMILES column"
    if likely:
        found = f"several columns may hold SMILES ({', '.join(likely)})"
    raise click.ClickException(
        f"{path}: {found}; name it with --smiles-column. Columns: {', '.join(header)}"
    )


def read_lines(path, stream, smiles_column=None):
    """Yield a Record for each line: a SMILES and, after white space, a name."""
    for line, text in enumerate(stream, 1):
        smiles, name, *_ = [*text.strip().split(None, 1), "", ""]
        yield Record(line, smiles, name, problem="" if smiles else "empty line")


def read_table(path, stream, smiles_column=None):
    """Yield a Record for each record of a .csv or .tsv; its first line names the columns."""
    first = stream.readline()
    if not first.strip():
        raise click.ClickException(
            f"{path}: is empty, or its first line is; a table begins with its column names"
        )
    csv.field_size_limit(1 << 24)
    delimiter = max("\t,;", key=first.count)
    reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
    header = next(reader)
    check_header(path, header)
    column = find_smiles_column(path, header, smiles_column)
    line = reader.line_num + 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            record = table_record(line, header, cells, column)
            check_lines(path, record, reader.line_num)
            yield record
        line = reader.line_num + 1


def table_record(line, header, cells, column):
    """Return the Record of a table's cells, with a problem if they don't fit the header."""
    fields = dict.fromkeys(header, "") | dict(zip(header, cells))
    smiles, problem = fields.get(column, "").strip(), ""
    if len(cells) < len(header) or any(cells[len(header) :]):
        hint = "a field that holds the delimiter needs quotes"
        problem = f"{len(cells)} fields where the header has {len(header)} ({hint})"
    elif not smiles:
        problem = f"no SMILES in column {column!r}"
    return Record(line, smiles, "", fields, problem)


def check_lines(path, record, last):
    """Warn of a record over several lines; refuse it where a stray quote has swallowed others."""
    if last <= record.line:
        return
    several = (
        f"{path}: lines {record.line} to {last} are one record, because of a quote that is "
        "opened in one and closed in another"
    )
    if record.problem or "\n" in record.smiles:
        raise click.ClickException(f"{several}; remove the stray quote, or double it")
    click.echo(f"warning: {several}", err=True)


def check_header(path, header):
    """Refuse column names that occur twice or are not UTF-8. Raises click.ClickException."""
    for name in header:
        if header.count(name) > 1:
            raise click.ClickException(f"{path}: two columns are named {name!r}; rename one")
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            raise click.ClickException(
                f"{path}: the column names are not UTF-8; save the table as {UTF8}"
            )
