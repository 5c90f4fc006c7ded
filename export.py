"""Write finetuned models as one ONNX file: pictures in, predictions in the label's own unit out.

    python export.py runs/dhbd                                      # model.onnx
    python export.py runs/dhbd --precision int8 -o small.onnx       # a quarter the size, 2 to 3 times as fast on a CPU
    python export.py runs/dhbd/seed-* -o ensemble.onnx              # the mean of several seeds, and their spread

The file holds everything: pixel normalisation, encoder, heads, label scaling, and in its metadata the target names, how
the molecules have to be drawn, and fingerprints of the training molecules, so that predict.py can tell a molecule that is
unlike them all. It is checked against PyTorch on real drawings before it gets its name.
"""

import base64
import csv
import json
import logging
import tempfile
import warnings
import zlib
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from rdkit import Chem, rdBase
from tqdm import tqdm

from moleclip.drawing import draw_views
from moleclip.features import BITS, RADIUS, fingerprint
from moleclip.files import check_output, save_whole
from moleclip.model import Deployed, load_model, to_fp16
from moleclip.molecules import MAX_ATOMS, Rejected
from moleclip.onnxmodel import FORMAT
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.weights import load_encoder
from moleclip.workers import try_item

OPSET = 20
LARGEST = 1.9e9  # bytes: a file of ONNX's kind ends at 2 GiB
MAX_FINGERPRINTS = (
    10_000  # training molecules in the sketch, at most; each takes some 90 bytes in the file
)
# What a file may differ from PyTorch's fp32: worst and mean difference of a prediction, of the label's scale (its standard deviation in
# training; 1 for a probability), and the smallest cosine of an embedding. fp32 differs by the order of sums only. The others must stay far
# below what a model errs itself, which is some 0.3 to 0.6 of that scale: a mean of 0.05 adds about 1% to an error of 0.3.
BOUNDS = {
    "fp32": {"worst": 1e-4, "mean": 1e-4, "cosine": 0.99999},
    "fp16": {"worst": 0.05, "mean": 0.01, "cosine": 0.999},
    "int8": {"worst": 0.25, "mean": 0.05, "cosine": 0.98},
}
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
    path = Path(run)
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise click.ClickException(
            f"{path}: no such file; finetune first, then give the run folder: python export.py runs/NAME"
        )
    return path


def same_weights(one, other):
    """Tell whether two modules hold the same tensors under the same names."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def same_encoder(one, other):
    return one.arch == other.arch and same_weights(one, other)


def combine(paths):
    """Return (Deployed, [checkpoint, ...]) of several model.pt files: heads on one encoder, or an ensemble.

    Raises click.ClickException for models that can't be one file.
    """
    models, checkpoints = zip(*(load_model(path) for path in paths))
    first, tasks = checkpoints[0], [checkpoint["task"] for checkpoint in checkpoints]
    for i, (path, model, checkpoint) in enumerate(zip(paths, models, checkpoints)):
        if drawing(checkpoint) != drawing(first):
            raise click.ClickException(
                f"{path}: was trained on other drawings ({drawing(checkpoint)}) than {paths[0]} ({drawing(first)}); export them separately"
            )
        for j in range(i):
            if (
                checkpoint["targets"] == checkpoints[j]["targets"]
                and same_encoder(model.encoder, models[j].encoder)
                and same_weights(model, models[j])
            ):
                raise click.ClickException(
                    f"{path} and {paths[j]} hold the same model (a run folder's model.pt is a copy of its best seed's); "
                    "give each once"
                )
    shared = all(same_encoder(model.encoder, models[0].encoder) for model in models)
    for model in models if shared else ():
        model.encoder = models[0].encoder
    ensemble = len(models) > 1 and all(
        (c["targets"], c["task"]) == (first["targets"], first["task"]) for c in checkpoints
    )
    if not ensemble:
        names = [name for checkpoint in checkpoints for name in checkpoint["targets"]]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise click.ClickException(
                f"target {twice!r} stands in several of these runs, beside other targets or with another task; an ensemble needs "
                "the same targets in every run, one file of several heads each target once"
            )
        if not shared:
            raise click.ClickException(
                "these runs have different targets and different encoders; export them separately (only heads on one frozen encoder "
                "share a file)"
            )
    return Deployed(
        [models[0].encoder] if shared else [m.encoder for m in models], models, tasks, ensemble
    ).eval(), checkpoints


def drawing(checkpoint):
    """Return how a model's molecules were drawn, as predict.py has to draw them."""
    config = checkpoint["config"] if checkpoint else {}
    return {
        "size": SIZE,
        "max_atoms": config.get("max_atoms", MAX_ATOMS),
        "r_groups": config.get("r_groups", False),
    }


def encoder_alone(run):
    """Return the Deployed of an encoder without a head: of an encoder.pt, a model.pt, a run folder, or what --init takes elsewhere."""
    path = Path(run)
    return Deployed([load_encoder(str(path / "model.pt" if path.is_dir() else path)).eval()]).eval()


def metadata(deployed, checkpoints, precision):
    """Return what a stranger has to know of the model, as a plain dict."""
    arch = deployed.encoders[0].arch
    targets = (
        checkpoints[0]["targets"]
        if deployed.ensemble
        else [name for c in checkpoints for name in c["targets"]]
    )
    tasks = [task for c, task in zip(checkpoints, deployed.tasks) for _ in c["targets"]][
        : len(targets)
    ]
    return {
        "format": FORMAT,
        "kind": "ensemble" if deployed.ensemble else "model" if targets else "encoder",
        "members": len(checkpoints),
        "targets": targets,
        "task": tasks[0] if len(set(tasks)) == 1 else "mixed" if tasks else None,
        "tasks": tasks,
        "precision": precision,
        "smiles_column": checkpoints[0].get("smiles_column") if checkpoints else None,
        "render": drawing(checkpoints[0] if checkpoints else None),
        "encoder": {
            "width": arch["args"]["width"],
            "layers": arch["args"]["layers"],
            "patch": arch["args"]["patch_size"],
            "tokens": arch["tokens"],
        },
        "runs": [
            {
                "targets": c["targets"],
                "task": c["task"],
                "metrics": c["metrics"],
                "training": {
                    key: c["config"].get(key)
                    for key in (
                        "data",
                        "init",
                        "split",
                        "seed",
                        "epochs",
                        "batch",
                        "freeze",
                        "augment",
                        "lr_encoder",
                        "lr_head",
                    )
                },
            }
            for c in checkpoints
        ],
        "versions": {
            "torch": str(torch.__version__),
            "rdkit": rdBase.rdkitVersion,
            "onnx": onnx.__version__,
        },
    }


def table_beside(path):
    """Return the rows of the predictions.csv beside a model.pt as dicts, or [] if there is none that can be read."""
    try:
        with open(
            path.with_name("predictions.csv"),
            newline="",
            encoding="utf-8",
            errors="surrogateescape",
        ) as stream:
            return [line for line in csv.DictReader(stream) if line.get("smiles")]
    except (OSError, csv.Error):
        return []


def sketch_of(tables):
    """Return ({"molecules", "of", "bits", "radius"}, text) of the training rows of the runs, or None without any.

    text: base64 of a zlib stream of packed Morgan fingerprints, uint8 (molecules, 256). An ensemble's is of what any member has seen.
    """
    smiles = sorted(
        {line["smiles"] for table in tables for line in table if line.get("split") == "train"}
    )
    kept = (
        smiles
        if len(smiles) <= MAX_FINGERPRINTS
        else [
            smiles[i]
            for i in np.sort(np.random.default_rng(0).permutation(len(smiles))[:MAX_FINGERPRINTS])
        ]
    )
    molecules = [
        m
        for m in (
            Chem.MolFromSmiles(s)
            for s in tqdm(kept, desc="fingerprints", disable=None, leave=False)
        )
        if m is not None
    ]
    if not molecules:
        return None
    packed = np.unique(np.stack([fingerprint(molecule) for molecule in molecules]), axis=0)
    return (
        {"molecules": len(packed), "of": len(smiles), "bits": BITS, "radius": RADIUS},
        base64.b64encode(zlib.compress(packed.tobytes(), 9)).decode(),
    )


def to_onnx(deployed, precision):
    """Return the ONNX model, with a dynamic batch: a batch of 1 as the example would be burnt into the graph, hence 2."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            to_fp16(deployed) if precision == "fp16" else deployed,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
            input_names=["images"],
            output_names=deployed.names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    return to_int8(program.model_proto) if precision == "int8" else program.model_proto


def save_onnx(model, path, facts, sketch=None):
    """Write an ONNX model with its metadata, and check the file."""
    onnx.helper.set_model_props(
        model, {"moleclip": json.dumps(facts)} | ({"moleclip_sketch": sketch} if sketch else {})
    )
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def to_int8(model):
    """Return an ONNX model with the encoder's matrix products in int8, their inputs scaled while it runs (convolutions would be slower)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # quantize_dynamic takes its own and refuses these
    heads = [
        node.name + tail
        for node in model.graph.node
        if any(".head." in name for name in node.input)
        for tail in ("", "_MatMul")
    ]  # the name it gives a Gemm
    logging.getLogger().setLevel(logging.ERROR)  # it advises a preprocessing that has no use here
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            model,
            Path(folder) / "int8.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=heads,
        )
        return onnx.load(Path(folder) / "int8.onnx")


def probe_pictures(smiles=PROBES):
    """Return RGB drawings of molecules, uint8 (n, 224, 224, 3), leaving out what can't be drawn."""
    drawn = [try_item(draw_views, row, text, "", {}) for row, text in enumerate(smiles)]
    return to_rgb(
        np.stack([inflate(streams[0]) for streams in drawn if not isinstance(streams, Rejected)])
    )


def compare(deployed, path, images):
    """Return {"worst", "mean", "cosine", "molecules"}: how far the file is from PyTorch in fp32, at several batch sizes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ends = np.cumsum([0, *BATCHES, max(4, len(images) - sum(BATCHES))])
    gaps, cosines = [], []
    for part in (images[begin:end] for begin, end in zip(ends, ends[1:])):
        with torch.no_grad():
            wanted = dict(
                zip(deployed.names, (t.numpy() for t in deployed(torch.from_numpy(part))))
            )
        got = dict(zip(deployed.names, session.run(deployed.names, {"images": part})))
        gaps += [
            np.abs(got[name] - wanted[name]) / deployed.scale()
            for name in ("prediction", "spread")
            if name in got
        ]
        if "embedding" in got:
            lengths = [np.linalg.norm(values["embedding"], axis=1) for values in (got, wanted)]
            cosines.append(
                (got["embedding"] * wanted["embedding"]).sum(1) / lengths[0] / lengths[1]
            )
    gaps = np.concatenate([gap.ravel() for gap in gaps]) if gaps else np.zeros(1)
    return {
        "worst": float(gaps.max()),
        "mean": float(gaps.mean()),
        "molecules": len(images),
        "cosine": float(np.concatenate(cosines).min()) if cosines else None,
    }


def broken_bounds(found, precision):
    """Return in words what lies beyond the bounds of a precision, or ""; what is not a number lies beyond them."""
    allowed = BOUNDS[precision]
    words = [
        f"{name} difference {found[name]:.2g} of the label's scale (allowed: {allowed[name]:g})"
        for name in ("worst", "mean")
        if not found[name] <= allowed[name]
    ]
    if found["cosine"] is not None and not found["cosine"] >= allowed["cosine"]:
        words.append(f"embedding cosine {found['cosine']:.5f} (at least: {allowed['cosine']:g})")
    return ", ".join(words)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--out", default="model.onnx", show_default=True, help="File to write.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(list(BOUNDS)),
    help="Of the encoder: fp16 for GPUs, int8 for CPUs.",
)
@click.option(
    "--encoder-only", is_flag=True, help="Write the embedding alone, of an encoder.pt or a run."
)
@click.option(
    "--no-sketch",
    is_flag=True,
    help="Leave out the training molecules' fingerprints, which can disclose private structures.",
)
@click.option(
    "--force", is_flag=True, help="Write fp16 or int8 even if it differs beyond the stated bounds."
)
def main(runs, out, precision, encoder_only, no_sketch, force):
    """Export each RUN, a folder of finetune.py or a model.pt in it, into one file.

    Runs with the same targets become an ensemble; runs with other targets on the same frozen encoder share it.
    """
    if encoder_only and len(runs) > 1:
        raise click.ClickException("--encoder-only: takes one run or encoder")
    paths = [] if encoder_only else [find_model(run) for run in runs]
    check_output(
        out, *(paths or [Path(runs[0]) / "model.pt" if Path(runs[0]).is_dir() else runs[0]])
    )
    deployed, checkpoints = (encoder_alone(runs[0]), ()) if encoder_only else combine(paths)
    size = (
        sum(weight.numel() for weight in deployed.parameters())
        * {"fp32": 4, "fp16": 2, "int8": 4}[precision]
    )
    if size > LARGEST:
        raise click.ClickException(
            f"{size / 1e9:.1f} GB of weights are more than one ONNX file holds; give fewer runs, or --precision fp16"
        )
    tables = [table_beside(path) for path in paths]
    sketch = None if no_sketch or encoder_only else sketch_of(tables)
    if not sketch and not no_sketch and not encoder_only:
        click.echo(
            f"{paths[0].with_name('predictions.csv')}: not there, or without training rows; predictions will lack nearest_training",
            err=True,
        )
    lines = [line["smiles"] for table in tables for line in table]
    images = probe_pictures([*PROBES, *lines[:: max(1, len(lines) // 24)][:24]])
    facts, found = metadata(deployed, checkpoints, precision) | {"sketch": sketch and sketch[0]}, {}

    def write(name):
        save_onnx(to_onnx(deployed, precision), name, facts, sketch and sketch[1])
        found.update(compare(deployed, name, images))
        beyond = broken_bounds(found, precision)
        if beyond and not (force and precision != "fp32"):
            way_out = "" if precision == "fp32" else "; take fp32, or --force if that will do"
            raise click.ClickException(
                f"{out}: not written: it differs too much from PyTorch in fp32: {beyond}{way_out}"
            )
        if beyond:
            click.echo(
                f"warning: beyond the bounds, written because of --force: {beyond}", err=True
            )

    save_whole(out, write)
    print_summary(out, facts, found, deployed)


def print_summary(out, facts, found, deployed):
    what = {"model": "", "ensemble": f"an ensemble of {facts['members']}, ", "encoder": ""}[
        facts["kind"]
    ]
    what += (
        f"predicts {', '.join(facts['targets'])}" if facts["targets"] else "gives embeddings alone"
    )
    gap = (
        [
            f"predictions by at most {found['worst']:.1g} of the label's scale, {found['mean']:.1g} on average"
        ]
        if facts["targets"]
        else []
    )
    gap += (
        [f"embeddings by a cosine of {found['cosine']:.6f} or more"]
        if found["cosine"] is not None
        else []
    )
    click.echo(
        f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB in {facts['precision']}, {what}\n"
        f"differs from PyTorch in fp32, on {found['molecules']} molecules: {'; '.join(gap)}"
    )
    if facts["sketch"]:
        sketch = facts["sketch"]
        click.echo(
            f"holds the {sketch['molecules']} distinct fingerprints of {sketch['of']} training molecules (--no-sketch leaves them out)"
        )


if __name__ == "__main__":
    main()
