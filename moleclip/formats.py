"""The kinds of file that molecules come in, read as records without rows."""

import csv
import itertools
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
from rdkit import Chem, rdBase

from moleclip.files import UTF8, library, one_line, open_bytes, open_text, say_once

COLUMNS = (".csv", ".tsv", ".sdf", ".xlsx", ".parquet")  # whose records have columns
MARKS = ",;\t"  # what may separate the columns of a .csv or .tsv
SAMPLED = 50  # lines of a table by which that is decided


class Record(NamedTuple):
    """One molecule of a file, as it stands there."""

    line: int  # 1-based, for messages
    smiles: str  # or an InChI, or the record of an .sdf
    name: str = ""  # what follows the SMILES in .smi and .txt, a column "name", a title
    fields: dict = {}  # every column of a table's record
    problem: str = ""  # why it can't be used, if that shows while reading


def suffix_of(path):
    """Return a file's suffix in lower case, that before .gz if there is one."""
    return Path(path.lower().removesuffix(".gz")).suffix


def input_kind(path, smiles_column=None):
    """Return "lines" (.smi, .txt) or "table", whose records have columns, by the file's name.

    Standard input is a table if a column is named.
    """
    suffix = suffix_of(path)
    if suffix in COLUMNS or (path == "-" and smiles_column):
        return "table"
    if suffix not in (".smi", ".txt") and path != "-":
        known = "use .smi, .txt, .csv, .tsv or .sdf, gzipped or not, .xlsx or .parquet"
        raise click.ClickException(f"{path}: unknown kind of file; {known}")
    return "lines"


def read_records(path, smiles_column=None):
    """Yield a Record for each molecule of a file, streaming. Raises click.ClickException."""
    kind, suffix = input_kind(path, smiles_column), suffix_of(path)
    rows_of = {".xlsx": sheet_rows, ".parquet": parquet_rows}.get(suffix, csv_rows)
    with (open_text if rows_of is csv_rows else open_bytes)(path) as stream:
        if suffix == ".sdf":
            yield from read_sdf(path, stream, smiles_column)
        elif kind == "table":
            yield from read_table(path, rows_of(path, stream, smiles_column), smiles_column)
        else:
            yield from read_lines(stream)


def read_lines(stream):
    """Yield a Record for each line: a SMILES, its CXSMILES note if it has one, and a name."""
    for line, text in enumerate(stream, 1):
        smiles, name, *_ = [*text.strip().split(None, 1), "", ""]
        note = re.match(r"\|[^|]*\|(?!\S)", name)
        if note:
            smiles, name = f"{smiles} {note[0]}", name[note.end() :].strip()
        yield Record(line, smiles, name, problem="" if smiles else "empty line")


def find_smiles_column(path, columns, wanted=None):
    """Return the name of a table's SMILES column, or else of InChI; `wanted` if it exists.

    None for an .sdf: it has structures. Raises click.ClickException if there is none, or several.
    """
    if suffix_of(path) == ".sdf":
        return None
    likely = likely_columns(columns, wanted)
    if wanted and wanted not in columns:
        raise click.ClickException(f"{path}: no column {wanted!r}; it has {str(columns)[1:-1]}")
    if len(likely) == 1:
        return likely[0]
    several = f"several columns may hold SMILES ({', '.join(likely)})"
    hint = f"name it with --smiles-column. Columns: {', '.join(columns)}"
    raise click.ClickException(f"{path}: {several if likely else 'no SMILES column'}; {hint}")


def likely_columns(columns, wanted=None):
    """Return the columns that look most like that of the SMILES, or else of InChI."""
    low = {name: name.strip().lower() for name in columns}
    return (
        [name for name in low if name == wanted]
        or [name for name in low if low[name] in ("smiles", "smi")]
        or [name for name in low if "smiles" in low[name]]
        or [name for name in low if "inchi" in low[name] and "key" not in low[name]]
    )


class Header(NamedTuple):
    """The columns of a table, and which of them hold the SMILES (or InChI) and the name."""

    columns: list
    smiles: str | None = None
    name: str | None = None

    def misfits(self, cells):
        """Tell whether a record that isn't blank lacks cells, or has some beyond the last."""
        beyond = any(cell.strip() for cell in cells[len(self.columns) :])
        return any(cell.strip() for cell in cells) and (beyond or len(cells) < len(self.columns))

    def smiles_of(self, cells):
        """Return the cell that holds the SMILES, or ""."""
        return dict(zip(self.columns, cells)).get(self.smiles, "").strip()

    def record(self, line, cells):
        """Return the Record of a table's cells, with a problem if they don't fit."""
        fields = dict.fromkeys(self.columns, "") | dict(zip(self.columns, cells))
        smiles, problem = fields[self.smiles].strip(), ""
        if self.misfits(cells):
            hint = "a field that holds the delimiter needs quotes"
            problem = f"{len(cells)} fields where the header has {len(self.columns)} ({hint})"
        elif not smiles:
            problem = f"no SMILES in column {self.smiles!r}"
        elif len(smiles.splitlines()) > 1:
            problem = f"several lines in column {self.smiles!r}"
        return Record(line, smiles, fields.get(self.name, "").strip(), fields, problem)


def named_columns(cells):
    """Return a header without the empty cells at its end, as spreadsheets write them."""
    return cells[: max((i for i, cell in enumerate(cells, 1) if cell.strip()), default=0)]


def check_columns(path, columns):
    """Refuse a header that names nothing, something twice, or not in UTF-8."""
    why = "" if columns else "is empty, or its first line is; a table begins with its column names"
    if any("\udc80" <= letter <= "\udcff" for letter in "".join(columns)):
        why = f"the column names are not UTF-8; save the table as {UTF8}"
    for name in columns:
        if columns.count(name) > 1:
            why = f"two columns are named {name!r}; rename one"
    if why:
        raise click.ClickException(f"{path}: {why}")


def read_table(path, rows, smiles_column=None):
    """Yield a Record for each (line, cells, parts) of a table; the first names the columns.

    No cells at all are an empty line, which is no record. parts: see `csv_rows`.
    """
    first, blank, between = next(rows, (1, [], ()))[1], 0, 0
    columns = named_columns(first)
    check_columns(path, columns)
    names = [name for name in columns if name.strip().lower() == "name"]
    header = Header(columns, find_smiles_column(path, columns, smiles_column), *names[:1])
    for line, cells, parts in rows:
        if parts:
            many = sum(map(len, parts)) >= len(parts) * len(first)  # cells, for so many records
            whole = [part for part in parts if many and len(part) >= len(first)]
            check_lines(f"{path}: lines {line} to {line + len(parts) - 1}", header, cells, whole)
        if cells:
            between = blank
            yield header.record(line, cells)
        blank += not cells
    if between:
        say_once(f"{path}: empty lines between its records are no rows ({between} of them)")


def check_lines(where, header, cells, parts):
    """Warn of a record over several lines; refuse it where a stray quote has swallowed others.

    So it is where its cells don't fit, or where more of its lines than the one whose SMILES it
    has are records by themselves. parts: the cells of those that may be.
    """
    several = f"{where} are one record, by a quote opened in one and closed in another"
    found = (header.smiles_of(each).strip('"') for each in parts if not header.misfits(each))
    own = 1 if header.smiles_of(cells) else 0
    if header.misfits(cells) or len([*itertools.islice(filter(readable, found), own + 1)]) > own:
        raise click.ClickException(f"{several}; remove the stray quote, or double it")
    of = where.rpartition(": lines ")[0]  # the file may have thousands
    say_once(f"warning: {several}; of others like it nothing is said", about=f"records of {of}")


def readable(text):
    """Tell whether a text is a SMILES or an InChI."""
    with rdBase.BlockLogs():
        return text[:6] == "InChI=" or text and text.isascii() and bool(Chem.MolFromSmiles(text))


def csv_rows(path, stream, smiles_column=None):
    """Yield (line, cells, parts) of each record of a .csv or .tsv.

    parts: if it has several lines, the cells of each, as they were if quotes meant nothing.
    """
    csv.field_size_limit(1 << 24)
    sample, lines = list(itertools.islice(stream, SAMPLED)), []
    told = re.match(r'"?sep=(.)"?\s*$', "".join(sample[:1]))  # Excel's first line
    sample = sample[1:] if told else sample
    mark = told[1] if told else find_mark(path, sample, smiles_column)
    noted = (lines.append(line) or line for line in itertools.chain(sample, stream))
    reader = csv.reader(noted, delimiter=mark, strict=True)
    for cells in reader:
        parts = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
        parts = list(parts) if len(lines) > 1 else ()
        yield reader.line_num - len(lines) + (2 if told else 1), cells, parts
        lines.clear()


def find_mark(path, sample, wanted=None):
    """Return what separates the columns, by a table's first lines; where others may, say so."""
    agreed = {mark: agreement(sample, mark, wanted) for mark in MARKS}
    best = max(MARKS, key=agreed.get)
    if sum(columns > 1 for *_, columns in agreed.values()) > 1:
        say_once(
            f"{path}: columns are taken as separated by {best!r}; a first line sep=... says it"
        )
    return best


def agreement(sample, mark, wanted=None):
    """Return how well a mark separates the columns of lines, quotes respected, to be compared.

    (whether most records fit the header, how many, whether it names SMILES, columns)
    """
    rows, good = [], 0
    with suppress(csv.Error):  # a sample may end within a record
        for cells in csv.reader(sample, delimiter=mark, strict=True):
            rows += [cells] if any(cells) else []
    first, *rows = rows or [[]]
    header = Header(named_columns(first), *likely_columns(named_columns(first), wanted)[:1])
    for cells in rows:
        word = header.smiles_of(cells).partition(" ")[0]
        clean = word.startswith("InChI=") or not set(word) & set(MARKS)  # as a SMILES is
        good += clean and not header.misfits(cells)
    most = len(first) > 1 and 2 * good >= len(rows)
    return most, good, not set(header.smiles or MARKS) & set(MARKS), len(header.columns)


def sheet_rows(path, stream, smiles_column=None):
    """Yield (line, cells, ()) of each row of a workbook's first sheet."""
    openpyxl, width = library("openpyxl", path), 0
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles
            sheet = openpyxl.load_workbook(stream, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones
        for line, values in enumerate(sheet.iter_rows(values_only=True), 1):
            cells = ["" if value is None else str(value) for value in values]
            width = width or len(cells)
            yield line, cells + [""] * (width - len(cells)) if any(cells) else [], ()
    except Exception as error:  # of many kinds, none of openpyxl's own
        raise click.ClickException(f"{path}: not a readable .xlsx ({one_line(error)})") from None


def parquet_rows(path, stream, smiles_column=None):
    """Yield (number, cells, ()) of the column names and of each row of a Parquet file."""
    parquet = library("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(stream)
        yield 0, table.schema_arrow.names, ()
        batches = (zip(*map(texts, batch.columns)) for batch in table.iter_batches(1024))
        for row, cells in enumerate(itertools.chain.from_iterable(batches), 1):
            yield row, list(cells), ()
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: not a readable .parquet ({one_line(error)})") from None


def texts(column):
    """Return a Parquet column as strings, "" where there is nothing."""
    with suppress(NotImplementedError, ValueError):  # of lists and the like
        column = column.cast("string")
    return ["" if value is None else str(value) for value in column.to_pylist()]


def read_sdf(path, stream, smiles_column=None):
    """Yield a Record for each record of an .sdf, whole as its SMILES; a property is a column."""
    if smiles_column:
        raise click.ClickException(f"{path}: --smiles-column is for tables; an .sdf has structures")
    with open_text(path) as again:
        known = {name: "" for _, text in sdf_records(again) for name in properties(text)}
    for line, text in sdf_records(stream):
        yield Record(line, text, text.partition("\n")[0].strip(), known | properties(text))


def sdf_records(stream):
    """Yield (line, text) of each record of an .sdf; the last may lack its $$$$."""
    first, lines = 1, []
    for number, text in enumerate(itertools.chain(stream, [""]), 1):
        ends = text.startswith("$$$$")
        lines.append("\n" if ends else text.rstrip("\r\n") + "\n")
        if ends or (not text and "".join(lines).strip()):
            yield first, "".join(lines)
            first, lines = number + 1, []


def properties(text):
    """Return the properties of an .sdf record, {name: text}."""
    found = re.findall(r"^>.*<(.+)>.*\n((?:.*\S.*\n)*)", text, re.M)
    return {name: value.rstrip("\n") for name, value in found}
