"""Write finetuned models as one ONNX file: molecules in, predictions in the label's own unit out.

    python export.py runs/dhbd                                   # model.onnx
    python export.py runs/dhbd --precision int8 -o small.onnx    # a quarter the size, for CPUs
    python export.py runs/dhbd/seed-* -o ensemble.onnx           # mean of several seeds, and spread
    python export.py aligned.pt -o aligned.onnx                  # of align.py, for search.py

The file holds everything: pixel normalisation, encoder, heads, label scaling, and in its metadata
the target names, how the molecules have to be drawn, and fingerprints of the training molecules, so
that predict.py can tell a molecule that is unlike them all. It is checked against PyTorch on real
molecules before it gets its name.
"""

from pathlib import Path

import click
import numpy as np
import onnx
import torch
from rdkit import rdBase

from moleclip import options
from moleclip.alignedfile import export_aligned, is_aligned
from moleclip.deploy import (
    Deployed,
    as_tensors,
    combine,
    drawing,
    intervals_of,
    learned_parts,
    save_onnx,
    to_fp16,
    traced,
)
from moleclip.encoders import restore_encoders
from moleclip.features import featurize
from moleclip.files import ROOT, check_output, save_whole
from moleclip.model import FrozenModel
from moleclip.molecules import Rejected, read_molecules
from moleclip.onnxfacts import metadata_props
from moleclip.quantize import to_int8, turned
from moleclip.session import feed, new_session
from moleclip.trained import (
    known_drawings,
    table_beside,
    training_fingerprints,
    training_map,
    training_means,
)
from moleclip.weights import load_checkpoint, load_encoder
from moleclip.workers import try_item

LARGEST = 1.9e9  # bytes: a file of ONNX's kind ends at 2 GiB
BYTES = {"fp32": 4, "fp16": 2, "int8": 4}  # of a weight while the file is made
CALIBRATION, AT_ONCE = 128, 8  # molecules, for int8
# What a file may differ from PyTorch's fp32: worst and mean difference of a prediction, of the
# label's scale (its standard deviation in training; 1 for a probability), and the smallest cosine
# of an embedding. fp32 differs by the order of sums only. The others must stay far below what a
# model errs itself, some 0.3 to 0.6 of that scale: a mean of 0.05 adds about 1% to an error of 0.3.
BOUNDS = {
    "fp32": {"worst": 1e-4, "mean": 1e-4, "cosine": 0.99999},
    "fp16": {"worst": 0.05, "mean": 0.01, "cosine": 0.999},
    "int8": {"worst": 0.25, "mean": 0.05, "cosine": 0.98},
}
# A forest's may differ by a tree or two whose threshold lies between two roundings of an embedding.
JUMPS = {"worst": 0.05, "mean": 2e-3}
BATCHES = (1, 3, 7)  # of the check; then what is left, none the size of the example
PROBES = (
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "C[N+](C)(C)CC(=O)[O-]",
    "Clc1ccc(cc1)C(c1ccc(Cl)cc1)C(Cl)(Cl)Cl",
    "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O",
    "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O",
    "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3",
    "O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O",
    "BrC(Br)Br",
    "c1ccc2c(c1)ccc1ccccc12",
)


def find_model(run):
    """Return the model.pt that a run folder or a file name stands for."""
    path = model_in(run)
    if not path.is_file():
        hint = "finetune first, then give the run folder: python export.py runs/NAME"
        raise click.ClickException(f"{path}: no such file; {hint}")
    return path


def model_in(run):
    """Return the path of a run folder's model.pt, or of the file itself."""
    path = Path(run)
    return path / "model.pt" if path.is_dir() else path


def encoder_alone(run):
    """Return (Deployed, ()) of an encoder without a head.

    run: an encoder.pt, a model.pt, a run folder, or what --init takes elsewhere.
    """
    path = model_in(run)
    if path.name == "model.pt" and path.is_file():  # which may have an encoder of graphs
        return Deployed([restore_encoders(load_checkpoint(path), path)]).eval(), ()
    return Deployed([load_encoder(str(path)).eval()]).eval(), ()


def describe(deployed, checkpoints, precision):
    """Return what a stranger has to know of the model, as a plain dict for `metadata_props`."""
    heads = checkpoints[:1] if deployed.ensemble else checkpoints
    targets = [name for checkpoint in heads for name in checkpoint["targets"]]
    tasks = [checkpoint["task"] for checkpoint in heads for _ in checkpoint["targets"]]
    task = "mixed" if len(set(tasks)) > 1 else next(iter(tasks), None)
    first = checkpoints[0] if checkpoints else {}
    intervals, encoder = intervals_of(deployed, checkpoints), {}
    for each in reversed(deployed.encoders):  # of several the first counts
        encoder |= each.facts()
    return {
        "kind": "ensemble" if deployed.ensemble else "model" if targets else "encoder",
        "members": len(checkpoints),
        "targets": targets,
        "task": task,
        "tasks": tasks,
        "precision": precision,
        "smiles_column": first.get("smiles_column"),
        "render": drawing(first),
        "encoder": encoder,
        "runs": [describe_run(checkpoint) for checkpoint in checkpoints],
        "versions": {
            "torch": str(torch.__version__),
            "rdkit": rdBase.rdkitVersion,
            "onnx": onnx.__version__,
        },
        **({"intervals": intervals} if intervals else {}),
        **({"protein": first["protein"]["facts"]} if "protein" in first else {}),
    }


def describe_run(checkpoint):
    """Return what a run predicts, how well, and how it was trained."""
    asked = ("data", "init", "split", "seed", "epochs", "batch", "freeze", "augment")
    config = checkpoint["config"]
    training = {key: config.get(key) for key in (*asked, "lr_encoder", "lr_head")}
    training |= {key: config[key] for key in ("graph", "features") if key in config}
    told = ("targets", "task", "metrics", "classes", "units")  # the last two only of newer runs
    return {key: checkpoint.get(key) for key in told} | {"training": training}


def to_onnx(deployed, precision):
    """Return the ONNX model, with a dynamic batch."""
    # A batch of 1 as the example would be burnt into the graph, hence 2.
    examples = as_tensors(deployed, probes(PROBES[:2]))
    kinds = {"fp16": to_fp16, "int8": turned}
    module = kinds[precision](deployed) if precision in kinds else deployed
    own = {"atoms": "atoms", "owner": "atoms", "bonds": "bonds", "kinds": "bonds"}
    known = {name: torch.export.Dim(name) for name in ("batch", "atoms", "bonds")}
    sizes = tuple({0: known[own.get(name, "batch")]} for name in deployed.inputs)
    model = traced(module, examples, deployed.inputs, deployed.names, (sizes,))
    return to_int8(model, calibration(deployed)) if precision == "int8" else model


def calibration(deployed):
    """Return what a model is given of molecules of ChEMBL, which the rounding of int8 is fitted to.

    A list of {input: array}, of some molecules each.
    """
    molecules = list(read_molecules(str(ROOT / "data" / "chembl_3000.smi")))
    given = probes([each.smiles for each in molecules[:: len(molecules) // CALIBRATION]])
    parts = [given[start : start + AT_ONCE] for start in range(0, len(given), AT_ONCE)]
    return [by_name(deployed, as_tensors(deployed, part)) for part in parts]


def by_name(deployed, tensors):
    """Return {input: array} of what `as_tensors` gave."""
    return {name: tensor.numpy() for name, tensor in zip(deployed.inputs, tensors)}


def probes(smiles=PROBES):
    """Return all Features of molecules, a list without those that can't be drawn."""
    how = {"counts": True, "graph": True}
    found = [try_item(featurize, row, text, "", how) for row, text in enumerate(smiles)]
    return [each for each in found if not isinstance(each, Rejected)]


def probe_pictures(smiles=PROBES):
    """Return RGB drawings of molecules, uint8 (n, 224, 224, 3), leaving out what can't be drawn."""
    return feed(["images"], [each.streams[0] for each in probes(smiles)], None, ())["images"]


def compare(deployed, path, given):
    """Return {"worst", "mean", "molecules", "cosine"}: how far the file is from PyTorch in fp32.

    given: of `probes`. It is asked with several sizes of batch; cosine: the embeddings' smallest,
    None without any.
    """
    count = len(given)
    session = new_session(path, "CPUExecutionProvider")
    ends = np.cumsum([0, *BATCHES, max(4, count - sum(BATCHES))])
    gaps, cosines, names = [], [], deployed.names
    for begin, end in zip(ends, ends[1:]):
        part = as_tensors(deployed, given[begin:end])
        with torch.no_grad():
            told = [output.numpy() for output in deployed(*part)]
        got = dict(zip(names, session.run(names, by_name(deployed, part))))
        for name, wanted in zip(names, told):
            if name == "embedding":
                cosines.append(cosines_of(got[name], wanted))
            else:
                gaps.append((np.abs(got[name] - wanted) / deployed.scale()).ravel())
    gaps = np.concatenate(gaps or [np.zeros(1)])
    cosine = float(np.concatenate(cosines).min()) if cosines else None
    found = {"worst": float(gaps.max()), "mean": float(gaps.mean())}
    return found | {"molecules": count, "cosine": cosine}


def cosines_of(one, other):
    """Return the cosine of each row with the other's, (n,)."""
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / lengths[0] / lengths[1]


def broken_bounds(found, precision, jumps=False):
    """Return in words what lies beyond the bounds of a precision, or "".

    What is not a number lies beyond them. jumps: the bounds are those of a forest's.
    """
    allowed, cosine = BOUNDS[precision], found["cosine"]
    if jumps:
        allowed = {name: max(allowed[name], JUMPS.get(name, 0)) for name in allowed}
    words = []
    for name in ("worst", "mean"):
        if not found[name] <= allowed[name]:
            gap = f"{found[name]:.2g} of the label's scale (allowed: {allowed[name]:g})"
            words.append(f"{name} difference {gap}")
    if cosine is not None and not cosine >= allowed["cosine"]:
        words.append(f"embedding cosine {cosine:.5f} (at least: {allowed['cosine']:g})")
    return ", ".join(words)


def check_bounds(out, found, precision, force, jumps=False):
    """Raise click.ClickException if the file is too far from PyTorch; only warn if forced to."""
    beyond = broken_bounds(found, precision, jumps)
    if not beyond:
        return
    if not force or precision == "fp32":
        way_out = "" if precision == "fp32" else "; take fp32, or --force if that will do"
        differs = f"it differs too much from PyTorch in fp32: {beyond}{way_out}"
        raise click.ClickException(f"{out}: not written: {differs}")
    click.echo(f"warning: beyond the bounds, written because of --force: {beyond}", err=True)


def check_size(deployed, precision):
    """Raise click.ClickException for more weights than a file can hold."""
    size = sum(weight.numel() for weight in deployed.parameters()) * BYTES[precision]
    size += sum(buffer.nbytes for buffer in deployed.buffers())
    if size > LARGEST:
        raise click.ClickException(
            f"{size / 1e9:.1f} GB of weights are more than one ONNX file holds; "
            "give fewer runs, or --precision fp16"
        )


def save_checked(out, deployed, precision, props, given, force):
    """Write the file if it is close enough to PyTorch, and return what `compare` found."""
    found, frozen = {}, [m for m in deployed.models if isinstance(m, FrozenModel)]
    jumps = any("forest" in model.kinds for model in frozen)

    def write(name):
        save_onnx(to_onnx(deployed, precision), name, props)
        found.update(compare(deployed, name, given))
        check_bounds(out, found, precision, force, jumps)

    save_whole(out, write)
    return found


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@options.out("model.onnx", "File to write.")
@options.precision(list(BOUNDS), "fp32", "Of the encoder: fp16 for GPUs, int8 for CPUs.")
@click.option(
    "--encoder-only", is_flag=True, help="Write the embedding alone, of an encoder.pt or a run."
)
@click.option(
    "--no-fingerprints",
    "--no-sketch",
    is_flag=True,
    help="Leave out the training molecules' fingerprints, which can disclose private structures.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write what differs beyond the bounds, or an ensemble of different tables.",
)
def main(runs, out, precision, encoder_only, no_fingerprints, force):
    """Export each RUN, a folder of finetune.py or a model.pt, into one file; or an aligned.pt.

    Runs with the same targets become an ensemble; runs with other targets on the same frozen
    encoder share it.
    """
    if len(runs) == 1 and is_aligned(runs[0]):
        click.echo(export_aligned(runs[0], out))
        return
    if encoder_only and len(runs) > 1:
        raise click.ClickException("--encoder-only: takes one run or encoder")
    paths = [] if encoder_only else [find_model(run) for run in runs]
    check_output(out, *(paths or [model_in(runs[0])]))
    deployed, checkpoints = encoder_alone(runs[0]) if encoder_only else combine(paths, force)
    check_size(deployed, precision)
    if precision != "fp32" and "images" not in deployed.inputs and "atoms" in deployed.inputs:
        says = "is for encoders of pictures; one of graphs is small and fast as it is"
        raise click.ClickException(f"--precision {precision}: {says}; leave it out")
    if no_fingerprints and "fingerprint" in deployed.inputs:
        check_private(paths, deployed)
    tables = [table_beside(path) for path in paths]
    parts = {part for each in checkpoints for part in learned_parts(each)}
    training, molecules = training_fingerprints([] if no_fingerprints else tables, parts)
    if training is None and paths and not no_fingerprints:
        beside = f"{paths[0].with_name('predictions.csv')}: not there, or without training rows"
        click.echo(f"{beside}; predictions will lack nearest_training", err=True)
    lines = [line["smiles"] for table in tables for line in table]
    given = probes([*PROBES, *lines[:: max(1, len(lines) // 24)][:24]])
    facts = describe(deployed, checkpoints, precision)
    for run, table, checkpoint in zip(facts["runs"], tables, checkpoints):
        run["means"] = training_means(table, checkpoint, parts)
    lying = training_map(deployed, tables, parts, facts["render"]) if training is not None else None
    props = metadata_props(facts, training, molecules, lying, known_drawings(deployed))
    found = save_checked(out, deployed, precision, props, given, force)
    print_summary(out, facts, found)
    if training is not None:
        click.echo(
            f"holds the {len(training)} distinct fingerprints of {molecules} training molecules "
            "(--no-fingerprints leaves them out)"
        )


def check_private(paths, deployed):
    """Refuse to leave fingerprints out of a file whose head is made of them."""
    for path, model in zip(paths, deployed.models):
        kinds = [kind for kind in getattr(model, "kinds", [])[:1] if kind != "mlp"]
        if kinds and "ecfp" in model.head.uses:
            raise click.ClickException(
                f"--no-fingerprints: the head of {path} carries the training molecules' "
                "fingerprints; finetune with --head mlp, or features without ecfp"
            )


def print_summary(out, facts, found):
    """Say what was written, and how far it is from PyTorch."""
    what, gaps = "gives embeddings alone", []
    if facts["targets"]:
        ensemble = f"an ensemble of {facts['members']}, " if facts["kind"] == "ensemble" else ""
        what = f"{ensemble}predicts {', '.join(facts['targets'])}"
        worst, mean = f"{found['worst']:.1g}", f"{found['mean']:.1g}"
        gaps.append(f"predictions by at most {worst} of the label's scale, {mean} on average")
    if found["cosine"] is not None:
        gaps.append(f"embeddings by a cosine of {found['cosine']:.6f} or more")
    size = Path(out).stat().st_size / 1e6
    click.echo(
        f"{out}: {size:.1f} MB in {facts['precision']}, {what}\n"
        f"differs from PyTorch in fp32, on {found['molecules']} molecules: {'; '.join(gaps)}"
    )


if __name__ == "__main__":
    main()
