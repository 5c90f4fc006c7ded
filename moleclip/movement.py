"""How augmentation moves drawings: what device and CPU compute alike, and where ink is then."""

import math
from typing import NamedTuple

import numpy as np

from moleclip.pixels import SIZE

N_UNIFORMS = 16  # uniform numbers that one image's augmentation takes
FAINT = 0.0015  # of a dark pixel, at most, is in a pixel that is taken for white


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


def movement(u, chance, lib):
    """Return (zoom, shift (n, 2), cosine, sine) by which pictures move, on a sheet from -1 to 1.

    u: float32 (n, N_UNIFORMS) of lib, numpy or torch; chance: a Level.
    """
    zoom = chance.smallest + (1 - chance.smallest) * u[:, 3]
    zoom = lib.where(u[:, 2] < chance.shrink, zoom, 1.0)
    shift = (1 - zoom)[:, None] * (2 * u[:, 4:6] - 1)
    angle = lib.where(u[:, 6] < chance.rotate, 2 * math.pi * u[:, 7], 0.0)
    return zoom, shift, lib.cos(angle), lib.sin(angle)


def coarseness(u, chance, lib):
    """Return how many pixels a pixel of the result is worth, (n, 1), below 1 where downscaled."""
    return lib.where(u[:, 0] < chance.downscale, 0.7 + 0.15 * u[:, 1], 1.0)[:, None]


def sampling_lines(u, steps, chance, lib):
    """Return (x of columns, y of rows), float (n, 224) each: the grid before it is turned.

    steps: the numbers of pixels, float32 (224,); the rest as in `movement`.
    """
    coarse = coarseness(u, chance, lib)
    middle = 1 - 1 / SIZE  # of the last pixel: half a pixel on it begins to fade into white
    place = (lib.floor(steps * coarse) + 0.5) / coarse * 2 / SIZE - 1  # (n, 224)
    place = place.clip(-middle, middle)
    place = lib.where(coarse < 1, place, (2 * steps + 1) / SIZE - 1)
    zoom, shift, _, _ = movement(u, chance, lib)
    x, y = ((place - shift[:, i, None]) / zoom[:, None] for i in (0, 1))
    return x, y


def moved_ink(index, level, random, patch):
    """Return how many patches of augmented pictures carry ink, at most: int numpy (n,).

    Hardly ever more than do. It is computed without the device, which so needn't be waited for.
    index: palette indices, uint8 (n, 224, 224); level and random: as in `augment`; patch: pixels.
    """
    chance = AUGMENT.get(level, Level(*[0.0] * 9))
    u = np.ones((len(index), N_UNIFORMS)) if level == "none" else random
    u = u.astype(np.float32)
    turned = u[:, 6] < chance.rotate
    counts = np.zeros(len(index), int)
    for some, count in ((~turned, upright_ink), (turned, turned_ink)):
        if some.any():
            mine = slice(None) if some.all() else some  # of all pictures no copy is made
            counts[mine] = count(index[mine], u[mine], chance, patch)
    return counts


def upright_ink(index, u, chance, patch):
    """Return `moved_ink` of pictures that are not turned: each patch shows a rectangle of them."""
    rows, n = SIZE // patch, len(index)
    ranges, steps = [], np.arange(SIZE, dtype=np.float32)
    x, y = sampling_lines(u, steps, chance, np)
    for place in (y, x):
        pixel = ((place + 1) * SIZE / 2 - 0.5).reshape(n, rows, patch)
        first = np.ceil(pixel[:, :, 0] - 1 + FAINT).clip(0, SIZE)
        last = np.floor(pixel[:, :, -1] + 1 - FAINT).clip(-1, SIZE - 1)
        ranges.append((first.astype(int), np.maximum(last + 1, first).astype(int)))
    (top, bottom), (left, right) = ranges
    # In whole words of 64; one row more, where a range may end.
    bits = np.zeros((n * SIZE + 1, -(-SIZE // 64) * 8), np.uint8)
    bits[:-1, : SIZE // 8] = np.packbits(index, axis=2).reshape(n * SIZE, -1)
    ends = np.stack([top, bottom], 2) + SIZE * np.arange(n)[:, None, None]
    words = np.bitwise_or.reduceat(bits.view(np.uint64), ends.ravel(), axis=0)[::2]
    words[(top == bottom).ravel()] = 0
    strips = words.view(np.uint8).reshape(n, rows, -1)[:, :, : SIZE // 8]
    before = np.zeros((n, rows, SIZE + 1), np.uint8)
    np.cumsum(np.unpackbits(strips, axis=2), axis=2, dtype=np.uint8, out=before[:, :, 1:])
    there = [np.take_along_axis(before, side[:, None], 2) for side in (left, right)]
    return (there[0] != there[1]).sum((1, 2))


def turned_ink(index, u, chance, patch):
    """Return `moved_ink` of pictures that may be turned: of each pixel, the patches it reaches."""
    rows = SIZE // patch
    which, y, x = np.nonzero(index)
    zoom, shift, cos, sin = (value[which] for value in movement(u, chance, np))
    x, y = ((place + 0.5) * 2 / SIZE - 1 for place in (x, y))
    places = np.stack([cos * y - sin * x, cos * x + sin * y]) * zoom + shift.T[::-1]
    places = (places + 1) * SIZE / 2 - 0.5
    coarse = coarseness(u, chance, np)[which, 0]
    reach = zoom * (np.abs(cos) + np.abs(sin)) + np.where(coarse < 1, 0.5 / coarse, 0)
    ends = np.stack([np.ceil(places - reach), np.floor(places + reach)]).astype(int)
    seen = ((ends[1] >= 0) & (ends[0] < SIZE)).all(0)
    patches, which = ends[:, :, seen].clip(0, SIZE - 1) // patch, which[seen]
    inked = np.zeros((len(index), rows, rows), bool)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inked[which, patches[i, 0], patches[j, 1]] = True
    return inked.sum((1, 2))
