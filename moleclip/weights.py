"""TODO"""

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # openai-clip imports pkg_resources, which announces its end
    import clip


BUNDLED = ROOT / "weights" / "moleclip-small.pt"


def load_encoder(init, seed=0):
    """Return the Encoder that --init names: scratch:SIZE, bundled, a name of clip.load's, or a file.

    Files: a checkpoint of this project, OpenAI's format (a TorchScript archive or a state dict), the published MoleCLIP
    checkpoint, or DINOv2 as .safetensors. Raises click.ClickException in one line with the ways out.
    """
    if init.startswith("scratch:"):
        if init[8:] not in SCRATCH:
            raise click.ClickException(
                f"--init {init}: the sizes are {', '.join('scratch:' + name for name in SCRATCH)}"
            )
        torch.manual_seed(seed)
        encoder = Encoder(new_arch(*SCRATCH[init[8:]], tokens="inked", **WHITE))
        with torch.no_grad():
            encoder.visual.proj *= NORM / encoder.visual.proj.shape[1] ** 0.5
        return encoder
    if init in clip.available_models():
        return load_clip(init)
    path = BUNDLED if init == "bundled" else Path(init)
    if not path.is_file():
        raise click.ClickException(
            f"--init {init}: no such file; give a checkpoint, {', '.join(clip.available_models()[-4:])}, or scratch:tiny"
        )
    if is_torchscript(path):
        return load_clip(str(path))
    if path.suffix == ".safetensors":
        return load_dinov2(path)
    checkpoint = load_checkpoint(path)
    for key in (
        "model",
        "state_dict",
        None,
    ):  # MoleCLIP's own file has its DataParallel state dict under "model"
        inner = checkpoint.get(key) if key else checkpoint
        visual = (
            {
                str(name).rpartition("visual.")[2]: value
                for name, value in inner.items()
                if "visual." in str(name)
            }
            if isinstance(inner, dict)
            else {}
        )
        if visual and "arch" not in checkpoint:
            arch = arch_of(visual) | (
                {"channels": "bgr"} if key == "model" else {}
            )  # its pictures were fed blue first
            return restore_encoder({"encoder": visual, "arch": arch}, path)
    return restore_encoder(checkpoint, path)


def arch_of(state):
    """Return the arch of a CLIP image tower from the shapes in its state dict."""
    try:
        width, _, _, patch = state["conv1.weight"].shape
        size, output_dim = (
            patch * round(math.sqrt(len(state["positional_embedding"]) - 1)),
            state["proj"].shape[1],
        )
    except (KeyError, ValueError, AttributeError):
        raise click.ClickException(
            "--init: its visual.* weights are not those of a CLIP vision transformer"
        ) from None
    layers = len(
        {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    )
    if size != SIZE:
        raise click.ClickException(
            f"--init: this encoder takes {size} x {size} pictures; only {SIZE} x {SIZE} will do"
        )
    return new_arch(width, layers, width // 64, patch, output_dim)


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
            raise click.ClickException(
                f"{name}: not an encoder that this project knows; --init takes what README.md lists"
            ) from None
        bundled = ", bundled" if BUNDLED.is_file() else ""
        raise click.ClickException(
            f"--init {name}: OpenAI's weights can't be downloaded ({one_line(error)}); give a local file "
            f"(--init ViT-B-16.pt), or start from scratch:tiny{bundled}"
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
    """Read a dict that torch saved, tensors and plain values only. Raises click.ClickException."""
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
    """Return the Encoder of a checkpoint that this project saved."""
    if "encoder" not in checkpoint or "arch" not in checkpoint:
        raise click.ClickException(
            f"{path}: holds no encoder of this project's (keys: {', '.join(list(checkpoint)[:5])})"
        )
    try:
        return encoder_from(checkpoint["encoder"], checkpoint["arch"])
    except (
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise click.ClickException(
            f"{path}: its weights don't fit its arch ({one_line(error)})"
        ) from None


def save_checkpoint(path, **parts):
    def write(name):
        with open(name, "wb") as stream:
            torch.save(parts, stream)

    save_whole(path, write)


def default_init():
    """Return the encoder to start from when --init is not given."""
    if Path("encoder.pt").is_file():
        return "encoder.pt"
    return "bundled" if BUNDLED.is_file() else "ViT-B/16"


def read_safetensors(path):
    """Return the tensors of a .safetensors file as fp32. Raises click.ClickException."""
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    try:
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        header = {
            name: entry
            for name, entry in json.loads(bytes(data[8 : 8 + length])).items()
            if name != "__metadata__"
        }
        return {
            name: torch.frombuffer(
                data,
                dtype=kinds[entry["dtype"]],
                count=math.prod(entry["shape"]),
                offset=8 + length + entry["data_offsets"][0],
            )
            .reshape(entry["shape"])
            .float()
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError):
        raise click.ClickException(
            f"{path}: truncated, or not a .safetensors file of float tensors"
        ) from None


def load_dinov2(path):
    """Return the Encoder of a DINOv2 vision transformer in Hugging Face's names, exact but for its position grid's new size.

    LayerScale is folded into the layers before it, the patch bias into the position embeddings; the projection, which
    DINOv2 lacks, is orthonormal but for one factor, and always the same.
    """
    source = {name.removeprefix("dinov2."): value for name, value in read_safetensors(path).items()}
    try:
        width, _, _, patch = source["embeddings.patch_embeddings.projection.weight"].shape
        positions, bias = (
            source["embeddings.position_embeddings"][0],
            source["embeddings.patch_embeddings.projection.bias"],
        )
        old, new = math.isqrt(len(positions) - 1), SIZE // patch
        grid = positions[1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
        grid = (
            torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic").flatten(2)[0].T
            if old != new
            else positions[1:]
        )
        projection = torch.nn.init.orthogonal_(
            torch.empty(width, 512), generator=torch.Generator().manual_seed(0)
        )
        projection *= NORM / source["layernorm.weight"].norm()
        state = {
            "conv1.weight": source["embeddings.patch_embeddings.projection.weight"],
            "class_embedding": source["embeddings.cls_token"][0, 0],
            "positional_embedding": torch.cat([positions[:1], grid + bias]),
            "proj": projection,
            "ln_post.weight": source["layernorm.weight"],
            "ln_post.bias": source["layernorm.bias"],
        }
        layers = len({name.split(".")[2] for name in source if name.startswith("encoder.layer.")})
        for i in range(layers):
            state |= {
                f"transformer.resblocks.{i}.{name}": value
                for name, value in dinov2_block(source, f"encoder.layer.{i}.").items()
            }
    except (KeyError, ValueError, RuntimeError) as error:
        raise click.ClickException(
            f"{path}: not a DINOv2 vision transformer in Hugging Face's names ({one_line(error)})"
        ) from None
    arch = new_arch(
        width,
        layers,
        width // 64,
        patch,
        gelu="exact",
        ln_pre=False,
        ln_eps=1e-6,
        tokens="inked",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return restore_encoder({"encoder": state, "arch": arch}, path)


def dinov2_block(source, at):
    """Return one DINOv2 layer's weights under CLIP's names."""
    attention, first, second = (
        f"{at}attention.attention.",
        source[f"{at}layer_scale1.lambda1"],
        source[f"{at}layer_scale2.lambda1"],
    )
    block = {}
    for kind in ("weight", "bias"):
        fold = (
            (lambda value, scale: scale[:, None] * value)
            if kind == "weight"
            else (lambda value, scale: scale * value)
        )
        block |= {
            f"attn.in_proj_{kind}": torch.cat(
                [source[f"{attention}{name}.{kind}"] for name in ("query", "key", "value")]
            ),
            f"attn.out_proj.{kind}": fold(source[f"{at}attention.output.dense.{kind}"], first),
            f"mlp.c_fc.{kind}": source[f"{at}mlp.fc1.{kind}"],
            f"mlp.c_proj.{kind}": fold(source[f"{at}mlp.fc2.{kind}"], second),
            f"ln_1.{kind}": source[f"{at}norm1.{kind}"],
            f"ln_2.{kind}": source[f"{at}norm2.{kind}"],
        }
    return block
