"""Finetuning's training loop, for an encoder with its head and for a head alone."""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import click
import numpy as np
import torch
from tqdm import tqdm

from moleclip.device import ALONE, lacks_memory
from moleclip.encoder import ADAM
from moleclip.metrics import best_epoch
from moleclip.movement import N_UNIFORMS
from moleclip.weights import load_checkpoint, save_checkpoint

DECAY = 1e-5  # weight decay of encoder and head in finetuning (MoleCLIP)
WARM_UP = 0.1  # part of training over which the learning rates rise
SAVE_EVERY = 60  # seconds between two savings of a run's progress, at the end of an epoch
CHUNK = 512  # molecules that are unpacked at once to predict


class Loss:
    """L1 or squares (regression) or BCE over known labels. weight: of positives, (targets,)."""

    def __init__(self, task, weight=None, squared=False):
        self.task, self.squared = task, squared
        self.weight = None if weight is None else torch.as_tensor(weight).float()

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
            each = (outputs - target) ** 2 if self.squared else (outputs - target).abs()
        return (each * known).sum()

    def mean(self, outputs, labels):
        """Return the mean over the known labels."""
        return self(outputs, labels) / (~torch.isnan(labels)).sum().clamp(min=1)


class Objective(NamedTuple):
    """What is to be learned, from which rows."""

    labels: torch.Tensor  # float32 (rows, targets), standardised, NaN where missing
    split: dict  # {"train": [...], "val": [...], "test": [...]} of row numbers
    loss: Loss


class Plan(NamedTuple):
    """How long and in which steps to train."""

    epochs: int
    batch: int
    seed: int
    name: str  # of the progress bar
    patience: int | None = None  # epochs without a better validation loss, after which to stop
    rates: Callable = lambda done: 1.0  # the learning rates' factor, by the part that is done


class EncoderSource:
    """What an encoder looks at, {row: zlib stream or Graph}, through it and the head of a Model.

    Pictures are unpacked by batch. Each process takes its share of a batch, in the embedder's micro
    batches.
    """

    def __init__(self, model, given, embedder, world):
        self.model, self.given, self.embedder = model, given, embedder
        self.world, self.device = world, embedder.device

    def micro_batches(self, rows, random):
        """Yield (positions among rows, outputs with gradient) of this process's share.

        random: (len(rows), N_UNIFORMS), what augmentation follows from.
        """
        mine = np.arange(len(rows))[self.world.rank :: self.world.size]
        if not len(mine):
            return
        batch = self.embedder.batch([self.given[rows[i]] for i in mine])
        for part in self.embedder.micro_batches(batch, random[mine]):
            features = self.embedder.embed(batch[part], random[mine[part]])
            yield mine[part], self.model.head(features)

    def features(self, rows, bar=None):
        """Return embeddings, fp32 (len(rows), width), without gradient, on every process."""
        padded = list(rows) + [rows[-1]] * (-len(rows) % self.world.size)
        mine = np.array_split(padded, self.world.size)[self.world.rank]
        found = []
        for chunk in np.split(mine, range(CHUNK, len(mine), CHUNK)):
            batch = self.embedder.batch([self.given[i] for i in chunk])
            with torch.no_grad():
                found.append(self.embedder.embed_batch(batch, None))
            if bar is not None:
                bar.update(len(chunk) * self.world.size)
        return self.world.gather(torch.cat(found))[: len(rows)]

    def predict(self, rows):
        """Return the head's outputs (len(rows), targets), without gradient."""
        with torch.no_grad():
            return self.model.head(self.features(rows))


class FeatureSource:
    """Features, fp32 (rows, width), through a head: fingerprints, or a frozen encoder's embeddings.

    Every process computes all of it.
    """

    def __init__(self, model, features):
        self.model, self.features, self.device, self.world = model, features, features.device, ALONE

    def micro_batches(self, rows, random):
        """Yield (positions among rows, outputs with gradient), all in one."""
        yield np.arange(len(rows)), self.model(self.features[rows])

    def predict(self, rows):
        """Return the outputs (len(rows), targets), without gradient."""
        with torch.no_grad():
            return self.model(self.features[rows])


def train(source, objective, optimizers, plan, scaler=None, progress=None, start=None):
    """Train, leave the weights of the epoch that is best on validation, and return the history.

    source: an EncoderSource or FeatureSource. progress: file to go on from, written every so
    often. start: the history's line of the weights as they are, if they may be kept (its
    val_loss is measured here, as in all epochs). History: one dict an epoch. Raises
    click.ClickException where the loss is no finite number.
    """
    objective = objective._replace(labels=objective.labels.to(source.device))
    state = Progress(source.model, optimizers, scaler or torch.amp.GradScaler("cpu", enabled=False))
    state.resume(progress, source.world)
    if start and not state.history:
        state.add(start | {"val_loss": validate(source, objective)})
    done, saved = state.history[-1]["epoch"] if state.history else 0, time.time()
    steps = -(-len(objective.split["train"]) // plan.batch)
    bar = rank0_bar(plan.name, "steps", plan.epochs * steps, source.world, done * steps)
    for epoch in range(done + 1, plan.epochs + 1):
        began = time.time()
        loss = train_epoch(source, objective, state, plan, epoch, bar)
        line = {"epoch": epoch, "train_loss": loss, "val_loss": validate(source, objective)}
        kept = state.add(line | {"seconds": round(time.time() - began, 3)})
        best = f"best {kept['val_loss']:.3f} at epoch {kept['epoch']}"
        bar.set_postfix_str(f"val {line['val_loss']:.3f}, {best}")
        if plan.patience and epoch - kept["epoch"] >= plan.patience:
            break
        if progress and not source.world.rank and time.time() - saved > SAVE_EVERY:
            state.save(progress)
            saved = time.time()
    bar.close()
    if not math.isfinite(best_epoch(state.history)["val_loss"]):
        raise click.ClickException(
            "the validation loss was never a finite number; lower --lr-encoder and --lr-head"
        )
    source.model.load_state_dict(state.best)
    return state.history


class Progress:
    """What training changes: model, optimizers, scaler, history, and the best weights so far."""

    def __init__(self, model, optimizers, scaler):
        self.model, self.optimizers, self.scaler = model, optimizers, scaler
        self.history, self.best = [], None

    def add(self, line):
        """Add an epoch's line to the history; return the line of the epoch that is best so far."""
        self.history.append(line)
        kept = best_epoch(self.history)
        if kept is line:
            self.best = copied(self.model)
        return kept

    def save(self, path):
        """Write what an interrupted run goes on from."""
        save_checkpoint(
            path,
            history=self.history,
            best=self.best,
            model=self.model.state_dict(),
            scaler=self.scaler.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
        )

    def resume(self, path, world):
        """Go on from a file of `save` that rank 0 reads for all, if it has one."""
        read = lambda: load_checkpoint(path) if path.exists() else None
        found = world.from_rank0(read) if path else None
        if not found:
            return
        self.model.load_state_dict(found["model"])
        self.scaler.load_state_dict(found["scaler"])
        for optimizer, state in zip(self.optimizers, found["optimizers"]):
            optimizer.load_state_dict(state)
        self.history, self.best = found["history"], found["best"]
        world.print0(f"going on after epoch {self.history[-1]['epoch']} of {path}")


@contextmanager
def enough_memory(batch):
    """Turn running out of memory into a click.ClickException of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise click.ClickException(
            f"out of memory with --batch {batch}; lower --batch, or take a smaller encoder"
        ) from None


def rank0_bar(name, unit, total, world, behind=0):
    """Return a progress bar that one process shows, where there is a terminal."""
    hidden = True if world.rank else None
    unit = f" {unit}"
    return tqdm(total=total, initial=behind, desc=name, unit=unit, disable=hidden, leave=False)


def validate(source, objective):
    """Return the mean loss over the validation part."""
    rows = objective.split["val"]
    return objective.loss.mean(source.predict(rows), objective.labels[rows]).item()


def train_epoch(source, objective, state, plan, epoch, bar):
    """Take the steps of one epoch over the training part and return their mean loss."""
    order, losses = np.array(objective.split["train"]), []
    random = np.random.default_rng([plan.seed, epoch])
    batches = np.split(random.permutation(order), range(plan.batch, len(order), plan.batch))
    for step, rows in enumerate(batches):
        numbers = random.random((len(rows), N_UNIFORMS))
        done = (epoch - 1) * len(batches) + step + 0.5
        scale_lr(state.optimizers, plan.rates(done / (plan.epochs * len(batches))))
        losses.append(take_step(source, rows, numbers, objective, state) * len(rows))
        bar.update()
    return sum(losses) / len(order)


def take_step(source, rows, random, objective, state):
    """Take one step on a batch and return its mean loss; the processes share it and step alike."""
    labels, world, scaler = objective.labels[rows], source.world, state.scaler
    count, value = (~torch.isnan(labels)).sum().clamp(min=1), torch.zeros(1, device=source.device)
    for part, outputs in source.micro_batches(rows, random):
        each = objective.loss(outputs, labels[part]) / count
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
    for optimizer in state.optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return value


def copied(module):
    """Return a copy of a module's state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def warmup_cosine(done):
    """Return the learning rates' factor by the part of training that is done.

    Up to 1 over the first tenth (a head that has learned is not to be thrown off by Adam's first
    steps), then down to 0 along a cosine (the last epochs' validation losses would else jump).
    """
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def scale_lr(optimizers, factor):
    """Set all learning rates to a factor times those they began with."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def adam(module, rate):
    """Return the optimizer of a module's parameters."""
    return torch.optim.Adam(module.parameters(), rate, weight_decay=DECAY, fused=True, **ADAM)
