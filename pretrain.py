"""Teach an image encoder chemistry on drawings of unlabelled molecules: contrastive views plus cluster pseudo-labels.

    torchrun --nproc_per_node=4 pretrain.py                               # shards/ + labels.npz -> encoder.pt, from ViT-B/16
    python pretrain.py --init scratch:tiny --lr 5e-4 --batch 64 --epochs 1
    python pretrain.py --resume                                           # go on where an interrupted run stopped

The method is MoleCLIP's (Harnik et al., Chem. Sci. 2025, 16, 10833). This script also owns the encoder for the others:
building it from the clip package, loading weights from anywhere, saving them.
"""

import json
import math
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import torch
import torch.distributed as dist

from moleclip.device import (
    Distributed,
    fitting_batch,
    memory_used,
    pick_device,
    pick_precision,
    report_once,
)
from moleclip.encoder import ADAM, Embedder
from moleclip.files import check_output, one_line, save_json, save_whole
from moleclip.options import SEED, Positive, parse_loss, parse_rates
from moleclip.pairs import (
    CLUSTER_RUN,
    DrawnPairs,
    ShardPairs,
    class_heads,
    loss_parts,
    random_numbers,
    schedule,
    split_held_out,
)
from moleclip.plots import plot_curves
from moleclip.weights import load_checkpoint, load_encoder, save_checkpoint

WARM_UP = 5  # steps at a third of the learning rate (MoleCLIP's ConstantLR)


def backward(embedder, heads, views, random, labels, world, scale, weights, scaler):
    """Leave the gradient of the global loss in the parameters and return its detached parts.

    With more pictures than fit at once the features come first without gradient, then slice by slice with it (gradient
    caching): the memory of one slice, the same result. views: two uint8 (n, 224, 224); random: (2n, RANDOM).
    """
    n, index = len(labels), np.concatenate(views)
    whole, slices = len(index) <= embedder.micro_batch, embedder.micro_batches(index, random)
    with nullcontext() if whole else torch.no_grad():
        features = embedder.embed_batch(index, random, slices)
    leaf = features if whole else features.requires_grad_()
    parts = loss_parts(leaf[:n], leaf[n:], heads, labels, world, scale)
    loss = weights["contrastive"] * parts["contrastive"] + weights["classes"] * sum(
        parts[name] for name in class_heads(heads)
    )
    if "descriptors" in heads:
        loss = loss + weights["descriptors"] * (parts["descriptors"] + parts["maccs"])
    if not torch.isfinite(loss):
        raise click.ClickException(
            "the loss is not a number any more; lower --lr or try --precision fp32 (nothing was overwritten)"
        )
    scaler.scale(loss).backward()
    for part in () if whole else slices:
        embedder.embed(index[part], random[part]).backward(
            leaf.grad[torch.from_numpy(part).to(leaf.device)]
        )
    world.average_gradients([*embedder.encoder.parameters(), *heads.parameters()])
    return {name: value.detach() for name, value in parts.items()} | {"loss": loss.detach()}


@torch.no_grad()
def evaluate(embedder, heads, pictures, members, batch, world, scale):
    """Return the mean loss parts, retrieval and accuracies over held-out batches, the same on every process."""
    totals = []
    for chunk in members[: len(members) // batch * batch].reshape(-1, batch):
        mine = np.array_split(chunk, world.size)[world.rank]
        views, labels = pictures.load(mine, 0)
        plain, styled = (embedder.embed_batch(view, None) for view in views)
        parts = loss_parts(plain, styled, heads, labels.to(embedder.device), world, scale)
        totals.append(torch.stack(list(parts.values())))
    means = world.mean(torch.stack(totals).mean(0))
    return {f"held_out_{name}": value.item() for name, value in zip(parts, means)}


def save_run(path, encoder, heads, optimizers, scaler, step, config, metrics, log):
    """Write encoder.pt, the same facts as encoder.json, and the log."""
    path = Path(path)
    save_checkpoint(
        path,
        encoder=encoder.visual.state_dict(),
        arch=encoder.arch,
        step=step,
        config=config,
        metrics=metrics,
        heads=heads.state_dict(),
        optimizer=[optimizer.state_dict() for optimizer in optimizers],
        scaler=scaler.state_dict(),
        rng=torch.get_rng_state(),
        sampler={"seed": config["seed"], "step": step},
    )  # the order is a function of both
    save_json(
        path.with_suffix(".json"),
        {"arch": encoder.arch, "step": step, "config": config, "metrics": metrics},
    )
    save_whole(
        path.with_suffix(".log.jsonl"),
        lambda name: name.write_text("".join(json.dumps(entry) + "\n" for entry in log)),
    )


def log_line(entry):
    """Return one log line: the step, every loss part and accuracy, and in training the pace."""
    parts = [
        f"{name} {value:.3f}"
        for name, value in entry.items()
        if name not in ("step", "epoch", "lr", "images/s", "memory_gb", "left")
    ]
    pace = (
        [
            f"{entry['images/s']:.0f} images/s",
            f"{entry['memory_gb']:.1f} GB",
            f"{entry['left'] // 60}:{entry['left'] % 60:02d} left",
        ]
        if "left" in entry
        else []
    )
    return "  ".join([f"step {entry['step']:5d}", *parts, *pace])


def print0(world, entry):
    if world.rank == 0:
        click.echo(entry if isinstance(entry, str) else log_line(entry))


def resume_from(path, encoder, heads, optimizers, scaler, config):
    """Restore a checkpoint into the run's parts and return (step, log). Raises if settings differ, but for --lr and --loss, which the log notes."""
    checkpoint = load_checkpoint(path)
    before = checkpoint.get("config", {})
    changed = {
        key: config[key] for key in ("lr", "loss") if before.get(key) != config[key]
    }  # a run's last part at a lower rate is a common wish
    for key in (
        "input_sha256",
        "batch",
        "seed",
        "init",
        "temperature",
        "tokens",
        "augment",
        "optimizer",
    ):
        if before.get(key) != config[key]:
            raise click.ClickException(
                f"{path}: was made with {key} {before.get(key)}, not {config[key]}; resume with the same settings, or give another -o"
            )
    try:
        encoder.visual.load_state_dict(checkpoint["encoder"])
        heads.load_state_dict(checkpoint["heads"])
        scaler.load_state_dict(checkpoint["scaler"])
        for optimizer, state in zip(optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(checkpoint["rng"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise click.ClickException(f"{path}: can't be resumed from ({one_line(error)})") from None
    log, changes = (
        Path(path).with_suffix(".log.jsonl"),
        [{"step": checkpoint["step"], "changed": changed}] if changed else [],
    )
    try:
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        return checkpoint["step"], [
            entry for entry in entries if entry["step"] <= checkpoint["step"]
        ] + changes
    except (OSError, ValueError, TypeError, KeyError):
        click.echo(f"warning: {log} is missing or damaged; the log begins anew", err=True)
        return checkpoint["step"], changes


@click.command()
@click.option(
    "--shards", default="shards", show_default=True, help="Folder of drawings that render.py made."
)
@click.option(
    "--labels",
    default="labels.npz",
    show_default=True,
    help="Pseudo-labels that cluster.py made from the same file.",
)
@click.option(
    "--smiles",
    default=None,
    help="Draw from this file while training, in new styles every epoch, instead of --shards.",
)
@click.option(
    "-o",
    "--out",
    default="encoder.pt",
    show_default=True,
    help="Checkpoint; log and curves lie beside it.",
)
@click.option(
    "--init",
    default="ViT-B/16",
    show_default=True,
    help="Starting weights: bundled, a name of CLIP's, a file, or scratch:nano|tiny|small|base.",
)
@click.option(
    "--epochs",
    default=4,
    show_default=True,
    type=click.IntRange(1),
    help="Passes over the molecules.",
)
@click.option(
    "--steps", default=None, type=click.IntRange(1), help="Stop after so many optimiser steps."
)
@click.option(
    "--batch",
    default=256,
    show_default=True,
    type=click.IntRange(CLUSTER_RUN),
    help="Molecules in a step, over all processes.",
)
@click.option(
    "--lr",
    default="5e-6,0.01",
    show_default=True,
    callback=parse_rates,
    help="Learning rates of the encoder and, if named, the heads.",
)
@click.option(
    "--loss",
    default="contrastive=1,classes=1",
    show_default=True,
    callback=parse_loss,
    help="Weights of the tasks; 0 switches one off; descriptors=1 adds a third.",
)
@click.option(
    "--augment",
    default="default",
    show_default=True,
    type=click.Choice(["none", "default", "intense"]),
    help="Pixel augmentation of both views.",
)
@click.option(
    "--tokens",
    default=None,
    type=click.Choice(["all", "inked"]),
    help="Patches the encoder looks at.  [default: all for CLIP's weights, else inked]",
)
@click.option(
    "--temperature",
    default=1 / 15,
    show_default="1/15",
    type=Positive(),
    help="Temperature of the contrastive loss.",
)
@click.option(
    "--micro-batch",
    default=None,
    type=click.IntRange(1),
    help="Pictures in memory at once.  [default: fits the device]",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Seed of the order and of random weights.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where to compute.",
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    help="Arithmetic; weights are always fp32.",
)
@click.option(
    "--save-every",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="Steps between checkpoints and held-out evaluations.",
)
@click.option(
    "--log-every",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Steps between log lines.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint under -o, if there is one.")
def main(device, **options):
    """Train an image encoder on drawings of unlabelled molecules."""
    with report_once():
        device = pick_device(device)
        world = Distributed.start(device)
        run = check_and_load(world, device, **options)
    train(world, device, *run)


def check_and_load(
    world, device, shards, smiles, labels, out, init, batch, seed, precision, tokens, resume, **rest
):
    """Check everything that the user may have got wrong, before the long work, and load what it needs."""
    if batch % CLUSTER_RUN or batch % world.size:
        raise click.ClickException(
            f"--batch {batch} can't be divided into runs of {CLUSTER_RUN} cluster mates and {world.size} processes; "
            f"take a multiple of {math.lcm(CLUSTER_RUN, world.size)}"
        )
    if Path(out).suffix != ".pt":
        raise click.ClickException(
            f"-o {out}: give a name that ends in .pt; the log and curves are named after it"
        )
    if Path(out).exists() and not resume:
        raise click.ClickException(
            f"{out}: exists already; go on with --resume, or give another name with -o"
        )
    if world.rank == 0:
        check_output(out)
    dtype, reason = pick_precision(precision, device)
    describe = "descriptors" in rest["loss"]
    pictures = (
        DrawnPairs(smiles, labels, seed, describe)
        if smiles
        else ShardPairs(shards, labels, describe)
    )
    order, held = split_held_out(pictures.labels.clusters[pictures.row], batch)
    with world.rank0_first():
        encoder = load_encoder(init, seed)
    encoder.arch["tokens"] = tokens or encoder.arch["tokens"]
    if not world.rank:
        weights = sum(p.numel() for p in encoder.parameters()) / 1e6
        click.echo(
            f"{len(order)} molecules to train on, {len(held)} held out; {weights:.1f} M weights from {init}, {encoder.arch['tokens']} tokens; "
            f"{world.size} process{'es' if world.size > 1 else ''} on {device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})"
        )
        if pictures.unlabelled:
            click.echo(f"{pictures.unlabelled} drawings have no label and are left out")
    config = {
        "shards": str(smiles or shards),
        "labels": str(labels),
        "input_sha256": pictures.sha256,
        "init": init,
        "batch": batch,
        "seed": seed,
        "tokens": encoder.arch["tokens"],
        "optimizer": "AdamW",
    } | rest
    return config, out, resume and Path(out).exists(), dtype, pictures, order, held, encoder


def train(world, device, config, out, resume, dtype, pictures, order, held, encoder):
    """Run the optimisation and leave the checkpoint, its log and curves."""
    batch, seed, scale = config["batch"], config["seed"], 1 / config["temperature"]
    torch.manual_seed(seed)
    heads = torch.nn.ModuleDict(
        {
            name: torch.nn.Linear(encoder.arch["args"]["output_dim"], count)
            for name, count in pictures.labels.outputs.items()
        }
    )
    encoder, heads = encoder.to(device), heads.to(device)
    if device.type == "cuda" and encoder.arch["tokens"] == "all":
        encoder.visual.compile()  # in place: the names in the checkpoint stay
    embedder = Embedder(
        encoder,
        device,
        dtype,
        config["augment"],
        config["micro_batch"] or fitting_batch(encoder.arch, device, dtype),
    )
    # AdamW, not the paper's Adam: there the decay of 0.1 joins gradients that are mostly smaller, and moves every weight by the
    # learning rate a step: from DINOv2-S at 5e-5 the contrastive loss was after 80 steps still 3.6, not 2.2 (chance 4.2).
    optimizers = [
        torch.optim.AdamW(
            encoder.parameters(), config["lr"][0], weight_decay=0.1, fused=True, **ADAM
        ),
        torch.optim.Adam(heads.parameters(), config["lr"][1], betas=ADAM["betas"], fused=True),
    ]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    last = config["epochs"] * (len(order) // batch)
    last = min(last, config["steps"] or last)
    first, log = resume_from(out, encoder, heads, optimizers, scaler, config) if resume else (0, [])
    if log and "changed" in log[-1]:
        print0(
            world,
            f"{out}: goes on from step {first} with other settings: {json.dumps(log[-1]['changed'])}",
        )
    leave, began, done, sums = [], time.time(), first, []
    signal.signal(signal.SIGTERM, lambda *_: leave.append(True))
    for step, views, labels in pictures.batches(schedule(order, batch, seed, first, last, world)):
        random = random_numbers(seed, step, batch, world)
        parts = backward(
            embedder, heads, views, random, labels.to(device), world, scale, config["loss"], scaler
        )
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
            log.append(
                {
                    "step": done,
                    "epoch": done * batch / len(order),
                    "lr": optimizers[0].param_groups[0]["lr"],
                }
                | dict(zip(parts, means))
                | {
                    "images/s": 2 * batch * pace,
                    "memory_gb": memory_used(device),
                    "left": round((last - done) / pace),
                }
            )
            print0(world, log[-1])
        if done % config["save_every"] == 0 or done == last:
            metrics = evaluate(embedder, heads, pictures, held, batch, world, scale)
            log.append({"step": done} | metrics)
            print0(world, log[-1])
        if world.rank == 0 and (done % config["save_every"] == 0 or done == last or stop):
            save_run(
                out,
                encoder,
                heads,
                optimizers,
                scaler,
                done,
                config,
                next((e for e in reversed(log) if "held_out_retrieval" in e), {}),
                log,
            )
        if stop:
            print0(
                world, f"asked to leave: saved step {done} in {out}; --resume goes on from there"
            )
            break
    if world.rank == 0:
        plot_curves(Path(out).with_suffix(".curves.png"), log)
        click.echo(f"{out}: step {done}; {Path(out).with_suffix('.curves.png')} shows the course")
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
