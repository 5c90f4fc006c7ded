"""Teach an image encoder chemistry on drawings of unlabelled molecules.

    torchrun --nproc_per_node=4 pretrain.py    # shards/ + labels.npz -> encoder.pt, from ViT-B/16
    python pretrain.py --init scratch:tiny --lr 5e-4 --batch 64 --epochs 1
    python pretrain.py --resume                # go on where an interrupted run stopped

Two views of a molecule are to look alike, and heads are to tell its clusters: the method is
MoleCLIP's (Harnik et al., Chem. Sci. 2025, 16, 10833).
"""

import json
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch

from moleclip import options
from moleclip.augment import AUGMENT
from moleclip.device import (
    BY_TORCHRUN,
    Distributed,
    Leaving,
    LostProcess,
    Notice,
    local_rank,
    memory_used,
    pick_device,
    pick_precision,
    report_once,
)
from moleclip.encoder import ADAM, Embedder, fitting_batch
from moleclip.files import check_output, one_line, save_json, save_whole
from moleclip.pairs import (
    CLUSTER_RUN,
    digest,
    digest_labels,
    loss_parts,
    open_pairs,
    random_numbers,
    schedule,
    split_held_out,
    weighted_loss,
)
from moleclip.plots import plot_curves
from moleclip.weights import init_digest, load_checkpoint, load_encoder, save_checkpoint

WARM_UP = 5  # steps at a third of the learning rate (MoleCLIP's ConstantLR)
CHANGEABLE = ("lr", "loss")  # on --resume: a run's last part at a lower rate is a common wish
FIXED = ("input_sha256", "batch", "seed", "init", "temperature", "tokens", "augment", "optimizer")
HASHED = ("labels_sha256", "drawings_")  # what such keys begin with, or are
OWN = ("shards", "labels", "micro_batch")  # what each process may have in its own way
PACE = ("images/s", "memory_gb", "left")  # of a log entry: what says nothing of the result
COUNT, POSITIVE = click.IntRange(1), options.Positive()
LEVELS = click.Choice(["none", *AUGMENT])
STARTS = "bundled, a name of CLIP's, a file, or scratch:nano|tiny|small|base"
ABOUT_LR = "Learning rates of the encoder and, if named, the heads."
ABOUT_LOSS = "Weights of the tasks; 0 switches one off; descriptors=1 adds a third."
ABOUT_TOKENS = "Patches the encoder looks at.  [default: all for CLIP's weights, else inked]"
ABOUT_T = "Temperature of the contrastive loss."
ABOUT_MICRO = "Pictures in memory at once.  [default: fits the device]"
ABOUT_SAVING = "Steps between checkpoints and held-out evaluations."


def launch_command():
    """Return the command line that started this process: torchrun's, if it did."""
    words, parent = sys.orig_argv, Path(f"/proc/{os.getppid()}/cmdline")
    if BY_TORCHRUN and parent.is_file():
        words = parent.read_text().split("\0")[:-1]
        if Path(words[1]).name == "torchrun":
            words = ["torchrun", *words[2:]]
    return shlex.join(words)


@dataclass
class TrainState:
    """A run: what it trains, what it trains with, how far it is, and what it leaves under `out`."""

    out: str
    config: dict
    world: Distributed
    embedder: Embedder
    heads: torch.nn.ModuleDict
    optimizers: list  # of the encoder, of the heads
    scaler: torch.amp.GradScaler
    step: int = 0
    log: list = field(default_factory=list)
    command: str = field(default_factory=launch_command)

    @classmethod
    def start(cls, out, config, world, encoder, outputs, device, dtype):
        """Return the state before the first step. outputs: {head: width}; dtype: autocast's."""
        torch.manual_seed(config["seed"])
        features = encoder.arch["args"]["output_dim"]
        heads = {name: torch.nn.Linear(features, width) for name, width in outputs.items()}
        heads = torch.nn.ModuleDict(heads)
        for module in (encoder, heads):  # other CPUs may round random weights in another way
            module.load_state_dict(world.from_rank0(module.state_dict))
        encoder, heads = encoder.to(device), heads.to(device)
        micro_batch = config["micro_batch"] or fitting_batch(encoder.arch, device, dtype)
        embedder = Embedder(encoder, device, dtype, config["augment"], micro_batch)
        # AdamW, not the paper's Adam: there the decay of 0.1 joins gradients that are mostly
        # smaller, and moves every weight by the learning rate a step: from DINOv2-S at 5e-5 the
        # contrastive loss was after 80 steps still 3.6, not 2.2 (chance 4.2).
        rates, decay = config["lr"], {"weight_decay": 0.1}
        optimizers = [
            torch.optim.AdamW(encoder.parameters(), rates[0], fused=True, **decay, **ADAM),
            torch.optim.Adam(heads.parameters(), rates[1], fused=True, betas=ADAM["betas"]),
        ]
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        return cls(out, config, world, embedder, heads, optimizers, scaler)

    def file(self, suffix):
        """Return the path of what lies beside the checkpoint."""
        return Path(self.out).with_suffix(suffix)

    def save(self):
        """Write the log, which may run ahead, then encoder.pt and its facts as encoder.json."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
        save_whole(self.file(".log.jsonl"), lambda name: name.write_text(lines))
        held_out = [entry for entry in self.log if "held_out_retrieval" in entry]
        encoder = self.embedder.encoder
        facts = {
            "arch": encoder.arch,
            "step": self.step,
            "config": self.config,
            "metrics": held_out[-1] if held_out else {},
        }
        save_checkpoint(
            self.out,
            encoder=encoder.visual.state_dict(),
            **facts,
            heads=self.heads.state_dict(),
            optimizer=[optimizer.state_dict() for optimizer in self.optimizers],
            scaler=self.scaler.state_dict(),
            rng=torch.get_rng_state(),
            # the order of molecules is a function of both
            sampler={"seed": self.config["seed"], "step": self.step},
        )
        save_json(self.file(".json"), facts)

    def resume(self):
        """Go on from the checkpoint under `out` that rank 0 reads for all, if it has one.

        The log notes which settings are others now. Raises click.ClickException if it can't be
        read, what has to stay differs, or only another process has one.
        """
        there = self.world.gather_objects(Path(self.out).exists())
        if not any(there):
            return
        if not there[0]:
            raise click.ClickException(
                f"{self.out}: is there for {self.world.places[there.index(True)]}, but not for "
                f"{self.world.places[0]}, which all follow; copy it to that node, or delete it"
            )
        checkpoint = self.world.from_rank0(lambda: load_checkpoint(self.out))
        changed = self.changed(checkpoint.get("config", {}))
        try:
            self.restore(checkpoint)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise click.ClickException(
                f"{self.out}: can't be resumed from ({one_line(error)})"
            ) from None
        self.log = [] if self.world.rank else self.read_log()
        if changed:
            self.log.append({"step": self.step, "changed": changed})
            said = f"goes on from step {self.step} with other settings: {json.dumps(changed)}"
            self.world.print0(f"{self.out}: {said}")

    def changed(self, before):
        """Return the settings that are no longer those of a checkpoint's config, by name.

        Raises click.ClickException for one that has to stay.
        """
        if "labels_sha256" not in before:
            said = "of an earlier version, which kept no hashes of labels and drawings"
            self.world.print0(f"warning: {self.out}: {said}; they are taken as they are")
            before = before | {k: v for k, v in self.config.items() if k.startswith(HASHED)}
        changed = {}
        for key in before | self.config:
            then, now = before.get(key), self.config.get(key)
            if then == now:
                continue
            if key in FIXED or key.startswith(HASHED):
                raise click.ClickException(
                    f"{self.out}: was made with {key} {then}, not {now}; resume with the same "
                    "settings, or give another -o"
                )
            if key in CHANGEABLE:
                changed[key] = now
        return changed

    def restore(self, checkpoint):
        """Take over what a checkpoint holds."""
        self.embedder.encoder.visual.load_state_dict(checkpoint["encoder"])
        self.heads.load_state_dict(checkpoint["heads"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(checkpoint["rng"])
        self.step = checkpoint["step"]

    def read_log(self):
        """Return the log up to the checkpoint's step; an empty one if it can't be read."""
        path = self.file(".log.jsonl")
        try:
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            return [entry for entry in entries if entry["step"] <= self.step]
        except (OSError, ValueError, TypeError, KeyError):
            click.echo(f"warning: {path} is missing or damaged; the log begins anew", err=True)
            return []

    def update_weights(self):
        """Take one step of both optimizers with the gradients that are there."""
        for optimizer, rate in zip(self.optimizers, self.config["lr"]):
            optimizer.param_groups[0]["lr"] = rate / 3 if self.step < WARM_UP else rate
            self.scaler.step(optimizer)
        self.scaler.update()
        self.step += 1

    def leave(self, error):
        """Save the last finished step, as far as it is this process's, and say how to go on.

        Exits with 1 where torchrun is to know that other nodes, or processes, are gone.
        """
        why, kept = getattr(error, "message", "asked to leave"), f"step {self.step}"
        if self.world.rank == 0:
            self.save()
            kept = f"saved step {self.step} in {self.out}"
        if isinstance(error, Leaving) and self.world.nodes == 1:
            self.world.print0(f"{why}: {kept}; --resume goes on from there")
            return
        if local_rank():
            sys.exit(1)
        resume = "" if "--resume" in self.command else " --resume"
        raise click.ClickException(f"{why}: {kept}; go on with: {self.command}{resume}")

    def note(self, entry):
        """Put an entry into the log and on the screen."""
        self.log.append({"step": self.step} | entry)
        self.world.print0(log_line(self.log[-1]))


def backward(state, views, random, targets):
    """Leave the gradient of the global loss in the parameters; return its parts and the whole.

    views: two of palette indices, uint8 (n, 224, 224), this process's; random: (2n, N_UNIFORMS).
    Raises click.ClickException if the loss is not finite.
    """
    embedder, config, n = state.embedder, state.config, len(views[0])
    both = np.concatenate(views)
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    with state.world.agree():
        features, slices = embedder.embed_cached(both, random)
    scale = 1 / config["temperature"]
    parts = loss_parts(features[:n], features[n:], state.heads, targets, state.world, scale)
    loss = weighted_loss(parts, targets, config["loss"])
    if not torch.isfinite(loss):
        raise click.ClickException(
            "the loss is not a number any more; lower --lr or try --precision fp32 "
            "(nothing was overwritten)"
        )
    state.scaler.scale(loss).backward()
    with state.world.agree():
        embedder.backward(both, random, features, slices)
    state.world.average_gradients([*embedder.encoder.parameters(), *state.heads.parameters()])
    return {name: value.detach() for name, value in (parts | {"loss": loss}).items()}


@torch.no_grad()
def evaluate(state, pictures, members):
    """Return the mean loss parts, retrieval and accuracies over held-out batches.

    They are the same on every process.
    """
    totals, batch, scale = [], state.config["batch"], 1 / state.config["temperature"]
    for chunk in members[: len(members) // batch * batch].reshape(-1, batch):
        with state.world.agree():
            views, targets = pictures.load(state.world.share(chunk), 0)
            plain, styled = (state.embedder.embed_batch(view, None) for view in views)
        parts = loss_parts(plain, styled, state.heads, targets, state.world, scale)
        totals.append(torch.stack(list(parts.values())))
    means = state.world.mean(torch.stack(totals).mean(0))
    return {f"held_out_{name}": value.item() for name, value in zip(parts, means)}


def log_line(entry):
    """Return one log line: the step, every loss part and accuracy, and in training the pace."""
    silent = ("step", "epoch", "lr", *PACE)
    words = [f"{name} {value:.3f}" for name, value in entry.items() if name not in silent]
    if "left" in entry:
        minutes, seconds = divmod(entry["left"], 60)
        words += [f"{entry['images/s']:.0f} images/s", f"{entry['memory_gb']:.1f} GB"]
        words += [f"{minutes}:{seconds:02d} left"]
    return "  ".join([f"step {entry['step']:5d}", *words])


@click.command(context_settings={"show_default": True})
@click.option("--shards", default="shards", help="Folder of drawings that render.py made.")
@options.shown("--labels", "labels.npz", "Pseudo-labels that cluster.py made from the same file.")
@click.option(
    "--smiles",
    help="Draw from this file while training, in new styles every epoch, instead of --shards.",
)
@options.out("encoder.pt", "Checkpoint; log and curves lie beside it.")
@options.shown("--init", "ViT-B/16", f"Starting weights: {STARTS}.")
@options.shown("--epochs", 4, "Passes over the molecules.", type=COUNT)
@click.option("--steps", type=COUNT, help="Stop after so many optimiser steps.")
@options.batch(256, CLUSTER_RUN, "Molecules in a step, over all processes.")
@options.shown("--lr", "5e-6,0.01", ABOUT_LR, callback=options.parse_rates)
@options.shown("--loss", "contrastive=1,classes=1", ABOUT_LOSS, callback=options.parse_loss)
@options.shown("--augment", "default", "Pixel augmentation of both views.", type=LEVELS)
@click.option("--tokens", type=click.Choice(["all", "inked"]), help=ABOUT_TOKENS)
@click.option("--temperature", default=1 / 15, show_default="1/15", type=POSITIVE, help=ABOUT_T)
@click.option("--micro-batch", type=COUNT, help=ABOUT_MICRO)
@options.seed("Seed of the order and of random weights.")
@options.device()
@click.option("--no-compile", is_flag=True, help="Leave the encoder uncompiled on a GPU.")
@options.precision(["auto", "bf16", "fp16", "fp32"], "auto", "Arithmetic; weights are always fp32.")
@options.shown("--save-every", 500, ABOUT_SAVING, type=COUNT)
@options.shown("--log-every", 10, "Steps between log lines.", type=COUNT)
@options.resume("Go on from the checkpoint under -o, if there is one.")
def main(device, **settings):
    """Train an image encoder on drawings of unlabelled molecules."""
    with report_once():
        device = pick_device(device)
        world = Distributed.start(device)
        run = prepare(world, device, **settings)
    train(*run)
    world.stop()


def prepare(world, device, out, precision, resume, no_compile, tokens, **settings):
    """Check everything that the user may have got wrong, and load what the run needs.

    Return (TrainState, pictures, training order, held-out members), alike on all processes.
    """
    init, seed, batch = settings["init"], settings["seed"], settings["batch"]
    world.together(lambda: check_options(world, out, batch, resume))
    dtype, reason = pick_precision(precision, device)
    pictures = world.together(lambda: open_pairs(**settings))
    order, held = world.together(lambda: split_held_out(pictures.clusters, batch))
    encoder = world.local0_first(lambda: load_encoder(init, seed))
    encoder.arch["tokens"] = tokens or encoder.arch["tokens"]
    weights = sum(p.numel() for p in encoder.parameters()) / 1e6
    processes = f"{world.size} process{'es' if world.size > 1 else ''}"
    arithmetic = str(dtype or "fp32").removeprefix("torch.")
    world.print0(
        f"{len(order)} molecules to train on, {len(held)} held out; {weights:.1f} M weights from "
        f"{init}, {encoder.arch['tokens']} tokens; {processes} on {device.type} in {arithmetic} "
        f"({reason})"
    )
    if pictures.unlabelled:
        world.print0(f"{pictures.unlabelled} drawings have no label and are left out")
    config = describe_run(settings, pictures, encoder)
    facts = {name: value for name, value in config.items() if name not in OWN}
    facts |= {"order": digest(order=order, held=held), "weights": init_digest(init)}
    world.compare(facts | {"precision": arithmetic, "resume": resume, "no_compile": no_compile})
    state = TrainState.start(out, config, world, encoder, pictures.labels.outputs, device, dtype)
    if device.type == "cuda" and encoder.arch["tokens"] == "all" and not no_compile:
        state.embedder.compile(world)
    if resume:
        state.resume()
    return state, pictures, order, held


def check_options(world, out, batch, resume):
    """Raise click.ClickException for --batch or -o that can't be."""
    if batch % CLUSTER_RUN or batch % world.size:
        raise click.ClickException(
            f"--batch {batch} can't be divided into runs of {CLUSTER_RUN} cluster mates and "
            f"{world.size} processes; take a multiple of {math.lcm(CLUSTER_RUN, world.size)}"
        )
    if Path(out).suffix != ".pt":
        raise click.ClickException(
            f"-o {out}: give a name that ends in .pt; the log and curves are named after it"
        )
    if world.rank == 0:
        if Path(out).exists() and not resume:
            raise click.ClickException(
                f"{out}: exists already; go on with --resume, or give another name with -o"
            )
        check_output(out)


def describe_run(settings, pictures, encoder):
    """Return the config that a checkpoint keeps."""
    settings = dict(settings)
    drawings, shards = settings.pop("smiles"), settings.pop("shards")
    config = {
        "shards": str(drawings or shards),
        "labels": str(settings.pop("labels")),
        "input_sha256": pictures.sha256,
        "labels_sha256": digest_labels(pictures.labels),
    }
    config |= {f"drawings_{name}": value for name, value in pictures.drawings.items()}
    config |= {name: settings.pop(name) for name in ("init", "batch", "seed")}
    return config | {"tokens": encoder.arch["tokens"], "optimizer": "AdamW"} | settings


def train(state, pictures, order, held):
    """Run the optimisation and leave the checkpoint, its log and curves."""
    state.embedder.before_slice = Notice().check
    try:
        take_steps(state, pictures, order, held)
    except (Leaving, LostProcess) as error:
        state.leave(error)
    if state.world.rank == 0:
        curves = state.file(".curves.png")
        plot_curves(curves, state.log)
        click.echo(f"{state.out}: step {state.step}; {curves} shows the course")


def take_steps(state, pictures, order, held):
    """Take the steps that are left. Raises Leaving or LostProcess between two of them."""
    config, world, first = state.config, state.world, state.step
    batch, seed, fitting = config["batch"], config["seed"], state.embedder.fitting
    last = config["epochs"] * (len(order) // batch)
    last = min(last, config["steps"] or last)
    began, sums = time.time(), []
    plan = schedule(order, pictures.clusters, batch, seed, first, last, world)
    for step, views, targets in pictures.batches(plan):
        random = random_numbers(seed, step, batch, world)
        parts = fitting(world, backward, state, views, random, targets)
        state.update_weights()
        sums.append(torch.stack(list(parts.values())))
        at_end = state.step == last
        if state.step % config["log_every"] == 0 or at_end:
            means, sums = world.mean(torch.stack(sums).mean(0)).tolist(), []
            speed = (state.step - first) / (time.time() - began)
            left = round((last - state.step) / speed)
            pace = dict(zip(PACE, (2 * batch * speed, memory_used(state.embedder.device), left)))
            rate = state.optimizers[0].param_groups[0]["lr"]
            place = {"epoch": state.step * batch / len(order), "lr": rate}
            state.note(place | dict(zip(parts, means)) | pace)
        if state.step % config["save_every"] == 0 or at_end:
            state.note(fitting(world, evaluate, state, pictures, held))
            if world.rank == 0:
                state.save()


if __name__ == "__main__":
    main()
