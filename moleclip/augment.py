"""Random changes to the pixels of drawings, the same on every device for the same numbers."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from moleclip.pixels import SIZE

N_UNIFORMS = 16  # uniform numbers that one image's augmentation takes


class Level(NamedTuple):
    """How often, and how far, images are changed."""

    rotate: float  # chance to be turned by any angle
    downscale: float  # chance to be seen in coarser pixels
    shrink: float  # chance to be made smaller, and put anywhere
    smallest: float  # size after that, at least
    dropout: float  # chance to lose pixels to white, and again to black
    dropped: float  # part of the pixels then lost
    blur: float  # chance
    noise: float  # chance
    gray: float  # chance to lose its colours


AUGMENT = {  # the paper's two levels
    "default": Level(0.0, 0.75, 0.5, 0.6, 0.3, 0.01, 0.3, 0.3, 0.25),
    "intense": Level(0.5, 0.0, 0.75, 0.5, 0.5, 0.05, 0.5, 0.5, 0.25),
}


def augment(pixels, level, random):
    """Return (augmented pixels, the same before noise: these decide where ink is).

    pixels: float (n, 3, 224, 224) in 0..1; level: "none", "default" or "intense"; random: float64
    numpy (n, N_UNIFORMS) in 0..1, with which an image's result is always the same.
    """
    if level == "none":
        return pixels, pixels
    chance, device = AUGMENT[level], pixels.device
    u = torch.from_numpy(random).to(device).float()
    seeds = torch.from_numpy((random[:, 15] * 2**31).astype(np.int32)).to(device)
    moved = sample(pixels, sampling_grid(u, chance))
    result = moved.clone()
    for some, channel, color in ((u[:, 8], 0, 1.0), (u[:, 9], 1, 0.0)):
        some = some < chance.dropout  # only these: hashing is what takes time
        spots = hash_bits(seeds[some], [channel], device).float().add(2**31) / 2**32
        result[some] = torch.where(spots < chance.dropped, color, result[some])
    some = u[:, 10] < chance.blur
    result[some] = F.avg_pool2d(F.pad(result[some], (1, 1, 1, 1), "replicate"), 3, 1)
    some = u[:, 11] < chance.noise
    variance = 10 + 40 * u[some, 12]  # of 255^2
    noise = to_normal(hash_bits(seeds[some] + 1, range(3), device))
    result[some] = (result[some] + variance.sqrt().view(-1, 1, 1, 1) / 255 * noise).clamp(0, 1)
    luma = torch.tensor([0.299, 0.587, 0.114], device=device).view(3, 1, 1)
    some = (u[:, 13] < chance.gray).view(-1, 1, 1, 1)
    return torch.where(some, (result * luma).sum(1, keepdim=True), result), moved


@torch.no_grad()
def moved_ink(index, level, random, encoder):
    """Return how many patches of augmented pictures carry ink, int numpy (n).

    index: palette indices, uint8 (n, 224, 224); level and random: as in `augment`.
    """
    device = encoder.mean.device
    paper = (torch.from_numpy(index).to(device) == 0).float()[:, None]
    if level != "none":
        u = torch.from_numpy(random).to(device).float()
        paper = sample(paper, sampling_grid(u, AUGMENT[level]))
    return encoder.ink_mask(paper).sum(1).cpu().numpy()


def sample(pixels, grid):
    """Return the pixels found at the places of a grid; beyond a picture all is white, 1."""
    dark = F.grid_sample(1 - pixels, grid, "bilinear", "zeros", align_corners=False)
    return (1 - dark).clamp(min=0)


def sampling_grid(u, chance):
    """Return where each pixel of the result lies in its picture, float (n, 224, 224, 2) in -1..1.

    Shrunk pictures get a random place, rotated ones turn about the middle, and a downscaled one
    is seen in coarser pixels. u: float (n, N_UNIFORMS); chance: a Level.
    """
    steps = torch.arange(SIZE, device=u.device, dtype=torch.float32)
    coarse = torch.where(u[:, 0] < chance.downscale, 0.7 + 0.15 * u[:, 1], 1.0)[:, None]
    middle = 1 - 1 / SIZE  # of the last pixel: half a pixel on it begins to fade into white
    place = ((steps * coarse).floor() + 0.5) / coarse * 2 / SIZE - 1  # (n, 224)
    place = place.clamp(-middle, middle)
    place = torch.where(coarse < 1, place, (2 * steps + 1) / SIZE - 1)
    zoom, shift, cos, sin = movement(u, chance)
    x = ((place - shift[:, 0, None]) / zoom[:, None])[:, None, :]
    y = ((place - shift[:, 1, None]) / zoom[:, None])[:, :, None]
    cos, sin = cos[:, None, None], sin[:, None, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def movement(u, chance):
    """Return (zoom, shift (n, 2), cosine, sine) by which pictures move, on a sheet from -1 to 1."""
    zoom = chance.smallest + (1 - chance.smallest) * u[:, 3]
    zoom = torch.where(u[:, 2] < chance.shrink, zoom, 1.0)
    shift = (1 - zoom)[:, None] * (2 * u[:, 4:6] - 1)
    angle = torch.where(u[:, 6] < chance.rotate, 2 * math.pi * u[:, 7], 0.0)
    return zoom, shift, angle.cos(), angle.sin()


def moved_places(places, owner, level, random):
    """Return where places of pictures lie after `augment`, float (m, 2), NaN beyond the sheet.

    places: x and y in pixels, float (m, 2), NaN where unknown; owner: int64 (m,), the picture of
    each; level and random: as in `augment`.
    """
    if level != "none":
        u = torch.from_numpy(random).to(places.device).float()
        zoom, shift, cos, sin = (value[owner] for value in movement(u, AUGMENT[level]))
        x, y = (places * 2 / SIZE - 1).unbind(1)
        turned = torch.stack([cos * x + sin * y, cos * y - sin * x], 1)
        places = (turned * zoom[:, None] + shift + 1) * SIZE / 2
    inside = ((places >= 0) & (places <= SIZE)).all(1, keepdim=True)
    return places.where(inside, torch.nan)


def hash_bits(seeds, channels, device):
    """Return pseudo-random bits, int32 (n, channels, 224, 224).

    They are a hash of each image's seed (int32) and the pixel's number, so that an image's bits
    don't depend on its neighbours in the batch. int32 products wrap, which is what a hash wants.
    """
    pixels = torch.arange(SIZE**2, dtype=torch.int32, device=device).view(1, 1, SIZE, SIZE)
    channels = torch.tensor(list(channels), dtype=torch.int32, device=device).view(1, -1, 1, 1)
    x = pixels + SIZE**2 * channels + seeds.view(-1, 1, 1, 1) * to_int32(0x9E3779B1)
    for factor in (0x7FEB352D, 0x46D0C69B):
        x = (x ^ (x >> 16 & 0xFFFF)) * to_int32(factor)
    return x ^ (x >> 15 & 0x1FFFF)


def to_int32(bits):
    """Return 32 bits as the signed number that int32 makes of them."""
    return bits - 2**32 if bits >= 2**31 else bits


def to_normal(bits):
    """Return near-normal numbers, mean 0 and variance 1, from int32: the sum of their bytes."""
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24 & 255)
    return (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)
