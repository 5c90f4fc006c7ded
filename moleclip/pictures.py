"""Pictures of molecules from elsewhere, made to look like our own plain drawings."""

import warnings

import numpy as np
from PIL import Image, ImageOps

from moleclip.molecules import Rejected
from moleclip.pixels import SIZE, to_index

KINDS = (".png", ".jpg", ".jpeg")
MARGIN = 10  # pixels that RDKit leaves on the longer sides of a drawing (8 to 11; median of 120)
ROOM = SIZE - 2 * MARGIN  # pixels: a drawing's longer side
LINE = 2.0  # pixels: RDKit's line width in the plain drawing
WORKED = 700  # pixels: a picture of twice this and more is made smaller before anything else
LETTER = 0.15  # of the drawing's longer side: connected ink that is smaller may be a letter
MAX_PIXELS = 50_000_000  # of a picture: 150 MB when decoded; more is a mistake or an attack
INK = 40  # of 255: what is this much darker than the paper, in any colour, is ink and no noise


def to_drawing(path):
    """Return a file's picture of a molecule as `draw` would draw it: uint8 (224, 224) indices.

    Raises Rejected.
    """
    ink = shrink(to_black_on_white(read_picture(path)))
    dark = (ink < 255 - INK).any(2)
    if not dark.any():
        raise Rejected("nothing is drawn on it")
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    plain = dark.shape == (SIZE, SIZE) and abs(max(dark[inside].shape) - ROOM) <= 5
    if not plain:
        ink = centre(thicken(ink[inside], dark[inside]))
    red, green, blue = np.moveaxis(ink.astype(np.uint32), 2, 0)
    return to_index(red << 16 | green << 8 | blue)


def shrink(ink):
    """Return a huge picture smaller, each square of its pixels as the darkest of them."""
    step = max(ink.shape[:2]) // WORKED
    if step < 2:
        return ink
    height, width = (side // step * step for side in ink.shape[:2])
    squares = ink[:height, :width].reshape(height // step, step, width // step, step, 3)
    return squares.min((1, 3))


def centre(ink):
    """Return a trimmed picture, uint8 (height, width, 3), at a drawing's size on its sheet."""
    scale = ROOM / max(ink.shape[:2])
    sides = [max(1, round(side * scale)) for side in ink.shape[1::-1]]
    image = Image.fromarray(ink).resize(sides, Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (SIZE, SIZE), "white")
    sheet.paste(image, [(SIZE - side) // 2 for side in image.size])
    return np.asarray(sheet)


def thicken(ink, dark):
    """Return a trimmed picture whose lines, once it has shrunk, are as wide as the plain drawing's.

    ink: uint8 (height, width, 3); dark: bool (height, width), where it is. Letters, which are
    what is small and no line, keep their strokes: RDKit draws them finer.
    """
    longest, width = max(dark.shape), line_width(dark)
    reach = round((LINE * longest / ROOM - width) / 2)
    if longest <= SIZE or reach < 1:
        return ink
    around = (reach, reach), (reach, reach)
    ink, dark = np.pad(ink, (*around, (0, 0)), constant_values=255), np.pad(dark, around)
    lines = np.where(letter_mask(dark, width)[..., None], np.uint8(255), ink)
    for turn in range(reach):
        rows = np.minimum(lines, np.minimum(np.roll(lines, 1, 0), np.roll(lines, -1, 0)))
        # A cross and a square in turn make an octagon, near enough a pen.
        beside = lines if turn % 2 else rows
        lines = np.minimum(rows, np.minimum(np.roll(beside, 1, 1), np.roll(beside, -1, 1)))
    return np.minimum(ink, lines)


def letter_mask(dark, width):
    """Return which pixels of bool (height, width) belong to letters, for lines of this width.

    A letter is connected ink that is small, and longer than a line across it.
    """
    runs, label = connected_components(dark)
    row, begin, end = runs.T
    count = label.max() + 1
    low, high = np.full((2, count), max(dark.shape)), np.zeros((2, count), int)
    for axis, (first, last) in enumerate(((row, row + 1), (begin, end))):
        np.minimum.at(low[axis], label, first)
        np.maximum.at(high[axis], label, last)
    side, area = (high - low).max(0), np.bincount(label, end - begin)
    letter = (side < LETTER * max(dark.shape)) & (area > 1.7 * width * side)
    found = np.zeros(dark.shape, bool)
    found[dark] = np.repeat(letter[label], end - begin)
    return found


def connected_components(dark):
    """Return (runs, label) of the ink in bool (height, width).

    runs: each horizontal run as (row, begin, end), int (n, 3); label: its component, int (n,).
    """
    wide = dark.shape[1] + 2
    edges = run_edges(dark)
    begin, end = edges[::2] + 1, edges[1::2] + 1
    # The runs of the next row that a run touches are those from `first` to before `last`.
    first = np.searchsorted(end, begin + wide)
    last = np.searchsorted(begin, end + wide, "right")
    touched = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(begin)), touched)
    nth = np.arange(touched.sum()) - np.repeat(np.cumsum(touched) - touched, touched)
    label = spread_labels(len(begin), above, nth + np.repeat(first, touched))
    runs = [begin // wide, begin % wide - 1, end - begin // wide * wide - 1]
    return np.stack(runs, 1), np.unique(label, return_inverse=True)[1]


def spread_labels(count, above, below):
    """Return a label for each of so many runs, int (count,): equal where pairs of runs join."""
    label = np.arange(count)
    while True:
        lowest, before = np.minimum(label[above], label[below]), label.copy()
        for ends in (label[above], label[below], above, below):
            np.minimum.at(label, ends, lowest)
        label = label[label]
        if (label == before).all():
            return label


def read_picture(path):
    """Return a PNG or JPEG on its paper, uint8 (height, width, 3).

    Raises Rejected for what is not a picture, or is too large.
    """
    limit = f"smaller than {MAX_PIXELS // 10**6} million"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    pixels = f"{image.width} x {image.height} pixels"
                    raise Rejected(f"{pixels} are too many; make it {limit}")
                return decode(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Rejected(f"too many pixels; make it {limit}") from None
    except FileNotFoundError:
        raise Rejected("no such file") from None
    except Image.UnidentifiedImageError:
        raise Rejected("not a PNG or JPEG picture") from None
    except (OSError, ValueError, SyntaxError, EOFError, Warning) as error:
        raise Rejected(f"damaged: {str(error)[:100]}") from None


def decode(image):
    """Return an opened image upright and on its paper, uint8 (height, width, 3)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, paper_under(image))
    return np.asarray(Image.alpha_composite(paper, image).convert("RGB"))


def paper_under(image):
    """Return the colour a transparent picture is meant for: black under light ink, else white."""
    pixels = np.asarray(image)
    solid = pixels[pixels[..., 3] > 127]
    transparent = len(solid) < 0.8 * pixels[..., 3].size
    if not transparent or not len(solid):
        return "white"
    lightest, darkest = np.median(solid[:, :3].max(1)), np.median(solid[:, :3].min(1))
    return "black" if lightest > 200 and darkest > 150 else "white"


def to_black_on_white(pixels):
    """Return RGB pixels, uint8 (height, width, 3), with the paper made white.

    A dark picture's lightness is inverted, its hues stay.
    """
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = np.median(rim, 0)
    values = pixels.astype(np.float32)
    if paper.mean() < 128:
        values, paper = invert_lightness(values), invert_lightness(paper)
    return (values * (255 / np.maximum(paper, 64))).clip(0, 255).round().astype(np.uint8)


def invert_lightness(colour):
    """Return colours (..., 3), 0 to 255, with HSL's lightness inverted."""
    return colour + 255 - colour.max(-1, keepdims=True) - colour.min(-1, keepdims=True)


def line_width(dark):
    """Return the typical width of the lines in bool (height, width), in pixels.

    Half of the ink lies in runs shorter than that.
    """
    return float(np.median(np.minimum(run_lengths(dark), run_lengths(dark.T).T)[dark]))


def run_lengths(dark):
    """Return for each pixel how long a horizontal run of ink it lies in, int (height, width)."""
    edges = run_edges(dark)
    lengths, each = np.zeros(dark.shape, int), edges[1::2] - edges[::2]
    lengths[dark] = np.repeat(each, each)
    return lengths


def run_edges(dark):
    """Return where each horizontal run of bool (height, width) begins and ends, in turn."""
    return np.flatnonzero(np.diff(np.pad(dark, ((0, 0), (1, 1))).ravel().astype(np.int8)))
