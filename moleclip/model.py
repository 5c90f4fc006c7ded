"""The finetuned model: encoder, head and label scale, its file, and its form for deployment."""

import copy
import hashlib
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from moleclip.device import ALONE
from moleclip.encoder import Embedder
from moleclip.files import one_line, say_once
from moleclip.molecules import canonical
from moleclip.table import LabelScale
from moleclip.training import PictureSource
from moleclip.weights import (
    BUNDLED,
    is_torchscript,
    load_checkpoint,
    restore_encoder,
    save_checkpoint,
)

KEYS = ("head", "targets", "task", "center", "spread", "config", "metrics")  # of model.pt


def mlp(inputs, outputs):
    """Return the paper's head: three layers of 512 with ReLU, then one linear layer."""
    layers = []
    for width in (inputs, 512, 512):
        layers += [torch.nn.Linear(width, 512), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, outputs))


class Model(torch.nn.Module):
    """Encoder, head and label scale: float RGB pixels to predictions in the label's own unit."""

    def __init__(self, encoder, targets, scale=None):
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.arch["args"]["output_dim"], targets)
        mean, std = scale or LabelScale.identity(targets)
        self.register_buffer("label_mean", torch.as_tensor(mean).float())
        self.register_buffer("label_std", torch.as_tensor(std).float())

    def forward(self, pixels):
        """Return logits, or standardised predictions; `unscale` has the unit."""
        return self.head(self.encoder(pixels).float())

    def unscale(self, outputs, task):
        """Return predictions in the label's own unit, or probabilities."""
        return LabelScale(self.label_mean, self.label_std).unscale(outputs, task)


def predict_rows(model, pictures, rows, task, batch, device, world=ALONE):
    """Return predictions in the label's unit (or probabilities), float32 (len(rows), targets).

    In fp32, as ONNX computes them.
    """
    embedder = Embedder(model.encoder, device, None, "none", batch)
    source = PictureSource(model, pictures, embedder, world)
    return model.unscale(source.predict(rows), task).cpu().numpy()


def molecule_hashes(smiles):
    """Return the sorted hashes of readable SMILES, one for each molecule, int64 (molecules,)."""
    return torch.tensor(sorted({molecule_hash(text) for text in set(smiles)}), dtype=torch.int64)


def molecule_hash(smiles):
    """Return a molecule's hash, of 64 bits with a sign."""
    digest = hashlib.sha256(canonical(smiles).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Seen(NamedTuple):
    """What weights were trained on, as far as their file says."""

    molecules: torch.Tensor = torch.zeros(0, dtype=torch.int64)  # their hashes
    table: str = ""  # SHA-256 of the table, where the molecules aren't known
    labelled: bool = True  # whether labels were learned; else drawings alone


def seen_by(init):
    """Return the Seen of --init's weights.

    A checkpoint's `seen`, or its configuration's table; of an encoder the list beside it, if any.
    """
    path = BUNDLED if init == "bundled" else Path(init)
    if path.with_suffix(".seen.npy").is_file():
        return Seen(torch.from_numpy(np.load(path.with_suffix(".seen.npy"))), labelled=False)
    if path.suffix != ".pt" or not path.is_file() or is_torchscript(path):
        return Seen()
    checkpoint = load_checkpoint(path)
    if "seen" in checkpoint:
        return Seen(checkpoint["seen"])
    config = checkpoint.get("config")
    return Seen(table=config.get("data_sha256", "") if isinstance(config, dict) else "")


def refuse_seen(data, splits, config, seen):
    """Refuse to test on molecules that --init's weights were trained on; say which else they know.

    splits: {seed: split}. Raises click.ClickException.
    """
    init, ways = f"--init {config['init']}", "take another encoder, or --force to test on them"
    if seen.table == config["data_sha256"]:
        says = "was trained on this table, on rows that it doesn't name"
        raise click.ClickException(f"{init}: {says}; {ways}")
    known, rows = set(seen.molecules.tolist()), set()
    for split in splits.values() if known else ():
        rows.update(*split.values())
    known = {row for row in rows if molecule_hash(data.smiles[row]) in known}
    for seed, split in splits.items() if known else ():
        counts = {part: len(known.intersection(part_rows)) for part, part_rows in split.items()}
        what = ", ".join(f"{count} of {part}" for part, count in counts.items())
        drawn = "was trained on" if seen.labelled else "learned, without labels, from drawings of"
        says = f"{init}: {drawn} molecules of this table, by the split of seed {seed} {what}"
        if counts["test"] and seen.labelled:
            ways = "take another encoder, a split that tests none of them, or --force"
            raise click.ClickException(f"{says}; {ways}")
        if any(counts.values()):
            say_once(says)


def save_model(path, model, data, config, metrics, seen):
    """Write model.pt: encoder and arch as in encoder.pt, head, label scale, target names, task.

    seen: hashes of the molecules it was trained on, int64.
    """
    save_checkpoint(
        path,
        encoder=model.encoder.visual.state_dict(),
        arch=model.encoder.arch,
        step=0,
        config=config,
        metrics=metrics,
        head=model.head.state_dict(),
        center=model.label_mean,
        spread=model.label_std,
        targets=data.targets,
        task=data.task,
        smiles_column=data.smiles_column,
        classes=[list(words) for words in data.classes],
        units=data.units,
        seen=seen,
    )


def load_model(path):
    """Return (Model in eval mode, checkpoint dict) of a model.pt. Raises click.ClickException."""
    checkpoint = load_checkpoint(path)
    missing = [key for key in KEYS if key not in checkpoint]
    if missing:
        raise click.ClickException(
            f"{path}: holds no finetuned model (no {missing[0]!r}); "
            "give a run folder or a model.pt of finetune.py"
        )
    encoder = restore_encoder(checkpoint, path)
    scale = LabelScale(checkpoint["center"], checkpoint["spread"])
    try:
        model = Model(encoder, len(checkpoint["targets"]), scale)
        model.head.load_state_dict(checkpoint["head"])
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise click.ClickException(f"{path}: its head doesn't fit ({one_line(error)})") from None
    return model.eval(), checkpoint


def same_weights(one, other):
    """Tell whether two modules hold the same tensors under the same names."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def same_encoder(one, other):
    """Tell whether two encoders are the same."""
    return one.arch == other.arch and same_weights(one, other)


def why_unlike(one, other):
    """Return why the mean of two models' predictions would mean nothing, or "".

    one, other: checkpoints with the same targets; older ones don't know all that is compared.
    """
    for key, says in (("classes", "of different classes"), ("units", "in different units")):
        if key in one and key in other and one[key] != other[key]:
            return f"{says} ({one[key]}, {other[key]})"
    tables = [checkpoint["config"].get("data_sha256") for checkpoint in (one, other)]
    if all(tables):
        names = ", ".join(str(checkpoint["config"].get("data")) for checkpoint in (one, other))
        unlike = tables[0] != tables[1]
        return f"were trained on different tables ({names})" if unlike else ""
    scaled = not any(checkpoint["config"].get("raw_labels") for checkpoint in (one, other))
    wide, narrow = (take(one["spread"], other["spread"]) for take in (torch.maximum, torch.minimum))
    apart = (one["center"] - other["center"]).abs() > wide
    if scaled and (apart | (wide > 2 * narrow)).any():
        said = (f"{c['center'].tolist()}, SD {c['spread'].tolist()}" for c in (one, other))
        return f"their labels' scales differ (mean {', and mean '.join(said)})"
    return ""


class Deployed(torch.nn.Module):
    """uint8 RGB pictures (n, 224, 224, 3) to the outputs in `names`, float32; nothing is left.

    models: a Model each, sharing one Encoder object where their encoders are the same; tasks:
    one for each model. With `ensemble`, prediction (n, targets) is the members' mean, and spread
    (n, targets) their standard deviation. Otherwise embedding (n, 512), and prediction (n, all
    targets), the models' columns side by side; without models the embedding alone.
    """

    def __init__(self, encoders, models=(), tasks=(), ensemble=False):
        super().__init__()
        self.encoders, self.models = torch.nn.ModuleList(encoders), torch.nn.ModuleList(models)
        self.tasks, self.ensemble = list(tasks), ensemble
        self.names = ["embedding", "prediction"] if models else ["embedding"]
        if ensemble:
            self.names = ["prediction", "spread"]

    def forward(self, images):
        """Return one tensor for each of `names`."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        embeddings = [encoder(pixels).float() for encoder in self.encoders]
        predictions = []
        for i, (model, task) in enumerate(zip(self.models, self.tasks)):
            outputs = model.head(embeddings[i % len(embeddings)])  # one for all, or one for each
            predictions.append(model.unscale(outputs, task))
        if self.ensemble:
            members = torch.stack(predictions)
            return members.mean(0), members.std(0, correction=0)
        return (embeddings[0], torch.cat(predictions, 1)) if predictions else (embeddings[0],)

    def scale(self):
        """Return what differences in each column of `prediction` are measured by, float32."""
        scales = []
        for model, task in zip(self.models, self.tasks):
            std = model.label_std
            scales.append(torch.ones_like(std) if task == "classification" else std)
        if not scales:
            return np.ones(0, np.float32)
        return (torch.stack(scales).mean(0) if self.ensemble else torch.cat(scales)).numpy()


class CastToHalf(torch.nn.Module):
    """A layer whose input is cast to fp16, as CLIP casts its pixels."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        """Return what the layer makes of x in fp16."""
        return self.inner(x.half())


def to_fp16(deployed):
    """Return a copy with its encoders in fp16 by CLIP's own rules.

    LayerNorm computes in fp32; the heads stay fp32, for they cost nothing.
    """
    from clip.model import convert_weights  # loaded long since, by encoder.py

    deployed = copy.deepcopy(deployed)
    for encoder in deployed.encoders:
        convert_weights(encoder)
        visual = encoder.visual
        # CLIP casts it before it adds.
        visual.positional_embedding.data = visual.positional_embedding.data.half()
        visual.conv1 = CastToHalf(visual.conv1)
    return deployed
