"""What pretraining sees: pairs of views with their targets, in batches."""

import hashlib
import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from rdkit import rdBase

from moleclip.device import local_processes
from moleclip.drawing import draw_all
from moleclip.embedder import Places
from moleclip.loader import UNMOVED, Loaded, by_processes, by_thread, ink_of
from moleclip.molecules import Molecule, Rejected, find_input, input_facts, read_molecules
from moleclip.movement import N_UNIFORMS
from moleclip.pixels import inflate
from moleclip.shards import open_shards
from moleclip.targets import Labels
from moleclip.workers import default_workers, prefetch

CLUSTER_RUN = 32  # cluster mates that enter a batch together, as hard negatives: MoleCLIP's 256 / 8
HELD_OUT = 0.001  # of the molecules, at least one batch
AHEAD = 2  # batches that are drawn and wait, at most
DRAWINGS = (
    "views",
    "r_groups",
    "seed",
    "max_atoms",
    "rdkit",
    "styles",
)  # facts of shards that a run keeps


def open_pairs(shards, smiles, labels, seed, loss, styles, workers, **rest):
    """Return the pairs of --smiles or --shards, with the targets of the tasks that loss names."""
    if smiles:
        return DrawnPairs(smiles, labels, seed, loss, styles, workers)
    return ShardPairs(shards, labels, loss, workers or 0)


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

    views: np.ndarray  # plain, styled: palette indices, uint8 (2, n, 224, 224)
    targets: dict  # by name: see `as_tensors`
    places: Places | None = None  # of the atoms of the plain views, then of the styled ones
    atoms: dict | None = None  # by name: tensors of the m atoms of one view
    random: np.ndarray | None = None  # what augmentation follows from, (2n, N_UNIFORMS)
    ink: np.ndarray | None = None  # inked patches of both views, at most, int (2n,)

    @property
    def both(self):
        """The plain views, then the styled ones, uint8 (2n, 224, 224)."""
        return self.views.reshape(-1, *self.views.shape[2:])

    @classmethod
    def of(cls, loaded, labels, rows, random=None):
        """Return the Batch of rows that are Loaded."""
        targets, atoms = as_tensors(labels.targets(rows)), labels.atoms(rows)
        ink = None if loaded.ink is None else loaded.ink.ravel()
        if not atoms:
            return cls(loaded.views, targets, random=random, ink=ink)
        counts, xy = atoms.pop("counts"), []
        for view in (0, 1):
            for places, count in zip(loaded.places[view], counts):
                # of another number of atoms only where another RDKit read the molecule
                xy.append(places if len(places) == count else np.full((count, 2), np.nan))
        places = Places(np.tile(counts, 2), np.concatenate(xy).astype(np.float32))
        return cls(loaded.views, targets, places, as_tensors(atoms), random, ink)


class ShardPairs:
    """Molecules that have both a drawing and a label, read at random from memory-mapped shards.

    workers: processes that inflate drawings; 0: a thread of this one does.
    """

    def __init__(self, folder, labels_path, tasks=(), workers=0):
        self.folder, self.workers = Path(folder).resolve(), workers
        self.shards, manifest = open_shards(folder)
        self.sha256, self.count = manifest["sha256"], manifest["views"]
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
        """Return the Batch of some members."""
        return next(self.read([(0, members, epoch)], UNMOVED, 0))[1]

    def batches(self, plan, look=UNMOVED):
        """Yield (step, Batch) for a plan of (step, members, epoch), the next inflated meanwhile.

        With more than two views in the shards, each epoch takes the next of the styled ones.
        """
        return prefetch(self.read(plan, look, self.workers), 1)

    def read(self, plan, look, workers):
        """Yield what `batches` does, when it is asked for."""
        atoms = bool(self.labels.atom_outputs)
        found = (
            (step, members, self.place[members], (0, 1 + epoch % (self.count - 1)))
            for step, members, epoch in plan
        )
        if workers:
            found = by_processes(self.folder, found, look, atoms, workers)
        else:
            found = by_thread(self.shards, found, look, atoms)
        for step, members, random, loaded in found:
            yield step, Batch.of(loaded, self.labels, self.row[members], random)


class DrawnPairs:
    """Molecules of a file, drawn by worker processes as needed, in new styles every epoch."""

    def __init__(self, source, labels_path, seed, tasks=(), styles="paper", workers=None):
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
        self.workers = workers or max(1, default_workers() // local_processes())
        self.kept = {}  # of members that are loaded again and again

    def __len__(self):
        return len(self.row)

    def batches(self, plan, look=UNMOVED):
        """Yield what `ShardPairs.batches` does, drawn while others are learned from."""
        return prefetch(self.read(plan, look), AHEAD)

    def read(self, plan, look):
        """Yield what `batches` does, when it is asked for."""
        for step, rows, results in self.draw(plan):
            yield step, self.batch(rows, results, look, look.random(step))

    def draw(self, plan):
        """Yield (step, rows, what `draw_views` gave of each) for a plan."""
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
            yield step, self.row[members[chosen]], [results[i] for i in chosen]

    def batch(self, rows, results, look, random=None):
        """Return the Batch of rows from what `draw_views` gave of each."""
        places = None
        if self.labels.atom_outputs:
            places = [[where[view] for _, where in results] for view in (0, 1)]
            results = [streams for streams, _ in results]
        views = np.stack([[inflate(streams[view]) for streams in results] for view in (0, 1)])
        loaded = Loaded(views, places, ink_of(views, look, random))
        return Batch.of(loaded, self.labels, rows, random)

    def molecules(self, plan, waiting):
        """Yield the molecules of a plan in its order, noting each step's members in `waiting`."""
        for step, members, epoch in plan:
            waiting.append((step, members))
            for i in members:  # the style follows from the seed and this row number
                yield Molecule(int(self.row[i]) + (epoch << 40), 0, self.smiles[i])

    def load(self, members, epoch):
        """Return the Batch of some members; drawn once, for evaluation asks again and again."""
        key = members.tobytes(), epoch
        if key not in self.kept:
            _, *self.kept[key] = next(self.draw([(0, members, epoch)]))
        return self.batch(*self.kept[key], UNMOVED)


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
