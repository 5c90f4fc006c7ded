"""Files of proteins, tables of sequences or embeddings by name, and the pairs that rows make."""

import csv
import gzip
import zipfile
import zlib
from pathlib import Path

import click
import numpy as np

from moleclip.files import one_line, open_text, say_once
from moleclip.formats import check_columns, csv_rows, named_columns, suffix_of
from moleclip.molecules import Rejected, find_input
from moleclip.proteins import KMERS, SHOWN, Proteins, sequence_features

EXAMPLES = 16  # proteins whose features a model.pt keeps, to be checked with


def sequence_columns(header):
    """Return the columns of a table that look most like that of sequences."""
    low = {name: name.strip().lower() for name in header}
    exact = [name for name in low if low[name] in ("sequence", "seq")]
    return exact or [name for name in low if "sequence" in low[name]]


def read_proteins(path, source, header, rows=(), column=None):
    """Return the Proteins of a .csv or .tsv of sequences, or of an .npz of embeddings.

    source, header: path and columns of the table of molecules, which shares a column with that of
    sequences; rows: its records, {column: cell}, by which names of embeddings are found; column:
    the name that is taken where it is there. Raises click.ClickException.
    """
    if suffix_of(path) == ".npz":
        known, facts = read_embeddings(path)
        if column is None:
            hits = {
                name: sum(row.get(name, "").strip() in known for row in rows) for name in header
            }
            column = max(hits, key=hits.get)
            if not hits[column]:
                raise click.ClickException(f"{source}: no column has names that stand in {path}")
        if column not in header:
            has = f"it has {', '.join(map(repr, header))}"
            raise click.ClickException(f"{source}: no column {column!r} of proteins; {has}")
        return Proteins(column, facts, known, path)
    own, lines = read_table(path)
    sequence = sequence_columns(own)
    if len(sequence) != 1:
        many = f"several columns may hold sequences ({', '.join(sequence)})"
        says = f"{many if sequence else 'no column of sequences'}; call one 'sequence'"
        raise click.ClickException(f"{path}: {says}. Columns: {', '.join(own)}")
    shared = [name for name in own if name in header and name != sequence[0]]
    shared = [column] if column in shared else shared
    if len(shared) != 1:
        many = f"share several columns ({', '.join(shared)})" if shared else "share no column"
        says = f"{many}, and one has to name the proteins in both; it has {', '.join(own)}"
        raise click.ClickException(f"{path}: it and {source} {says}, the other {', '.join(header)}")
    return Proteins(shared[0], KMERS, by_name(path, lines, shared[0], sequence[0]), path)


def read_table(path):
    """Return (columns, [(line, {column: cell}), ...]) of a .csv or .tsv."""
    if suffix_of(path) not in (".csv", ".tsv"):
        says = "give a .csv or .tsv with sequences, gzipped or not, or an .npz of embeddings"
        raise click.ClickException(f"{path}: {says}")
    try:
        with open_text(path) as stream:
            lines = [(line, cells) for line, cells, _ in csv_rows(path, stream) if cells]
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise click.ClickException(f"{path}: not a readable table ({one_line(error)})") from None
    header = named_columns(lines[0][1]) if lines else []
    check_columns(path, header)
    return header, [(line, dict(zip(header, cells))) for line, cells in lines[1:]]


def by_name(path, lines, column, sequence):
    """Return {name: features, or the Rejected that says why there are none} of a table's records.

    Raises click.ClickException for a name with two sequences.
    """
    known, seen = {}, {}
    for line, record in lines:
        name, text = record.get(column, "").strip(), record.get(sequence, "")
        text = "".join(text.split()).upper()
        if not name:
            say_once(f"{path}: line {line} has no {column}, and is nobody's sequence")
            continue
        before, other = seen.setdefault(name, (line, text))
        if other != text:
            says = f"{name[:SHOWN]!r} has two sequences (lines {before} and {line}); keep one"
            raise click.ClickException(f"{path}: {says}")
        if before == line:
            try:
                known[name] = sequence_features(text)
            except Rejected as reason:
                known[name] = reason
    return known


def read_embeddings(path):
    """Return ({name: float32 (width,), or a Rejected}, facts) of an .npz of names and embeddings.

    Raises click.ClickException.
    """
    wrong = (OSError, ValueError, TypeError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, values = arrays["names"], arrays["embeddings"]
        if names.dtype.kind not in "US" or names.ndim != 1:
            raise ValueError("its names are no list of texts")
        if values.dtype.kind not in "fiu" or values.shape[:1] != names.shape or values.ndim != 2:
            raise ValueError(f"its embeddings are {values.dtype} {values.shape}, not one a name")
        names = [each.decode() if isinstance(each, bytes) else str(each) for each in names]
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    except KeyError:
        raise click.ClickException(f"{path}: lacks the arrays 'names' and 'embeddings'") from None
    except wrong as error:
        says = f"no .npz of 'names' and 'embeddings' ({one_line(error)})"
        raise click.ClickException(f"{path}: {says}") from None
    known = {}
    for name, vector in zip((name.strip() for name in names), values):
        if name in known and not np.array_equal(known[name], vector, equal_nan=True):
            raise click.ClickException(f"{path}: {name[:SHOWN]!r} has two embeddings; keep one")
        known[name] = vector
    finite = {name: bool(np.isfinite(vector).all()) for name, vector in known.items()}
    odd = Rejected("its embedding is not a number")
    known = {name: vector if finite[name] else odd for name, vector in known.items()}
    return known, {"kind": "embeddings", "width": values.shape[1]}


def proteins_for(model, facts, path, given):
    """Return the Proteins of the rows that a model predicts, None for one of molecules alone.

    facts: what the model says of proteins, or None; path: of --proteins, or None; given: a source
    of predict.py. Raises click.ClickException.
    """
    if not facts:
        if path:
            raise click.ClickException(f"{model}: looks at molecules alone; leave out --proteins")
        return None
    header, by_sequence = [] if given.files else list(given.first.fields), facts["kind"] == "kmers"
    if not header or not (path or by_sequence):
        kind = "a table of sequences" if by_sequence else "an .npz of the embeddings it learned by"
        says = f"give a table with SMILES and {facts['column']}, and --proteins, {kind}"
        raise click.ClickException(f"{model}: looks at proteins beside molecules; {says}")
    if not path:
        found = sequence_columns(header)
        if len(found) != 1:
            says = "no column of sequences (or several); give --proteins, or call one 'sequence'"
            raise click.ClickException(f"{given.path}: {says}. Columns: {', '.join(header)}")
        return Proteins(found[0], KMERS)
    found = read_proteins(find_input(path), given.path, header, column=facts["column"])
    alike = {key: value for key, value in facts.items() if key != "column"}
    if alike != {key: value for key, value in found.facts.items() if key != "column"}:
        has = f"{found.facts['kind']} of {found.facts['width']} numbers"
        says = f"has learned from {facts['kind']} of {facts['width']}"
        raise click.ClickException(f"{path}: gives {has}; {model} {says}")
    return found


class Pairs:
    """The proteins of a table's rows.

    proteins: where their features come from; names: of each row, as it stands there; features:
    float32 (rows, width), 0 where a row has none, which is noted in `problems`, the reasons of all
    rows or ""; first: the first usable row with the same SMILES, int64 (rows,), and read, the same
    by SMILES.
    """

    def __init__(self, path, source, molecules, problems):
        records = [molecule.fields for molecule in molecules]
        self.proteins = read_proteins(path, source, list(records[0]), records)
        self.names = [fields.get(self.proteins.column, "").strip() for fields in records]
        self.features = np.zeros((len(records), self.proteins.facts["width"]), np.float32)
        self.first, self.read = np.arange(len(records)), {}
        for row, molecule in enumerate(molecules):
            try:
                self.features[row] = self.proteins.features_of(molecule.fields)
            except Rejected as reason:
                problems[row] = problems[row] or str(reason)
            if not problems[row]:
                self.first[row] = self.read.setdefault(molecule.smiles, row)

    def distinct(self):
        """Return the first usable row of each molecule: the rows that have to be read."""
        return sorted(self.read.values())

    def spread(self, given, problems):
        """Give all rows of a molecule what its first one is given as, or what is wrong with it.

        given: {kind: {row: what an encoder looks at}}; problems: of all rows; both are changed.
        """
        for row, first in enumerate(self.first.tolist()):
            if row != first:
                problems[row] = problems[first]
                for found in given.values() if not problems[row] else ():
                    found[row] = found[first]

    def entry(self):
        """Return what model.pt holds: facts, and the features of some of the proteins."""
        places = {name: row for row, name in enumerate(self.names) if self.features[row].any()}
        rows = list(places.values())
        some = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)
        return {"facts": self.proteins.facts, "examples": self.features[[rows[i] for i in some]]}

    def facts(self):
        """Return what config.json says of them."""
        name = Path(self.proteins.path).name
        digest = self.proteins.sha256
        return {"proteins": name, "proteins_sha256": digest, "protein": self.proteins.facts}

    def said(self, rows):
        """Return in words what these rows are."""
        molecules, proteins = ({at[row] for row in rows} for at in (self.first, self.names))
        return f"pairs of {len(molecules)} molecules and {len(proteins)} proteins"
