"""Predict on new molecules with an exported model. Needs onnxruntime and RDKit, no PyTorch.

    python predict.py model.onnx smiles.txt                   # predictions.csv
    python predict.py model.onnx library.csv -o library_predicted.csv
    echo "CCO ethanol" | python predict.py model.onnx -

One line comes out for every row that goes in, in the same order; a molecule that can't be read says why in its line.
"""

import csv
import itertools
import json
import os
from pathlib import Path

import click
import numpy as np
import onnxruntime
from tqdm import tqdm

import render

FORMAT = 1              # newest metadata format that this script understands


def open_model(path, provider="auto"):
    """Return (onnxruntime session, metadata dict) of a file that export.py wrote. Raises click.ClickException."""
    if not Path(path).is_file():
        raise click.ClickException(f"{path}: no such file; make it with: python export.py runs/NAME -o {path}")
    wanted = ["CPUExecutionProvider"]
    if provider != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers() and has_gpu():
        onnxruntime.preload_dlls()
        wanted.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = render.default_workers()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:                               # onnxruntime's own kinds share no base class
        reason = str(error).strip().splitlines()[0][:160]
        raise click.ClickException(f"{path}: truncated, or not an ONNX file ({reason})") from None
    if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise click.ClickException("--provider cuda: onnxruntime can't use a GPU here; leave the flag out to use the CPU")
    return session, read_metadata(path, session)


def has_gpu():
    return Path("/dev/nvidiactl").exists() or os.name == "nt"


def read_metadata(path, session):
    """Return the metadata that export.py wrote into a model."""
    text = session.get_modelmeta().custom_metadata_map.get("moleclip")
    try:
        facts = json.loads(text)
        if facts["format"] > FORMAT:
            raise click.ClickException(f"{path}: was exported by a newer moleclip (format {facts['format']}, this one reads {FORMAT}); update")
        width = next(output.shape[1] for output in session.get_outputs() if output.name == "prediction")
        if [type(name) for name in facts["targets"]] != [str] * width or type(facts["render"]["max_atoms"]) is not int:
            raise ValueError
    except (TypeError, ValueError, KeyError, IndexError, StopIteration):
        raise click.ClickException(f"{path}: not exported by moleclip: it lacks the metadata 'moleclip' with the target names "
                                   "and drawing options; export it with export.py") from None
    return facts


def predictions(session, facts, molecules, workers, batch):
    """Yield (molecule, prediction float32 (targets,) or None, reason or "") in order, drawing in other processes."""
    drawn = render.draw_all(molecules, workers, max_atoms=facts["render"]["max_atoms"])
    while part := list(itertools.islice(drawn, batch)):
        good = [i for i, (_, result) in enumerate(part) if not isinstance(result, str)]
        values = {}
        if good:
            images = render.to_rgb(np.stack([render.inflate(part[i][1][0]) for i in good]))
            values = dict(zip(good, session.run(["prediction"], {"images": images})[0]))
        for i, (molecule, result) in enumerate(part):
            yield (molecule, values[i], "") if i in values else (molecule, None, result)


@click.command()
@click.argument("model")
@click.argument("source")
@click.option("-o", "--out", default="predictions.csv", show_default=True, type=click.Path(path_type=Path), help="CSV to write.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Molecules in one call of the model.")
@click.option("--provider", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where the model runs.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Drawing processes.  [default: one a core]")
@click.option("--smiles-column", help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]")
def main(model, source, out, batch, provider, workers, smiles_column):
    """Predict the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not, or -) with MODEL, an .onnx file."""
    session, facts = open_model(model, provider)
    source = render.find_input(source)
    render.check_output(out, source, model)
    counts = [0, 0]

    def write(name):
        with open(name, "w", newline="", errors="surrogateescape") as stream:
            table = csv.writer(stream)
            table.writerow(["row", "smiles", "name", *facts["targets"], "error"])
            molecules = render.read_molecules(source, smiles_column)
            for molecule, values, reason in tqdm(predictions(session, facts, molecules, workers, batch), unit=" molecules", disable=None):
                cells = [""] * len(facts["targets"]) if values is None else [f"{value:.6g}" for value in values]
                table.writerow([molecule.row, molecule.smiles, molecule.name, *cells, reason])
                counts[bool(reason)] += 1

    render.save_whole(out, write)
    click.echo(f"{out}: {counts[0]} molecules predicted on {session.get_providers()[0].removesuffix('ExecutionProvider')}"
               + (f", {counts[1]} rows could not be, see the column error" if counts[1] else ""))


if __name__ == "__main__":
    main()
