"""TODO"""

import math

import numpy as np
import torch

from moleclip.pixels import SIZE

AUGMENT = {  # probabilities and ranges of the paper's two levels
    "default": dict(
        rotate=0.0,
        downscale=0.75,
        shrink=0.5,
        smallest=0.6,
        dropout=0.3,
        dropped=0.01,
        blur=0.3,
        noise=0.3,
        gray=0.25,
    ),
    "intense": dict(
        rotate=0.5,
        downscale=0.0,
        shrink=0.75,
        smallest=0.5,
        dropout=0.5,
        dropped=0.05,
        blur=0.5,
        noise=0.5,
        gray=0.25,
    ),
}
N_UNIFORMS = 16  # uniform numbers that one image's augmentation takes


def augment(pixels, level, random):
    """Return augmented pixels and the pixels as they were before noise, which decide where ink is.

    pixels: float (n, 3, 224, 224) in 0..1; level: "none", "default" or "intense"; random: float64 numpy (n, RANDOM) in 0..1.
    """
    if level == "none":
        return pixels, pixels
    chance, device = AUGMENT[level], pixels.device
    u = torch.from_numpy(random).to(device).float()
    moved = torch.nn.functional.grid_sample(
        pixels, sampling_grid(u, chance), "bilinear", "border", align_corners=False
    )
    seeds = torch.from_numpy((random[:, 15] * 2**31).astype(np.int32)).to(device)
    result, strength = (
        moved.clone(),
        (10 + 40 * u[:, 12]).sqrt().view(-1, 1, 1, 1) / 255,
    )  # variance 10 to 50 of 255^2
    white, black, blurred, noisy = (
        u[:, column] < chance[name]
        for column, name in ((8, "dropout"), (9, "dropout"), (10, "blur"), (11, "noise"))
    )
    for some, channel, color in ((white, 0, 1.0), (black, 1, 0.0)):  # only the images that want it
        spots = hash_bits(seeds[some], [channel], device).float().add(2**31) / 2**32
        result[some] = torch.where(spots < chance["dropped"], color, result[some])
    result[blurred] = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(result[blurred], (1, 1, 1, 1), "replicate"), 3, 1
    )
    result[noisy] = (
        result[noisy] + strength[noisy] * to_normal(hash_bits(seeds[noisy] + 1, range(3), device))
    ).clamp(0, 1)
    gray = (result * torch.tensor([0.299, 0.587, 0.114], device=device).view(3, 1, 1)).sum(
        1, keepdim=True
    )
    return torch.where((u[:, 13] < chance["gray"]).view(-1, 1, 1, 1), gray, result), moved


@torch.no_grad()
def moved_ink(index, level, random, encoder):
    """Return how many patches of index pictures, uint8 (n, 224, 224), carry ink once they are augmented, int numpy (n)."""
    device = encoder.mean.device
    dark = (torch.from_numpy(index).to(device) > 0).float()[:, None]
    if level != "none":
        grid = sampling_grid(torch.from_numpy(random).to(device).float(), AUGMENT[level])
        dark = torch.nn.functional.grid_sample(
            dark, grid, "bilinear", "border", align_corners=False
        )
    return encoder.ink_mask(1 - dark).sum(1).cpu().numpy()


def sampling_grid(u, chance):
    """Return where each pixel of the result lies in its picture, float (n, 224, 224, 2) in -1..1, for grid_sample.

    Shrunk pictures get a random place, rotated ones turn about the middle, and a downscaled one is seen in coarser pixels.
    """
    size = SIZE
    steps = torch.arange(size, device=u.device, dtype=torch.float32)
    coarse = torch.where(u[:, 0] < chance["downscale"], 0.7 + 0.15 * u[:, 1], 1.0)[:, None]
    place = (((steps * coarse).floor() + 0.5) / coarse * 2 / size - 1).clamp(-1, 1)  # (n, 224)
    place = torch.where(coarse < 1, place, (2 * steps + 1) / size - 1)
    zoom = torch.where(
        u[:, 2] < chance["shrink"], chance["smallest"] + (1 - chance["smallest"]) * u[:, 3], 1.0
    )[:, None]
    x = (place - (1 - zoom) * (2 * u[:, 4, None] - 1)) / zoom
    y = (place - (1 - zoom) * (2 * u[:, 5, None] - 1)) / zoom
    angle = torch.where(u[:, 6] < chance["rotate"], 2 * math.pi * u[:, 7], 0.0)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = x[:, None, :], y[:, :, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def hash_bits(seeds, channels, device):
    """Return pseudo-random bits, int32 (n, channels, 224, 224): a hash of each image's seed (int32) and the pixel's number."""
    pixels = torch.arange(SIZE**2, dtype=torch.int32, device=device).view(1, 1, SIZE, SIZE)
    pixels = pixels + SIZE**2 * torch.tensor(list(channels), dtype=torch.int32, device=device).view(
        1, -1, 1, 1
    )
    x = pixels + seeds.view(-1, 1, 1, 1) * to_int32(
        0x9E3779B1
    )  # int32 products wrap, which is what a hash wants
    for factor in (0x7FEB352D, 0x46D0C69B):
        x = (x ^ (x >> 16 & 0xFFFF)) * to_int32(factor)
    return x ^ (x >> 15 & 0x1FFFF)


def to_int32(bits):
    """Return 32 bits as the signed number that int32 makes of them."""
    return bits - 2**32 if bits >= 2**31 else bits


def to_normal(bits):
    """Return near-normal numbers of mean 0 and variance 1 from int32 bits: the sum of their four bytes."""
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24 & 255)
    return (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)
