"""The model as one ONNX file has it: what is exported, in fp32 or with its encoders in fp16."""

import copy

import numpy as np
import torch

from moleclip.model import FrozenModel


class Deployed(torch.nn.Module):
    """Pictures, fingerprints or both, by `inputs`, to the outputs in `names`, float32.

    Inputs: images, uint8 RGB (n, 224, 224, 3), where there is an encoder, and fingerprint, ECFP
    counts, uint8 (n, 2048), where a head looks at them. models: a Model or FrozenModel each, with
    one Encoder object where their encoders are the same; tasks: one for each model.

    With `ensemble`, prediction (n, targets) is the members' mean; spread (n, targets) their
    standard deviation, with their own spreads in it where they have such (the standard deviation of
    the members' mixture). Otherwise embedding (n, 512), and prediction (n, all targets), the
    models' columns side by side, spread likewise, 0 where a model has none; without models the
    embedding alone. prediction_picture and spread_picture are for pictures without a fingerprint.
    """

    def __init__(self, encoders, models=(), tasks=(), ensemble=False):
        super().__init__()
        encoders = [encoder for encoder in encoders if encoder is not None]
        self.encoders, self.models = torch.nn.ModuleList(encoders), torch.nn.ModuleList(models)
        self.tasks, self.ensemble = list(tasks), ensemble
        frozen = [model for model in models if isinstance(model, FrozenModel)]
        counted = any("ecfp" in model.head.uses for model in frozen)
        self.inputs = ["images"] * bool(encoders) + ["fingerprint"] * counted
        self.names = ["embedding"] * bool(encoders and not ensemble) + ["prediction"] * bool(models)
        self.names += ["spread"] * bool(ensemble or frozen)
        if counted and encoders:
            self.names += ["prediction_picture", "spread_picture"]

    def forward(self, first, second=None):
        """Return one tensor for each of `names`, of one for each of `inputs`."""
        given = dict(zip(self.inputs, (first, second)))
        embeddings = [None]
        if "images" in given:
            pixels = given["images"].permute(0, 3, 1, 2).float() / 255
            embeddings = [encoder(pixels).float() for encoder in self.encoders]
        told = []
        for i, (model, task) in enumerate(zip(self.models, self.tasks)):
            embedding = embeddings[i % len(embeddings)]  # one for all, or one for each
            told.append(model.told(embedding, given.get("fingerprint"), task))
        found = {"embedding": embeddings[0]}
        for end in ("", "_picture") if told else ():
            means = [each.get(f"prediction{end}", each["prediction"]) for each in told]
            spreads = [each.get(f"spread{end}", each.get("spread")) for each in told]
            found[f"prediction{end}"], found[f"spread{end}"] = self.united(means, spreads)
        return tuple(found[name] for name in self.names)

    def united(self, means, spreads):
        """Return (prediction, spread) of all models', an ensemble's or side by side."""
        if not self.ensemble:
            own = [torch.zeros_like(m) if s is None else s for m, s in zip(means, spreads)]
            return torch.cat(means, 1), torch.cat(own, 1)
        members = torch.stack(means)
        spread = members.std(0, correction=0)
        if all(each is not None for each in spreads):
            spread = (spread**2 + (torch.stack(spreads) ** 2).mean(0)).sqrt()
        return members.mean(0), spread

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
