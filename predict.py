"""Predict on new molecules with an exported model. Needs onnxruntime and RDKit, no PyTorch.

    python predict.py model.onnx smiles.txt     # predictions.csv
    python predict.py model.onnx library.csv --keep-columns --html report.html
    python predict.py model.onnx figure.png     # a drawn molecule, or a folder of them
    python predict.py model.onnx some.csv --explain --map map.html    # why, and what is alike

One line comes out for every row that goes in, in the same order; a molecule that can't be read says
why in its line.
"""

import hashlib
import itertools
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import onnxruntime
import PIL
from rdkit import rdBase
from tqdm import tqdm

from moleclip import options
from moleclip.calibration import LEVEL
from moleclip.embeddingmap import EmbeddingMap, neighbours_kept, write_map
from moleclip.explain import ENDING, cell, contributions, explained
from moleclip.features import featurize
from moleclip.files import check_output, final_path, kept_columns
from moleclip.formats import find_smiles_column, input_kind
from moleclip.molecules import BLOCK, Molecule, Rejected, find_input, input_facts, read_molecules
from moleclip.onnxmodel import LIKE, OWN, OnnxModel
from moleclip.outputs import ResumableCsv
from moleclip.parts import join_parts
from moleclip.pictures import content_hash, is_picture, pictures_in, read_picture
from moleclip.proteintable import proteins_for
from moleclip.reportpage import REPORTED, write_report
from moleclip.styles import FONTS, font_path
from moleclip.workers import parallel, prefetch

# Rows that are sorted by ink and written together: what an interruption costs at most. It divides
# BLOCK, so that the same rows are predicted together whatever the part and wherever a run went on.
WINDOW = 256


class MoleculeFile:
    """A file of SMILES to predict, or standard input, whose rows and sha256 are None.

    kept: {column of the table: its name in predictions.csv} of --keep-columns.
    """

    files = None  # no pictures

    def __init__(self, path, smiles_column=None):
        self.path, self.column, self.kept = find_input(path), smiles_column, {}
        self.kind = input_kind(self.path, smiles_column)
        facts = input_facts(self.path, smiles_column) if self.path != "-" else {}
        self.rows, self.sha256 = facts.get("rows"), facts.get("sha256")
        self.stream = read_molecules(self.path, smiles_column)
        self.first = next(self.stream)  # a table's column names come with its rows
        self.used = None
        if self.kind == "table":
            self.used = find_smiles_column(self.path, list(self.first.fields), smiles_column)

    def __iter__(self):
        """Yield every row as a `Molecule`."""
        yield self.first
        yield from self.stream

    def keep_columns(self, taken, only=()):
        """Keep the table's other columns, or some, under new names where those are taken.

        Raises click.ClickException.
        """
        if self.kind != "table":
            raise no_columns(self.path)
        kept = kept_columns(self.path, list(self.first.fields), self.used, taken)
        self.kept = {name: kept[name] for name in kept if name in (only or kept)}

    def cells(self, molecule):
        """Return what stands in a row's first columns: row, smiles, name, what is kept."""
        kept = [molecule.fields.get(name, "") for name in self.kept]
        return [molecule.row, molecule.smiles, molecule.name, *kept]


class PictureFiles:
    """A picture of a molecule to predict, or a folder of them, by name: 1, 2, 10."""

    kept, used = {}, None  # there are no columns

    def __init__(self, path):
        self.path, path = str(path), Path(path)
        self.files = [path]
        if path.is_dir():  # what can't be read has an error in its line
            self.files = pictures_in(path)
            if not self.files:
                raise click.ClickException(f"{path}: holds no .png, .jpg or .jpeg")
        else:
            try:
                read_picture(path)
            except Rejected as reason:
                raise click.ClickException(f"{path}: {reason}") from None
        contents = "".join(f"{file.name} {content_hash(file)}\n" for file in self.files)
        self.sha256 = hashlib.sha256(contents.encode(errors="surrogateescape")).hexdigest()
        self.rows = len(self.files)

    def __iter__(self):
        """Yield every file as a `Molecule`, whose SMILES is the path."""
        for row, file in enumerate(self.files):
            yield Molecule(row, row, str(file), file.name)

    def keep_columns(self, taken, only=()):
        """Raise click.ClickException: pictures have none."""
        raise no_columns(self.path)

    def cells(self, molecule):
        """Return what stands in a row's first columns: row, no SMILES, the file's name."""
        return [molecule.row, "", molecule.name]


def no_columns(path):
    """Return the error of an input that is no table."""
    return click.ClickException(
        f"{path}: --keep-columns needs a .csv or .tsv; other inputs have no columns"
    )


def open_source(path, smiles_column=None):
    """Return the MoleculeFile or the PictureFiles that a path names."""
    if Path(path).is_dir() or is_picture(Path(path)):
        return PictureFiles(path)
    return MoleculeFile(path, smiles_column)


def class_columns(model):
    """Return the names of the columns that name the likelier class."""
    return [f"{name}_class" for name, words in zip(model.targets, model.classes) if words]


def atom_columns(model, asked):
    """Return the names of the columns that --explain adds."""
    return [f"{name}{ENDING}" for name in model.targets] if asked.explain else []


def predict_all(model, source, output, asked, batch, drawn):
    """Predict and write what is drawn of a source's part, window by window, while more is drawn.

    drawn: (molecule, Features) pairs of the rows that `output` has not yet.
    """
    size, pairs = WINDOW if batch <= WINDOW // 4 else BLOCK, asked.pairs
    total = asked.part.size(source.rows)
    bar = tqdm(total=total, initial=output.rows, desc="predicting", unit=" molecules", disable=None)
    with closing(prefetch(drawn, 2 * size)) as ahead, bar:
        for _, window in itertools.groupby(ahead, lambda pair: pair[0].row // size):
            window = [(m, pairs.beside(m, found) if pairs else found) for m, found in window]
            results = model.predict_window(window, batch, asked.interval)
            window = model.judged(window, results, source.files)
            atoms = explain_window(model, window, results, batch) if asked.explain else None
            write_window(model, source, output, window, results, atoms)
            bar.update(len(window))


def explain_window(model, window, results, batch):
    """Return what each atom carries of each target's prediction, [[cell, ...], ...] by row."""
    told, count = [], len(model.targets)
    for (_, given), result in zip(window, results):
        if isinstance(result, Rejected):
            told.append([])
        else:
            values = contributions(model, given, result[0][:count].astype(np.float64), batch)
            told.append([cell(each) for each in values])
    return told


def write_window(model, source, output, window, results, atoms=None):
    """Write the lines and embeddings of a window; those of a failed row are blank and NaN."""
    lines, atoms = [], atoms or [[]] * len(window)
    embeddings = np.full((len(window), model.width), np.nan, np.float32)
    for i, ((molecule, given), result) in enumerate(zip(window, results)):
        own = source.cells(molecule)
        columns = output.facts["columns"][len(own) :]
        lines.append(own + csv_values(model, given, result, columns, atoms[i]))
        if not isinstance(result, Rejected):
            embeddings[i] = result[1]
    output.write(lines, embeddings)


def csv_values(model, given, result, columns, atoms):
    """Return what stands in these last columns: values, those of LIKE that are there, ...

    given: the row's Features; atoms: cells of what atoms carry.
    """
    if isinstance(result, Rejected):
        return [""] * (len(columns) - 1) + [str(result)]
    cells = [f"{value:.7g}" for value in result[0]]
    cells += [words[int(value > 0.5)] for value, words in zip(result[0], model.classes) if words]
    like = [value for name, value in zip(LIKE, (given.nearest, given.like)) if name in columns]
    cells += ["" if value is None else f"{value:.3f}" for value in like]
    return [*cells, *atoms, given.note, ""]


def check_asked(model, loaded, source, asked):
    """Raise click.ClickException if the model, or the input, can't give what is asked for."""
    if asked.embeddings and not loaded.width:
        raise click.ClickException(
            f"{model}: an ensemble, or a model of fingerprints alone, has no embedding; "
            "export one of its members alone for --embeddings"
        )
    if not loaded.targets and not asked.embeddings:
        raise click.ClickException(
            f"{model}: an encoder without a head predicts nothing; give --embeddings FILE.npy"
        )
    if source == "-" and (asked.resume or asked.part.count > 1):
        raise click.UsageError(
            "--resume and --part need a file: standard input can't be read twice"
        )


def check_map(model, loaded, asked):
    """Raise click.ClickException if the file has no map. It needs the embeddings, a file, too."""
    if not loaded.width:
        raise click.ClickException(
            f"{model}: an ensemble, or a model of fingerprints alone, has no embedding for --map"
        )
    if asked.map_by == "pca" and loaded.map is None:
        why = "was exported without a map of its training molecules"
        raise click.ClickException(f"{model}: {why}; export it again, or --map-by tsne")
    asked.embeddings = asked.embeddings or asked.map.with_suffix(".npy")


def draw_map(loaded, model, out, named, given, asked):
    """Write the map of a finished run. named: the paths of embeddings and map."""
    embeddings, path = named
    found, training = np.load(embeddings, mmap_mode="r")[:REPORTED], np.zeros((0, 2), np.float32)
    if asked.map_by == "tsne":
        places = neighbours_kept(np.array(found))
    else:
        lying = EmbeddingMap(model, loaded.map)
        places, training = lying.locate(found), lying.places
    title = f"{', '.join(loaded.targets) or 'Molecules'} of {Path(given.path).name}, by likeness"
    target = next(iter(loaded.columns(asked.views, asked.interval) if loaded.targets else []), None)
    how = (target, given.files, asked.workers)
    shown = write_map(path, out, places, training, title, *how, **loaded.drawing)
    click.echo(f"{path}: {shown} molecules, near where the model sees them alike")


def check_explain(model, loaded, given, asked):
    """Raise click.ClickException if the file, or the input, has not what --explain needs."""
    if given.files or asked.views > 1:
        why = "a picture has no atoms; give SMILES" if given.files else "leave out --views"
        raise click.ClickException(f"--explain: {why}")
    if not loaded.targets or np.isnan(loaded.means).any():
        why = "was exported without the mean label of training; export it again"
        raise click.ClickException(f"{model}: {why if loaded.targets else 'predicts nothing'}")


def check_pictures(model, loaded, given, views):
    """Refuse pictures where the model needs more than them; say so where it has another head."""
    looks = "looks at graphs" if "atoms" in loaded.inputs else "looks at fingerprints alone"
    if views > 1 and "images" not in loaded.inputs:
        says = f"{looks}, and has no drawings to vary; leave out --views"
        raise click.ClickException(f"{model}: {says}")
    if given.files and loaded.inputs != ["images"] and "prediction_picture" not in loaded.outputs:
        says = f"{looks}, which pictures don't have; give SMILES"
        raise click.ClickException(f"{model}: {says}")
    if given.files and "prediction_picture" in loaded.outputs:
        says = "predicted from pictures alone, by a head that learned without fingerprints"
        click.echo(f"{given.path}: {says}", err=True)


def check_input(model, loaded, given, asked):
    """Raise click.ClickException if this model can't give what is asked for of this input."""
    check_views(given, asked.views)
    check_pictures(model, loaded, given, asked.views)
    if asked.explain:
        check_explain(model, loaded, given, asked)
    if asked.map:
        check_map(model, loaded, asked)


def check_views(given, views):
    """Raise click.ClickException if there are no other drawings to predict from."""
    if given.files and views > 1:
        raise click.ClickException(
            f"{given.path}: --views needs SMILES, of which other drawings can be made"
        )
    for font in FONTS if views > 1 else ():
        font_path(font)


def name_outputs(asked, *inputs):
    """Return the paths of CSV, embeddings, page and map of this part, None for what isn't wanted.

    Raises click.ClickException for one that can't be written.
    """
    every = asked.out, asked.embeddings, asked.html, asked.map
    named = [path and asked.part.named(path) for path in every]
    for path in filter(None, named):
        check_output(path, *inputs)
    named = [path and final_path(path) for path in named]
    for path in filter(None, named):
        if named.count(path) > 1:
            raise click.ClickException(
                f"{path}: is asked for as two different outputs; give each a name of its own"
            )
    return named


def facts_of(loaded, given, columns, batch, asked):
    """Return what --resume compares, with all "columns" of the CSV; `columns` are the numeric."""
    own, likeness = ["row", "smiles", "name", *given.kept.values()], loaded.likeness(given.files)
    atoms = atom_columns(loaded, asked)
    return {
        "model": loaded.sha256,
        "input": given.sha256,
        "SMILES column": given.used,
        "columns": [*own, *columns, *likeness, *atoms, "note", "error"],
        "views": asked.views,
        "part": f"{asked.part.index}/{asked.part.count}",
        "batch": batch,
        "embeddings": bool(asked.embeddings),
        "device": loaded.device,
        "rdkit": rdBase.rdkitVersion,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__ if given.files else None,
        **({"interval": asked.interval} if loaded.facts.get("intervals") else {}),
        **({"proteins": asked.pairs.sha256} if asked.pairs else {}),
    }


def drawn_rows(loaded, given, output, asked, training):
    """Yield (molecule, Features) of the rows of this part that `output` has not yet."""
    mine = (molecule for molecule in given if asked.part.has(molecule.row))
    wanted = itertools.islice(mine, output.rows, None)
    how = loaded.drawing | loaded.looks | {"views": asked.views, "pictures": bool(given.files)}
    how |= {"patch": loaded.patch, "training": training}
    return parallel(explained if asked.explain else featurize, wanted, asked.workers, **how)


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="MODEL SOURCE")
@options.out_path("predictions.csv", "CSV to write.")
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
    type=click.Path(path_type=Path),
    help="Write the encoder's output too, a .npy of float32.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Write a page with the molecules drawn, to sort and filter.",
)
@click.option(
    "--interval",
    default=LEVEL,
    show_default=True,
    type=click.FloatRange(0.01, 0.999),
    help="Share of molecules whose value TARGET_low and TARGET_high should hold between them.",
)
@click.option("--explain", is_flag=True, help="Tell how much each atom carries the prediction.")
@click.option("--map", type=click.Path(path_type=Path), help="Draw which are alike: .html or .png.")
@options.shown("--map-by", "pca", "What the map keeps.", type=click.Choice(["pca", "tsne"]))
@click.option("--join", is_flag=True, help="Join the files of all parts instead, of --part.")
@options.proteins("Of pairs: a table of sequences, or .npz of embeddings by name.")
@options.resume("Go on where an interrupted run with the same arguments ended.")
@options.part("Predict every N-th block of 1024 rows from the I-th, for a job array.")
@options.batch(None, 1, "Molecules in one call of the model.  [default: 8; GPU 64; graphs 256]")
@options.provider()
@options.workers()
@options.smiles_column()
def main(arguments, **asked):
    """Predict the molecules of SOURCE with MODEL, an .onnx file that export.py wrote.

    SOURCE: .smi, .txt, .csv, .tsv, .sdf, gzipped or not, .xlsx, .parquet, - for standard input; a
    .png or .jpg of a molecule, or a folder of them.
    """
    asked = SimpleNamespace(**asked)
    if asked.join:
        join_parts(arguments, asked.out)
        return
    if len(arguments) != 2:
        raise click.UsageError("give a MODEL and a SOURCE, or --join and the files of all parts")
    model, source = arguments
    loaded = OnnxModel(model, asked.provider)
    check_asked(model, loaded, source, asked)
    given = open_source(source, asked.smiles_column)
    asked.pairs = proteins_for(model, loaded.facts.get("protein"), asked.proteins, given)
    columns = loaded.columns(asked.views, asked.interval) + class_columns(loaded)
    check_input(model, loaded, given, asked)
    keep_asked(given, asked, {*OWN, *columns, *atom_columns(loaded, asked)})
    out, embeddings, html, lying = name_outputs(asked, given.path, model)
    for notice in filter(None, (loaded.notice, loaded.slow(), no_interval(loaded, asked))):
        click.echo(notice, err=True)
    batch = asked.batch or loaded.batch
    facts = facts_of(loaded, given, columns, batch, asked)
    output, began = ResumableCsv(out, embeddings, loaded.width, facts, asked.resume), time.time()
    with output.guarded(resumable=source != "-"), loaded.saved_training() as training:
        drawn = drawn_rows(loaded, given, output, asked, training)
        predict_all(loaded, given, output, asked, batch, drawn)
    print_summary(output, loaded.device, time.time() - began)
    if html:
        title = f"{', '.join(loaded.targets) or 'Molecules'}, predicted for {Path(given.path).name}"
        targets = dict(zip(columns, loaded.meanings()))
        told = targets, loaded.ends(asked.interval), asked.interval
        how = given.files, asked.workers, atom_columns(loaded, asked)
        write_report(html, out, title, told, *how, **loaded.drawing)
        click.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser")
    if lying:
        draw_map(loaded, model, out, (embeddings, lying), given, asked)


def keep_asked(given, asked, taken):
    """Keep a table's columns if asked; of pairs the proteins' names in any case."""
    named = [asked.pairs.column] if asked.pairs and asked.pairs.path else []
    if asked.keep_columns or named:
        given.keep_columns(taken, [] if asked.keep_columns else named)


def no_interval(loaded, asked):
    """Return why some targets have no interval of the wanted level though the model has others."""
    lacks = np.isnan(loaded.spans(asked.interval))
    if loaded.facts.get("intervals") and lacks.all():
        return f"no intervals: too few held-out molecules for --interval {asked.interval:g}"
    return ""


def print_summary(output, device, seconds):
    """Say how many molecules were predicted, where and in what time."""
    said = f"{output.path}: {output.rows - output.failed} molecules predicted on {device}"
    if output.failed:
        said += f", {output.failed} rows could not be, see the column error"
    click.echo(f"{said} ({seconds:.0f} s)")
    if output.noted:
        click.echo(f"{output.noted} have a caveat, see the column note")


if __name__ == "__main__":
    main()
