"""Encoders from files and by name: this project's, OpenAI's, MoleCLIP's, DINOv2's; checkpoints."""

import hashlib
import json
import math
import struct
import warnings
import zipfile
from pathlib import Path

import click
import torch

from moleclip.encoder import NORM, SCRATCH, WHITE, Encoder, new_arch
from moleclip.files import ROOT, one_line, save_whole
from moleclip.pixels import SIZE

with warnings.catch_warnings(action="ignore"):  # clip imports a deprecated pkg_resources
    import clip

BUNDLED = ROOT / "weights" / "moleclip-small.pt"
DINOV2_NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of its pictures
DINOV2_UNUSED = ("embeddings.mask_token", "classifier.")  # of its own training, of a task on top


def load_encoder(init, seed=0):
    """Return the Encoder that --init names: scratch:SIZE, bundled, a clip model, or a file.

    Files: a checkpoint of this project, OpenAI's format (a TorchScript archive or a state dict),
    the published MoleCLIP checkpoint, or DINOv2 as .safetensors. Raises click.ClickException in
    one line with the ways out.
    """
    if init.startswith("scratch:"):
        return new_encoder(init, seed)
    names = clip.available_models()
    if init in names:
        return load_clip(init)
    path = BUNDLED if init == "bundled" else Path(init)
    if not path.is_file():
        raise click.ClickException(
            f"--init {init}: no such file; give a checkpoint, {', '.join(names[-4:])}, "
            "or scratch:tiny"
        )
    if is_torchscript(path):
        return load_clip(str(path))
    if path.suffix == ".safetensors":
        return load_dinov2(path)
    checkpoint = load_checkpoint(path)
    if "arch" in checkpoint:
        return restore_encoder(checkpoint, path)
    return load_tower(checkpoint, path)


def init_digest(init):
    """Return the SHA-256 of the file that --init names, or what else it names."""
    path = BUNDLED if init == "bundled" else Path(init)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else init


def new_encoder(init, seed):
    """Return the Encoder of scratch:SIZE, with random weights."""
    if init[8:] not in SCRATCH:
        sizes = ", ".join(f"scratch:{name}" for name in SCRATCH)
        raise click.ClickException(f"--init {init}: the sizes are {sizes}")
    torch.manual_seed(seed)
    encoder = Encoder(new_arch(*SCRATCH[init[8:]], tokens="inked", **WHITE))
    with torch.no_grad():
        encoder.visual.proj *= NORM / encoder.visual.proj.shape[1] ** 0.5
    return encoder


def load_tower(checkpoint, path):
    """Return the Encoder of a state dict with an image tower's names in it, OpenAI's or MoleCLIP's.

    MoleCLIP's own file has its DataParallel state dict under "model"; its pictures were fed blue
    first.
    """
    for key in ("model", "state_dict", None):
        states = checkpoint.get(key) if key else checkpoint
        if not isinstance(states, dict):
            continue
        visual = {
            str(name).rpartition("visual.")[2]: value
            for name, value in states.items()
            if "visual." in str(name)
        }
        if visual:
            arch = arch_of(visual) | ({"channels": "bgr"} if key == "model" else {})
            return restore_encoder({"encoder": visual, "arch": arch}, path)
    return restore_encoder(checkpoint, path)


def arch_of(state):
    """Return the arch of a CLIP image tower from the shapes in its state dict."""
    try:
        width, _, _, patch = state["conv1.weight"].shape
        output_dim = state["proj"].shape[1]
        size = patch * round(math.sqrt(len(state["positional_embedding"]) - 1))
    except (KeyError, ValueError, AttributeError):
        raise click.ClickException(
            "--init: its visual.* weights are not those of a CLIP vision transformer"
        ) from None
    if size != SIZE:
        raise click.ClickException(
            f"--init: this encoder takes {size} x {size} pictures; only {SIZE} x {SIZE} will do"
        )
    layers = count_layers(state, "transformer.resblocks.")
    return new_arch(width, layers, width // 64, patch, output_dim)


def count_layers(state, prefix):
    """Return how many numbers follow the prefix, which has two parts, in a state dict's names."""
    return len({name.split(".")[2] for name in state if name.startswith(prefix)})


def encoder_from(state, arch):
    """Return an Encoder with these weights, in fp32 whatever they were stored in."""
    encoder = Encoder(arch)
    encoder.visual.load_state_dict({name: value.float() for name, value in state.items()})
    return encoder


def load_clip(name):
    """Return the image tower of a CLIP model, by name or from a file in OpenAI's format.

    clip.load downloads a named one. Raises click.ClickException.
    """
    try:
        visual = clip.load(name, device="cpu", jit=False)[0].visual.float()
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if Path(name).is_file():
            raise click.ClickException(
                f"{name}: not an encoder that is known here; --init takes what docs/manual.md lists"
            ) from None
        bundled = ", bundled" if BUNDLED.is_file() else ""
        raise click.ClickException(
            f"--init {name}: OpenAI's weights can't be downloaded ({one_line(error)}); give a "
            f"local file (--init ViT-B-16.pt), or start from scratch:tiny{bundled}"
        ) from None
    state = visual.state_dict()
    if "conv1.weight" not in state or "class_embedding" not in state:
        raise click.ClickException(
            f"--init {name}: not a vision transformer; take a ViT, such as ViT-B/16"
        )
    return encoder_from(state, arch_of(state))


def is_torchscript(path):
    """Tell whether a file is a TorchScript archive, which torch.load refuses to read safely."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_checkpoint(path):
    """Return a dict that torch saved, with tensors and plain values only.

    Raises click.ClickException.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise click.ClickException(f"{path}: no such file") from None
    except Exception:  # torch raises a dozen kinds, all meaning the same to a user
        raise click.ClickException(
            f"{path}: truncated, or not a PyTorch checkpoint that can be read safely"
        ) from None
    if not isinstance(checkpoint, dict) or not all(isinstance(key, str) for key in checkpoint):
        raise click.ClickException(f"{path}: not a checkpoint of this project")
    return checkpoint


def restore_encoder(checkpoint, path):
    """Return the Encoder of a checkpoint that this project saved. Raises click.ClickException."""
    if "encoder" not in checkpoint or "arch" not in checkpoint:
        raise click.ClickException(
            f"{path}: holds no encoder of this project's (keys: {', '.join(list(checkpoint)[:5])})"
        )
    wrong = (RuntimeError, LookupError, TypeError, AttributeError)
    try:
        return encoder_from(checkpoint["encoder"], checkpoint["arch"])
    except (*wrong, ValueError, ArithmeticError, AssertionError) as error:
        raise click.ClickException(
            f"{path}: its weights don't fit its arch ({one_line(error)})"
        ) from None


def save_checkpoint(path, **parts):
    """Write a dict with torch.save, whole or not at all."""

    def write(name):
        with open(name, "wb") as stream:
            torch.save(parts, stream)

    save_whole(path, write)


def default_init():
    """Return the encoder to start from when --init is not given."""
    if Path("encoder.pt").is_file():
        return "encoder.pt"
    return "bundled" if BUNDLED.is_file() else "ViT-B/16"


def read_safetensors(path, skip=()):
    """Return a .safetensors file's tensors, but for `skip`, as fp32. Raises ClickException."""
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    tensors = {}
    try:
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        wanted = [name for name in header if name not in ("__metadata__", *skip)]
        for name, entry in zip(wanted, map(header.get, wanted)):
            kind, shape, start = kinds[entry["dtype"]], entry["shape"], entry["data_offsets"][0]
            count, start = math.prod(shape), 8 + length + start
            flat = torch.frombuffer(data, dtype=kind, count=count, offset=start)
            tensors[name] = flat.reshape(shape).float()
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError):
        raise click.ClickException(
            f"{path}: truncated, or not a .safetensors file of float tensors"
        ) from None
    return tensors


def load_dinov2(path):
    """Return the Encoder of a DINOv2 vision transformer in Hugging Face's names.

    It is exact but for its position grid's new size. LayerScale is folded into the layers before
    it, the patch bias into the position embeddings; the projection, which DINOv2 lacks, is
    orthonormal but for one factor, and always the same. Raises click.ClickException, for
    weights too that would be left out, such as register tokens.
    """
    source = {name.removeprefix("dinov2."): value for name, value in read_safetensors(path).items()}
    try:
        layers = count_layers(source, "encoder.layer.")
        state = dinov2_embeddings(source)
        for i in range(layers):
            for name, value in dinov2_block(source, f"encoder.layer.{i}.").items():
                state[f"transformer.resblocks.{i}.{name}"] = value
    except (KeyError, ValueError, RuntimeError) as error:
        raise click.ClickException(
            f"{path}: not a DINOv2 vision transformer in Hugging Face's names ({one_line(error)})"
        ) from None
    left = [name for name in source if not name.startswith(DINOV2_UNUSED)]
    if left:
        raise click.ClickException(
            f"{path}: its {left[0]} has no place here; take a DINOv2 without registers"
        )
    own = {"gelu": "exact", "ln_pre": False, "ln_eps": 1e-6, "tokens": "inked"} | DINOV2_NORM
    width, _, _, patch = state["conv1.weight"].shape
    arch = new_arch(width, layers, width // 64, patch, **own)
    return restore_encoder({"encoder": state, "arch": arch}, path)


def dinov2_embeddings(source):
    """Take DINOv2's weights around the layers out of `source`; return them by CLIP's names."""
    at = "embeddings.patch_embeddings.projection."
    convolution, bias = source.pop(f"{at}weight"), source.pop(f"{at}bias")
    positions = source.pop("embeddings.position_embeddings")[0]
    norm = source.pop("layernorm.weight")
    width, _, _, patch = convolution.shape
    old, new = math.isqrt(len(positions) - 1), SIZE // patch
    grid = positions[1:]
    if old != new:
        grid = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic")
        grid = grid.flatten(2)[0].T
    steady = torch.Generator().manual_seed(0)
    projection = torch.nn.init.orthogonal_(torch.empty(width, 512), generator=steady)
    return {
        "conv1.weight": convolution,
        "class_embedding": source.pop("embeddings.cls_token")[0, 0],
        "positional_embedding": torch.cat([positions[:1], grid + bias]),
        "proj": projection * (NORM / norm.norm()),
        "ln_post.weight": norm,
        "ln_post.bias": source.pop("layernorm.bias"),
    }


def dinov2_block(source, at):
    """Take one DINOv2 layer's weights out of `source`, and return them by CLIP's names."""
    first, second = (source.pop(f"{at}layer_scale{i}.lambda1") for i in (1, 2))
    names = [f"{at}attention.attention.{name}" for name in ("query", "key", "value")]
    block = {}
    for kind in ("weight", "bias"):
        rows = (-1, 1) if kind == "weight" else (-1,)  # LayerScale scales a layer's outputs
        mixed = source.pop(f"{at}attention.output.dense.{kind}")
        told = source.pop(f"{at}mlp.fc2.{kind}")
        block |= {
            f"attn.in_proj_{kind}": torch.cat([source.pop(f"{name}.{kind}") for name in names]),
            f"attn.out_proj.{kind}": first.view(rows) * mixed,
            f"mlp.c_fc.{kind}": source.pop(f"{at}mlp.fc1.{kind}"),
            f"mlp.c_proj.{kind}": second.view(rows) * told,
            f"ln_1.{kind}": source.pop(f"{at}norm1.{kind}"),
            f"ln_2.{kind}": source.pop(f"{at}norm2.{kind}"),
        }
    return block
