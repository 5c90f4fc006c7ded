"""Predict on new molecules with an exported model. Needs onnxruntime and RDKit, no PyTorch.

    python predict.py model.onnx smiles.txt                   # predictions.csv
    python predict.py model.onnx library.csv --keep-columns --html report.html
    python predict.py model.onnx figure.png                   # a drawn molecule, or a folder of them
    echo "CCO ethanol" | python predict.py model.onnx -

One line comes out for every row that goes in, in the same order; a molecule that can't be read says why in its line.
"""

import hashlib
import itertools
import tempfile
import time
from contextlib import closing
from pathlib import Path

import click
import numpy as np
from rdkit import rdBase
from tqdm import tqdm

from moleclip.drawing import FONTS, font_path
from moleclip.features import featurize
from moleclip.files import check_output
from moleclip.formats import find_smiles_column, input_kind
from moleclip.molecules import BLOCK, Molecule, Rejected, find_input, input_facts, read_molecules
from moleclip.onnxmodel import OWN, OnnxModel
from moleclip.options import parse_part
from moleclip.outputs import ResumableCsv, write_report
from moleclip.pictures import KINDS, read_picture
from moleclip.workers import parallel, prefetch

WINDOW = 256  # consecutive rows that are sorted by ink and written together; what an interruption costs at most
BATCH = {
    "CPU": 8,
    "CUDA": 64,
}  # pictures in one call: a small batch stays in a CPU's cache, and its pictures have like ink


class Source:
    """What is to be predicted: a file of SMILES, standard input, a picture, or a folder of pictures.

    kind: "table", "lines" or "pictures"; header: a table's column names; rows, sha256: None for standard input.
    """

    def __init__(self, path, smiles_column=None):
        self.column, self.folder = smiles_column, Path(path)
        self.kind = (
            "pictures" if self.folder.is_dir() or self.folder.suffix.lower() in KINDS else None
        )
        if self.kind:
            self.path = str(path)
            self.files = (
                sorted(f for f in self.folder.iterdir() if f.suffix.lower() in KINDS)
                if self.folder.is_dir()
                else [self.folder]
            )
            if not self.files or not self.files[0].exists():
                raise click.ClickException(
                    f"{path}: "
                    + ("holds no .png, .jpg or .jpeg" if self.folder.is_dir() else "no such file")
                )
            if self.folder.is_file():  # in a folder, what is no picture has an error in its line
                try:
                    read_picture(self.folder)
                except Rejected as reason:
                    raise click.ClickException(f"{path}: {reason}") from None
            names = "".join(f"{f.name} {f.stat().st_size}\n" for f in self.files)
            self.rows, self.sha256, self.header = (
                len(self.files),
                hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest(),
                [],
            )
            return
        self.path = find_input(path)
        self.kind = input_kind(self.path, smiles_column)
        facts = (
            input_facts(self.path, smiles_column)
            if self.path != "-"
            else {"rows": None, "sha256": None}
        )
        self.rows, self.sha256 = facts["rows"], facts["sha256"]
        self.stream = read_molecules(self.path, smiles_column)
        self.first = next(self.stream)  # a table's column names come with its rows
        self.header = list(self.first.fields)

    def __iter__(self):
        """Yield every row as a `Molecule`; a picture's SMILES is its path."""
        if self.kind == "pictures":
            yield from (
                Molecule(row, row, str(file), file.name) for row, file in enumerate(self.files)
            )
        else:
            yield self.first
            yield from self.stream

    def kept(self, columns):
        """Return {column of the table: its name in the output} of --keep-columns; `columns` are the output's own."""
        if self.kind != "table":
            raise click.ClickException(
                f"{self.path}: --keep-columns needs a .csv or .tsv; other inputs have no columns"
            )
        smiles = find_smiles_column(self.path, self.header, self.column)
        named = {
            name: f"input_{name}" if name in columns else name
            for name in self.header
            if (name, smiles) != ("smiles", "smiles") and name != "name"
        }
        twice = next(
            (name for name in named.values() if list(named.values()).count(name) > 1), None
        )
        if twice:
            raise click.ClickException(
                f"{self.path}: two kept columns would be called {twice!r}; rename one"
            )
        return named


def predict_window(model, prepared, batch):
    """Return one entry for each (molecule, result) of a window: (values, embedding, nearest), or the reason why not, as a string.

    values: float32 (columns,), the model's outputs and the spread over views; embedding: float32 (width,). Pictures with about
    the same ink go into one call, since a model that skips white patches works as long as its fullest picture takes.
    """
    todo = [
        (result.ink[v], i, v)
        for i, (_, result) in enumerate(prepared)
        if not isinstance(result, Rejected)
        for v in range(len(result.streams))
    ]
    todo.sort()
    found = {}
    for part in (todo[start : start + batch] for start in range(0, len(todo), batch)):
        outputs = model.run([prepared[i][1].streams[v] for _, i, v in part])
        for k, (_, i, v) in enumerate(part):
            found.setdefault(i, {})[v] = {name: values[k] for name, values in outputs.items()}
    return [
        result if isinstance(result, Rejected) else average_views(found[i], result.nearest)
        for i, (_, result) in enumerate(prepared)
    ]


def average_views(views, nearest):
    """Return (values, embedding, nearest) of one molecule from {view: {output: values}}, or what is wrong, as a string."""
    stacked = {name: np.stack([views[v][name] for v in sorted(views)]) for name in views[0]}
    values = [stacked[name].mean(0) for name in ("prediction", "spread") if name in stacked]
    if len(views) > 1 and "prediction" in stacked:
        values.append(stacked["prediction"].std(0))
    values, embedding = (
        np.concatenate(values or [np.zeros(0, np.float32)]),
        stacked["embedding"].mean(0) if "embedding" in stacked else np.zeros(0),
    )
    if not (np.isfinite(values).all() and np.isfinite(embedding).all()):
        return Rejected("the model gives no finite number for it")
    return values, embedding, nearest


def predict_all(model, source, output, kept, views, batch, part, workers, options):
    """Predict the rows of `source` that belong to `part` and are not in `output` yet, window by window, while others are drawn.

    Windows end where blocks do, so that the same rows are predicted together whatever the part and wherever a run went on.
    """
    (index, parts), size = part, WINDOW if batch <= WINDOW // 4 else BLOCK
    mine = lambda row: row // BLOCK % parts == index - 1
    total = source.rows and sum(
        min(BLOCK, source.rows - first) for first in range(0, source.rows, BLOCK) if mine(first)
    )
    wanted = itertools.islice(
        (molecule for molecule in source if mine(molecule.row)), output.rows, None
    )
    prepared = parallel(
        featurize, wanted, workers, views=views, pictures=source.kind == "pictures", **options
    )
    window_of = lambda pair: (pair[0].row // BLOCK, pair[0].row % BLOCK // size)
    with (
        closing(prefetch(prepared, 2 * size)) as drawn,
        tqdm(
            total=total, initial=output.rows, desc="predicting", unit=" molecules", disable=None
        ) as bar,
    ):
        for _, window in itertools.groupby(drawn, window_of):
            window, lines = list(window), []
            results = predict_window(model, window, batch)
            embeddings = np.full((len(window), model.width), np.nan, np.float32)
            for i, ((molecule, _), result) in enumerate(zip(window, results)):
                smiles = "" if source.kind == "pictures" else molecule.smiles
                own = [
                    molecule.row,
                    smiles,
                    molecule.name or molecule.fields.get("name", ""),
                    *(molecule.fields.get(name, "") for name in kept),
                ]
                lines.append(own + csv_values(result, output.facts["columns"], len(own)))
                if not isinstance(result, Rejected):
                    embeddings[i] = result[1]
            output.write(lines, sum(isinstance(result, Rejected) for result in results), embeddings)
            bar.update(len(window))


def csv_values(result, columns, first):
    """Return what stands in the columns from number `first` on: values, nearest_training if there is such a column, error."""
    if isinstance(result, Rejected):
        return [""] * (len(columns) - first - 1) + [str(result)]
    values, _, nearest = result
    likeness = (
        ["" if nearest is None else f"{nearest:.3f}"]
        if "nearest_training" in columns[first:]
        else []
    )
    return [*(f"{value:.7g}" for value in values), *likeness, ""]


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "-o",
    "--out",
    default="predictions.csv",
    show_default=True,
    type=click.Path(path_type=Path),
    help="CSV to write.",
)
@click.option("--keep-columns", is_flag=True, help="Keep the other columns of a .csv or .tsv.")
@click.option(
    "--views",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Drawings of each molecule to predict from; the first is plain.",
)
@click.option(
    "--embeddings",
    default=None,
    type=click.Path(path_type=Path),
    help="Write the encoder's output too, a .npy of float32.",
)
@click.option(
    "--html",
    default=None,
    type=click.Path(path_type=Path),
    help="Write a page with the molecules drawn, to sort and filter.",
)
@click.option(
    "--resume", is_flag=True, help="Go on where an interrupted run with the same arguments ended."
)
@click.option(
    "--part",
    default=None,
    callback=parse_part,
    help="I/N: predict every N-th block of 1024 rows from the I-th, for a job array.",
)
@click.option(
    "--batch",
    default=None,
    type=click.IntRange(1),
    help="Pictures in one call of the model.  [default: 8 on a CPU, 64 on a GPU]",
)
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the model runs.",
)
@click.option(
    "--workers",
    default=None,
    type=click.IntRange(1),
    help="Drawing processes.  [default: one a core]",
)
@click.option(
    "--smiles-column",
    help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]",
)
def main(
    model,
    source,
    out,
    keep_columns,
    views,
    embeddings,
    html,
    resume,
    part,
    batch,
    provider,
    workers,
    smiles_column,
):
    """Predict the molecules of SOURCE with MODEL, an .onnx file that export.py wrote.

    SOURCE: .smi, .txt, .csv, .tsv, gzipped or not, - for standard input; a .png or .jpg of a molecule, or a folder of them.
    """
    loaded, (index, parts) = OnnxModel(model, provider), part
    if embeddings and not loaded.width:
        raise click.ClickException(
            f"{model}: an ensemble has no embedding; export one of its members alone for --embeddings"
        )
    if not loaded.targets and not embeddings:
        raise click.ClickException(
            f"{model}: an encoder without a head predicts nothing; give --embeddings FILE.npy"
        )
    if source == "-" and (resume or parts > 1):
        raise click.UsageError(
            "--resume and --part need a file: standard input can't be read twice"
        )
    batch = batch or BATCH.get(loaded.device, 64)
    given, columns = Source(source, smiles_column), loaded.columns(views)
    if given.kind == "pictures" and views > 1:
        raise click.ClickException(
            f"{source}: --views needs SMILES, of which other drawings can be made"
        )
    for font in FONTS if views > 1 else ():
        font_path(font)
    likeness = ["nearest_training"] if loaded.facts["sketch"] is not None else []
    kept = given.kept({*OWN, *columns}) if keep_columns else {}
    out, embeddings, html = (path and part.named(path) for path in (out, embeddings, html))
    for path in filter(None, (out, embeddings, html)):
        check_output(path, given.path, model)
        if [out, embeddings, html].count(path) > 1:
            raise click.ClickException(
                f"{path}: is asked for as two different outputs; give each a name of its own"
            )
    facts = {
        "model": loaded.sha256,
        "input": given.sha256,
        "columns": ["row", "smiles", "name", *kept.values(), *columns, *likeness, "error"],
        "views": views,
        "part": f"{index}/{parts}",
        "batch": batch,
        "embeddings": bool(embeddings),
        "rdkit": rdBase.rdkitVersion,
    }
    for notice in filter(None, (loaded.notice, loaded.slow())):
        click.echo(notice, err=True)
    output, began = ResumableCsv(out, embeddings, loaded.width, facts, resume), time.time()
    drawing = {
        "max_atoms": loaded.facts["render"]["max_atoms"],
        "r_groups": loaded.facts["render"].get("r_groups", False),
    }
    options = drawing | {"patch": loaded.patch}
    with tempfile.TemporaryDirectory() as folder, output.guarded(resumable=source != "-"):
        if likeness:
            np.save(Path(folder) / "sketch.npy", loaded.facts["sketch"])
            options["sketch"] = str(Path(folder) / "sketch.npy")
        predict_all(loaded, given, output, kept, views, batch, (index, parts), workers, options)
    predicted, seconds = output.rows - output.failed, time.time() - began
    click.echo(
        f"{out}: {predicted} molecules predicted on {loaded.device}"
        + (f", {output.failed} rows could not be, see the column error" if output.failed else "")
        + f" ({seconds:.0f} s)"
    )
    if html:
        title = f"{', '.join(loaded.targets) or 'Molecules'}, predicted for {Path(given.path).name}"
        write_report(
            html,
            out,
            title,
            columns[: len(loaded.targets)],
            given.files if given.kind == "pictures" else None,
            workers,
            **drawing,
        )
        click.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    main()
