"""The image encoder: CLIP's tower, which may look at inked patches alone, and how it embeds."""

import os
import warnings
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import torch

from moleclip.augment import augment, moved_ink
from moleclip.device import TooLarge, autocast, local_processes
from moleclip.pixels import SIZE, palette

with warnings.catch_warnings(action="ignore"):  # clip imports a deprecated pkg_resources
    import clip

SCRATCH = {  # width, layers, heads
    "nano": (64, 2, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# From scratch paper becomes 0, and only ink speaks. With CLIP's values white drowns it, and the
# contrastive loss stays at chance.
WHITE = {"mean": (1.0, 1.0, 1.0), "std": (0.25, 0.25, 0.25)}
# Of the features of CLIP's ViT-B/16, roughly: what the heads' learning rate of 0.01 is made for.
NORM = 10
ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}  # of the encoder, in pretraining and finetuning


def new_arch(width, layers, heads, patch=16, output_dim=512, **more):
    """Return the facts that make an encoder's function, CLIP's but for `more`.

    "args" are VisionTransformer's; what stands beside them is explained by `Encoder`.
    """
    args = {"input_resolution": SIZE, "patch_size": patch, "width": width, "layers": layers}
    arch = {"args": args | {"heads": heads, "output_dim": output_dim}}
    arch |= {"gelu": "quick", "ln_pre": True, "ln_eps": 1e-5, "mean": CLIP_MEAN, "std": CLIP_STD}
    return arch | {"channels": "rgb", "tokens": "all"} | more


class Encoder(torch.nn.Module):
    """CLIP's image tower with its pixel normalisation.

    Float RGB pixels (n, 3, 224, 224) in 0..1 become (n, 512). arch says what deviates from CLIP's
    own function. With tokens "inked" only the patches that are not plain paper become tokens; an
    image's result does not depend on the others in the batch.
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
        """Return the embeddings of pixels, (n, 512).

        ink: bool (n, patches), where to look; by default where `pixels` are not plain white.
        """
        if self.arch["tokens"] == "inked" and ink is None:
            ink = self.ink_mask(pixels)
        pixels = pixels.flip(1) if self.arch["channels"] == "bgr" else pixels
        pixels = (pixels - self.mean) / self.std
        if self.arch["tokens"] == "all":
            if not unfused(pixels):
                return self.visual(pixels)
            patch = self.visual.positional_embedding[1:, 0]
            ink = torch.ones_like(patch, dtype=torch.bool).expand(pixels.shape[0], -1)
        return self.encode_inked(pixels, ink)

    def ink_mask(self, pixels):
        """Return which patches are not plain white, bool (n, patches).

        pixels: float (n, 3, 224, 224) in 0..1. Resampled white may be 1 - 1e-7, grey 254 is 0.996.
        """
        dark = (pixels < 0.998).any(1, keepdim=True).float()
        return torch.nn.functional.max_pool2d(dark, self.arch["args"]["patch_size"]).flatten(1) > 0

    def encode_inked(self, pixels, ink):
        """Return what the tower computes from the class token and the inked patches alone.

        Tokens are padded to the longest of the batch. pixels: normalised; ink: as in `forward`.
        """
        tower, count = self.visual, ink.shape[1]
        longest = ink.sum(1).amax(0).clamp(min=1).to(torch.int64).item()
        torch._check(longest >= 1)  # for export, which doesn't know the number
        torch._check(longest <= count)
        # inked patches first, each in its place
        order = ink * 1000 - torch.arange(count, device=ink.device)
        kept = order.topk(count, dim=1).indices[:, :longest]
        patches = tower.conv1(pixels).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        first = tower.class_embedding + tower.positional_embedding[0]
        first = first.expand(patches.shape[0], 1, -1)
        tokens = tower.ln_pre(torch.cat([first.to(patches.dtype), patches], 1))
        seen = torch.cat([torch.ones_like(ink[:, :1]), ink.gather(1, kept)], 1)
        mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e4)[:, None, None]
        for block in tower.transformer.resblocks:
            tokens = tokens + attend(block.attn, block.ln_1(tokens), mask)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return tower.ln_post(tokens[:, 0]) @ tower.proj


def unfused(tensor):
    """Tell whether to attend by two products and a softmax.

    On a CPU the fused kernel takes twice as long, backwards 8 times.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_exporting()


def attend(attention, tokens, mask):
    """Return an nn.MultiheadAttention's output for tokens (n, length, width).

    mask: additive, (n, 1, 1, length).
    """
    n, length, width = tokens.shape
    joined = torch.nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    joined = joined.view(n, length, 3, attention.num_heads, width // attention.num_heads)
    query, key, value = joined.permute(2, 0, 3, 1, 4)
    mask = mask.to(query.dtype)
    if unfused(query):
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask
        mixed = scores.softmax(-1) @ value
    else:
        fused = torch.nn.functional.scaled_dot_product_attention
        mixed = fused(query, key, value, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))


def to_pixels(index, device):
    """Return index pictures, uint8 (n, 224, 224), as RGB pixels, float (n, 3, 224, 224) in 0..1."""
    table = torch.from_numpy(palette()).to(device).float() / 255
    return table[torch.as_tensor(index).to(device).int()].permute(0, 3, 1, 2)


def fitting_batch(arch, device, dtype):
    """Return how many pictures train at once in half of a GPU's free memory, a third of the CPU's.

    Each takes 100 bytes (fp32; else 50) for each token, width and layer.
    """
    args = arch["args"]
    tokens = (SIZE // args["patch_size"]) ** 2
    if arch["tokens"] != "all":
        tokens //= 2
    each = tokens * args["width"] * args["layers"] * (50 if dtype else 100)
    if device.type == "cuda":
        return max(8, min(1024, int(0.5 * torch.cuda.mem_get_info()[0] / each)))
    return max(8, min(512, int(0.33 * memory_limit() / local_processes() / each)))


def memory_limit():
    """Return the bytes this process could have: the machine's, or its control group's if less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


class Embedder:
    """The encoder with all that decides how it sees a batch, and how it is trained on one.

    level: of augmentation; micro_batch: the most pictures that are in memory at once;
    before_slice: called before each of them. Pictures are palette indices, uint8 (n, 224, 224);
    random is float64 numpy (n, N_UNIFORMS), or None for no augmentation; features are fp32
    (n, 512).
    """

    def __init__(self, encoder, device, dtype, level="none", micro_batch=64):
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.level, self.micro_batch, self.before_slice = level, micro_batch, lambda: None

    def compile(self, world):
        """Compile the encoder's tower, unless a try fails on some process, which is then said."""
        problem, blank = None, np.zeros((2, SIZE, SIZE), np.uint8)
        self.encoder.visual.compile()  # in place: the names in the checkpoint stay
        try:
            self.embed(blank, None).sum().backward()
        except Exception as error:  # no compiler, no Triton, an old GPU: each raises its own
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        self.encoder.zero_grad()
        problems = [each for each in world.gather_objects(problem) if each]
        if problems:
            torch.compiler.set_stance("force_eager")
            world.print0(f"goes on without compiling, which fails here ({problems[0]})")

    def fitting(self, world, work, *words):
        """Return work(*words), done again with half the micro-batch while memory runs out.

        The result doesn't depend on it. Raises click.ClickException below one picture.
        """
        while True:
            with suppress(TooLarge):
                return work(*words)
            if world.largest(self.micro_batch) == 1:
                raise click.ClickException(
                    "out of memory even for one picture at a time; take a smaller encoder"
                )
            self.micro_batch = max(1, self.micro_batch // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            world.print0(f"out of memory: goes on with --micro-batch {self.micro_batch}")

    def embed(self, pictures, random):
        """Return the features of pictures that fit into memory."""
        self.before_slice()
        level = self.level if random is not None else "none"
        pixels, clean = augment(to_pixels(pictures, self.device), level, random)
        ink = self.encoder.ink_mask(clean) if self.encoder.arch["tokens"] == "inked" else None
        with autocast(self.device, self.dtype):
            return self.encoder(pixels, ink).float()

    def micro_batches(self, pictures, random):
        """Return index arrays that cut a batch into slices with like amounts of ink in each.

        With inked tokens a slice is padded to its fullest picture.
        """
        # On a CPU a slice should stay in its cache: base is a quarter faster by 16 than by 48.
        most = min(self.micro_batch, 16) if self.device.type == "cpu" else self.micro_batch
        order, level = np.arange(len(pictures)), self.level if random is not None else "none"
        if self.encoder.arch["tokens"] == "inked" and len(pictures) > most:
            inked = []
            for part in np.array_split(order, -(-len(pictures) // 64)):
                numbers = None if random is None else random[part]
                inked.append(moved_ink(pictures[part], level, numbers, self.encoder))
            order = np.argsort(np.concatenate(inked), kind="stable")
        return np.array_split(order, -(-len(pictures) // most))

    def embed_slices(self, pictures, random):
        """Yield (places in the batch, features) slice by slice."""
        for part in self.micro_batches(pictures, random):
            yield part, self.embed(pictures[part], None if random is None else random[part])

    def embed_batch(self, pictures, random):
        """Return the features of a batch in its order, computed slice by slice."""
        return self.in_order(self.embed_slices(pictures, random))

    def in_order(self, slices):
        """Return the features of slices, without gradient, in the order of their batch."""
        parts, features = zip(*slices)
        places = torch.from_numpy(np.argsort(np.concatenate(parts))).to(self.device)
        return torch.cat(features).detach()[places]

    def embed_cached(self, pictures, random):
        """Return (features that collect the loss's gradient, the slices that `backward` needs).

        If all fits into memory the slices keep their way back. Else `backward` computes them
        once more: gradient caching (Gao et al., arXiv:2101.06983), which has the memory of one
        slice and the result of one pass.
        """
        with torch.set_grad_enabled(len(pictures) <= self.micro_batch):
            slices = list(self.embed_slices(pictures, random))
        return self.in_order(slices).requires_grad_(), slices

    def backward(self, pictures, random, features, slices):
        """Carry the gradient of cached features on into the encoder, slice by slice."""
        for part, known in slices:
            self.before_slice()
            if not known.requires_grad:
                known = self.embed(pictures[part], random[part])
            known.backward(features.grad[torch.from_numpy(part).to(self.device)])
