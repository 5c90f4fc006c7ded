"""TODO"""

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn import functional as F

from moleclip.augment import N_UNIFORMS
from moleclip.drawing import draw_all
from moleclip.molecules import Molecule, Rejected, find_input, input_facts, read_molecules
from moleclip.pixels import inflate
from moleclip.shards import Labels, open_shards, picture
from moleclip.workers import default_workers

CLUSTER_RUN = 32  # cluster mates that enter a batch together: the hard negatives (MoleCLIP: 256 / mix factor 8)
HELD_OUT = 0.001  # of the molecules, at least one batch
MACCS_PACKED = 168  # bits of the keys as cluster.py packs them: 167 and an empty one


class ShardPairs:
    """Molecules that have both a drawing and a label, read at random from memory-mapped shards."""

    def __init__(self, folder, labels_path, describe=False):
        self.shards, manifest = open_shards(Path(folder))
        self.sha256, self.labels = (
            manifest["sha256"],
            Labels(labels_path, folder, manifest, describe),
        )
        self.row = np.concatenate([shard["row"] for shard in self.shards])
        self.place = np.concatenate(
            [
                np.stack([np.full(len(s["row"]), i), np.arange(len(s["row"]))], 1)
                for i, s in enumerate(self.shards)
            ]
        )
        kept = (self.labels.clusters[self.row] >= 0).all(1)
        self.place, self.row, self.unlabelled = self.place[kept], self.row[kept], int((~kept).sum())

    def __len__(self):
        return len(self.place)

    def load(self, members, epoch):
        """Return ([plain, styled], labels): two uint8 (n, 224, 224) of palette indices, and what `Labels.of` gives.

        With more than two views in the shards, each epoch takes the next of the styled ones.
        """
        views = int(self.shards[0]["views"])
        pair = [
            np.stack([picture(self.shards[s], i, view) for s, i in self.place[members]])
            for view in (0, 1 + epoch % (views - 1))
        ]
        return pair, self.labels.of(self.row[members])

    def batches(self, plan):
        """Yield (step, [plain, styled], labels) for a plan of (step, members, epoch); the next is inflated meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for step, members, epoch in plan:
                following = step, pool.submit(self.load, members, epoch)
                if ahead:
                    yield ahead[0], *ahead[1].result()
                ahead = following
            if ahead:
                yield ahead[0], *ahead[1].result()


class DrawnPairs:
    """Molecules of a file, drawn when they are needed by processes of their own, in new styles every epoch."""

    def __init__(self, source, labels_path, seed, describe=False):
        source = find_input(source)
        facts = input_facts(source, None)
        self.sha256, self.seed, self.labels = (
            facts["sha256"],
            seed,
            Labels(labels_path, source, facts, describe),
        )
        good = (self.labels.clusters >= 0).all(1)
        self.row, self.unlabelled = np.flatnonzero(good), 0
        self.smiles = [m.smiles for m in read_molecules(source) if good[m.row]]
        self.workers = max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def __len__(self):
        return len(self.row)

    def batches(self, plan):
        """Yield (step, [plain, styled], labels) for a plan of (step, members, epoch), drawing ahead."""
        waiting = deque()

        def molecules():
            for step, members, epoch in plan:
                waiting.append((step, members))
                for i in members:  # the style follows from the seed and this row number
                    yield Molecule(int(self.row[i]) + (epoch << 40), 0, self.smiles[i])

        drawn = (
            result
            for _, result in draw_all(
                molecules(), self.workers, group=8, views=2, seed=self.seed, max_atoms=10**6
            )
        )
        for first in drawn:
            step, members = waiting.popleft()
            results = [first] + [next(drawn) for _ in members[1:]]
            good = [i for i, result in enumerate(results) if not isinstance(result, Rejected)]
            if not good:
                raise click.ClickException(
                    f"--smiles: none of a batch's molecules could be drawn: {first}"
                )
            chosen = [
                good[np.searchsorted(good, i) % len(good)] for i in range(len(results))
            ]  # a failed one gives way to the next
            pair = [np.stack([inflate(results[i][view]) for i in chosen]) for view in (0, 1)]
            yield step, pair, self.labels.of(self.row[members[chosen]])

    def load(self, members, epoch):
        """Return ([plain, styled], labels) as `Pictures.load` does."""
        return next(self.batches([(0, members, epoch)]))[1:]


def split_held_out(labels, batch):
    """Return (training order, held-out members), both sorted by the finest label set.

    Runs of cluster mates are held out, every other molecule of a stretch twice as long: the rest of it stays in training, so
    that small sets don't lose whole classes, which no head could then tell.
    """
    order = np.lexsort((np.arange(len(labels)), labels[:, -1]))
    wanted = max(batch, math.ceil(len(order) * HELD_OUT / CLUSTER_RUN) * CLUSTER_RUN)
    if len(order) < wanted + batch:
        remedy = (
            "lower --batch" if batch > CLUSTER_RUN else f"at least {2 * CLUSTER_RUN} are needed"
        )
        raise click.ClickException(
            f"{len(order)} molecules are too few for --batch {batch} (one batch is held out); {remedy}"
        )
    stretches = np.random.default_rng(42).permutation(len(order) // (2 * CLUSTER_RUN))[
        : wanted // CLUSTER_RUN
    ]
    held = np.zeros(len(order), bool)
    for stretch in stretches:
        held[2 * CLUSTER_RUN * stretch : 2 * CLUSTER_RUN * (stretch + 1) : 2] = True
    return order[~held], order[held]


def epoch_batches(order, batch, seed, epoch):
    """Return int (steps, batch): runs of 32 cluster mates, cut anew and shuffled each epoch, several to a batch."""
    random = np.random.default_rng([seed, epoch])
    start = random.integers(
        len(order) % CLUSTER_RUN + 1
    )  # so that no molecule is left over in every epoch
    runs = order[start : start + len(order) // CLUSTER_RUN * CLUSTER_RUN].reshape(-1, CLUSTER_RUN)
    runs = runs[random.permutation(len(runs))]
    steps = len(order) // batch
    return runs[: steps * batch // CLUSTER_RUN].reshape(steps, batch)


def schedule(order, batch, seed, first, last, world):
    """Yield (step, this process's members, epoch) for the steps first..last-1."""
    steps = len(order) // batch
    for epoch in range(first // steps, -(-last // steps)):
        for step, members in enumerate(epoch_batches(order, batch, seed, epoch), epoch * steps):
            if first <= step < last:
                yield step, np.array_split(members, world.size)[world.rank], epoch


def random_numbers(seed, step, batch, world):
    """Return the uniform numbers of this process's augmentations, float64 (2 * local batch, RANDOM): plain views, then styled."""
    both = np.random.default_rng([seed, step, 1]).random((2, batch, N_UNIFORMS))
    return np.concatenate([np.array_split(view, world.size)[world.rank] for view in both])


def contrastive_loss(a, b, scale):
    """Return 0.5 * (CE(s a b^T) + CE(s b a^T)) of L2-normalised features (n, d), and view-to-view top-1 accuracy."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits, target = scale * a @ b.T, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, (
        logits.argmax(1) == target
    ).float().mean()


def loss_parts(plain, styled, heads, labels, world, scale):
    """Return {"contrastive": , "k300": , ..., "retrieval": , "k300_accuracy": } of one batch's features.

    plain, styled: fp32 (local n, 512); the contrastive loss is over the molecules of all processes. labels: as `Labels.of` has them.
    """
    parts = {}
    parts["contrastive"], parts["retrieval"] = contrastive_loss(
        world.gather(plain), world.gather(styled), scale
    )
    for i, name in enumerate(sets := class_heads(heads)):
        logits, truth = heads[name](plain), labels[:, i].long()
        parts[name] = F.cross_entropy(logits, truth)
        parts[f"{name}_accuracy"] = (logits.argmax(1) == truth).float().mean()
    if "descriptors" in heads:
        told, truth = heads["descriptors"](plain), labels[:, len(sets) :]
        parts["descriptors"] = F.smooth_l1_loss(told[:, :-MACCS_PACKED], truth[:, :-MACCS_PACKED])
        parts["maccs"] = F.binary_cross_entropy_with_logits(
            told[:, -MACCS_PACKED:], truth[:, -MACCS_PACKED:]
        )
    return parts


def class_heads(heads):
    return [name for name in heads if name != "descriptors"]
