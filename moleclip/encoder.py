"""The image encoder: CLIP's tower, which may look at inked patches alone and read single atoms."""

import math
import warnings

import torch
from torch.nn import functional as F

from moleclip.pixels import SIZE

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
WAVES = 8  # of sine and cosine, each way, that tell where in its patch a place lies
SUM_OF = 64  # patches: their sum is divided by it, which makes it of the mean's size
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
    image's result does not depend on the others in the batch. With pool "cls+mean" a projection
    of the patches' mean and sum is added to that of the class token.
    """

    names, inputs = ("picture",), ("images",)  # what it looks at, here and in a model.onnx

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
        if arch.get("pool") == "cls+mean":
            self.add_pool()
        self.run_block = run_block
        self.register_buffer("mean", torch.tensor(arch["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(arch["std"]).view(3, 1, 1), persistent=False)

    @property
    def width(self):
        """How many numbers an embedding has."""
        return self.arch["args"]["output_dim"]

    def facts(self):
        """Return what a model.onnx says of it."""
        args = self.arch["args"]
        known = {"width": args["width"], "layers": args["layers"], "patch": args["patch_size"]}
        return known | {"tokens": self.arch["tokens"]}

    def embed(self, given):
        """Return the embeddings, fp32 (n, 512), of {"images": uint8 RGB (n, 224, 224, 3)}."""
        pixels = given["images"].permute(0, 3, 1, 2).float() / 255
        return self(pixels).float()

    def compile_blocks(self):
        """Compile what is done with tokens, for any number of them."""
        if self.arch["tokens"] == "all":
            self.visual.compile()  # in place: the names in the checkpoint stay
        else:
            self.run_block = torch.compile(run_block, dynamic=True)

    def add_pool(self):
        """Let the patches' mean and sum speak too, by weights that are always the same."""
        proj, steady = self.visual.proj, torch.Generator().manual_seed(0)
        mean = torch.nn.init.orthogonal_(torch.empty(proj.shape), generator=steady)
        mean *= proj.detach().norm() / mean.norm()
        self.visual.pool = torch.nn.Parameter(torch.cat([mean, torch.zeros_like(mean)]))
        self.arch["pool"] = "cls+mean"

    def forward(self, pixels, ink=None, places=None, owner=None, longest=None):
        """Return the embeddings of pixels, (n, 512); with places also (m, width + 32), see `read`.

        ink: bool (n, patches), where to look; by default where `pixels` are not plain white.
        places: x and y in pixels, float (m, 2); owner: int64 (m,), the picture of each. longest:
        the most patches with ink in a picture, or more; else the device is asked for it.
        """
        if self.arch["tokens"] == "inked" and ink is None:
            ink = self.ink_mask(pixels)
        pixels = pixels.flip(1) if self.arch["channels"] == "bgr" else pixels
        pixels = (pixels - self.mean) / self.std
        if self.arch["tokens"] == "all":
            if not (unfused(pixels) or hasattr(self.visual, "pool") or places is not None):
                return self.visual(pixels)
            patch = self.visual.positional_embedding[1:, 0]
            ink = torch.ones_like(patch, dtype=torch.bool).expand(pixels.shape[0], -1)
        first, patches, kept = self.encode_inked(pixels, ink, longest)
        embedding = self.visual.ln_post(first) @ self.visual.proj
        if not hasattr(self.visual, "pool") and places is None:
            return embedding
        seen = ink.gather(1, kept)[..., None]
        words = self.visual.ln_post(patches).float() * seen  # 0 are those of paper
        if hasattr(self.visual, "pool"):
            total = words.sum(1)
            both = torch.cat([total / seen.sum(1).clamp(min=1), total / SUM_OF], 1)
            embedding = embedding + both @ self.visual.pool
        return embedding if places is None else (embedding, self.read(words, kept, places, owner))

    def ink_mask(self, pixels):
        """Return which patches are not plain white, bool (n, patches).

        pixels: float (n, 3, 224, 224) in 0..1. Resampled white may be 1 - 1e-7, grey 254 is 0.996.
        """
        dark = (pixels < 0.998).any(1, keepdim=True).float()
        return F.max_pool2d(dark, self.arch["args"]["patch_size"]).flatten(1) > 0

    def encode_inked(self, pixels, ink, longest=None):
        """Return the last layer's class token (n, width), inked patches, and which they are.

        Patches are padded with others to the longest of the batch: (n, longest, width). Which
        they are: int64 (n, longest). pixels: normalised; ink and longest: as in `forward`.
        """
        tower, count = self.visual, ink.shape[1]
        longest = longest and min(longest, count)
        longest = longest or ink.sum(1).amax(0).clamp(min=1).to(torch.int64).item()
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
            tokens = self.run_block(block, tokens, mask)
        return tokens[:, 0], tokens[:, 1:], kept

    def read(self, words, kept, places, owner):
        """Return what patches tell at places in pictures: (m, width + 32), 0 where NaN.

        The four patches around a place, by their nearness; then where in its patch it lies, by
        sines and cosines. words: (n, longest, width), of which patches, kept, int64 (n, longest);
        the rest as in `forward`.
        """
        patch, (n, longest), device = self.arch["args"]["patch_size"], kept.shape, kept.device
        side = SIZE // patch
        known = places.isfinite().all(1, keepdim=True)
        units = places.nan_to_num() / patch
        corner = (units - 0.5).clamp(0, side - 1.001)
        low = corner.floor()
        share = corner - low  # of the patch right and below, (m, 2)
        slots = torch.full((n, side * side), longest, device=device)  # that is paper
        slots.scatter_(1, kept, torch.arange(longest, device=device).expand(n, -1))
        words = F.pad(words, (0, 0, 0, 1))
        told = 0
        for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
            across = share[:, :1] if right else 1 - share[:, :1]
            along = share[:, 1:] if down else 1 - share[:, 1:]
            column, row = low.long().unbind(1)
            slot = slots[owner, (row + down) * side + column + right]
            told = told + across * along * words[owner, slot]
        waves = (units % 1)[:, :, None] * math.pi * torch.arange(1, WAVES + 1, device=device)
        within = torch.cat([waves.sin(), waves.cos()], 2).flatten(1)
        return torch.cat([told, within], 1) * known


def run_block(block, tokens, mask):
    """Return what a residual block of the tower makes of tokens, (n, length, width)."""
    tokens = tokens + attend(block.attn, block.ln_1(tokens), mask)
    return tokens + block.mlp(block.ln_2(tokens))


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
    joined = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    joined = joined.view(n, length, 3, attention.num_heads, width // attention.num_heads)
    query, key, value = joined.permute(2, 0, 3, 1, 4)
    mask = mask.to(query.dtype)
    if unfused(query):
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask
        mixed = scores.softmax(-1) @ value
    else:
        fused = F.scaled_dot_product_attention
        mixed = fused(query, key, value, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))
