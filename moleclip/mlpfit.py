"""Fitting the MLP on embeddings, proteins and fingerprints: rates and epochs by other rows."""

import numpy as np
import torch

from moleclip.forest import KINDS
from moleclip.metrics import best_epoch
from moleclip.model import FeatureMlp, mlp, mlp_inputs
from moleclip.table import LabelScale
from moleclip.training import FeatureSource, Loss, Objective, adam, train

LEAST = 0.2  # of the mean deviation of proteins' features: the least that one is divided by


class Standardised:
    """What an MLP looks at, made for those rows that are asked for: fp32 (n, width).

    uses: some of KINDS; parts: embedding, counts, protein, of all rows or None; mean, deviation:
    (width,), set by `scale_by`.
    """

    device = torch.device("cpu")

    def __init__(self, uses, parts):
        self.uses, self.parts = uses, parts
        self.mean, self.deviation = 0.0, 1.0

    def __getitem__(self, rows):
        parts = (None if part is None else part[rows] for part in self.parts)
        return (mlp_inputs(self.uses, *parts) - self.mean) / self.deviation

    def scale_by(self, rows):
        """Take mean and deviation of these rows; bits stay as they are."""
        inputs = self[rows]
        mean, deviation = inputs.mean(0), inputs.std(0)
        bits = torch.arange(inputs.shape[1]) >= inputs.shape[1] - 2048 * ("ecfp" in self.uses)
        mean[bits], deviation[bits] = 0.0, 1.0
        deviation = deviation.clamp(min=1e-3 * deviation.median().item() + 1e-12)
        if "protein" in self.uses:  # the k-mers of a new protein may be in none of these
            width, end = self.parts[2].shape[1], inputs.shape[1] - int(bits.sum())
            own = deviation[end - width : end]
            own.clamp_(min=LEAST * (own**2).mean().sqrt().item() + 1e-12)
        self.mean, self.deviation = mean, deviation


def fit_mlp(uses, parts, labels, rows, stop, task, rates, plan):
    """Return the FeatureMlp of rows; its epochs and its rate are chosen by the rows `stop`.

    uses: some of KINDS; parts: embedding, counts, protein of all rows or None; labels: of all
    rows, float64 (rows, targets); rates: to choose from. With proteins squared errors are learned.
    """
    scale = LabelScale.of(labels[rows])
    if task == "classification":
        scale = LabelScale.identity(labels.shape[1])
    inputs, wanted = Standardised(uses, parts), scale.standardise(labels)
    inputs.scale_by(rows)
    wanted = torch.from_numpy(wanted).float()
    split, loss = {"train": list(rows), "val": list(stop)}, Loss(task, None, "protein" in uses)
    objective, found = Objective(wanted, split, loss), []
    for rate in rates:
        torch.manual_seed(plan.seed)
        net = mlp(len(inputs.mean), wanted.shape[1])
        history = train(FeatureSource(net, inputs), objective, [adam(net, rate)], plan)
        found.append((best_epoch(history)["val_loss"], net))
    net = min(found, key=lambda pair: pair[0])[1]
    tensors = {f"layers.{name}": value for name, value in net.state_dict().items()}
    with torch.no_grad():
        told = net(inputs[stop]).numpy() * scale.std + scale.mean
    error = np.sqrt(np.nanmean((told - labels[stop]) ** 2, 0)) + 1e-12
    tensors |= {"mean": inputs.mean, "scale": inputs.deviation}
    tensors["error"] = torch.from_numpy(error).float()
    own = {"unit": scale.std, "center": scale.mean}
    tensors |= {name: torch.from_numpy(values).float() for name, values in own.items()}
    used = [kind in uses for kind in KINDS]
    tensors["inputs"] = torch.tensor(used[: 2 + used[2]], dtype=torch.uint8)
    tensors["classes"] = torch.tensor(task == "classification", dtype=torch.uint8)
    return FeatureMlp(tensors).eval()
