"""The finetuned model: encoder, head and label scale, and its file."""

import click
import torch

from moleclip.device import ALONE
from moleclip.encoders import embedder_of, entries, restore_encoders
from moleclip.files import one_line, say_once
from moleclip.forest import KINDS, Forest, joined
from moleclip.gp import GaussianProcess
from moleclip.table import LabelScale
from moleclip.training import EncoderSource
from moleclip.weights import load_checkpoint, load_tower, save_checkpoint

KEYS = ("head", "targets", "task", "center", "spread", "config", "metrics")  # of model.pt
ALONE_KEYS = ("heads", "targets", "task", "spread", "config", "metrics")  # of a FrozenModel's


def mlp(inputs, outputs):
    """Return the paper's head: three layers of 512 with ReLU, then one linear layer."""
    layers = []
    for width in (inputs, 512, 512):
        layers += [torch.nn.Linear(width, 512), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, outputs))


class Model(torch.nn.Module):
    """Encoder, head and label scale: molecules to predictions in the label's own unit."""

    def __init__(self, encoder, targets, scale=None):
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.width, targets)
        mean, std = scale or LabelScale.identity(targets)
        self.register_buffer("label_mean", torch.as_tensor(mean).float())
        self.register_buffer("label_std", torch.as_tensor(std).float())

    def unscale(self, outputs, task):
        """Return predictions in the label's own unit, or probabilities."""
        return LabelScale(self.label_mean, self.label_std).unscale(outputs, task)

    def entries(self):
        """Return what model.pt holds of head and scale."""
        state = self.head.state_dict()
        return {"head": state, "center": self.label_mean, "spread": self.label_std}

    def told(self, embedding, counts, task, protein=None):
        """Return {"prediction": (n, targets)} of embeddings (n, width); the others don't matter."""
        return {"prediction": self.unscale(self.head(embedding), task)}


class FeatureMlp(torch.nn.Module):
    """The paper's head on embeddings, proteins, fingerprints (as 0 and 1) or several, standardised.

    tensors: {name: value}: mean, scale, (inputs,), unit, center, error (targets,), uint8 inputs
    (2,) or (3,), which says of KINDS which it looks at; classes, uint8 (); and the
    weights of `mlp`, named layers.0.weight and so on. The spread is the error on held-out rows,
    the same for all.
    """

    def __init__(self, tensors):
        super().__init__()
        weights = {name[7:]: v for name, v in tensors.items() if name.startswith("layers.")}
        for name, value in tensors.items():
            if not name.startswith("layers."):
                self.register_buffer(name, value)
        self.layers = mlp(weights["0.weight"].shape[1], len(self.unit))
        self.layers.load_state_dict(weights)
        self.uses = [k for k, used in zip(KINDS, self.inputs.tolist()) if used]
        self.classifies = bool(self.classes)

    def forward(self, embedding, counts, protein=None):
        """Return (mean, spread), float32 (n, targets): labels, or probabilities of the positive."""
        inputs = mlp_inputs(self.uses, embedding, counts, protein)
        outputs = self.layers((inputs - self.mean) / self.scale)
        if self.classifies:
            mean = torch.sigmoid(outputs)
            return mean, mean * (1 - mean)
        mean = outputs * self.unit + self.center
        return mean, self.error.expand_as(mean)


def mlp_inputs(uses, embedding, counts, protein=None):
    """Return what an MLP looks at, float32 (n, width), bits last; uses: some of KINDS."""
    bits = (counts > 0).float() if "ecfp" in uses else None
    seen = embedding if "embedding" in uses else None
    return joined(seen, protein if "protein" in uses else None, bits)


HEADS = {"gp": GaussianProcess, "forest": Forest, "mlp": FeatureMlp}


class FrozenModel(torch.nn.Module):
    """A frozen encoder, None for fingerprints alone, and a head that has learned on its own.

    kinds: of HEADS, those of `head` and of `picture_head`, which looks at pictures alone, for those
    whose SMILES is not known; None where the head does so itself, or there is no encoder.
    """

    def __init__(self, encoder, kinds, head, picture_head, label_std):
        super().__init__()
        self.encoder, self.kinds = encoder, list(kinds)
        self.head, self.picture_head = head, picture_head
        self.register_buffer("label_std", torch.as_tensor(label_std).float())

    def told(self, embedding, counts, task, protein=None):
        """Return prediction and spread, (n, targets), and both _picture if there is such a head."""
        found = dict(zip(("prediction", "spread"), self.head(embedding, counts, protein)))
        if self.picture_head is not None:
            alone = self.picture_head(embedding, None)
            found |= dict(zip(("prediction_picture", "spread_picture"), alone))
        return found

    def entries(self):
        """Return what model.pt holds of the heads: their kinds and tensors."""
        heads = [each for each in (self.head, self.picture_head) if each is not None]
        states = [{"kind": k, "tensors": each.state_dict()} for k, each in zip(self.kinds, heads)]
        return {"heads": states, "spread": self.label_std}

    @classmethod
    def restored(cls, checkpoint, path):
        """Return the FrozenModel of a model.pt's entries."""
        encoder = restore_encoders(checkpoint, path)
        states = checkpoint["heads"]
        heads = [HEADS[state["kind"]](state["tensors"]) for state in states]
        kinds = [state["kind"] for state in states]
        return cls(encoder, kinds, *[*heads, None][:2], checkpoint["spread"])


def predict_rows(model, given, rows, task, batch, device, world=ALONE):
    """Return predictions in the label's unit (or probabilities), float32 (len(rows), targets).

    In fp32, as ONNX computes them. given: {row: what its encoder looks at}.
    """
    source = EncoderSource(model, given, embedder_of(model.encoder, device, most=batch), world)
    return model.unscale(source.predict(rows), task).cpu().numpy()


def save_model(path, model, data, config, metrics, seen, intervals):
    """Write model.pt: its encoder's `entries`, head, label scale, target names, task.

    seen: hashes of the molecules it was trained on, int64; intervals: conformal scores, or {}.
    """
    save_checkpoint(
        path,
        **entries(model.encoder),
        step=0,
        config=config,
        metrics=metrics,
        **model.entries(),
        targets=data.targets,
        task=data.task,
        smiles_column=data.smiles_column,
        classes=[list(words) for words in data.classes],
        units=data.units,
        seen=seen,
        **({"intervals": intervals} if intervals else {}),
        **({"protein": protein_entry(data)} if data.pairs else {}),
    )


def protein_entry(data):
    """Return what model.pt says of proteins: facts of their features, and some as examples."""
    entry = data.pairs.entry()
    return entry | {"examples": torch.from_numpy(entry["examples"])}


def load_model(path):
    """Return (Model or FrozenModel in eval mode, checkpoint dict) of a model.pt, or of MoleCLIP's.

    Raises click.ClickException.
    """
    checkpoint = load_checkpoint(path)
    if {"model", "head"} <= checkpoint.keys() and "arch" not in checkpoint:
        return load_original(checkpoint, path)
    keys = ALONE_KEYS if "heads" in checkpoint else KEYS
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise click.ClickException(
            f"{path}: holds no finetuned model (no {missing[0]!r}); "
            "give a run folder or a model.pt of finetune.py"
        )
    wrong = (RuntimeError, TypeError, AttributeError, KeyError, ValueError)
    try:
        if "heads" in checkpoint:
            return FrozenModel.restored(checkpoint, path).eval(), checkpoint
        encoder = restore_encoders(checkpoint, path)
        scale = LabelScale(checkpoint["center"], checkpoint["spread"])
        model = Model(encoder, len(checkpoint["targets"]), scale)
        model.head.load_state_dict(checkpoint["head"])
    except wrong as error:
        raise click.ClickException(f"{path}: its head doesn't fit ({one_line(error)})") from None
    return model.eval(), checkpoint


def load_original(checkpoint, path):
    """Return (Model in eval mode, checkpoint dict) of what MoleCLIP's own Finetune.py saved.

    That has the state dicts of its encoder under "model" and of its MLP under "head", and tells
    neither targets nor task. It learned labels as they stood, so their scale is 1.
    """
    encoder = load_tower(checkpoint, path)
    head = original_head(checkpoint["head"], path)
    if head[0].in_features != encoder.width:
        says = f"its head takes {head[0].in_features} numbers, the encoder gives {encoder.width}"
        raise click.ClickException(f"{path}: {says}; only heads on pictures alone will do")
    count = head[-1].out_features
    model = Model(encoder, count)
    model.head = head
    named = {"targets": [f"output_{i + 1}" for i in range(count)], "task": "regression"}
    say_once(
        f"{path}: MoleCLIP's checkpoints name neither labels nor classes: output_1 and so on are "
        "as the network gives them, labels in the table's order and unit, of classes logits"
    )
    known = {"config": {"raw_labels": True}, "metrics": {}}
    return model.eval(), model.entries() | named | known


def original_head(state, path):
    """Return the MLP of a state dict of MoleCLIP's, whatever its depth and width.

    Every third layer of its is a linear one; behind each but the last stand ReLU and dropout,
    which a finished model doesn't do. Raises click.ClickException.
    """
    layers = []
    try:
        for i in range(len(state) // 2):
            weight, bias = (state.get(f"{3 * i}.{name}").float() for name in ("weight", "bias"))
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, torch.nn.ReLU()]
        linear = layers[::2]
        if not linear or any(b.in_features != a.out_features for a, b in zip(linear, linear[1:])):
            raise ValueError("no layers, or of different widths")
        return torch.nn.Sequential(*layers[:-1])
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise click.ClickException(f"{path}: its head doesn't fit ({one_line(error)})") from None


def same_weights(one, other):
    """Tell whether two modules hold the same tensors under the same names."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def same_encoder(one, other):
    """Tell whether two encoders are the same; None is one of fingerprints alone."""
    if one is None or other is None:
        return one is other
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
    if "heads" in one or "heads" in other:
        return ""
    scaled = not any(checkpoint["config"].get("raw_labels") for checkpoint in (one, other))
    wide, narrow = (take(one["spread"], other["spread"]) for take in (torch.maximum, torch.minimum))
    apart = (one["center"] - other["center"]).abs() > wide
    if scaled and (apart | (wide > 2 * narrow)).any():
        said = (f"{c['center'].tolist()}, SD {c['spread'].tolist()}" for c in (one, other))
        return f"their labels' scales differ (mean {', and mean '.join(said)})"
    return ""
