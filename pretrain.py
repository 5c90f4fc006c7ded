"""Teach an image encoder chemistry on drawings of unlabelled molecules: contrastive views plus cluster pseudo-labels.

    torchrun --nproc_per_node=4 pretrain.py                               # shards/ + labels.npz -> encoder.pt, from ViT-B/16
    python pretrain.py --init scratch:tiny --lr 5e-4 --batch 64 --epochs 1
    python pretrain.py --resume                                           # go on where an interrupted run stopped

The method is MoleCLIP's (Harnik et al., Chem. Sci. 2025, 16, 10833). This script also owns the encoder for the others:
building it from the clip package, loading weights from anywhere, saving them.
"""

import json
import math
import os
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

import render
from device import World, autocast, fitting_batch, memory_used, one_voice, pick_device, pick_precision
from encoder import (ADAM, BUNDLED, CLIP_MEAN, CLIP_STD, RANDOM, Encoder, augment, load_checkpoint, load_encoder, moved_ink, new_arch,      # noqa: F401
                     one_line, restore_encoder, save_checkpoint, to_pixels)

RUN = 32                # cluster mates that enter a batch together: the hard negatives (MoleCLIP: 256 / mix factor 8)
HELD_OUT = 0.001        # of the molecules, at least one batch
MACCS = 168             # bits of the keys as cluster.py packs them: 167 and an empty one
WARM_UP = 5             # steps at a third of the learning rate (MoleCLIP's ConstantLR)


# ---------------------------------------------------------------------------------------------------------------------
# Data


class Pictures:
    """Molecules that have both a drawing and a label, read at random from memory-mapped shards."""

    def __init__(self, folder, labels_path, describe=False):
        self.shards, manifest = open_shards(Path(folder))
        self.sha256, self.labels = manifest["sha256"], Labels(labels_path, folder, manifest, describe)
        self.row = np.concatenate([shard["row"] for shard in self.shards])
        self.place = np.concatenate([np.stack([np.full(len(s["row"]), i), np.arange(len(s["row"]))], 1)
                                     for i, s in enumerate(self.shards)])
        kept = (self.labels.clusters[self.row] >= 0).all(1)
        self.place, self.row, self.unlabelled = self.place[kept], self.row[kept], int((~kept).sum())

    def __len__(self):
        return len(self.place)

    def load(self, members, epoch):
        """Return ([plain, styled], labels): two uint8 (n, 224, 224) of palette indices, and what `Labels.of` gives.

        With more than two views in the shards, each epoch takes the next of the styled ones.
        """
        views = int(self.shards[0]["views"])
        pair = [np.stack([render.picture(self.shards[s], i, view) for s, i in self.place[members]]) for view in (0, 1 + epoch % (views - 1))]
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


class FreshPictures:
    """Molecules of a file, drawn when they are needed by processes of their own, in new styles every epoch."""

    def __init__(self, source, labels_path, seed, describe=False):
        source = render.find_input(source)
        facts = render.input_facts(source, None)
        self.sha256, self.seed, self.labels = facts["sha256"], seed, Labels(labels_path, source, facts, describe)
        good = (self.labels.clusters >= 0).all(1)
        self.row, self.unlabelled = np.flatnonzero(good), 0
        self.smiles = [m.smiles for m in render.read_molecules(source) if good[m.row]]
        self.workers = max(1, render.default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def __len__(self):
        return len(self.row)

    def batches(self, plan):
        """Yield (step, [plain, styled], labels) for a plan of (step, members, epoch), drawing ahead."""
        waiting = deque()

        def molecules():
            for step, members, epoch in plan:
                waiting.append((step, members))
                for i in members:                          # the style follows from the seed and this row number
                    yield render.Molecule(int(self.row[i]) + (epoch << 40), 0, self.smiles[i])

        drawn = (result for _, result in render.draw_all(molecules(), self.workers, group=8, views=2, seed=self.seed, max_atoms=10**6))
        for first in drawn:
            step, members = waiting.popleft()
            results = [first] + [next(drawn) for _ in members[1:]]
            good = [i for i, result in enumerate(results) if not isinstance(result, str)]
            if not good:
                raise click.ClickException(f"--smiles: none of a batch's molecules could be drawn: {first}")
            chosen = [good[np.searchsorted(good, i) % len(good)] for i in range(len(results))]     # a failed one gives way to the next
            pair = [np.stack([render.inflate(results[i][view]) for i in chosen]) for view in (0, 1)]
            yield step, pair, self.labels.of(self.row[members[chosen]])

    def load(self, members, epoch):
        """Return ([plain, styled], labels) as `Pictures.load` does."""
        return next(self.batches([(0, members, epoch)]))[1:]


def open_shards(folder):
    """Return (shards, manifest) of a folder that render.py filled. Raises click.ClickException."""
    manifest = render.read_manifest(folder)
    if manifest["views"] < 2:
        raise click.ClickException(f"{folder}/: has one view of each molecule; the contrastive loss needs two: render.py --views 2")
    shards = [render.read_shard(render.shard_path(folder, i)) for i in range(-(-manifest["rows"] // render.SHARD))]
    return [shard for shard in shards if len(shard["row"])], manifest


class Labels:
    """What the heads are to tell of each row: its cluster in every label set, coarsest first, and its descriptors if asked.

    Raises click.ClickException if the file is none of cluster.py's, made from another input than the shards, or lacks what is asked.
    """

    def __init__(self, path, folder, manifest, describe=False):
        if not Path(path).is_file():
            raise click.ClickException(f"{path}: no such file; make it first: python cluster.py {manifest['input']} -o {path}")
        arrays = render.read_arrays(path, ("meta",))
        names = sorted((name for name in arrays if name[:1] == "k" and name[1:].isdigit()), key=lambda name: int(name[1:]))
        self.descriptors, self.maccs = (arrays.get(name) if describe else None for name in ("descriptors", "maccs"))
        try:
            meta = json.loads(str(arrays["meta"]))
            facts = {key: meta[key] for key in ("input", "sha256", "rows", "smiles_column")}
            whole = names and all(arrays[name].shape == (facts["rows"],) and arrays[name].dtype == np.int32 and arrays[name].max() < int(name[1:]) for name in names)
            whole &= self.maccs is None or len(self.descriptors) == len(self.maccs) == facts["rows"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise click.ClickException(f"{path}: damaged or of another kind; make it again with cluster.py")
        compared = ("rows", "smiles_column", "sha256") if manifest["sha256"] else ("rows",)     # drawn from standard input: no hash
        if any(facts[key] != manifest[key] for key in compared):
            raise click.ClickException(f"{path}: made from {facts['input']} ({facts['rows']} rows), but {folder}/ from another file, "
                                       f"{manifest['input']} ({manifest['rows']} rows), or another column; run cluster.py on what was drawn")
        if describe and self.maccs is None:
            raise click.ClickException(f"{path}: has no descriptors, which --loss descriptors=... needs; make it again with cluster.py --descriptors")
        self.clusters = np.stack([arrays[name] for name in names], 1)                          # int32 (rows, label sets)
        self.outputs = {name: int(arrays[name].max()) + 1 for name in names}                   # of each head
        if describe:
            self.outputs["descriptors"] = self.descriptors.shape[1] + 8 * self.maccs.shape[1]

    def of(self, rows):
        """Return a row's clusters, then its standardised descriptors and MACCS bits if asked, float32 (n, label sets + ...)."""
        parts = [self.clusters[rows]]
        if self.maccs is not None:
            parts += [self.descriptors[rows], np.unpackbits(self.maccs[rows], axis=1)]
        return torch.from_numpy(np.hstack(parts).astype(np.float32))                           # exact for numbers of clusters


def split_held_out(labels, batch):
    """Return (training order, held-out members), both sorted by the finest label set.

    Runs of cluster mates are held out, every other molecule of a stretch twice as long: the rest of it stays in training, so
    that small sets don't lose whole classes, which no head could then tell.
    """
    order = np.lexsort((np.arange(len(labels)), labels[:, -1]))
    wanted = max(batch, math.ceil(len(order) * HELD_OUT / RUN) * RUN)
    if len(order) < wanted + batch:
        remedy = "lower --batch" if batch > RUN else f"at least {2 * RUN} are needed"
        raise click.ClickException(f"{len(order)} molecules are too few for --batch {batch} (one batch is held out); {remedy}")
    stretches = np.random.default_rng(42).permutation(len(order) // (2 * RUN))[:wanted // RUN]
    held = np.zeros(len(order), bool)
    for stretch in stretches:
        held[2 * RUN * stretch:2 * RUN * (stretch + 1):2] = True
    return order[~held], order[held]


def epoch_batches(order, batch, seed, epoch):
    """Return int (steps, batch): runs of 32 cluster mates, cut anew and shuffled each epoch, several to a batch."""
    random = np.random.default_rng([seed, epoch])
    start = random.integers(len(order) % RUN + 1)          # so that no molecule is left over in every epoch
    runs = order[start:start + len(order) // RUN * RUN].reshape(-1, RUN)
    runs = runs[random.permutation(len(runs))]
    steps = len(order) // batch
    return runs[:steps * batch // RUN].reshape(steps, batch)


# ---------------------------------------------------------------------------------------------------------------------
# Loss and step


def contrastive_loss(a, b, scale):
    """Return 0.5 * (CE(s a b^T) + CE(s b a^T)) of L2-normalised features (n, d), and view-to-view top-1 accuracy."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits, target = scale * a @ b.T, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, (logits.argmax(1) == target).float().mean()


def loss_parts(plain, styled, heads, labels, world, scale):
    """Return {"contrastive": , "k300": , ..., "retrieval": , "k300_accuracy": } of one batch's features.

    plain, styled: fp32 (local n, 512); the contrastive loss is over the molecules of all processes. labels: as `Labels.of` has them.
    """
    parts = {}
    parts["contrastive"], parts["retrieval"] = contrastive_loss(world.gather(plain), world.gather(styled), scale)
    for i, name in enumerate(sets := class_heads(heads)):
        logits, truth = heads[name](plain), labels[:, i].long()
        parts[name] = F.cross_entropy(logits, truth)
        parts[f"{name}_accuracy"] = (logits.argmax(1) == truth).float().mean()
    if "descriptors" in heads:
        told, truth = heads["descriptors"](plain), labels[:, len(sets):]
        parts["descriptors"] = F.smooth_l1_loss(told[:, :-MACCS], truth[:, :-MACCS])
        parts["maccs"] = F.binary_cross_entropy_with_logits(told[:, -MACCS:], truth[:, -MACCS:])
    return parts


def class_heads(heads):
    return [name for name in heads if name != "descriptors"]


class Eye:
    """The encoder with all that decides how it sees a batch: device, precision, augmentation, pictures in memory at once."""

    def __init__(self, encoder, device, dtype, level="none", micro=64):
        self.encoder, self.device, self.dtype, self.level, self.micro = encoder, device, dtype, level, micro

    def look(self, index, random):
        """Return fp32 features (n, 512) of index pictures, uint8 (n, 224, 224); random: (n, RANDOM), or None for no augmentation."""
        pixels, clean = augment(to_pixels(index, self.device), self.level if random is not None else "none", random)
        ink = self.encoder.inked(clean) if self.encoder.arch["tokens"] == "inked" else None
        with autocast(self.device, self.dtype):
            return self.encoder(pixels, ink).float()

    def slices(self, index, random):
        """Return index arrays that cut a batch into slices of at most `micro` pictures, with like amounts of ink in each."""
        # On a CPU a slice should stay in its cache: base is a quarter faster by 16 pictures than by 48.
        most = min(self.micro, 16) if self.device.type == "cpu" else self.micro
        order = np.arange(len(index))
        if self.encoder.arch["tokens"] == "inked" and len(index) > most:                 # a slice is padded to its fullest picture
            level, chunks = self.level if random is not None else "none", np.array_split(order, -(-len(index) // 64))
            inked = [moved_ink(index[part], level, random if random is None else random[part], self.encoder) for part in chunks]
            order = np.argsort(np.concatenate(inked), kind="stable")
        return np.array_split(order, -(-len(index) // most))

    def look_in_slices(self, index, random, slices=None):
        """Return the features of a whole batch in its order."""
        slices = slices or self.slices(index, random)
        features = torch.cat([self.look(index[part], None if random is None else random[part]) for part in slices])
        return features[torch.from_numpy(np.argsort(np.concatenate(slices))).to(self.device)]


def backward(eye, heads, views, random, labels, world, scale, weights, scaler):
    """Leave the gradient of the global loss in the parameters and return its detached parts.

    With more pictures than fit at once the features come first without gradient, then slice by slice with it (gradient
    caching): the memory of one slice, the same result. views: two uint8 (n, 224, 224); random: (2n, RANDOM).
    """
    n, index = len(labels), np.concatenate(views)
    whole, slices = len(index) <= eye.micro, eye.slices(index, random)
    with nullcontext() if whole else torch.no_grad():
        features = eye.look_in_slices(index, random, slices)
    leaf = features if whole else features.requires_grad_()
    parts = loss_parts(leaf[:n], leaf[n:], heads, labels, world, scale)
    loss = weights["contrastive"] * parts["contrastive"] + weights["classes"] * sum(parts[name] for name in class_heads(heads))
    if "descriptors" in heads:
        loss = loss + weights["descriptors"] * (parts["descriptors"] + parts["maccs"])
    if not torch.isfinite(loss):
        raise click.ClickException("the loss is not a number any more; lower --lr or try --precision fp32 (nothing was overwritten)")
    scaler.scale(loss).backward()
    for part in () if whole else slices:
        eye.look(index[part], random[part]).backward(leaf.grad[torch.from_numpy(part).to(leaf.device)])
    world.average_gradients([*eye.encoder.parameters(), *heads.parameters()])
    return {name: value.detach() for name, value in parts.items()} | {"loss": loss.detach()}


@torch.no_grad()
def evaluate(eye, heads, pictures, members, batch, world, scale):
    """Return the mean loss parts, retrieval and accuracies over held-out batches, the same on every process."""
    totals = []
    for chunk in members[:len(members) // batch * batch].reshape(-1, batch):
        mine = np.array_split(chunk, world.size)[world.rank]
        views, labels = pictures.load(mine, 0)
        plain, styled = (eye.look_in_slices(view, None) for view in views)
        parts = loss_parts(plain, styled, heads, labels.to(eye.device), world, scale)
        totals.append(torch.stack(list(parts.values())))
    means = world.mean(torch.stack(totals).mean(0))
    return {f"held_out_{name}": value.item() for name, value in zip(parts, means)}


# ---------------------------------------------------------------------------------------------------------------------
# The run


def schedule(order, batch, seed, first, last, world):
    """Yield (step, this process's members, epoch) for the steps first..last-1."""
    steps = len(order) // batch
    for epoch in range(first // steps, -(-last // steps)):
        for step, members in enumerate(epoch_batches(order, batch, seed, epoch), epoch * steps):
            if first <= step < last:
                yield step, np.array_split(members, world.size)[world.rank], epoch


def random_numbers(seed, step, batch, world):
    """Return the uniform numbers of this process's augmentations, float64 (2 * local batch, RANDOM): plain views, then styled."""
    both = np.random.default_rng([seed, step, 1]).random((2, batch, RANDOM))
    return np.concatenate([np.array_split(view, world.size)[world.rank] for view in both])


def save_run(path, encoder, heads, optimizers, scaler, step, config, metrics, log):
    """Write encoder.pt, the same facts as encoder.json, and the log."""
    path = Path(path)
    save_checkpoint(path, encoder=encoder.visual.state_dict(), arch=encoder.arch, step=step, config=config, metrics=metrics,
                    heads=heads.state_dict(), optimizer=[optimizer.state_dict() for optimizer in optimizers], scaler=scaler.state_dict(),
                    rng=torch.get_rng_state(), sampler={"seed": config["seed"], "step": step})      # the order is a function of both
    render.save_json(path.with_suffix(".json"), {"arch": encoder.arch, "step": step, "config": config, "metrics": metrics})
    render.save_whole(path.with_suffix(".log.jsonl"), lambda name: name.write_text("".join(json.dumps(entry) + "\n" for entry in log)))


def plot_curves(path, log):
    """Draw the loss parts, training and held-out, against the step."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    training, held = [e for e in log if "loss" in e], [e for e in log if "held_out_retrieval" in e]
    if not training:                                       # left before the first line of the log
        return
    names = [name for name in training[0] if name in ("contrastive", "descriptors", "maccs") or (name[0] == "k" and name[1:].isdigit())]
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3.4 * (len(names) + 1), 3), layout="constrained")
    width = max(1, len(training) // 12)
    for axis, name in zip(axes, names):
        values = np.array([e[name] for e in training])
        axis.plot([e["step"] for e in training], values, color="C0", alpha=0.3, lw=0.8)
        smooth = [values[max(0, i - width + 1):i + 1].mean() for i in range(len(values))]
        axis.plot([e["step"] for e in training], smooth, color="C0", label=f"training, mean of {width}" if width > 1 else "training")
        axis.plot([e["step"] for e in held], [e[f"held_out_{name}"] for e in held], "o-", color="C1", label="held out")
        axis.set(title=f"{name} loss", xlabel="step")
    axes[-1].plot([e["step"] for e in held], [100 * e["held_out_retrieval"] for e in held], "o-", color="C1")
    axes[-1].set(title="held-out view-to-view top-1, %", xlabel="step", ylim=(0, 100))
    axes[0].legend()
    render.save_whole(path, lambda name: figure.savefig(name, dpi=110, format="png"))
    plt.close(figure)


def describe(entry):
    """Return one log line: the step, every loss part and accuracy, and in training the pace."""
    parts = [f"{name} {value:.3f}" for name, value in entry.items() if name not in ("step", "epoch", "lr", "images/s", "memory_gb", "left")]
    pace = [f"{entry['images/s']:.0f} images/s", f"{entry['memory_gb']:.1f} GB", f"{entry['left'] // 60}:{entry['left'] % 60:02d} left"] if "left" in entry else []
    return "  ".join([f"step {entry['step']:5d}", *parts, *pace])


def report(world, entry):
    if world.rank == 0:
        click.echo(entry if isinstance(entry, str) else describe(entry))


def resume_from(path, encoder, heads, optimizers, scaler, config):
    """Restore a checkpoint into the run's parts and return (step, log). Raises if settings differ, but for --lr and --loss, which the log notes."""
    checkpoint = load_checkpoint(path)
    before = checkpoint.get("config", {})
    changed = {key: config[key] for key in ("lr", "loss") if before.get(key) != config[key]}   # a run's last part at a lower rate is a common wish
    for key in ("input_sha256", "batch", "seed", "init", "temperature", "tokens", "augment", "optimizer"):
        if before.get(key) != config[key]:
            raise click.ClickException(f"{path}: was made with {key} {before.get(key)}, not {config[key]}; resume with the same settings, or give another -o")
    try:
        encoder.visual.load_state_dict(checkpoint["encoder"])
        heads.load_state_dict(checkpoint["heads"])
        scaler.load_state_dict(checkpoint["scaler"])
        for optimizer, state in zip(optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(checkpoint["rng"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise click.ClickException(f"{path}: can't be resumed from ({one_line(error)})") from None
    log, changes = Path(path).with_suffix(".log.jsonl"), [{"step": checkpoint["step"], "changed": changed}] if changed else []
    try:
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        return checkpoint["step"], [entry for entry in entries if entry["step"] <= checkpoint["step"]] + changes
    except (OSError, ValueError, TypeError, KeyError):
        click.echo(f"warning: {log} is missing or damaged; the log begins anew", err=True)
        return checkpoint["step"], changes


class Positive(click.FloatRange):
    """A finite number above 0."""

    def __init__(self):
        super().__init__(0, 1e6, min_open=True)

    def convert(self, value, parameter, context):
        number = super().convert(value, parameter, context)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number", parameter, context)


def parse_loss(context, parameter, value):
    """Return {"contrastive": weight, "classes": weight} of "contrastive=1,classes=1"; what is not named keeps 1. "descriptors" is there if above 0."""
    weights = {"contrastive": 1.0, "classes": 1.0}
    for word in value.split(","):
        name, _, number = word.partition("=")
        try:
            weights[name if name in ("contrastive", "classes", "descriptors") else None] = float(number)
            valid = None not in weights and 0 <= weights[name] < 1e6
        except ValueError:
            valid = False
        if not valid:
            raise click.BadParameter(f"{word!r} is not contrastive=WEIGHT, classes=WEIGHT or descriptors=WEIGHT, of 0 or more")
    if not weights.get("descriptors", 1):
        del weights["descriptors"]
    if not any(weights.values()):
        raise click.BadParameter("at least one weight must be above 0")
    return weights


def parse_rates(context, parameter, value):
    """Return the learning rates of the encoder and of the heads from "5e-5,1e-3"; without a second the heads have 0.01, the paper's."""
    rates = [Positive().convert(word, parameter, context) for word in value.split(",")]
    if len(rates) > 2:
        raise click.BadParameter(f"{value!r} is not a learning rate, or two: that of the encoder and that of the heads, such as 5e-5,1e-3")
    return (rates + [0.01])[:2]


SEED = click.IntRange(0, 2**32 - 1)


@click.command()
@click.option("--shards", default="shards", show_default=True, help="Folder of drawings that render.py made.")
@click.option("--labels", default="labels.npz", show_default=True, help="Pseudo-labels that cluster.py made from the same file.")
@click.option("--smiles", default=None, help="Draw from this file while training, in new styles every epoch, instead of --shards.")
@click.option("-o", "--out", default="encoder.pt", show_default=True, help="Checkpoint; log and curves lie beside it.")
@click.option("--init", default="ViT-B/16", show_default=True, help="Starting weights: bundled, a name of CLIP's, a file, or scratch:nano|tiny|small|base.")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1), help="Passes over the molecules.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Stop after so many optimiser steps.")
@click.option("--batch", default=256, show_default=True, type=click.IntRange(RUN), help="Molecules in a step, over all processes.")
@click.option("--lr", default="5e-6,0.01", show_default=True, callback=parse_rates, help="Learning rates of the encoder and, if named, the heads.")
@click.option("--loss", default="contrastive=1,classes=1", show_default=True, callback=parse_loss, help="Weights of the tasks; 0 switches one off; descriptors=1 adds a third.")
@click.option("--augment", default="default", show_default=True, type=click.Choice(["none", "default", "intense"]), help="Pixel augmentation of both views.")
@click.option("--tokens", default=None, type=click.Choice(["all", "inked"]), help="Patches the encoder looks at.  [default: all for CLIP's weights, else inked]")
@click.option("--temperature", default=1 / 15, show_default="1/15", type=Positive(), help="Temperature of the contrastive loss.")
@click.option("--micro-batch", default=None, type=click.IntRange(1), help="Pictures in memory at once.  [default: fits the device]")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the order and of random weights.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "bf16", "fp16", "fp32"]), help="Arithmetic; weights are always fp32.")
@click.option("--save-every", default=500, show_default=True, type=click.IntRange(1), help="Steps between checkpoints and held-out evaluations.")
@click.option("--log-every", default=10, show_default=True, type=click.IntRange(1), help="Steps between log lines.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint under -o, if there is one.")
def main(device, **options):
    """Train an image encoder on drawings of unlabelled molecules."""
    with one_voice():
        device = pick_device(device)
        world = World(device)
        run = prepare(world, device, **options)
    train(world, device, *run)


def prepare(world, device, shards, smiles, labels, out, init, batch, seed, precision, tokens, resume, **rest):
    """Check everything that the user may have got wrong, before the long work, and load what it needs."""
    if batch % RUN or batch % world.size:
        raise click.ClickException(f"--batch {batch} can't be divided into runs of {RUN} cluster mates and {world.size} processes; "
                                   f"take a multiple of {math.lcm(RUN, world.size)}")
    if Path(out).suffix != ".pt":
        raise click.ClickException(f"-o {out}: give a name that ends in .pt; the log and curves are named after it")
    if Path(out).exists() and not resume:
        raise click.ClickException(f"{out}: exists already; go on with --resume, or give another name with -o")
    if world.rank == 0:
        render.check_output(out)
    dtype, reason = pick_precision(precision, device)
    describe = "descriptors" in rest["loss"]
    pictures = FreshPictures(smiles, labels, seed, describe) if smiles else Pictures(shards, labels, describe)
    order, held = split_held_out(pictures.labels.clusters[pictures.row], batch)
    with world.first_alone():
        encoder = load_encoder(init, seed)
    encoder.arch["tokens"] = tokens or encoder.arch["tokens"]
    if not world.rank:
        weights = sum(p.numel() for p in encoder.parameters()) / 1e6
        click.echo(f"{len(order)} molecules to train on, {len(held)} held out; {weights:.1f} M weights from {init}, {encoder.arch['tokens']} tokens; "
                   f"{world.size} process{'es' if world.size > 1 else ''} on {device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})")
        if pictures.unlabelled:
            click.echo(f"{pictures.unlabelled} drawings have no label and are left out")
    config = {"shards": str(smiles or shards), "labels": str(labels), "input_sha256": pictures.sha256, "init": init, "batch": batch, "seed": seed,
              "tokens": encoder.arch["tokens"], "optimizer": "AdamW"} | rest
    return config, out, resume and Path(out).exists(), dtype, pictures, order, held, encoder


def train(world, device, config, out, resume, dtype, pictures, order, held, encoder):
    """Run the optimisation and leave the checkpoint, its log and curves."""
    batch, seed, scale = config["batch"], config["seed"], 1 / config["temperature"]
    torch.manual_seed(seed)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(encoder.arch["args"]["output_dim"], count) for name, count in pictures.labels.outputs.items()})
    encoder, heads = encoder.to(device), heads.to(device)
    if device.type == "cuda" and encoder.arch["tokens"] == "all":
        encoder.visual.compile()                           # in place: the names in the checkpoint stay
    eye = Eye(encoder, device, dtype, config["augment"], config["micro_batch"] or fitting_batch(encoder.arch, device, dtype))
    # AdamW, not the paper's Adam: there the decay of 0.1 joins gradients that are mostly smaller, and moves every weight by the
    # learning rate a step: from DINOv2-S at 5e-5 the contrastive loss was after 80 steps still 3.6, not 2.2 (chance 4.2).
    optimizers = [torch.optim.AdamW(encoder.parameters(), config["lr"][0], weight_decay=0.1, fused=True, **ADAM),
                  torch.optim.Adam(heads.parameters(), config["lr"][1], betas=ADAM["betas"], fused=True)]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    last = config["epochs"] * (len(order) // batch)
    last = min(last, config["steps"] or last)
    first, log = resume_from(out, encoder, heads, optimizers, scaler, config) if resume else (0, [])
    if log and "changed" in log[-1]:
        report(world, f"{out}: goes on from step {first} with other settings: {json.dumps(log[-1]['changed'])}")
    leave, began, done, sums = [], time.time(), first, []
    signal.signal(signal.SIGTERM, lambda *_: leave.append(True))
    for step, views, labels in pictures.batches(schedule(order, batch, seed, first, last, world)):
        random = random_numbers(seed, step, batch, world)
        parts = backward(eye, heads, views, random, labels.to(device), world, scale, config["loss"], scaler)
        for optimizer, rate in zip(optimizers, config["lr"]):
            optimizer.param_groups[0]["lr"] = rate / 3 if step < WARM_UP else rate
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        done, stop = step + 1, world.any(bool(leave))
        sums.append(torch.stack(list(parts.values())))
        if done % config["log_every"] == 0 or done == last:
            means, sums = world.mean(torch.stack(sums).mean(0)).tolist(), []
            pace = (done - first) / (time.time() - began)
            log.append({"step": done, "epoch": done * batch / len(order), "lr": optimizers[0].param_groups[0]["lr"]} | dict(zip(parts, means)) |
                       {"images/s": 2 * batch * pace, "memory_gb": memory_used(device), "left": round((last - done) / pace)})
            report(world, log[-1])
        if done % config["save_every"] == 0 or done == last:
            metrics = evaluate(eye, heads, pictures, held, batch, world, scale)
            log.append({"step": done} | metrics)
            report(world, log[-1])
        if world.rank == 0 and (done % config["save_every"] == 0 or done == last or stop):
            save_run(out, encoder, heads, optimizers, scaler, done, config, next((e for e in reversed(log) if "held_out_retrieval" in e), {}), log)
        if stop:
            report(world, f"asked to leave: saved step {done} in {out}; --resume goes on from there")
            break
    if world.rank == 0:
        plot_curves(Path(out).with_suffix(".curves.png"), log)
        click.echo(f"{out}: step {done}; {Path(out).with_suffix('.curves.png')} shows the course")
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
