"""Random changes to the pixels of drawings, the same on every device for the same numbers."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from moleclip.movement import AUGMENT, movement, sampling_lines
from moleclip.pixels import SIZE
from moleclip.transfer import constant, upload

LUMA = (0.299, 0.587, 0.114)


def augment(pixels, level, random):
    """Return (augmented pixels, the same before noise: these decide where ink is).

    pixels: float (n, 3, 224, 224) in 0..1; level: "none", "default" or "intense"; random: float64
    numpy (n, N_UNIFORMS) in 0..1, with which an image's result is always the same.
    """
    if level == "none":
        return pixels, pixels
    chance, device = AUGMENT[level], pixels.device
    known = random.astype(np.float32)  # the CPU chooses by what the device computes with
    u = upload(known, device)
    seeds = upload((random[:, 15] * 2**31).astype(np.int32), device)
    some = {n: upload(np.flatnonzero(known[:, n] < p), device) for n, p in chosen_by(chance)}
    moved = sample(pixels, sampling_grid(u, chance))
    result = moved.clone()
    for column, channel, color in ((8, 0, 1.0), (9, 1, 0.0)):
        part = some[column]  # only these: hashing is what takes time
        spots = hash_bits(seeds[part], range(channel, channel + 1), device).float()
        dropped = spots.add(2**31) / 2**32 < chance.dropped
        result[part] = torch.where(dropped, color, result[part])
    part = some[10]
    result[part] = F.avg_pool2d(F.pad(result[part], (1, 1, 1, 1), "replicate"), 3, 1)
    part = some[11]
    variance = 10 + 40 * u[part, 12]  # of 255^2
    noise = to_normal(hash_bits(seeds[part] + 1, range(3), device))
    result[part] = (result[part] + variance.sqrt().view(-1, 1, 1, 1) / 255 * noise).clamp(0, 1)
    luma = constant(LUMA, device).view(3, 1, 1)
    gray = (u[:, 13] < chance.gray).view(-1, 1, 1, 1)
    return torch.where(gray, (result * luma).sum(1, keepdim=True), result), moved


def chosen_by(chance):
    """Return the columns of the uniform numbers that choose pictures, with the chances."""
    return (8, chance.dropout), (9, chance.dropout), (10, chance.blur), (11, chance.noise)


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
    x, y = sampling_lines(u, steps, chance, torch)
    x, y = x[:, None, :], y[:, :, None]
    _, _, cos, sin = (value[:, None, None] for value in movement(u, chance, torch))
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def moved_places(places, owner, level, random):
    """Return where places of pictures lie after `augment`, float (m, 2), NaN beyond the sheet.

    places: x and y in pixels, float (m, 2), NaN where unknown; owner: int64 (m,), the picture of
    each; level and random: as in `augment`.
    """
    if level != "none":
        u = upload(random.astype(np.float32), places.device)
        zoom, shift, cos, sin = (value[owner] for value in movement(u, AUGMENT[level], torch))
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
    channels = torch.arange(channels.start, channels.stop, dtype=torch.int32, device=device)
    channels = channels.view(1, -1, 1, 1)
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
