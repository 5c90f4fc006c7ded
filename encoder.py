"""The image encoder of all stations: built by the clip package, loaded from anywhere, saved, and where it computes.

The scripts take these from pretrain.py, which owns the encoder; this file has no command of its own.
"""

import math
import os
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path

import click
import torch

import render

with warnings.catch_warnings():
    warnings.simplefilter("ignore")                        # openai-clip imports pkg_resources, which announces its end
    import clip

SCRATCH = {"nano": (64, 2, 2), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}   # width, layers, heads
WHITE = {"mean": (1.0, 1.0, 1.0), "std": (0.25, 0.25, 0.25)}       # from scratch: paper becomes 0, only ink speaks. With CLIP's
                                                           # values white drowns it, and the contrastive loss stays at chance
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BUNDLED = render.HERE / "weights" / "moleclip-small.pt"
ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}                 # of the encoder, in pretraining and finetuning


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
    try:
        width, _, _, patch = state["conv1.weight"].shape
        size, output_dim = patch * round(math.sqrt(len(state["positional_embedding"]) - 1)), state["proj"].shape[1]
    except (KeyError, ValueError, AttributeError):
        raise click.ClickException("--init: its visual.* weights are not those of a CLIP vision transformer") from None
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    if size != render.SIZE:
        raise click.ClickException(f"--init: this encoder takes {size} x {size} pictures; only {render.SIZE} x {render.SIZE} will do")
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
        return Encoder(new_arch(*SCRATCH[init[8:]], **WHITE))
    if init in clip.available_models():
        return load_clip(init)
    path = BUNDLED if init == "bundled" else Path(init)
    if not path.is_file():
        raise click.ClickException(f"--init {init}: no such file; give a checkpoint, {', '.join(clip.available_models()[-4:])}, or scratch:tiny")
    if is_torchscript(path):
        return load_clip(str(path))
    checkpoint = load_checkpoint(path)
    inner = checkpoint.get("state_dict")
    visual = {str(name)[7:]: value for name, value in (inner if isinstance(inner, dict) else checkpoint).items() if str(name).startswith("visual.")}
    return restore_encoder({"encoder": visual, "arch": arch_of(visual)} if visual else checkpoint, path)


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
    if not isinstance(checkpoint, dict) or not all(isinstance(key, str) for key in checkpoint):
        raise click.ClickException(f"{path}: not a checkpoint of this project")
    return checkpoint


def restore_encoder(checkpoint, path):
    """Return the Encoder of a checkpoint that this project saved."""
    if "encoder" not in checkpoint or "arch" not in checkpoint:
        raise click.ClickException(f"{path}: holds no encoder of this project's (keys: {', '.join(list(checkpoint)[:5])})")
    try:
        return encoder_from(checkpoint["encoder"], checkpoint["arch"])
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, AssertionError) as error:
        raise click.ClickException(f"{path}: its weights don't fit its arch ({one_line(error)})") from None


def one_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def save_checkpoint(path, **parts):
    def write(name):
        with open(name, "wb") as stream:
            torch.save(parts, stream)

    render.save_whole(path, write)


# ---------------------------------------------------------------------------------------------------------------------
# Where and in what precision to compute


def pick_device(wanted="auto"):
    """Return the torch.device for --device auto, cpu or cuda, one card for each process of torchrun."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise click.ClickException("--device cuda: PyTorch sees no GPU here; leave the flag out to use the CPU")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > count:
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
