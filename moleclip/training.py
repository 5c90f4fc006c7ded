"""TODO"""

import math
import time

import click
import numpy as np
import torch
from tqdm import tqdm

from moleclip.augment import N_UNIFORMS
from moleclip.device import ALONE
from moleclip.encoder import ADAM
from moleclip.metrics import best_epoch
from moleclip.weights import load_checkpoint, save_checkpoint

DECAY = 1e-5  # weight decay of encoder and head in finetuning (MoleCLIP)
WARM_UP = 0.1  # part of training over which the learning rates rise
SAVE_EVERY = 60  # seconds between two savings of a run's progress, at the end of an epoch
CHUNK = 512  # pictures that are unpacked at once to predict


class Loss:
    """L1 (regression) or BCE (classification) over known labels; `weight` (targets,) multiplies the positives' part."""

    def __init__(self, task, weight=None):
        self.task, self.weight = task, None if weight is None else torch.as_tensor(weight).float()

    def __call__(self, outputs, labels):
        """Return the sum over the known among labels (n, targets), NaN where missing."""
        known = ~torch.isnan(labels)
        target = torch.where(known, labels, torch.zeros_like(labels))
        if self.task == "classification":
            weight = None if self.weight is None else self.weight.to(outputs.device)
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                outputs, target, reduction="none", pos_weight=weight
            )
        else:
            each = (outputs - target).abs()
        return (each * known).sum()

    def mean(self, outputs, labels):
        return self(outputs, labels) / (~torch.isnan(labels)).sum().clamp(min=1)


class PictureSource:
    """Index pictures, {row: uint8 (224, 224)}: each process looks at its share of a batch, in slices of like ink."""

    def __init__(self, model, pictures, embedder, world):
        self.model, self.pictures, self.embedder, self.world, self.device = (
            model,
            pictures,
            embedder,
            world,
            embedder.device,
        )

    def parts(self, rows, random):
        """Yield (positions among rows, outputs with gradient) of this process's share; random: (len(rows), RANDOM)."""
        mine = np.arange(len(rows))[self.world.rank :: self.world.size]
        if not len(mine):
            return
        index = np.stack([self.pictures[rows[i]] for i in mine])
        for part in self.embedder.micro_batches(index, random[mine]):
            yield mine[part], self.model.head(self.embedder.embed(index[part], random[mine[part]]))

    def features(self, rows, bar=None):
        """Return embeddings, fp32 (len(rows), 512), without gradient; every process gets all."""
        padded = list(rows) + [rows[-1]] * (-len(rows) % self.world.size)
        mine = np.array_split(padded, self.world.size)[self.world.rank]
        found = []
        for chunk in np.split(mine, range(CHUNK, len(mine), CHUNK)):
            with torch.no_grad():
                found.append(
                    self.embedder.embed_batch(np.stack([self.pictures[i] for i in chunk]), None)
                )
            if bar is not None:
                bar.update(len(chunk) * self.world.size)
        return self.world.gather(torch.cat(found))[: len(rows)]

    def outputs(self, rows):
        with torch.no_grad():
            return self.model.head(self.features(rows))


class FeatureSource:
    """A table of inputs, fp32 (rows, width): fingerprints, or the frozen encoder's embeddings."""

    def __init__(self, model, table):
        self.model, self.table, self.device, self.world = model, table, table.device, ALONE

    def parts(self, rows, random):
        yield np.arange(len(rows)), self.model(self.table[rows])

    def outputs(self, rows):
        with torch.no_grad():
            return self.model(self.table[rows])


def train(
    source,
    labels,
    split,
    loss,
    optimizers,
    epochs,
    batch,
    seed,
    name,
    patience=None,
    scaler=None,
    progress=None,
    start=None,
    rates=lambda done: 1.0,
):
    """Train on split["train"], leave the weights of the epoch with the lowest validation loss, and return the history.

    source: Pictures or Numbers; labels: float64 (rows, targets), scaled; progress: file to go on from, written every so often;
    start: the history's line of the weights as they are, if they may be kept (val_loss is measured here, as in all epochs); rates: the
    learning rates' factor as a function of the part of training that is done. History: one dict an epoch.
    """
    order, scaler = np.array(split["train"]), scaler or torch.amp.GradScaler("cpu", enabled=False)
    known = torch.from_numpy(labels).float().to(source.device)
    held_out = lambda: loss.mean(source.outputs(split["val"]), known[split["val"]]).item()  # noqa: E731
    history, best = load_progress(progress, source.model, optimizers, scaler)
    if start and not history:
        history, best = [start | {"val_loss": held_out()}], copied(source.model)
    steps, done, saved = (
        -(-len(order) // batch),
        history[-1]["epoch"] if history else 0,
        time.time(),
    )
    bar = tqdm(
        total=epochs * steps,
        initial=done * steps,
        desc=name,
        unit=" steps",
        disable=True if source.world.rank else None,
        leave=False,
    )
    for epoch in range(done + 1, epochs + 1):
        losses, began, random = [], time.time(), np.random.default_rng([seed, epoch])
        for rows in np.split(random.permutation(order), range(batch, len(order), batch)):
            numbers = random.random((len(rows), N_UNIFORMS))
            scale_lr(
                optimizers, rates(((epoch - 1) * steps + len(losses) + 0.5) / (epochs * steps))
            )
            losses.append(
                take_step(source, rows, numbers, known[rows], loss, optimizers, scaler) * len(rows)
            )
            bar.update()
        history.append(
            {
                "epoch": epoch,
                "train_loss": sum(losses) / len(order),
                "val_loss": held_out(),
                "seconds": round(time.time() - began, 3),
            }
        )
        kept = best_epoch(history)
        if kept["epoch"] == epoch:
            best = copied(source.model)
        bar.set_postfix_str(
            f"val {history[-1]['val_loss']:.3f}, best {kept['val_loss']:.3f} at epoch {kept['epoch']}"
        )
        if patience and epoch - kept["epoch"] >= patience:
            break
        if progress and not source.world.rank and time.time() - saved > SAVE_EVERY:
            save_checkpoint(
                progress,
                history=history,
                best=best,
                model=source.model.state_dict(),
                scaler=scaler.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in optimizers],
            )
            saved = time.time()
    bar.close()
    if not math.isfinite(best_epoch(history)["val_loss"]):
        raise click.ClickException(
            "the validation loss was never a finite number; lower --lr-encoder and --lr-head"
        )
    source.model.load_state_dict(best)
    return history


def take_step(source, rows, random, labels, loss, optimizers, scaler):
    """Take one step on a batch and return its mean loss; the processes share the batch and step alike."""
    count, value, world = (
        (~torch.isnan(labels)).sum().clamp(min=1),
        torch.zeros(1, device=source.device),
        source.world,
    )
    for part, outputs in source.parts(rows, random):
        each = loss(outputs, labels[part]) / count
        scaler.scale(each * world.size).backward()  # the gradients are averaged over the processes
        value += each.detach()
    value = world.mean(value).item() * world.size
    if not math.isfinite(value):
        raise click.ClickException(
            "the loss is not a number any more; lower --lr-encoder and --lr-head"
        )
    parameters = list(source.model.parameters())
    for parameter in parameters:
        if parameter.grad is None:  # a process without a share
            parameter.grad = torch.zeros_like(parameter)
    world.average_gradients(parameters)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return value


def load_progress(path, model, optimizers, scaler):
    """Restore training as `fit` left it and return (history, best weights); ([], None) if there is nothing to go on from."""
    if not path or not path.exists():
        return [], None
    found = load_checkpoint(path)
    model.load_state_dict(found["model"])
    scaler.load_state_dict(found["scaler"])
    for optimizer, state in zip(optimizers, found["optimizers"]):
        optimizer.load_state_dict(state)
    click.echo(f"going on after epoch {found['history'][-1]['epoch']} of {path}")
    return found["history"], found["best"]


def copied(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def warmup_cosine(done):
    """Return the learning rates' factor: up to 1 over the first tenth of training (a head that has learned is not to be thrown off
    by Adam's first steps), then down to 0 along a cosine (the last epochs' validation losses would else jump about)."""
    return min(
        done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * max(0, done - WARM_UP) / (1 - WARM_UP))
    )


def scale_lr(optimizers, factor):
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def adam(module, rate):
    return torch.optim.Adam(module.parameters(), rate, weight_decay=DECAY, fused=True, **ADAM)
