"""What pretraining asks of an encoder: heads on its features and atoms, and their losses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from moleclip.encoder import WAVES
from moleclip.targets import IGNORED
from moleclip.transfer import upload

MACCS_PACKED = 168  # bits of the keys as cluster.py packs them: 167 and an empty one
READ = 512  # width of what is made of the patches around an atom before anything is told by it


class Target(NamedTuple):
    """What one of the targets is for."""

    task: str  # as --loss names it
    loss: Callable
    weight: float = 1.0  # within its task


def squares(told, truth):
    """Return the squared errors of log counts, summed over the vocabulary: (n, 1)."""
    return (told - truth).square().sum(1, keepdim=True)


def huber(told, truth):
    """Return the Huber losses of standardised numbers, (n, d), NaN where the truth is not known."""
    known = truth.isfinite()
    losses = F.smooth_l1_loss(told, truth.where(known, 0), reduction="none")
    return losses.where(known, torch.nan)


def entropy(told, truth):
    """Return the cross-entropies (n,), NaN where the class is IGNORED."""
    losses = F.cross_entropy(told, truth, reduction="none", ignore_index=IGNORED)
    return losses.where(truth != IGNORED, torch.nan)


CLUSTERS = Target("classes", F.cross_entropy)  # what no other name says
OF_PICTURES = {
    "descriptors": Target("descriptors", F.smooth_l1_loss),
    "maccs": Target("descriptors", F.binary_cross_entropy_with_logits),
    "fingerprint": Target("fingerprint", squares),
    "electronic": Target("electronic", huber),
}
# Of what the trial had (docs/method.md): the wider environment is the harder one to tell.
OF_ATOMS = {
    "r1": Target("atoms", entropy),
    "r2": Target("atoms", entropy, 0.5),
    "numbers": Target("atoms", huber, 3.0),
    "charges": Target("electronic", huber),
}
BOTH_VIEWS = ("fingerprint", "electronic")  # the paper's two heads look at the plain one alone


class AtomHead(torch.nn.Module):
    """Tell all targets of atoms, (m, width of each), by what is read of them, (m, inputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.hidden = torch.nn.Linear(inputs, READ)
        self.told = torch.nn.ModuleDict({n: torch.nn.Linear(READ, w) for n, w in outputs.items()})

    def forward(self, read):
        """Return {name: what is told}."""
        hidden = F.gelu(self.hidden(read))
        return {name: layer(hidden) for name, layer in self.told.items()}


def new_heads(arch, outputs, atom_outputs):
    """Return the heads on an encoder's features, and "atoms", as a ModuleDict.

    outputs, atom_outputs: {target: width}.
    """
    args = arch["args"]
    heads = {name: torch.nn.Linear(args["output_dim"], width) for name, width in outputs.items()}
    if atom_outputs:
        heads["atoms"] = AtomHead(args["width"] + 4 * WAVES, atom_outputs)
    return torch.nn.ModuleDict(heads)


def contrastive_loss(a, b, scale, group=None):
    """Return (loss, view-to-view top-1 accuracy) of the features of two views, (n, d) each.

    The loss is 0.5 * (CE(s a b^T) + CE(s b a^T)) of L2-normalised features, as CLIP has it. group:
    int64 (n,), or None; what is of one group, such as two spectra of one molecule, is not each
    other's negative.
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits, target = scale * a @ b.T, torch.arange(len(a), device=a.device)
    if group is not None:
        same = (group[:, None] == group) & (target[:, None] != target)
        logits = logits.masked_fill(same, -torch.inf)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


def known_mean(values, world):
    """Return the mean of what is no NaN, of all processes alike; 0 where nothing is known."""
    known = values.isfinite()
    count = world.mean(known.sum().float())
    return values.where(known, 0).sum() / count.clamp(min=1 / world.size)


def loss_parts(plain, styled, heads, targets, world, scale):
    """Return one batch's losses and accuracies by name, scalars in the order of the log.

    "contrastive" and its "retrieval" are over the molecules of all processes; then for each
    target "k300" and "k300_accuracy", or "descriptors", or "maccs", over this process's.
    plain, styled: features, fp32 (local n, 512); targets: as `as_tensors` has them.
    """
    loss, retrieval = contrastive_loss(world.gather(plain), world.gather(styled), scale)
    parts = {"contrastive": loss, "retrieval": retrieval}
    told = tell(heads, plain)
    told |= {name: heads[name](torch.cat([plain, styled])) for name in BOTH_VIEWS if name in heads}
    for name, truth in targets.items():
        truth = upload(truth, plain.device)
        target = OF_PICTURES.get(name, CLUSTERS)
        if name in BOTH_VIEWS:
            parts[name] = known_mean(target.loss(told[name], torch.cat([truth, truth])), world)
            continue
        parts[name] = target.loss(told[name], truth)
        if target.task == "classes":
            parts[f"{name}_accuracy"] = (told[name].argmax(1) == truth).float().mean()
    return parts


def tell(heads, features):
    """Return what the heads say of each target, by name; one head tells descriptors and keys."""
    names = [name for name in heads if name != "atoms" and name not in BOTH_VIEWS]
    told = {name: heads[name](features) for name in names}
    return with_keys(told)


def with_keys(told):
    """Return what heads say, {name: tensor}, with "maccs" apart from "descriptors"."""
    if "descriptors" in told:
        both = told["descriptors"]
        told |= {"descriptors": both[:, :-MACCS_PACKED], "maccs": both[:, -MACCS_PACKED:]}
    return told


def atom_parts(read, shown, head, targets, world):
    """Return the losses of a batch's atoms by name, and how many are hidden, a part of all.

    read: of both views, fp32 (2m, width + 32); shown: bool (2m,), whose place is known; targets:
    of the m atoms of one view. A target that isn't known counts for nothing, nor a hidden atom.
    """
    told, parts = head(read), {}
    for name, truth in targets.items():
        truth = upload(torch.cat([truth, truth]), read.device)
        losses = OF_ATOMS[name].loss(told[name], truth)
        seen = shown if losses.ndim == 1 else shown[:, None]
        parts[f"atom_{name}"] = known_mean(losses.where(seen, torch.nan), world)
        if truth.ndim == 1:
            right = (
                (told[name].argmax(1) == truth).float().where(shown & (truth != IGNORED), torch.nan)
            )
            parts[f"atom_{name}_accuracy"] = known_mean(right, world)
    return parts | {"atoms_hidden": 1 - shown.float().mean()}


def weighted_loss(parts, targets, weights, atoms=()):
    """Return the loss to minimise.

    parts: of `loss_parts` and `atom_parts`; targets, atoms: the names that they are of; weights:
    by task, as --loss has them.
    """
    loss = weights["contrastive"] * parts["contrastive"]
    known = {name: OF_PICTURES.get(name, CLUSTERS) for name in targets}
    known |= {f"atom_{name}": OF_ATOMS[name] for name in atoms}
    for task in dict.fromkeys(target.task for target in known.values()):
        of_task = [each.weight * parts[name] for name, each in known.items() if each.task == task]
        loss = loss + weights[task] * sum(of_task)
    return loss
