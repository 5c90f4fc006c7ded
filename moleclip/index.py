"""The index of a library: a model's embeddings of its molecules in a folder, block by block.

index/index-00000.npz, ... hold ROWS rows each: `row`, `embedding`, `mass`, `formula`, `shifts` with
`offsets` where the model predicts them, `rejected`, and `facts` of library and model.
"""

import itertools
import json
import re
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from tqdm import tqdm

from moleclip.alignedmodel import BATCH
from moleclip.files import check_output, read_arrays, save_arrays, save_table
from moleclip.formats import find_smiles_column, input_kind
from moleclip.graphs import graph_of
from moleclip.molecules import BLOCK, Rejected, input_facts, read_molecules
from moleclip.outputs import interrupted_by_sigterm
from moleclip.workers import parallel, prefetch

ROWS = 16 * BLOCK  # of a block: what an interruption costs at most
AT_ONCE = 64  # queries that share one pass over the embeddings
PER_ROW = {"row": "i8", "embedding": "f2", "mass": "f8"}
SHIFTS = {"shifts": "f2", "offsets": "i8"}
MAPPED = (*PER_ROW, *SHIFTS, "formula")
FORMAT = 1


class Found(NamedTuple):
    """The molecules of an index that are most like one query, best first."""

    rows: np.ndarray  # int64 (n,)
    products: np.ndarray  # float32 (n,): of the embeddings


class Details(NamedTuple):
    """What an index knows of some rows."""

    masses: np.ndarray  # float64 (n,): monoisotopic, in u
    formulas: list  # of str
    shifts: list | None  # of each, those predicted, float32 (classes,), in ppm


def library_facts(path, smiles_column=None):
    """Return the facts of a library that its index is compared by. Raises click.ClickException."""
    facts, used = input_facts(path, smiles_column), None
    if input_kind(path, smiles_column) == "table":
        with closing(read_molecules(path, smiles_column)) as molecules:
            header = list(next(molecules).fields)
        used = find_smiles_column(path, header, smiles_column)
    return {"library": facts["sha256"], "rows": facts["rows"], "SMILES column": used}


class Index:
    """The index of a library by a model, in a folder that may have some, all or none of its blocks.

    Raises click.ClickException, naming the folder, if a block is damaged or of other facts.
    """

    def __init__(self, folder, model, library, smiles_column=None):
        self.folder, self.model, self.library = Path(folder), model, library
        self.column = smiles_column
        known = library_facts(library, smiles_column)
        self.facts = {"format": FORMAT, "model": model.sha256, **known}
        self.rows = self.facts["rows"]
        self.numbers = range(-(-self.rows // ROWS))
        for path in sorted(self.folder.glob("index-*.npz")):
            if re.fullmatch(r"index-\d{5,}\.npz", path.name):
                self.read(path)

    def path(self, number):
        """Return the path of a block: the rows number * ROWS and on."""
        return self.folder / f"index-{number:05d}.npz"

    def missing(self, part=None):
        """Return the numbers of the blocks that aren't there, of a Part or of all."""
        wanted = [n for n in self.numbers if part is None or part.has_block(n)]
        return [number for number in wanted if not self.path(number).is_file()]

    def read(self, path):
        """Return a block's arrays. Raises click.ClickException."""
        told = SHIFTS if self.model.predicts_shifts else {}
        block = read_arrays(path, ("facts",), MAPPED)
        self.compare(path, block["facts"])
        kinds = PER_ROW | told
        lacks = [name for name in (*kinds, "formula", "rejected") if name not in block]
        count = 0 if lacks else len(block["row"])
        if (
            lacks
            or any(block[name].dtype != kind for name, kind in kinds.items())
            or block["embedding"].shape != (count, self.model.dim)
            or not len(block["mass"]) == len(block["formula"]) == count
            or (np.diff(block["row"]) <= 0).any()
            or (told and (len(block["offsets"]) != count + 1))
            or (told and block["offsets"][-1] != len(block["shifts"]))
        ):
            raise damaged(path)
        return block

    def compare(self, path, told):
        """Raise click.ClickException if a block was made by another model or of another library."""
        try:
            before = json.loads(told.tobytes())
            changed = [key for key, value in self.facts.items() if before.get(key) != value]
        except (ValueError, AttributeError):
            raise damaged(path) from None
        if not changed:
            return
        what = "by another model" if "model" in changed else f"of another {changed[0]}"
        what = "of another library, or one that has changed" if "library" in changed else what
        raise click.ClickException(
            f"{self.folder}: its index was made {what}; give another folder with --index, "
            "or delete this one"
        )

    def build(self, part=None, workers=None):
        """Embed the blocks of a part, or of all, that the folder lacks, and say so.

        Raises click.ClickException; whole blocks stay, and the next run goes on after them.
        """
        missing = self.missing(part)
        if not missing:
            return
        check_output(self.path(0))
        total = sum(min(ROWS, self.rows - number * ROWS) for number in missing)
        there = len(self.numbers) - len(self.missing())
        if there:
            says = f"{there} of {len(self.numbers)} blocks are there; embedding {len(missing)}"
            click.echo(f"{self.folder}: {says}", err=True)
        try:
            with interrupted_by_sigterm():
                self.embed_blocks(set(missing), total, workers)
        except KeyboardInterrupt:
            stopped = click.ClickException(
                f"{self.folder}: interrupted; whole blocks are kept, the same command goes on"
            )
            stopped.exit_code = 130
            raise stopped from None
        self.report(total)

    def embed_blocks(self, missing, total, workers):
        """Embed and write the blocks of these numbers."""
        molecules = read_molecules(self.library, self.column)
        wanted = (m for m in molecules if m.row // ROWS in missing)
        made = prefetch(parallel(graph_of, wanted, workers, **self.model.takes), 4 * BATCH)
        bar = tqdm(total=total, desc="embedding", unit=" molecules", disable=None)
        with closing(made), bar:
            for number, members in itertools.groupby(made, lambda pair: pair[0].row // ROWS):
                self.write(number, members, bar)

    def write(self, number, members, bar):
        """Write the block of (molecule, Graph or Rejected) pairs."""
        # Batches begin with the block, so that a block has the same bytes whatever came before it.
        kept, failed = [], []
        while window := list(itertools.islice(members, BATCH)):
            good = [(m, graph) for m, graph in window if not isinstance(graph, Rejected)]
            failed += [(m, str(graph)) for m, graph in window if isinstance(graph, Rejected)]
            embeddings, shifts = self.model.embed_molecules([graph for _, graph in good])
            for i, (molecule, graph) in enumerate(good):
                told = shifts[i] if shifts else np.zeros(0)
                if np.isfinite(embeddings[i]).all() and np.isfinite(told).all():
                    kept.append((molecule.row, embeddings[i], graph.mass, graph.formula, told))
                else:
                    failed.append((molecule, "the model gives no finite number for it"))
            bar.update(len(window))
        rows, embeddings, masses, formulas, told = zip(*kept) if kept else [()] * 5
        arrays = {}
        if self.model.predicts_shifts:
            arrays["shifts"] = np.concatenate([*told, np.zeros(0)]).astype("f2")
            arrays["offsets"] = np.cumsum([0, *map(len, told)], dtype="i8")
        failed = [[m.row, m.line, m.smiles, why] for m, why in sorted(failed, key=row_of)]
        save_arrays(
            self.path(number),
            row=np.array(rows, "i8"),
            embedding=np.array(embeddings, "f2").reshape(-1, self.model.dim),
            mass=np.array(masses, "f8"),
            formula=np.array(formulas, "S"),
            rejected=packed_json(failed),
            facts=packed_json(self.facts),
            **arrays,
        )

    def report(self, total):
        """Say how many rows were embedded; write rejected.csv once all blocks are there."""
        said = f"{self.folder}: embedded {total} rows on {self.model.device}"
        if self.missing():
            click.echo(f"{said}; {len(self.missing())} of {len(self.numbers)} blocks are missing")
            return
        failed = [
            line for block in self.blocks() for line in json.loads(block["rejected"].tobytes())
        ]
        if failed:
            path = self.folder / "rejected.csv"
            save_table(path, ["row", "line", "smiles", "reason"], failed)
            said += f"; {len(failed)} of {self.rows} can't be searched, see {path}"
        click.echo(said)

    def blocks(self):
        """Yield the arrays of each block, the large ones as memory maps."""
        for number in self.numbers:
            yield self.read(self.path(number))

    def search(self, queries, count, wanted=None):
        """Return a list of Found, at most `count` molecules for each of float32 (q, dim) queries.

        wanted: function of a block's arrays that returns which of its molecules to look at, bool
        (n,); None: all. Every product is computed. Of equals the lower row comes first.
        """
        found = []
        for start in range(0, len(queries), AT_ONCE):
            found += self.search_some(queries[start : start + AT_ONCE], count, wanted)
        return found

    def search_some(self, queries, count, wanted):
        """Return what `search` does, in one pass."""
        best = np.zeros((len(queries), 0), np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        # A thread reads and widens the next block while this one is multiplied.
        for these, embeddings in prefetch(self.embeddings(wanted), 1):
            products = queries @ embeddings.T
            these = np.broadcast_to(these, products.shape)
            best, rows = np.concatenate([best, products], 1), np.concatenate([rows, these], 1)
            if best.shape[1] > count:
                kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
                best, rows = (np.take_along_axis(each, kept, 1) for each in (best, rows))
        order = np.lexsort([rows, -best], axis=1)
        best, rows = (np.take_along_axis(each, order, 1) for each in (best, rows))
        return [Found(*each) for each in zip(rows, best)]

    def embeddings(self, wanted):
        """Yield (rows, embeddings float32 (n, dim)) of each block's molecules to look at."""
        for block in self.blocks():
            places = slice(None) if wanted is None else np.flatnonzero(wanted(block))
            yield block["row"][places], block["embedding"][places].astype(np.float32)

    def details(self, rows):
        """Return the Details of rows that `search` gave, int64 (n,), in their order."""
        masses, formulas = np.zeros(len(rows)), [""] * len(rows)
        shifts = [None] * len(rows) if self.model.predicts_shifts else None
        for number in np.unique(rows // ROWS):
            block = self.read(self.path(number))
            ours = np.flatnonzero(rows // ROWS == number)
            places = np.searchsorted(block["row"], rows[ours])
            masses[ours] = block["mass"][places]
            for i, place in zip(ours, places):
                formulas[i] = block["formula"][place].decode()
                if shifts is not None:
                    its = slice(*block["offsets"][place : place + 2])
                    shifts[i] = block["shifts"][its].astype(np.float32)
        return Details(masses, formulas, shifts)

    def nearest_mass(self, mass):
        """Return the mass in the index that is closest to one, or NaN where there is none."""
        closest = np.nan
        for block in self.blocks():
            masses = np.append(block["mass"], closest)
            if not np.isnan(masses).all():
                closest = masses[np.nanargmin(np.abs(masses - mass))]
        return float(closest)


def row_of(pair):
    """Return the row of a (molecule, reason) pair."""
    return pair[0].row


def packed_json(what):
    """Return plain facts as JSON in bytes, uint8 (n,)."""
    return np.frombuffer(json.dumps(what).encode(), np.uint8)


def damaged(path):
    """Return the error of a block that can't be used."""
    return click.ClickException(
        f"{path}: its arrays don't fit together; delete it, and the same command makes it again"
    )
