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
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

import render

with warnings.catch_warnings():
    warnings.simplefilter("ignore")                        # openai-clip imports pkg_resources, which announces its end
    import clip

SCRATCH = {"nano": (64, 2, 2), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}   # width, layers, heads
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BUNDLED = render.HERE / "weights" / "moleclip-small.pt"
RUN = 32                # cluster mates that enter a batch together: the hard negatives (MoleCLIP: 256 / mix factor 8)
HELD_OUT = 0.001        # of the molecules, at least one batch
ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}                 # of the encoder, in pretraining and finetuning


# ---------------------------------------------------------------------------------------------------------------------
# The encoder


def new_arch(width, layers, heads, patch=16, output_dim=512, **more):
    """Return the facts that make an encoder's function: VisionTransformer's arguments and what stands beside them."""
    return {"args": {"input_resolution": render.SIZE, "patch_size": patch, "width": width, "layers": layers,
                     "heads": heads, "output_dim": output_dim},
            "gelu": "quick", "ln_pre": True, "mean": CLIP_MEAN, "std": CLIP_STD, "channels": "rgb", "tokens": "all"} | more


class Encoder(torch.nn.Module):
    """CLIP's image tower with its pixel normalisation: float RGB pixels (n, 3, 224, 224) in 0..1 to (n, 512)."""

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        self.visual = clip.model.VisionTransformer(**arch["args"])
        self.register_buffer("mean", torch.tensor(arch["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(arch["std"]).view(3, 1, 1), persistent=False)

    def forward(self, pixels):
        pixels = pixels.flip(1) if self.arch["channels"] == "bgr" else pixels
        return self.visual((pixels - self.mean) / self.std)


def to_pixels(index, device):
    """Return index pictures, uint8 (n, 224, 224), as float RGB pixels (n, 3, 224, 224) in 0..1 on the device."""
    table = torch.from_numpy(render.palette()).to(device).float() / 255
    return table[torch.as_tensor(index).to(device).int()].permute(0, 3, 1, 2)


def arch_of(state):
    """Return the arch of a CLIP image tower from the shapes in its state dict."""
    width, _, _, patch = state["conv1.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    size = patch * round(math.sqrt(len(state["positional_embedding"]) - 1))
    if size != render.SIZE:
        raise click.ClickException(f"--init: this encoder takes {size} x {size} pictures; only {render.SIZE} x {render.SIZE} will do")
    return new_arch(width, layers, width // 64, patch, state["proj"].shape[1])


def encoder_from(state, arch):
    """Return an Encoder with these weights, in fp32 whatever they were stored in."""
    encoder = Encoder(arch)
    encoder.visual.load_state_dict({name: value.float() for name, value in state.items()})
    return encoder


def load_clip(name):
    """Return the image tower of a CLIP model, by name (downloaded by clip.load) or from a file in OpenAI's format."""
    try:
        visual = clip.load(name, device="cpu", jit=False)[0].visual.float()
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if Path(name).is_file():
            raise click.ClickException(f"{name}: not an encoder that this project knows; --init takes what README.md lists") from None
        bundled = ", bundled" if BUNDLED.is_file() else ""
        raise click.ClickException(f"--init {name}: OpenAI's weights can't be downloaded ({one_line(error)}); give a local file "
                                   f"(--init ViT-B-16.pt), or start from scratch:tiny{bundled}") from None
    state = visual.state_dict()
    if "conv1.weight" not in state or "class_embedding" not in state:
        raise click.ClickException(f"--init {name}: not a vision transformer; take a ViT, such as ViT-B/16")
    return encoder_from(state, arch_of(state))


def load_encoder(init, seed=0):
    """Return the Encoder that --init names: scratch:SIZE, bundled, a name of clip.load's, or a file.

    Files: a checkpoint of this project, or OpenAI's format (a TorchScript archive or a state dict). Raises
    click.ClickException in one line with the ways out.
    """
    if init.startswith("scratch:"):
        if init[8:] not in SCRATCH:
            raise click.ClickException(f"--init {init}: the sizes are {', '.join('scratch:' + name for name in SCRATCH)}")
        torch.manual_seed(seed)
        return Encoder(new_arch(*SCRATCH[init[8:]]))
    if init in clip.available_models():
        return load_clip(init)
    path = BUNDLED if init == "bundled" else Path(init)
    if not path.is_file():
        raise click.ClickException(f"--init {init}: no such file; give a checkpoint, {', '.join(clip.available_models()[-4:])}, or scratch:tiny")
    if is_torchscript(path):
        return load_clip(str(path))
    checkpoint = load_checkpoint(path)
    visual = {name[7:]: value for name, value in checkpoint.get("state_dict", checkpoint).items() if name.startswith("visual.")}
    return encoder_from(visual, arch_of(visual)) if "class_embedding" in visual else restore_encoder(checkpoint, path)


def is_torchscript(path):
    """Tell whether a file is a TorchScript archive, which torch.load refuses to read safely."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_checkpoint(path):
    """Read a dict that torch saved, tensors and plain values only. Raises click.ClickException."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise click.ClickException(f"{path}: no such file") from None
    except Exception:                                      # torch raises a dozen kinds, all meaning the same to a user
        raise click.ClickException(f"{path}: truncated, or not a PyTorch checkpoint that can be read safely") from None
    if not isinstance(checkpoint, dict):
        raise click.ClickException(f"{path}: not a checkpoint of this project")
    return checkpoint


def restore_encoder(checkpoint, path):
    """Return the Encoder of a checkpoint that this project saved."""
    if "encoder" not in checkpoint or "arch" not in checkpoint:
        raise click.ClickException(f"{path}: holds no encoder of this project's (keys: {', '.join(list(checkpoint)[:5])})")
    try:
        return encoder_from(checkpoint["encoder"], checkpoint["arch"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{path}: its weights don't fit its arch ({one_line(error)})") from None


def one_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def save_checkpoint(path, **parts):
    render.save_whole(path, lambda name: torch.save(parts, name))


# ---------------------------------------------------------------------------------------------------------------------
# Where and in what precision to compute


def pick_device(wanted="auto"):
    """Return the torch.device for --device auto, cpu or cuda, one card for each process of torchrun."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise click.ClickException("--device cuda: PyTorch sees no GPU here; leave the flag out to use the CPU")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise click.ClickException(f"more processes than GPUs ({count}); lower --nproc_per_node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def pick_precision(wanted, device):
    """Return (autocast dtype or None for fp32, the reason in words)."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    if wanted in named:
        return named[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has it"
        return torch.float16, "this GPU has no bf16"
    for name, feature in ((torch.cpu._is_amx_tile_supported, "AMX"), (torch.cpu._is_avx512_bf16_supported, "AVX512-BF16")):
        if name():
            return torch.bfloat16, f"this CPU has {feature}"
    return None, "this CPU has no bf16 arithmetic"


def autocast(device, dtype):
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class Gather(torch.autograd.Function):
    """Concatenate a tensor over processes; backwards, sum the gradients of all processes and take this one's part."""

    @staticmethod
    def forward(context, tensor, world):
        context.world = world
        parts = [torch.empty_like(tensor) for _ in range(world.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(context.world.size)[context.world.rank], None


class World:
    """This process among those that torchrun started; alone without torchrun."""

    def __init__(self, device=None):
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.size > 1 and device is not None:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def gather(self, tensor):
        """Return the tensors of all processes, concatenated in rank order; gradients flow back to each."""
        return Gather.apply(tensor, self) if self.size > 1 else tensor

    def average_gradients(self, parameters):
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values):
        """Return the mean over processes of a 1-d tensor."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size


# ---------------------------------------------------------------------------------------------------------------------
# Data


class Pictures:
    """Molecules that have both a drawing and a label, read at random from memory-mapped shards."""

    def __init__(self, folder, labels_path):
        self.shards, manifest = open_shards(Path(folder))
        row = np.concatenate([shard["row"] for shard in self.shards])
        self.sets = read_labels(labels_path, folder, manifest)
        self.place = np.concatenate([np.stack([np.full(len(s["row"]), i), np.arange(len(s["row"]))], 1)
                                     for i, s in enumerate(self.shards)])
        self.labels = np.stack([labels[row] for labels in self.sets.values()], 1)     # (molecules, label sets)
        kept = (self.labels >= 0).all(1)
        self.place, self.labels, self.unlabelled = self.place[kept], self.labels[kept], int((~kept).sum())
        self.classes = {name: int(labels.max()) + 1 for name, labels in self.sets.items()}

    def __len__(self):
        return len(self.place)

    def views(self, members, view):
        """Return one view of each member as palette indices, uint8 (n, 224, 224)."""
        return np.stack([render.picture(self.shards[s], i, view) for s, i in self.place[members]])


def open_shards(folder):
    """Return (shards, manifest) of a folder that render.py filled. Raises click.ClickException."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except OSError:
        raise click.ClickException(f"{folder}/: holds no shards; draw them first: python render.py data/chembl_3000.smi -o {folder}") from None
    except ValueError:
        raise click.ClickException(f"{folder}/manifest.json: damaged; draw the shards again into another folder") from None
    if not manifest.get("complete"):
        raise click.ClickException(f"{folder}/: the drawing was not finished; go on with render.py --resume")
    if manifest["views"] < 2:
        raise click.ClickException(f"{folder}/: has one view of each molecule; the contrastive loss needs two: render.py --views 2")
    shards = [render.read_shard(folder / f"shard-{i:05d}.npz") for i in range(-(-manifest["rows"] // render.SHARD))]
    return [shard for shard in shards if len(shard["row"])], manifest


def read_labels(path, folder, manifest):
    """Return {"k300": int32 (rows,), ...} of labels.npz, coarsest first, made from the same input as the shards."""
    if not Path(path).is_file():
        raise click.ClickException(f"{path}: no such file; make it first: python cluster.py {manifest['input']} -o {path}")
    arrays = render.read_arrays(path, ("meta",))
    try:
        meta = json.loads(str(arrays["meta"]))
        facts = meta["sha256"], meta["rows"]
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{path}: its meta can't be read; make it again with cluster.py") from None
    if manifest["sha256"] and facts != (manifest["sha256"], manifest["rows"]) or facts[1] != manifest["rows"]:
        raise click.ClickException(f"{path}: made from {meta['input']} ({meta['rows']} rows), but {folder}/ from another file, "
                                   f"{manifest['input']} ({manifest['rows']} rows); run cluster.py on the file that was drawn")
    names = sorted((name for name in arrays if name[:1] == "k"), key=lambda name: int(name[1:]))
    return {name: arrays[name] for name in names}


def split_held_out(labels, batch):
    """Return (training order, held-out members): sorted by the finest label set; whole runs are held out."""
    order = np.lexsort((np.arange(len(labels)), labels[:, -1]))
    wanted = max(batch, math.ceil(len(order) * HELD_OUT / RUN) * RUN)
    if len(order) < wanted + batch:
        raise click.ClickException(f"{len(order)} molecules are too few for --batch {batch} (one batch is held out); lower --batch")
    runs = np.random.default_rng(42).permutation(len(order) // RUN)[:wanted // RUN]
    held = np.zeros(len(order), bool)
    for run in runs:
        held[run * RUN:(run + 1) * RUN] = True
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

    plain, styled: fp32 (local n, 512); the contrastive loss is over the molecules of all processes.
    """
    parts = {}
    parts["contrastive"], parts["retrieval"] = contrastive_loss(world.gather(plain), world.gather(styled), scale)
    for i, (name, head) in enumerate(heads.items()):
        logits = head(plain)
        parts[name] = F.cross_entropy(logits, labels[:, i])
        parts[f"{name}_accuracy"] = (logits.argmax(1) == labels[:, i]).float().mean()
    return parts


def embed(encoder, index, device, dtype):
    """Return fp32 features (n, 512) of index pictures, uint8 (n, 224, 224)."""
    with autocast(device, dtype):
        return encoder(to_pixels(index, device)).float()


def backward(encoder, heads, views, labels, world, scale, device, dtype, micro, scaler):
    """Leave the gradient of the global loss in the parameters and return its detached parts.

    With more pictures than `micro` the features come first without gradient, then slice by slice with it (gradient
    caching): the memory of `micro` pictures, the same result.
    """
    n = len(labels)
    index = np.concatenate(views)
    slices = [slice(i, i + micro) for i in range(0, len(index), micro)]
    whole = len(slices) == 1
    with nullcontext() if whole else torch.no_grad():
        features = torch.cat([embed(encoder, index[part], device, dtype) for part in slices])
    leaf = features if whole else features.requires_grad_()
    parts = loss_parts(leaf[:n], leaf[n:], heads, labels, world, scale)
    loss = sum(value for name, value in parts.items() if value.requires_grad)
    if not torch.isfinite(loss):
        raise click.ClickException("the loss is not a number any more; lower --lr or try --precision fp32 (nothing was overwritten)")
    scaler.scale(loss).backward()
    for part in () if whole else slices:
        embed(encoder, index[part], device, dtype).backward(leaf.grad[part])
    world.average_gradients([*encoder.parameters(), *heads.parameters()])
    return {name: value.detach() for name, value in parts.items()} | {"loss": loss.detach()}


@torch.no_grad()
def evaluate(encoder, heads, pictures, members, batch, world, scale, device, dtype, micro):
    """Return the mean loss parts, retrieval and accuracies over held-out batches, the same on every process."""
    totals = []
    for chunk in members[:len(members) // batch * batch].reshape(-1, batch):
        mine = np.array_split(chunk, world.size)[world.rank]
        plain, styled = (torch.cat([embed(encoder, pictures.views(part, view), device, dtype)
                                    for part in np.array_split(mine, -(-len(mine) // micro))]) for view in (0, 1))
        parts = loss_parts(plain, styled, heads, torch.from_numpy(pictures.labels[mine]).long().to(device), world, scale)
        totals.append(torch.stack(list(parts.values())))
    means = world.mean(torch.stack(totals).mean(0))
    return {f"held_out_{name}": value.item() for name, value in zip(parts, means)}


# ---------------------------------------------------------------------------------------------------------------------
# The run


def load_ahead(pictures, schedule, world):
    """Yield (step, views, labels) of this process's share of each batch; the next is inflated meanwhile."""

    def load(members):
        mine = np.array_split(members, world.size)[world.rank]
        return [pictures.views(mine, view) for view in (0, 1)], torch.from_numpy(pictures.labels[mine]).long()

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for step, members in schedule:
            following = step, pool.submit(load, members)
            if pending:
                yield pending[0], *pending[1].result()
            pending = following
        if pending:
            yield pending[0], *pending[1].result()


def schedule(order, batch, seed, first, last):
    """Yield (step, members) for the steps first..last-1, in whichever epoch they fall."""
    steps = len(order) // batch
    for epoch in range(first // steps, -(-last // steps)):
        for i, members in enumerate(epoch_batches(order, batch, seed, epoch)):
            if first <= epoch * steps + i < last:
                yield epoch * steps + i, members


def save_run(path, encoder, heads, optimizers, step, config, metrics, log):
    """Write encoder.pt, the same facts as encoder.json, the log and the curves."""
    path = Path(path)
    save_checkpoint(path, encoder=encoder.visual.state_dict(), arch=encoder.arch, step=step, config=config, metrics=metrics,
                    heads=heads.state_dict(), optimizer=[optimizer.state_dict() for optimizer in optimizers])
    render.save_json(path.with_suffix(".json"), {"arch": encoder.arch, "step": step, "config": config, "metrics": metrics})
    render.save_whole(path.with_suffix(".log.jsonl"), lambda name: name.write_text("".join(json.dumps(entry) + "\n" for entry in log)))


def plot_curves(path, log):
    """Draw the loss parts, training and held-out, against the step."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    training, held = [e for e in log if "loss" in e], [e for e in log if "held_out_retrieval" in e]
    names = [name for name in training[0] if name == "contrastive" or (name[0] == "k" and name[1:].isdigit())] if training else []
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3.4 * (len(names) + 1), 3), layout="constrained")
    for axis, name in zip(axes, names):
        axis.plot([e["step"] for e in training], [e[name] for e in training], label="training")
        axis.plot([e["step"] for e in held], [e[f"held_out_{name}"] for e in held], "o-", label="held out")
        axis.set(title=f"{name} loss", xlabel="step")
    axes[-1].plot([e["step"] for e in held], [100 * e["held_out_retrieval"] for e in held], "o-", color="C1")
    axes[-1].set(title="held-out view-to-view top-1, %", xlabel="step", ylim=(0, 100))
    axes[0].legend()
    render.save_whole(path, lambda name: figure.savefig(name, dpi=110, format="png"))
    plt.close(figure)


def describe(entry):
    """Return one log line: the step, every loss part and accuracy, and in training the pace."""
    parts = [f"{name} {value:.3f}" for name, value in entry.items() if name not in ("step", "epoch", "lr", "images/s", "left")]
    pace = [f"{entry['images/s']:.0f} images/s", f"{entry['left'] // 60}:{entry['left'] % 60:02d} left"] if "left" in entry else []
    return "  ".join([f"step {entry['step']:5d}", *parts, *pace])


def report(world, entry):
    if world.rank == 0:
        click.echo(describe(entry))


def check_batch(batch, world):
    for divisor, what in ((RUN, f"runs of {RUN} cluster mates"), (world.size, f"{world.size} processes")):
        if batch % divisor:
            raise click.ClickException(f"--batch {batch} can't be divided into {what}; take a multiple of {math.lcm(RUN, world.size)}")


def resume_from(path, encoder, heads, optimizers, config):
    """Restore a checkpoint into the run's parts and return (step, log). Raises if the run's settings differ."""
    checkpoint = load_checkpoint(path)
    for key in ("shards", "batch", "seed", "init", "temperature"):
        if checkpoint.get("config", {}).get(key) != config[key]:
            raise click.ClickException(f"{path}: was made with --{key} {checkpoint.get('config', {}).get(key)}, not {config[key]}; "
                                       "resume with the same settings, or give another -o")
    try:
        encoder.visual.load_state_dict(checkpoint["encoder"])
        heads.load_state_dict(checkpoint["heads"])
        for optimizer, state in zip(optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise click.ClickException(f"{path}: can't be resumed from ({one_line(error)})") from None
    lines = Path(path).with_suffix(".log.jsonl").read_text().splitlines()
    return checkpoint["step"], [entry for entry in map(json.loads, lines) if entry["step"] <= checkpoint["step"]]


@click.command()
@click.option("--shards", default="shards", show_default=True, help="Folder of drawings that render.py made.")
@click.option("--labels", default="labels.npz", show_default=True, help="Pseudo-labels that cluster.py made from the same file.")
@click.option("-o", "--out", default="encoder.pt", show_default=True, help="Checkpoint; log and curves lie beside it.")
@click.option("--init", default="ViT-B/16", show_default=True, help="Starting weights: a name of CLIP's, a file, or scratch:nano|tiny|small|base.")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1), help="Passes over the molecules.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Stop after so many optimiser steps.")
@click.option("--batch", default=256, show_default=True, type=click.IntRange(RUN), help="Molecules in a step, over all processes.")
@click.option("--lr", default=5e-6, show_default=True, type=click.FloatRange(0, min_open=True), help="Learning rate of the encoder.")
@click.option("--temperature", default=1 / 15, show_default="1/15", type=click.FloatRange(0, min_open=True), help="Temperature of the contrastive loss.")
@click.option("--micro-batch", default=None, type=click.IntRange(1), help="Pictures in memory at once.  [default: fits the device]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the order and of random weights.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "bf16", "fp16", "fp32"]), help="Arithmetic; weights are always fp32.")
@click.option("--save-every", default=500, show_default=True, type=click.IntRange(1), help="Steps between checkpoints and held-out evaluations.")
@click.option("--log-every", default=10, show_default=True, type=click.IntRange(1), help="Steps between log lines.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint under -o.")
def main(**options):
    """Train an image encoder on drawings of unlabelled molecules."""
    world = World()
    try:
        run = prepare(world, **options)
    except click.ClickException:                           # every process finds the same mistake; the first says so
        if world.rank:
            time.sleep(30)                                 # torchrun ends the others when one has left
        raise
    train(*run)


def prepare(world, shards, labels, out, init, batch, seed, device, precision, resume, **rest):
    """Check everything that the user may have got wrong, before any process waits for another."""
    config = {"shards": str(shards), "labels": str(labels), "init": init, "batch": batch, "seed": seed, **rest}
    check_batch(batch, world)
    if Path(out).exists() and not resume:
        raise click.ClickException(f"{out}: exists already; go on with --resume, or give another name with -o")
    device = pick_device(device)
    dtype, reason = pick_precision(precision, device)
    pictures = Pictures(shards, labels)
    order, held = split_held_out(pictures.labels, batch)
    encoder = load_encoder(init, seed)
    if world.rank == 0:
        weights = sum(p.numel() for p in encoder.parameters()) / 1e6
        click.echo(f"{len(order)} molecules to train on, {len(held)} held out; {weights:.1f} M weights from {init}; "
                   f"{world.size} process{'es' if world.size > 1 else ''} on {device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})")
        if pictures.unlabelled:
            click.echo(f"{pictures.unlabelled} drawings have no label and are left out")
    return world, config, out, resume, device, dtype, pictures, order, held, encoder


def train(world, config, out, resume, device, dtype, pictures, order, held, encoder):
    """Run the optimisation and leave the checkpoint, its log and curves."""
    world = World(device)
    batch, seed, scale = config["batch"], config["seed"], 1 / config["temperature"]
    micro = config["micro_batch"] or (64 if device.type == "cpu" else 256)
    torch.manual_seed(seed)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(encoder.arch["args"]["output_dim"], count) for name, count in pictures.classes.items()})
    encoder, heads = encoder.to(device), heads.to(device)
    optimizers = [torch.optim.Adam(encoder.parameters(), config["lr"], weight_decay=0.1, **ADAM),
                  torch.optim.Adam(heads.parameters(), 0.01, betas=ADAM["betas"])]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    last = config["epochs"] * (len(order) // batch)
    last = min(last, config["steps"] or last)
    first, log = resume_from(out, encoder, heads, optimizers, config) if resume else (0, [])
    began = time.time()
    for step, views, labels in load_ahead(pictures, schedule(order, batch, seed, first, last), world):
        parts = backward(encoder, heads, views, labels.to(device), world, scale, device, dtype, micro, scaler)
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        done = step + 1
        if done % config["log_every"] == 0 or done == last:
            means = world.mean(torch.stack(list(parts.values()))).tolist()
            pace = (done - first) / (time.time() - began)
            log.append({"step": done, "epoch": done * batch / len(order), "lr": config["lr"]} | dict(zip(parts, means)) |
                       {"images/s": 2 * batch * pace, "left": round((last - done) / pace)})
            report(world, log[-1])
        if done % config["save_every"] == 0 or done == last:
            metrics = evaluate(encoder, heads, pictures, held, batch, world, scale, device, dtype, micro)
            log.append({"step": done} | metrics)
            report(world, log[-1])
            if world.rank == 0:
                save_run(out, encoder, heads, optimizers, done, config, metrics, log)
    if world.rank == 0:
        plot_curves(Path(out).with_suffix(".curves.png"), log)
        click.echo(f"{out}: step {last}; {Path(out).with_suffix('.curves.png')} shows the course")
    if world.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
