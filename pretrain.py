"""Teach an image encoder chemistry on drawings of unlabelled molecules.

    torchrun --nproc_per_node=4 pretrain.py    # shards/ + labels.npz -> encoder.pt, from ViT-B/16
    python pretrain.py --init scratch:tiny --lr 5e-4 --batch 64 --epochs 1
    python pretrain.py --resume                # go on where an interrupted run stopped

Two views of a molecule are to look alike, and heads are to tell its clusters: the method is
MoleCLIP's (Harnik et al., Chem. Sci. 2025, 16, 10833).
"""

import math
import time

import click
import torch

from moleclip import options
from moleclip.device import (
    Distributed,
    Leaving,
    LostProcess,
    Notice,
    local_processes,
    memory_used,
    pick_device,
    pick_precision,
    report_once,
)
from moleclip.losses import atom_parts, loss_parts, weighted_loss
from moleclip.movement import AUGMENT
from moleclip.pairs import (
    CLUSTER_RUN,
    digest,
    digest_labels,
    open_pairs,
    random_numbers,
    schedule,
    split_held_out,
)
from moleclip.plots import plot_curves
from moleclip.trainstate import OWN, PACE, TrainState, check_new
from moleclip.weights import init_digest, load_encoder
from moleclip.workers import default_workers

COUNT, POSITIVE = click.IntRange(1), options.Positive()
LEVELS = click.Choice(["none", *AUGMENT])
STARTS = "bundled, a name of CLIP's, a file, or scratch:nano|tiny|small|base"
ABOUT_LR = "Learning rates of the encoder and, if named, the heads."
ABOUT_LOSS = "Weights of tasks; 0: off. Also descriptors, fingerprint, atoms, electronic."
ABOUT_TOKENS = "Patches the encoder looks at.  [default: all for CLIP's weights, else inked]"
ABOUT_POOL = "What the features are made of.  [default: as in --init, else cls]"
ABOUT_DECAY = "Part of the run, its last, in which the learning rates fall to 0."
ABOUT_STYLES = "Styles of --smiles, see render.py."
ABOUT_T = "Temperature of the contrastive loss."
ABOUT_MICRO = "Pictures in memory at once.  [default: fits the device]"
ABOUT_SAVING = "Steps between checkpoints and held-out evaluations."


def backward(state, batch):
    """Leave the gradient of the global loss in the parameters; return its parts and the whole.

    batch: this process's Batch. Raises click.ClickException if the loss is not finite, on a GPU a
    step late.
    """
    embedder, random = state.embedder, batch.random
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    with state.world.agree():
        both = embedder.bring(batch.both)
        found, slices = embedder.embed_cached(both, random, batch.places, batch.ink)
    parts = measure(state, batch, found, random)
    loss = weighted_loss(parts, batch.targets, state.config["loss"], batch.atoms or ())
    check_loss(state.finite.add(torch.isfinite(loss)))
    state.scaler.scale(loss).backward()
    with state.world.agree():
        embedder.backward(both, random, found, slices, batch.places, batch.ink)
    state.world.average_gradients([*embedder.encoder.parameters(), *state.heads.parameters()])
    return {name: value.detach() for name, value in (parts | {"loss": loss}).items()}


def check_loss(finite):
    """Raise click.ClickException unless the loss is finite."""
    if not finite:
        raise click.ClickException(
            "the loss is not a number any more; lower --lr or try --precision fp32 "
            "(nothing was overwritten)"
        )


def measure(state, batch, found, random):
    """Return the loss parts of a Batch by what the embedder found; random: None in evaluation."""
    features, read = found if batch.places else (found, None)
    views, scale = features.chunk(2), 1 / state.config["temperature"]
    parts = loss_parts(*views, state.heads, batch.targets, state.world, scale)
    if read is not None:
        level = state.config["augment"] if random is not None else "none"
        places, _ = batch.places.moved(read.device, level, random)
        shown = places.isfinite().all(1)
        parts |= atom_parts(read, shown, state.heads["atoms"], batch.atoms, state.world)
    return parts


@torch.no_grad()
def evaluate(state, pictures, members):
    """Return the mean loss parts, retrieval and accuracies over held-out batches.

    They are the same on every process.
    """
    totals, batch = [], state.config["batch"]
    for chunk in members[: len(members) // batch * batch].reshape(-1, batch):
        with state.world.agree():
            loaded = pictures.load(state.world.share(chunk), 0)
            found = state.embedder.embed_batch(loaded.both, None, loaded.places)
        parts = measure(state, loaded, found, None)
        totals.append(torch.stack(list(parts.values())))
    means = state.world.mean(torch.stack(totals).mean(0))
    return {f"held_out_{name}": value.item() for name, value in zip(parts, means)}


@click.command(context_settings={"show_default": True})
@click.option("--shards", default="shards", help="Folder of drawings that render.py made.")
@options.shown("--labels", "labels.npz", "Pseudo-labels that cluster.py made from the same file.")
@click.option(
    "--smiles",
    help="Draw from this file while training, in new styles every epoch, instead of --shards.",
)
@options.shown("--styles", "paper", ABOUT_STYLES, type=click.Choice(["paper", "wide"]))
@options.out("encoder.pt", "Checkpoint; log and curves lie beside it.")
@options.shown("--init", "ViT-B/16", f"Starting weights: {STARTS}.")
@options.shown("--epochs", 4, "Passes over the molecules.", type=COUNT)
@click.option("--steps", type=COUNT, help="Stop after so many optimiser steps.")
@options.batch(256, CLUSTER_RUN, "Molecules in a step, over all processes.")
@options.shown("--lr", "5e-6,0.01", ABOUT_LR, callback=options.parse_rates)
@options.shown("--decay", 0.0, ABOUT_DECAY, type=click.FloatRange(0, 1))
@options.shown("--loss", "contrastive=1,classes=1", ABOUT_LOSS, callback=options.parse_loss)
@options.shown("--augment", "default", "Pixel augmentation of both views.", type=LEVELS)
@click.option("--tokens", type=click.Choice(["all", "inked"]), help=ABOUT_TOKENS)
@click.option("--pool", type=click.Choice(["cls", "cls+mean"]), help=ABOUT_POOL)
@click.option("--temperature", default=1 / 15, show_default="1/15", type=POSITIVE, help=ABOUT_T)
@click.option("--micro-batch", type=COUNT, help=ABOUT_MICRO)
@options.workers("Processes that draw, or inflate shards for a GPU.")
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


def prepare(world, device, out, precision, resume, no_compile, tokens, pool, **settings):
    """Check everything that the user may have got wrong, and load what the run needs.

    Return (TrainState, pictures, training order, held-out members), alike on all processes.
    """
    init, seed, batch = settings["init"], settings["seed"], settings["batch"]
    if settings["styles"] != "paper" and not settings["smiles"]:
        raise click.UsageError("--styles goes with --smiles; shards are drawn: render.py --styles")
    world.together(lambda: check_options(world, out, batch, resume))
    dtype, reason = pick_precision(precision, device)
    workers = settings.pop("workers")
    if device.type == "cuda" and not workers:
        workers = max(1, default_workers() // local_processes())
    pictures = world.together(lambda: open_pairs(workers=workers, **settings))
    order, held = world.together(lambda: split_held_out(pictures.clusters, batch))
    encoder = world.local0_first(lambda: load_encoder(init, seed))
    encoder.arch["tokens"] = tokens or encoder.arch["tokens"]
    settle_pool(encoder, pool, init)
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
    state = TrainState.start(out, config, world, encoder, pictures.labels, device, dtype)
    if device.type == "cuda" and not no_compile:
        state.embedder.compile(world)
    if resume:
        state.resume()
    return state, pictures, order, held


def settle_pool(encoder, pool, init):
    """Give an encoder the pool that is asked for. Raises click.ClickException if it has more."""
    has = encoder.arch.get("pool", "cls")
    if pool == "cls+mean" and has == "cls":
        encoder.add_pool()
    elif pool == "cls" and has != "cls":
        raise click.ClickException(
            f"--init {init}: learned with --pool {has}, and can't do without; leave out --pool cls"
        )


def check_options(world, out, batch, resume):
    """Raise click.ClickException for --batch or -o that can't be."""
    if batch % CLUSTER_RUN or batch % world.size:
        raise click.ClickException(
            f"--batch {batch} can't be divided into runs of {CLUSTER_RUN} cluster mates and "
            f"{world.size} processes; take a multiple of {math.lcm(CLUSTER_RUN, world.size)}"
        )
    check_new(world, out, resume)


def describe_run(settings, pictures, encoder):
    """Return the config that a checkpoint keeps."""
    settings = dict(settings)
    drawings, shards, _ = (settings.pop(name) for name in ("smiles", "shards", "styles"))
    config = {
        "shards": str(drawings or shards),
        "labels": str(settings.pop("labels")),
        "input_sha256": pictures.sha256,
        "labels_sha256": digest_labels(pictures.labels),
    }
    config |= {f"drawings_{name}": value for name, value in pictures.drawings.items()}
    config |= {name: settings.pop(name) for name in ("init", "batch", "seed")}
    looks = {"tokens": encoder.arch["tokens"], "pool": encoder.arch.get("pool", "cls")}
    return config | looks | {"optimizer": "AdamW"} | settings


def train(state, pictures, order, held):
    """Run the optimisation and leave the checkpoint, its log and curves."""
    state.embedder.before_slice = Notice().check
    try:
        take_steps(state, pictures, order, held)
    except (Leaving, LostProcess) as error:
        check_loss(state.finite.settle())
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
    look = state.embedder.look(lambda step: random_numbers(seed, step, batch, world))
    for _, loaded in pictures.batches(plan, look):
        parts = fitting(world, backward, state, loaded)
        state.update_weights(last)
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
            check_loss(state.finite.settle())
            state.note(fitting(world, evaluate, state, pictures, held))
            if world.rank == 0:
                state.save()


if __name__ == "__main__":
    main()
