"""The image encoder of all stations: built by the clip package, loaded from anywhere, saved, and the augmentation of what it sees.

The scripts take these from pretrain.py, which owns the encoder; this file has no command of its own.
"""

import json
import math
import struct
import warnings
import zipfile
from pathlib import Path

import click
import numpy as np
import torch

import render

with warnings.catch_warnings():
    warnings.simplefilter("ignore")                        # openai-clip imports pkg_resources, which announces its end
    import clip

SCRATCH = {"nano": (64, 2, 2), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}   # width, layers, heads
WHITE = {"mean": (1.0, 1.0, 1.0), "std": (0.25, 0.25, 0.25)}       # from scratch: paper becomes 0, only ink speaks. With CLIP's
                                                           # values white drowns it, and the contrastive loss stays at chance
NORM = 10               # of the features of CLIP's ViT-B/16, roughly: what the heads' learning rate of 0.01 is made for
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BUNDLED = render.HERE / "weights" / "moleclip-small.pt"
ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}                 # of the encoder, in pretraining and finetuning


def new_arch(width, layers, heads, patch=16, output_dim=512, **more):
    """Return the facts that make an encoder's function: VisionTransformer's arguments and what stands beside them."""
    return {"args": {"input_resolution": render.SIZE, "patch_size": patch, "width": width, "layers": layers,
                     "heads": heads, "output_dim": output_dim},
            "gelu": "quick", "ln_pre": True, "ln_eps": 1e-5, "mean": CLIP_MEAN, "std": CLIP_STD, "channels": "rgb", "tokens": "all"} | more


class Encoder(torch.nn.Module):
    """CLIP's image tower with its pixel normalisation: float RGB pixels (n, 3, 224, 224) in 0..1 to (n, 512).

    arch says what deviates from CLIP's own function. With tokens "inked" only the patches that are not plain paper become
    tokens; an image's result does not depend on the others in the batch.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        self.visual = clip.model.VisionTransformer(**arch["args"])
        if not arch["ln_pre"]:
            self.visual.ln_pre = torch.nn.Identity()
        for module in self.visual.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = arch["ln_eps"]
            if arch["gelu"] == "exact" and hasattr(module, "gelu"):
                module.gelu = torch.nn.GELU()
        self.register_buffer("mean", torch.tensor(arch["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(arch["std"]).view(3, 1, 1), persistent=False)

    def forward(self, pixels, ink=None):
        """ink: bool (n, patches), which patches to look at; by default those of `pixels` that are not plain white."""
        if self.arch["tokens"] == "inked" and ink is None:
            ink = self.inked(pixels)
        pixels = pixels.flip(1) if self.arch["channels"] == "bgr" else pixels
        pixels = (pixels - self.mean) / self.std
        if self.arch["tokens"] == "all":
            if not explicit(pixels):
                return self.visual(pixels)
            ink = torch.ones_like(self.visual.positional_embedding[1:, 0], dtype=torch.bool).expand(pixels.shape[0], -1)
        return self.look_at(pixels, ink)

    def inked(self, pixels):
        """Return bool (n, patches): which patches of float pixels (n, 3, 224, 224) in 0..1 are not plain white."""
        dark = (pixels < 0.998).any(1, keepdim=True).float()           # resampled white may be 1 - 1e-7, grey 254 is 0.996
        return torch.nn.functional.max_pool2d(dark, self.arch["args"]["patch_size"]).flatten(1) > 0

    def look_at(self, pixels, ink):
        """Return what the tower computes from the class token and the inked patches alone, padded to the longest of the batch."""
        tower, count = self.visual, ink.shape[1]
        longest = ink.sum(1).amax(0).clamp(min=1).to(torch.int64).item()
        torch._check(longest >= 1)
        torch._check(longest <= count)
        order = ink * 1000 - torch.arange(count, device=ink.device)                 # inked patches first, each in its place
        kept = order.topk(count, dim=1).indices[:, :longest]
        patches = tower.conv1(pixels).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        first = (tower.class_embedding + tower.positional_embedding[0]).expand(patches.shape[0], 1, -1)
        tokens = tower.ln_pre(torch.cat([first.to(patches.dtype), patches], 1))
        seen = torch.cat([torch.ones_like(ink[:, :1]), ink.gather(1, kept)], 1)
        mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e4)[:, None, None]
        for block in tower.transformer.resblocks:
            tokens = tokens + attend(block.attn, block.ln_1(tokens), mask)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return tower.ln_post(tokens[:, 0]) @ tower.proj


def explicit(tensor):
    """Tell whether to attend by two products and a softmax: on a CPU the fused kernel takes twice as long, backwards 8 times."""
    return tensor.device.type == "cpu" and not torch.compiler.is_exporting()


def attend(attention, tokens, mask):
    """Return an nn.MultiheadAttention's output for tokens (n, length, width) under an additive mask (n, 1, 1, length)."""
    n, length, width = tokens.shape
    joined = torch.nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = joined.view(n, length, 3, attention.num_heads, width // attention.num_heads).permute(2, 0, 3, 1, 4)
    if explicit(query):
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask.to(query.dtype)
        mixed = scores.softmax(-1) @ value
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))
    return attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))


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

    Files: a checkpoint of this project, OpenAI's format (a TorchScript archive or a state dict), the published MoleCLIP
    checkpoint, or DINOv2 as .safetensors. Raises click.ClickException in one line with the ways out.
    """
    if init.startswith("scratch:"):
        if init[8:] not in SCRATCH:
            raise click.ClickException(f"--init {init}: the sizes are {', '.join('scratch:' + name for name in SCRATCH)}")
        torch.manual_seed(seed)
        encoder = Encoder(new_arch(*SCRATCH[init[8:]], tokens="inked", **WHITE))
        with torch.no_grad():
            encoder.visual.proj *= NORM / encoder.visual.proj.shape[1] ** 0.5
        return encoder
    if init in clip.available_models():
        return load_clip(init)
    path = BUNDLED if init == "bundled" else Path(init)
    if not path.is_file():
        raise click.ClickException(f"--init {init}: no such file; give a checkpoint, {', '.join(clip.available_models()[-4:])}, or scratch:tiny")
    if is_torchscript(path):
        return load_clip(str(path))
    if path.suffix == ".safetensors":
        return load_dinov2(path)
    checkpoint = load_checkpoint(path)
    for key in ("model", "state_dict", None):              # MoleCLIP's own file has its DataParallel state dict under "model"
        inner = checkpoint.get(key) if key else checkpoint
        visual = {str(name).rpartition("visual.")[2]: value for name, value in inner.items() if "visual." in str(name)} if isinstance(inner, dict) else {}
        if visual and "arch" not in checkpoint:
            arch = arch_of(visual) | ({"channels": "bgr"} if key == "model" else {})        # its pictures were fed blue first
            return restore_encoder({"encoder": visual, "arch": arch}, path)
    return restore_encoder(checkpoint, path)


def read_safetensors(path):
    """Return the tensors of a .safetensors file as fp32. Raises click.ClickException."""
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    try:
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        header = {name: entry for name, entry in json.loads(bytes(data[8:8 + length])).items() if name != "__metadata__"}
        return {name: torch.frombuffer(data, dtype=kinds[entry["dtype"]], count=math.prod(entry["shape"]), offset=8 + length + entry["data_offsets"][0])
                .reshape(entry["shape"]).float() for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError):
        raise click.ClickException(f"{path}: truncated, or not a .safetensors file of float tensors") from None


def load_dinov2(path):
    """Return the Encoder of a DINOv2 vision transformer in Hugging Face's names, exact but for its position grid's new size.

    LayerScale is folded into the layers before it, the patch bias into the position embeddings; the projection, which
    DINOv2 lacks, is orthonormal but for one factor, and always the same.
    """
    source = {name.removeprefix("dinov2."): value for name, value in read_safetensors(path).items()}
    try:
        width, _, _, patch = source["embeddings.patch_embeddings.projection.weight"].shape
        positions, bias = source["embeddings.position_embeddings"][0], source["embeddings.patch_embeddings.projection.bias"]
        old, new = math.isqrt(len(positions) - 1), render.SIZE // patch
        grid = positions[1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic").flatten(2)[0].T if old != new else positions[1:]
        projection = torch.nn.init.orthogonal_(torch.empty(width, 512), generator=torch.Generator().manual_seed(0))
        projection *= NORM / source["layernorm.weight"].norm()
        state = {"conv1.weight": source["embeddings.patch_embeddings.projection.weight"], "class_embedding": source["embeddings.cls_token"][0, 0],
                 "positional_embedding": torch.cat([positions[:1], grid + bias]), "proj": projection,
                 "ln_post.weight": source["layernorm.weight"], "ln_post.bias": source["layernorm.bias"]}
        layers = len({name.split(".")[2] for name in source if name.startswith("encoder.layer.")})
        for i in range(layers):
            state |= {f"transformer.resblocks.{i}.{name}": value for name, value in dinov2_block(source, f"encoder.layer.{i}.").items()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise click.ClickException(f"{path}: not a DINOv2 vision transformer in Hugging Face's names ({one_line(error)})") from None
    arch = new_arch(width, layers, width // 64, patch, gelu="exact", ln_pre=False, ln_eps=1e-6, tokens="inked",
                    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return restore_encoder({"encoder": state, "arch": arch}, path)


def dinov2_block(source, at):
    """Return one DINOv2 layer's weights under CLIP's names."""
    attention, first, second = f"{at}attention.attention.", source[f"{at}layer_scale1.lambda1"], source[f"{at}layer_scale2.lambda1"]
    block = {}
    for kind in ("weight", "bias"):
        fold = (lambda value, scale: scale[:, None] * value) if kind == "weight" else (lambda value, scale: scale * value)
        block |= {f"attn.in_proj_{kind}": torch.cat([source[f"{attention}{name}.{kind}"] for name in ("query", "key", "value")]),
                  f"attn.out_proj.{kind}": fold(source[f"{at}attention.output.dense.{kind}"], first),
                  f"mlp.c_fc.{kind}": source[f"{at}mlp.fc1.{kind}"], f"mlp.c_proj.{kind}": fold(source[f"{at}mlp.fc2.{kind}"], second),
                  f"ln_1.{kind}": source[f"{at}norm1.{kind}"], f"ln_2.{kind}": source[f"{at}norm2.{kind}"]}
    return block


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
# Pixel augmentation, MoleCLIP's, as batched tensor operations. Each image has its own row of random numbers, so that its
# picture is the same in whichever slice of the batch, on whichever process it is made.

AUGMENT = {     # probabilities and ranges of the paper's two levels
    "default": dict(rotate=0.0, downscale=0.75, shrink=0.5, smallest=0.6, dropout=0.3, dropped=0.01, blur=0.3, noise=0.3, gray=0.25),
    "intense": dict(rotate=0.5, downscale=0.0, shrink=0.75, smallest=0.5, dropout=0.5, dropped=0.05, blur=0.5, noise=0.5, gray=0.25)}
RANDOM = 16     # uniform numbers that one image's augmentation takes


def augment(pixels, level, random):
    """Return augmented pixels and the pixels as they were before noise, which decide where ink is.

    pixels: float (n, 3, 224, 224) in 0..1; level: "none", "default" or "intense"; random: float64 numpy (n, RANDOM) in 0..1.
    """
    if level == "none":
        return pixels, pixels
    chance, device = AUGMENT[level], pixels.device
    u = torch.from_numpy(random).to(device).float()
    moved = torch.nn.functional.grid_sample(pixels, sampling_grid(u, chance), "bilinear", "border", align_corners=False)
    seeds = torch.from_numpy((random[:, 15] * 2**31).astype(np.int32)).to(device)
    result, strength = moved.clone(), (10 + 40 * u[:, 12]).sqrt().view(-1, 1, 1, 1) / 255                      # variance 10 to 50 of 255^2
    white, black, blurred, noisy = (u[:, column] < chance[name] for column, name in ((8, "dropout"), (9, "dropout"), (10, "blur"), (11, "noise")))
    for some, channel, color in ((white, 0, 1.0), (black, 1, 0.0)):                                            # only the images that want it
        spots = noise_bits(seeds[some], [channel], device).float().add(2**31) / 2**32
        result[some] = torch.where(spots < chance["dropped"], color, result[some])
    result[blurred] = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(result[blurred], (1, 1, 1, 1), "replicate"), 3, 1)
    result[noisy] = (result[noisy] + strength[noisy] * bell(noise_bits(seeds[noisy] + 1, range(3), device))).clamp(0, 1)
    gray = (result * torch.tensor([0.299, 0.587, 0.114], device=device).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.where((u[:, 13] < chance["gray"]).view(-1, 1, 1, 1), gray, result), moved


@torch.no_grad()
def moved_ink(index, level, random, encoder):
    """Return how many patches of index pictures, uint8 (n, 224, 224), carry ink once they are augmented, int numpy (n)."""
    device = encoder.mean.device
    dark = (torch.from_numpy(index).to(device) > 0).float()[:, None]
    if level != "none":
        grid = sampling_grid(torch.from_numpy(random).to(device).float(), AUGMENT[level])
        dark = torch.nn.functional.grid_sample(dark, grid, "bilinear", "border", align_corners=False)
    return encoder.inked(1 - dark).sum(1).cpu().numpy()


def sampling_grid(u, chance):
    """Return where each pixel of the result lies in its picture, float (n, 224, 224, 2) in -1..1, for grid_sample.

    Shrunk pictures get a random place, rotated ones turn about the middle, and a downscaled one is seen in coarser pixels.
    """
    size = render.SIZE
    steps = torch.arange(size, device=u.device, dtype=torch.float32)
    coarse = torch.where(u[:, 0] < chance["downscale"], 0.7 + 0.15 * u[:, 1], 1.0)[:, None]
    place = (((steps * coarse).floor() + 0.5) / coarse * 2 / size - 1).clamp(-1, 1)                            # (n, 224)
    place = torch.where(coarse < 1, place, (2 * steps + 1) / size - 1)
    zoom = torch.where(u[:, 2] < chance["shrink"], chance["smallest"] + (1 - chance["smallest"]) * u[:, 3], 1.0)[:, None]
    x = (place - (1 - zoom) * (2 * u[:, 4, None] - 1)) / zoom
    y = (place - (1 - zoom) * (2 * u[:, 5, None] - 1)) / zoom
    angle = torch.where(u[:, 6] < chance["rotate"], 2 * math.pi * u[:, 7], 0.0)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = x[:, None, :], y[:, :, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def noise_bits(seeds, channels, device):
    """Return pseudo-random bits, int32 (n, channels, 224, 224): a hash of each image's seed (int32) and the pixel's number."""
    pixels = torch.arange(render.SIZE**2, dtype=torch.int32, device=device).view(1, 1, render.SIZE, render.SIZE)
    pixels = pixels + render.SIZE**2 * torch.tensor(list(channels), dtype=torch.int32, device=device).view(1, -1, 1, 1)
    x = pixels + seeds.view(-1, 1, 1, 1) * signed(0x9E3779B1)                     # int32 products wrap, which is what a hash wants
    for factor in (0x7FEB352D, 0x46D0C69B):
        x = (x ^ (x >> 16 & 0xFFFF)) * signed(factor)
    return x ^ (x >> 15 & 0x1FFFF)


def signed(bits):
    """Return 32 bits as the signed number that int32 makes of them."""
    return bits - 2**32 if bits >= 2**31 else bits


def bell(bits):
    """Return near-normal numbers of mean 0 and variance 1 from int32 bits: the sum of their four bytes."""
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24 & 255)
    return (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)
