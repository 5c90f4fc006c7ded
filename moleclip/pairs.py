"""What pretraining sees: pairs of views with their targets, in batches."""

import hashlib
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from rdkit import rdBase

from moleclip.augment import N_UNIFORMS
from moleclip.device import local_processes
from moleclip.drawing import draw_all
from moleclip.embedder import Places
from moleclip.molecules import Molecule, Rejected, find_input, input_facts, read_molecules
from moleclip.pixels import inflate
from moleclip.shards import open_shards, picture, places_of
from moleclip.targets import Labels
from moleclip.workers import default_workers

CLUSTER_RUN = 32  # cluster mates that enter a batch together, as hard negatives: MoleCLIP's 256 / 8
HELD_OUT = 0.001  # of the molecules, at least one batch
DRAWINGS = (
    "views",
    "r_groups",
    "seed",
    "max_atoms",
    "rdkit",
    "styles",
)  # facts of shards that a run keeps


def open_pairs(shards, smiles, labels, seed, loss, styles, **rest):
    """Return the pairs of --smiles or --shards, with the targets of the tasks that loss names."""
    if smiles:
        return DrawnPairs(smiles, labels, seed, loss, styles)
    return ShardPairs(shards, labels, loss)


def digest(**arrays):
    """Return a short hash of arrays with their names, types and shapes; None is no array."""
    known = hashlib.sha256()
    for name, array in arrays.items():
        if array is not None:
            known.update(f"{name} {array.dtype} {array.shape} ".encode())
            known.update(np.ascontiguousarray(array))
    return known.hexdigest()[:16]


def digest_labels(labels):
    """Return a short hash of what Labels hold: the label sets, and what the tasks use."""
    return digest(**labels.arrays)


class Batch(NamedTuple):
    """Molecules in two views, and what is to be told of them."""

    views: list  # plain, styled: palette indices, uint8 (n, 224, 224)
    targets: dict  # by name: see `as_tensors`
    places: Places | None = None  # of the atoms of the plain views, then of the styled ones
    atoms: dict | None = None  # by name: tensors of the m atoms of one view

    @classmethod
    def of(cls, views, labels, rows, drawn):
        """Return the Batch of rows. drawn(i, view): where the atoms lie, float16 (atoms, 2)."""
        targets, atoms = as_tensors(labels.targets(rows)), labels.atoms(rows)
        if not atoms:
            return cls(views, targets)
        counts, xy = atoms.pop("counts"), []
        for view in (0, 1):
            for i, count in enumerate(counts):
                places = drawn(i, view)
                # of another number of atoms only where another RDKit read the molecule
                xy.append(places if len(places) == count else np.full((count, 2), np.nan))
        places = Places(np.tile(counts, 2), np.concatenate(xy).astype(np.float32))
        return cls(views, targets, places, as_tensors(atoms))


class ShardPairs:
    """Molecules that have both a drawing and a label, read at random from memory-mapped shards."""

    def __init__(self, folder, labels_path, tasks=()):
        self.shards, manifest = open_shards(Path(folder))
        self.sha256 = manifest["sha256"]
        self.drawings = {key: manifest[key] for key in DRAWINGS}
        self.labels = Labels(labels_path, folder, manifest, tasks)
        if self.labels.atom_outputs and not manifest["atoms"]:
            raise click.ClickException(
                f"{folder}/: doesn't say where atoms lie, which --loss atoms=... and "
                "electronic=... need; draw it again with render.py --atoms"
            )
        counts = [len(shard["row"]) for shard in self.shards]
        row = np.concatenate([shard["row"] for shard in self.shards])
        shard = np.repeat(np.arange(len(counts)), counts)
        number = np.concatenate([np.arange(count) for count in counts])
        kept = (self.labels.clusters[row] >= 0).all(1)
        self.row, self.place = row[kept], np.stack([shard, number], 1)[kept]
        self.clusters, self.unlabelled = self.labels.clusters[self.row], int((~kept).sum())

    def __len__(self):
        return len(self.row)

    def load(self, members, epoch):
        """Return the Batch of some members.

        With more than two views in the shards, each epoch takes the next of the styled ones.
        """
        views = 0, 1 + epoch % (int(self.shards[0]["views"]) - 1)
        pair = [
            np.stack([picture(self.shards[s], i, view) for s, i in self.place[members]])
            for view in views
        ]

        def drawn(i, which):
            shard, number = self.place[members[i]]
            return places_of(self.shards[shard], number, views[which])

        return Batch.of(pair, self.labels, self.row[members], drawn)

    def batches(self, plan):
        """Yield (step, Batch) for a plan of (step, members, epoch), the next inflated meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for step, members, epoch in plan:
                following = step, pool.submit(self.load, members, epoch)
                if ahead:
                    yield ahead[0], ahead[1].result()
                ahead = following
            if ahead:
                yield ahead[0], ahead[1].result()


class DrawnPairs:
    """Molecules of a file, drawn by worker processes as needed, in new styles every epoch."""

    def __init__(self, source, labels_path, seed, tasks=(), styles="paper"):
        source = find_input(source)
        facts = input_facts(source)
        self.sha256, self.seed, self.styles = facts["sha256"], seed, styles
        self.drawings = {"views": "drawn in training", "seed": seed, "rdkit": rdBase.rdkitVersion}
        self.drawings["styles"] = styles
        self.labels = Labels(labels_path, source, facts, tasks)
        good = (self.labels.clusters >= 0).all(1)
        self.row, self.unlabelled = np.flatnonzero(good), 0
        self.clusters = self.labels.clusters[self.row]
        self.smiles = [m.smiles for m in read_molecules(source) if good[m.row]]
        self.workers = max(1, default_workers() // local_processes())

    def __len__(self):
        return len(self.row)

    def batches(self, plan):
        """Yield what `ShardPairs.batches` does, drawing ahead."""
        waiting = deque()
        options = {"views": 2, "seed": self.seed, "max_atoms": 10**6, "styles": self.styles}
        options["atoms"] = bool(self.labels.atom_outputs)
        molecules = self.molecules(plan, waiting)
        drawn = (result for _, result in draw_all(molecules, self.workers, group=8, **options))
        for first in drawn:
            step, members = waiting.popleft()
            results = [first] + [next(drawn) for _ in members[1:]]
            good = [i for i, result in enumerate(results) if not isinstance(result, Rejected)]
            if not good:
                raise click.ClickException(
                    f"--smiles: none of a batch's molecules could be drawn: {first}"
                )
            # one that failed gives way to the next
            chosen = [good[np.searchsorted(good, i) % len(good)] for i in range(len(results))]
            yield step, self.batch([results[i] for i in chosen], self.row[members[chosen]])

    def batch(self, results, rows):
        """Return the Batch of rows from what `draw_views` gave of each."""
        if not self.labels.atom_outputs:
            results = [(streams, None) for streams in results]
        pair = [np.stack([inflate(streams[view]) for streams, _ in results]) for view in (0, 1)]
        return Batch.of(pair, self.labels, rows, lambda i, view: results[i][1][view])

    def molecules(self, plan, waiting):
        """Yield the molecules of a plan in its order, noting each step's members in `waiting`."""
        for step, members, epoch in plan:
            waiting.append((step, members))
            for i in members:  # the style follows from the seed and this row number
                yield Molecule(int(self.row[i]) + (epoch << 40), 0, self.smiles[i])

    def load(self, members, epoch):
        """Return a Batch as `ShardPairs.load` does."""
        return next(self.batches([(0, members, epoch)]))[1]


def as_tensors(targets):
    """Return targets by name as tensors: int64 (n,) clusters, float32 (n, d) of other kinds."""
    tensors = {name: torch.from_numpy(values) for name, values in targets.items()}
    return {
        name: values if values.is_floating_point() else values.long()
        for name, values in tensors.items()
    }


def split_held_out(labels, batch):
    """Return (training order, held-out members), both sorted by the finest label set.

    labels: int (n, label sets). Runs of cluster mates are held out, every other molecule of a
    stretch twice as long: the rest of it stays in training, so that small sets don't lose whole
    classes, which no head could then tell. Raises click.ClickException.
    """
    order = np.lexsort((np.arange(len(labels)), labels[:, -1]))
    wanted = max(batch, math.ceil(len(order) * HELD_OUT / CLUSTER_RUN) * CLUSTER_RUN)
    if len(order) < wanted + batch:
        remedy = f"at least {2 * CLUSTER_RUN} are needed"
        if batch > CLUSTER_RUN:
            remedy = "lower --batch"
        raise click.ClickException(
            f"{len(order)} molecules are too few for --batch {batch} (one batch is held out); "
            f"{remedy}"
        )
    stretches = np.random.default_rng(42).permutation(len(order) // (2 * CLUSTER_RUN))
    held = np.zeros(len(order), bool)
    for stretch in stretches[: wanted // CLUSTER_RUN]:
        held[2 * CLUSTER_RUN * stretch : 2 * CLUSTER_RUN * (stretch + 1) : 2] = True
    return order[~held], order[held]


def epoch_batches(order, labels, batch, seed, epoch):
    """Return an epoch's batches, int (steps, batch): each of several runs of 32 cluster mates.

    order: as `split_held_out` returns it for these labels. Each epoch, mates are shuffled within
    their class, all is cut into runs from some place on, and the runs are shuffled.
    """
    random = np.random.default_rng([seed, epoch])
    order = order[np.lexsort((random.random(len(order)), labels[order, -1]))]
    # round the end, so that what is left over is in every epoch something else
    order = np.roll(order, random.integers(len(order)))
    runs = order[: len(order) // CLUSTER_RUN * CLUSTER_RUN].reshape(-1, CLUSTER_RUN)
    runs = runs[random.permutation(len(runs))]
    steps = len(order) // batch
    return runs[: steps * batch // CLUSTER_RUN].reshape(steps, batch)


def schedule(order, labels, batch, seed, first, last, world):
    """Yield (step, this process's members, epoch) for the steps first..last-1."""
    steps = len(order) // batch
    for epoch in range(first // steps, -(-last // steps)):
        batches = epoch_batches(order, labels, batch, seed, epoch)
        for step, members in enumerate(batches, epoch * steps):
            if first <= step < last:
                yield step, world.share(members), epoch


def random_numbers(seed, step, batch, world):
    """Return the uniform numbers of this process's augmentations in a step.

    float64 (2 * local batch, N_UNIFORMS): the plain views', then the styled ones'.
    """
    both = np.random.default_rng([seed, step, 1]).random((2, batch, N_UNIFORMS))
    return np.concatenate([world.share(view) for view in both])
