"""The model as one ONNX file has it: what is exported, in fp32 or with its encoders in fp16."""

import copy

import numpy as np
import torch


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
