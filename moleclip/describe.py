"""Descriptions of molecules: the nearest texts of a library, and a caption composed of them.

index/texts.npz holds a library's texts as a model places them: `row`, `embedding`, the molecules'
circular fragments (`which`, `counts`, `offsets`), `texts` and `facts`, both JSON.
"""

import itertools
import json
from contextlib import closing
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from moleclip.alignedmodel import BATCH
from moleclip.captions import compose
from moleclip.files import read_arrays, save_arrays, save_table
from moleclip.graphs import CIRCULAR, graph_of
from moleclip.index import library_facts, packed_json
from moleclip.molecules import Rejected, parse, read_molecules
from moleclip.texts import text_columns, text_of
from moleclip.workers import parallel

FORMAT = 1
SHARE = 0.5  # of the model's product beside the likeness of fragments, in a score
HEADER = ("row", "smiles", "name", "rank", "score", "library_row", "text", "error")
ARRAYS = ("row", "embedding", "which", "counts", "offsets", "texts", "facts")


class Told:
    """A library's texts, placed by a model, made once and kept in a folder.

    rows: int64 (n,); texts: list of str; places: float32 (n, dim); counts: uint8 (CIRCULAR, n).
    Raises click.ClickException.
    """

    def __init__(self, folder, model, library, smiles_column=None, workers=None):
        self.path, self.model, self.library = Path(folder) / "texts.npz", model, library
        with closing(read_molecules(library, smiles_column)) as molecules:
            self.columns = text_columns(library, list(next(molecules).fields))
        facts = {"format": FORMAT, "model": model.sha256, "columns": self.columns}
        facts |= library_facts(library, smiles_column)
        if not self.path.is_file():
            self.make(facts, smiles_column, workers)
        arrays = read_arrays(self.path, ARRAYS)
        if json.loads(arrays["facts"].tobytes()) != facts:
            raise click.ClickException(
                f"{self.path}: was made by another model or of other texts; give another folder "
                "with --index, or delete it"
            )
        self.rows, self.texts = arrays["row"], json.loads(arrays["texts"].tobytes())
        self.places = arrays["embedding"].astype(np.float32)
        self.counts = np.zeros((CIRCULAR, len(self.rows)), np.uint8)
        owner = np.repeat(np.arange(len(self.rows)), np.diff(arrays["offsets"]))
        self.counts[arrays["which"], owner] = arrays["counts"]

    def make(self, facts, smiles_column, workers):
        """Read and place the library's texts, and write the file."""
        molecules = read_molecules(self.library, smiles_column)
        how = self.model.takes | {"fragments": True}
        made = parallel(graph_of, molecules, workers, **how)
        rows, texts, fragments, failed = [], [], [], 0
        for molecule, graph in tqdm(made, total=facts["rows"], desc="texts", disable=None):
            try:
                text, _ = text_of(molecule.fields, self.columns)
            except Rejected as reason:
                graph = reason
            if isinstance(graph, Rejected):
                failed += 1
                continue
            rows.append(molecule.row)
            texts.append(text)
            fragments.append(circular(graph))
        if not rows:
            raise click.ClickException(f"{self.library}: no row has both a molecule and a text")
        which, counts = (np.concatenate(each) for each in zip(*fragments))
        save_arrays(
            self.path,
            row=np.array(rows),
            embedding=self.model.embed_texts(texts).astype("f2"),
            which=which,
            counts=counts,
            offsets=np.cumsum([0, *(len(each) for each, _ in fragments)]),
            texts=packed_json(texts),
            facts=packed_json(facts),
        )
        left = f"; {failed} rows without a molecule or a text are left out" if failed else ""
        click.echo(f"{self.path}: {len(rows)} texts{left}")

    def nearest(self, graph, place, count):
        """Return [(score, which text)] of a molecule's nearest texts, best first.

        place: the model's, (dim,). A score is the likeness of fragments, Tanimoto's of their
        counts, and SHARE of the product of places.
        """
        which, counts = circular(graph)
        shared = np.minimum(self.counts[which], counts[:, None]).sum(0, dtype=np.int64)
        every = self.counts.sum(0, dtype=np.int64) + counts.sum(dtype=np.int64) - shared
        scores = shared / np.maximum(every, 1) + SHARE * (self.places @ place)
        best = np.argsort(-scores, kind="stable")[:count]
        return [(float(scores[i]), int(i)) for i in best]


def circular(graph):
    """Return a Graph's circular fragments: which, uint16 (k,), and how often, uint8 (k,)."""
    which, counts = graph.fragments
    kept = which < CIRCULAR
    return which[kept], counts[kept]


def lines_of(told, molecules, workers, top):
    """Yield the lines of a description, see HEADER, of every row of molecules."""
    model = told.model
    made = parallel(graph_of, molecules, workers, **model.takes | {"fragments": True})
    while batch := list(itertools.islice(made, BATCH)):
        good = [graph for _, graph in batch if not isinstance(graph, Rejected)]
        places = iter(model.embed_molecules(good)[0])
        for molecule, graph in batch:
            own = [molecule.row, molecule.smiles, molecule.name]
            if isinstance(graph, Rejected):
                yield [*own, "", "", "", "", str(graph)]
                continue
            near = told.nearest(graph, next(places), max(top, BATCH))
            texts = [(score, told.texts[i]) for score, i in near]
            caption = compose(parse(molecule.smiles, model.max_atoms), texts)
            yield [*own, 0, f"{near[0][0]:.5f}", "", caption, ""]
            for rank, (score, i) in enumerate(near[:top], 1):
                yield [*own, rank, f"{score:.5f}", told.rows[i], told.texts[i], ""]


def describe(path, told, smiles_column, out, workers, top):
    """Write the descriptions of a file of molecules; return what to say."""
    counted = {"rows": 0, "failed": 0}

    def lines():
        for line in lines_of(told, read_molecules(path, smiles_column), workers, top):
            counted["rows"] += line[3] in (0, "")
            counted["failed"] += bool(line[-1])
            yield line

    save_table(out, HEADER, lines())
    failed = f", {counted['failed']} can't be read" if counted["failed"] else ""
    return f"{out}: {counted['rows']} molecules described by {len(told.rows)} texts{failed}"
