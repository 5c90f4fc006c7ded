"""TODO"""

import copy

import click
import numpy as np
import torch

from moleclip.device import ALONE
from moleclip.encoder import Embedder
from moleclip.files import one_line
from moleclip.training import PictureSource
from moleclip.weights import load_checkpoint, restore_encoder, save_checkpoint


def mlp(inputs, outputs):
    """Return the paper's head: three layers of 512 with ReLU, then one linear layer."""
    hidden = [
        layer
        for width in (inputs, 512, 512)
        for layer in (torch.nn.Linear(width, 512), torch.nn.ReLU())
    ]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(512, outputs))


class Model(torch.nn.Module):
    """Encoder, head and label scaling: float RGB pixels to predictions in the label's own unit, or logits."""

    def __init__(self, encoder, outputs, label_mean=None, label_std=None):
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.arch["args"]["output_dim"], outputs)
        self.register_buffer(
            "center",
            torch.zeros(outputs) if label_mean is None else torch.as_tensor(label_mean).float(),
        )
        self.register_buffer(
            "spread",
            torch.ones(outputs) if label_std is None else torch.as_tensor(label_std).float(),
        )

    def forward(self, pixels):
        """Return logits, or standardised predictions; `to_unit` has the unit."""
        return self.head(self.encoder(pixels).float())

    def unscale(self, outputs, task):
        """Return predictions in the label's own unit, or probabilities."""
        return (
            outputs.sigmoid() if task == "classification" else outputs * self.spread + self.center
        )


def predict_rows(model, pictures, rows, task, batch, device, world=ALONE):
    """Return predictions in the label's unit (or probabilities), float32 (len(rows), targets); in fp32, as ONNX computes them."""
    source = PictureSource(
        model, pictures, Embedder(model.encoder, device, None, "none", batch), world
    )
    return model.unscale(source.outputs(rows), task).cpu().numpy()


def save_model(path, model, data, config, metrics):
    """Write model.pt: encoder and arch as in encoder.pt, head, label scaling, target names, task."""
    save_checkpoint(
        path,
        encoder=model.encoder.visual.state_dict(),
        arch=model.encoder.arch,
        step=0,
        config=config,
        metrics=metrics,
        head=model.head.state_dict(),
        label_mean=model.center,
        label_std=model.spread,
        targets=data.targets,
        task=data.task,
        smiles_column=data.smiles_column,
    )


def load_model(path):
    """Return (Model in eval mode, checkpoint dict) of a model.pt. Raises click.ClickException."""
    checkpoint = load_checkpoint(path)
    missing = [
        key
        for key in ("head", "targets", "task", "center", "spread", "config", "metrics")
        if key not in checkpoint
    ]
    if missing:
        raise click.ClickException(
            f"{path}: holds no finetuned model (no {missing[0]!r}); give a run folder or a model.pt of finetune.py"
        )
    encoder = restore_encoder(checkpoint, path)
    try:
        model = Model(
            encoder, len(checkpoint["targets"]), checkpoint["center"], checkpoint["spread"]
        )
        model.head.load_state_dict(checkpoint["head"])
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise click.ClickException(f"{path}: its head doesn't fit ({one_line(error)})") from None
    return model.eval(), checkpoint


class Deployed(torch.nn.Module):
    """uint8 RGB pictures (n, 224, 224, 3) to the outputs in `names`, all float32; nothing is left to the caller.

    models: finetune.Model each, sharing one Encoder object where their encoders are the same; tasks: one for each model.
    ensemble: prediction (n, targets) is the members' mean, spread (n, targets) their standard deviation. Otherwise
    embedding (n, 512), and prediction (n, all targets), the models' columns side by side; no models: the embedding alone.
    """

    def __init__(self, encoders, models=(), tasks=(), ensemble=False):
        super().__init__()
        self.encoders, self.models = torch.nn.ModuleList(encoders), torch.nn.ModuleList(models)
        self.tasks, self.ensemble = list(tasks), ensemble
        self.names = (
            ["prediction", "spread"]
            if ensemble
            else ["embedding", "prediction"][: 1 + bool(models)]
        )

    def forward(self, images):
        pixels = images.permute(0, 3, 1, 2).float() / 255
        embeddings = [encoder(pixels).float() for encoder in self.encoders]
        predictions = [
            model.unscale(
                model.head(embeddings[i % len(embeddings)]), task
            )  # one embedding, or one for each
            for i, (model, task) in enumerate(zip(self.models, self.tasks))
        ]
        if self.ensemble:
            members = torch.stack(predictions)
            return members.mean(0), members.std(0, correction=0)
        return (embeddings[0], torch.cat(predictions, 1)) if predictions else (embeddings[0],)

    def scale(self):
        """Return the scale of each column of `prediction`, float32 (targets,): what differences are measured by."""
        scales = [
            torch.ones_like(m.spread) if task == "classification" else m.spread
            for m, task in zip(self.models, self.tasks)
        ]
        return (
            (torch.stack(scales).mean(0) if self.ensemble else torch.cat(scales)).numpy()
            if scales
            else np.ones(0, np.float32)
        )


class CastToHalf(torch.nn.Module):
    """A layer whose input is cast to fp16, as CLIP casts its pixels."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.half())


def to_fp16(deployed):
    """Return a copy with its encoders in fp16 by CLIP's own rules: LayerNorm computes in fp32. The heads stay fp32: they cost nothing."""
    from clip.model import convert_weights  # loaded long since, by encoder.py

    deployed = copy.deepcopy(deployed)
    for encoder in deployed.encoders:
        convert_weights(encoder)
        encoder.visual.positional_embedding.data = (
            encoder.visual.positional_embedding.data.half()
        )  # CLIP casts it before it adds
        encoder.visual.conv1 = CastToHalf(encoder.visual.conv1)
    return deployed
