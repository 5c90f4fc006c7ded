"""Write a finetuned model as one ONNX file: pictures in, predictions in the label's own unit out.

    python export.py runs/dhbd                    # model.onnx
    python export.py runs/dhbd/model.pt -o dhbd.onnx

The file holds everything: pixel normalisation, encoder, head, label scaling, and in its metadata the target names and
how the molecules have to be drawn. It is checked against PyTorch on real drawings before it gets its name.
"""

import json
import logging
import warnings
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from rdkit import rdBase

import finetune
import render

FORMAT = 1                  # of the metadata; predict.py refuses a newer one
OPSET = 20
TOLERANCE = 1e-4            # largest difference from PyTorch, of the label's scale
PROBES = ("CCO", "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "C[N+](C)(C)CC(=O)[O-]",
          "Clc1ccc(cc1)C(c1ccc(Cl)cc1)C(Cl)(Cl)Cl", "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O")


class Deployed(torch.nn.Module):
    """uint8 RGB pictures (n, 224, 224, 3) to (embedding (n, 512), prediction (n, targets)), nothing left to the caller."""

    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images):
        embedding = self.model.encoder(images.permute(0, 3, 1, 2).float() / 255)
        return embedding, self.model.to_unit(self.model.head(embedding), self.task)


def find_model(run):
    """Return the model.pt that a run folder or a file name stands for."""
    path = Path(run)
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise click.ClickException(f"{path}: no such file; finetune first, then give the run folder: python export.py runs/NAME")
    return path


def metadata(checkpoint):
    """Return what a stranger has to know of the model, as a plain dict."""
    config = checkpoint["config"]
    return {"format": FORMAT, "targets": checkpoint["targets"], "task": checkpoint["task"], "smiles_column": checkpoint.get("smiles_column"),
            "render": {"size": render.SIZE, "max_atoms": config.get("max_atoms", render.MAX_ATOMS)}, "metrics": checkpoint["metrics"],
            "training": {key: config.get(key) for key in ("data", "init", "split", "epochs", "batch", "lr_encoder", "lr_head")},
            "versions": {"torch": str(torch.__version__), "rdkit": rdBase.rdkitVersion, "onnx": onnx.__version__}}


def to_onnx(deployed, path, facts):
    """Export with a dynamic batch into one file. A batch of 1 as example would be burnt into the graph, hence 2."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.randint(0, 256, (2, render.SIZE, render.SIZE, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(deployed, (example,), dynamo=True, external_data=False, opset_version=OPSET, verbose=False,
                                    input_names=["images"], output_names=["embedding", "prediction"],
                                    dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    model = program.model_proto
    model.metadata_props.add(key="moleclip", value=json.dumps(facts))
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def probe_pictures(count):
    """Return RGB drawings of real molecules, uint8 (count, 224, 224, 3)."""
    drawn = [render.draw(render.layout(render.parse(smiles))) for smiles in PROBES]
    return render.to_rgb(np.stack([drawn[i % len(drawn)] for i in range(count)]))


def parity(deployed, path, batches=(1, 3, 7)):
    """Return the largest difference between ONNX and PyTorch over real drawings, of the label's scale."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scale = 1.0 if deployed.task == "classification" else deployed.model.spread.numpy()
    worst = 0.0
    for count in batches:
        images = probe_pictures(count)
        with torch.no_grad():
            embedding, prediction = (t.numpy() for t in deployed(torch.from_numpy(images)))
        got_embedding, got_prediction = session.run(["embedding", "prediction"], {"images": images})
        worst = max(worst, np.abs(got_embedding - embedding).max() / max(1, np.abs(embedding).max()),
                    (np.abs(got_prediction - prediction) / scale).max())
    return float(worst)


@click.command()
@click.argument("run")
@click.option("-o", "--out", default="model.onnx", show_default=True, help="File to write.")
def main(run, out):
    """Export the model of RUN, a folder of finetune.py or a model.pt in it."""
    source = find_model(run)
    render.check_output(out, source)
    model, checkpoint = finetune.load_model(source)
    deployed = Deployed(model, checkpoint["task"]).eval()
    difference = None

    def write(name):
        nonlocal difference
        to_onnx(deployed, name, metadata(checkpoint))
        difference = parity(deployed, name)
        if not difference < TOLERANCE:
            raise click.ClickException(f"{out}: not written: it differs from PyTorch by {difference:.1e} of the label's scale (allowed: {TOLERANCE:.0e})")

    render.save_whole(out, write)
    click.echo(f"{out}: {Path(out).stat().st_size / 1e6:.0f} MB, predicts {', '.join(checkpoint['targets'])}; "
               f"differs from PyTorch by at most {difference:.0e} of the label's scale")


if __name__ == "__main__":
    main()
