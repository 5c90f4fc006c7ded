"""TODO"""

import warnings

import numpy as np
import torch

from moleclip.augment import augment, moved_ink
from moleclip.device import autocast
from moleclip.pixels import SIZE, palette

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # openai-clip imports pkg_resources, which announces its end
    import clip


SCRATCH = {
    "nano": (64, 2, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}  # width, layers, heads
WHITE = {
    "mean": (1.0, 1.0, 1.0),
    "std": (0.25, 0.25, 0.25),
}  # from scratch: paper becomes 0, only ink speaks. With CLIP's
NORM = 10  # of the features of CLIP's ViT-B/16, roughly: what the heads' learning rate of 0.01 is made for
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ADAM = {"betas": (0.9, 0.98), "eps": 1e-6}  # of the encoder, in pretraining and finetuning


def new_arch(width, layers, heads, patch=16, output_dim=512, **more):
    """Return the facts that make an encoder's function: VisionTransformer's arguments and what stands beside them."""
    return {
        "args": {
            "input_resolution": SIZE,
            "patch_size": patch,
            "width": width,
            "layers": layers,
            "heads": heads,
            "output_dim": output_dim,
        },
        "gelu": "quick",
        "ln_pre": True,
        "ln_eps": 1e-5,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "channels": "rgb",
        "tokens": "all",
    } | more


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
            ink = self.ink_mask(pixels)
        pixels = pixels.flip(1) if self.arch["channels"] == "bgr" else pixels
        pixels = (pixels - self.mean) / self.std
        if self.arch["tokens"] == "all":
            if not unfused(pixels):
                return self.visual(pixels)
            ink = torch.ones_like(self.visual.positional_embedding[1:, 0], dtype=torch.bool).expand(
                pixels.shape[0], -1
            )
        return self.encode_inked(pixels, ink)

    def ink_mask(self, pixels):
        """Return bool (n, patches): which patches of float pixels (n, 3, 224, 224) in 0..1 are not plain white."""
        dark = (
            (pixels < 0.998).any(1, keepdim=True).float()
        )  # resampled white may be 1 - 1e-7, grey 254 is 0.996
        return torch.nn.functional.max_pool2d(dark, self.arch["args"]["patch_size"]).flatten(1) > 0

    def look_at(self, pixels, ink):
        """Return what the tower computes from the class token and the inked patches alone, padded to the longest of the batch."""
        tower, count = self.visual, ink.shape[1]
        longest = ink.sum(1).amax(0).clamp(min=1).to(torch.int64).item()
        torch._check(longest >= 1)
        torch._check(longest <= count)
        order = ink * 1000 - torch.arange(
            count, device=ink.device
        )  # inked patches first, each in its place
        kept = order.topk(count, dim=1).indices[:, :longest]
        patches = tower.conv1(pixels).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        first = (tower.class_embedding + tower.positional_embedding[0]).expand(
            patches.shape[0], 1, -1
        )
        tokens = tower.ln_pre(torch.cat([first.to(patches.dtype), patches], 1))
        seen = torch.cat([torch.ones_like(ink[:, :1]), ink.gather(1, kept)], 1)
        mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -1e4)[:, None, None]
        for block in tower.transformer.resblocks:
            tokens = tokens + attend(block.attn, block.ln_1(tokens), mask)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return tower.ln_post(tokens[:, 0]) @ tower.proj


def unfused(tensor):
    """Tell whether to attend by two products and a softmax: on a CPU the fused kernel takes twice as long, backwards 8 times."""
    return tensor.device.type == "cpu" and not torch.compiler.is_exporting()


def attend(attention, tokens, mask):
    """Return an nn.MultiheadAttention's output for tokens (n, length, width) under an additive mask (n, 1, 1, length)."""
    n, length, width = tokens.shape
    joined = torch.nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = joined.view(
        n, length, 3, attention.num_heads, width // attention.num_heads
    ).permute(2, 0, 3, 1, 4)
    if unfused(query):
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask.to(query.dtype)
        mixed = scores.softmax(-1) @ value
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.to(query.dtype)
        )
    return attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))


def to_pixels(index, device):
    """Return index pictures, uint8 (n, 224, 224), as float RGB pixels (n, 3, 224, 224) in 0..1 on the device."""
    table = torch.from_numpy(palette()).to(device).float() / 255
    return table[torch.as_tensor(index).to(device).int()].permute(0, 3, 1, 2)


class Embedder:
    """The encoder with all that decides how it sees a batch: device, precision, augmentation, pictures in memory at once."""

    def __init__(self, encoder, device, dtype, level="none", micro=64):
        self.encoder, self.device, self.dtype, self.level, self.micro_batch = (
            encoder,
            device,
            dtype,
            level,
            micro,
        )

    def embed(self, index, random):
        """Return fp32 features (n, 512) of index pictures, uint8 (n, 224, 224); random: (n, RANDOM), or None for no augmentation."""
        pixels, clean = augment(
            to_pixels(index, self.device), self.level if random is not None else "none", random
        )
        ink = self.encoder.ink_mask(clean) if self.encoder.arch["tokens"] == "inked" else None
        with autocast(self.device, self.dtype):
            return self.encoder(pixels, ink).float()

    def micro_batches(self, index, random):
        """Return index arrays that cut a batch into slices of at most `micro` pictures, with like amounts of ink in each."""
        # On a CPU a slice should stay in its cache: base is a quarter faster by 16 pictures than by 48.
        most = min(self.micro_batch, 16) if self.device.type == "cpu" else self.micro_batch
        order = np.arange(len(index))
        if (
            self.encoder.arch["tokens"] == "inked" and len(index) > most
        ):  # a slice is padded to its fullest picture
            level, chunks = (
                self.level if random is not None else "none",
                np.array_split(order, -(-len(index) // 64)),
            )
            inked = [
                moved_ink(
                    index[part], level, random if random is None else random[part], self.encoder
                )
                for part in chunks
            ]
            order = np.argsort(np.concatenate(inked), kind="stable")
        return np.array_split(order, -(-len(index) // most))

    def look_in_slices(self, index, random, slices=None):
        """Return the features of a whole batch in its order."""
        slices = slices or self.micro_batches(index, random)
        features = torch.cat(
            [self.embed(index[part], None if random is None else random[part]) for part in slices]
        )
        return features[torch.from_numpy(np.argsort(np.concatenate(slices))).to(self.device)]
