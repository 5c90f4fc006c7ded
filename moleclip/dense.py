"""What a graph encoder may have to tell of molecules and atoms: the dense targets of labels.npz."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moleclip.losses import OF_ATOMS, OF_PICTURES, AtomHead, Target, huber, known_mean, with_keys
from moleclip.pairs import as_tensors, digest_labels
from moleclip.targets import IGNORED, Labels

TASKS = ("descriptors", "atoms", "electronic")  # of --loss
OF_MOLECULES = ("descriptors", "maccs", "electronic")


def crossed(told, truth):
    """Return the binary cross entropies of bits, (n, d), NaN where the truth is not known."""
    known = truth.isfinite()
    told_of = F.binary_cross_entropy_with_logits
    losses = told_of(told, truth.where(known, 0), reduction="none")
    return losses.where(known, torch.nan)


TARGETS = {  # pretrain.py's, of which here each may be unknown
    "descriptors": Target("descriptors", huber),
    "maccs": Target("descriptors", crossed),
    "electronic": OF_PICTURES["electronic"],
    **{f"atom_{name}": target for name, target in OF_ATOMS.items()},
}


class DenseHeads(nn.Module):
    """Heads on the features of molecules, (n, out), and on those of atoms, (N, width).

    arch: {"molecules": {target: width}, "atoms": {target: width}}.
    """

    def __init__(self, arch, out, width):
        super().__init__()
        heads = {name: nn.Linear(out, size) for name, size in arch["molecules"].items()}
        self.molecules = nn.ModuleDict(heads)
        self.atoms = AtomHead(width, arch["atoms"]) if arch["atoms"] else None

    def forward(self, features, atoms):
        """Return {target: what is told of it}, by the names of TARGETS."""
        told = with_keys({name: head(features) for name, head in self.molecules.items()})
        if self.atoms is not None:
            told |= {f"atom_{name}": values for name, values in self.atoms(atoms).items()}
        return told


class DenseTargets:
    """The targets of a labels.npz for the tasks of --loss, by rows of the file it was made from.

    Raises click.ClickException, in one line, if it was made from another one, or lacks a task.
    """

    def __init__(self, path, source, facts, tasks):
        self.labels = Labels(path, source, facts, tasks)
        self.digest = digest_labels(self.labels)
        outputs = self.labels.outputs
        kept = {name: width for name, width in outputs.items() if name in OF_MOLECULES}
        self.arch = {"molecules": kept, "atoms": self.labels.atom_outputs}

    def of(self, rows, counts):
        """Return {target: tensor} of n rows with so many atoms, int64 (n,), and of their atoms.

        Unknown, NaN or IGNORED, are those of rows without a label, such as cluster.py left out, and
        those of atoms of a row that has another number of atoms in the labels.
        """
        found = self.labels.targets(rows)
        found = {name: found[name].copy() for name in OF_MOLECULES if name in found}
        labelled = (self.labels.clusters[rows] >= 0).all(1)
        for values in found.values():
            values[~labelled] = np.nan
        atoms = self.atoms(rows, counts, labelled) if self.labels.atom_outputs else {}
        return as_tensors(found | {f"atom_{name}": values for name, values in atoms.items()})

    def atoms(self, rows, counts, labelled):
        """Return {target: array} of the atoms of rows, see `of`; labelled: which rows are."""
        same = np.flatnonzero(labelled & (self.labels.places(rows)[0] == counts))
        places = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
        places = np.concatenate([places[i] for i in same] or [np.zeros(0, np.int64)])
        found = self.labels.atoms(rows[same])
        del found["counts"]
        whole = {}
        for name, values in found.items():
            blank = IGNORED if values.dtype == np.int64 else np.nan
            whole[name] = np.full((int(counts.sum()), *values.shape[1:]), blank, values.dtype)
            whole[name][places] = values
        return whole

    def known(self, rows, counts):
        """Return in words of how many molecules or atoms each target is known, in part or whole."""
        said = {}
        for start in range(0, len(rows), 1000):
            part = slice(start, start + 1000)
            for name, values in self.of(rows[part], counts[part]).items():
                known = values != IGNORED if values.ndim == 1 else values.isfinite().any(1)
                before = said.get(name, np.zeros(2, np.int64))
                said[name] = before + [int(known.sum()), len(known)]
        return ", ".join(f"{name} {known:,} of {all_:,}" for name, (known, all_) in said.items())


def losses_of(told, truth):
    """Return {name: values, NaN where unknown} of all targets: losses, and accuracies of classes.

    told: of `DenseHeads`; truth: of `DenseTargets.of`.
    """
    found = {}
    for name, values in truth.items():
        values = values.to(told[name].device)
        found[name] = TARGETS[name].loss(told[name], values)
        if values.ndim == 1:
            right = (told[name].argmax(1) == values).float()
            found[f"{name}_accuracy"] = right.where(values != IGNORED, torch.nan)
    return found


def dense_parts(told, truth, world):
    """Return {name: mean over what is known on all processes} of `losses_of`."""
    return {name: known_mean(values, world) for name, values in losses_of(told, truth).items()}


def weight_of(name, weights):
    """Return what a part of the loss counts, by the weights of --loss; 0 of an accuracy."""
    target = TARGETS.get(name)
    return weights.get(name, 0) if target is None else weights.get(target.task, 0) * target.weight
