"""TODO"""

import warnings

import numpy as np
from PIL import Image, ImageOps

from moleclip.molecules import Rejected
from moleclip.pixels import SIZE, to_index

MARGIN = 10  # pixels that RDKit leaves on the longer sides of a drawing (median of 120 molecules; 8 to 11)
LINE = 2.0  # pixels: RDKit's line width in the plain drawing
WORKED = 700  # pixels: a picture of twice this and more is made smaller before anything else
LETTER = 0.15  # of the drawing's longer side: connected ink that is smaller may be a letter
MAX_PIXELS = 50_000_000  # of a picture: 150 MB when decoded; more is a mistake or an attack
INK = 40  # of 255: what is this much darker than the paper, in any colour, is ink and not its noise
KINDS = (".png", ".jpg", ".jpeg")


def to_drawing(path):
    """Return the picture of a molecule in a file as `render.draw` would draw it, palette indices, uint8 (224, 224). Raises Rejected."""
    ink = to_black_on_white(read_picture(path))
    step = (
        max(ink.shape[:2]) // WORKED
    )  # of a huge picture, each square of pixels becomes its darkest
    if step > 1:
        height, width = (side // step * step for side in ink.shape[:2])
        ink = ink[:height, :width].reshape(height // step, step, width // step, step, 3).min((1, 3))
    dark = (ink < 255 - INK).any(2)
    if not dark.any():
        raise Rejected("nothing is drawn on it")
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    inside, room = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], SIZE - 2 * MARGIN
    if (
        dark.shape != (SIZE, SIZE) or abs(max(dark[inside].shape) - room) > 5
    ):  # else it is a plain drawing already
        ink = thicken(ink[inside], dark[inside])
        scale = room / max(ink.shape[:2])
        image = Image.fromarray(ink).resize(
            [max(1, round(side * scale)) for side in ink.shape[1::-1]], Image.Resampling.LANCZOS
        )
        sheet = Image.new("RGB", (SIZE, SIZE), "white")
        sheet.paste(image, [(SIZE - side) // 2 for side in image.size])
        ink = np.asarray(sheet)
    red, green, blue = np.moveaxis(ink.astype(np.uint32), 2, 0)
    return to_index(red << 16 | green << 8 | blue)


def thicken(ink, dark):
    """Return a trimmed picture, uint8 (height, width, 3), with lines that are still as wide as the plain drawing's once it has shrunk.

    dark: bool (height, width), its ink. Letters keep their strokes, which RDKit draws finer: they are what is small and no line.
    """
    longest, width = max(dark.shape), line_width(dark)
    reach = round((LINE * longest / (SIZE - 2 * MARGIN) - width) / 2)
    if longest <= SIZE or reach < 1:
        return ink
    ink, dark = (
        np.pad(ink, ((reach, reach), (reach, reach), (0, 0)), constant_values=255),
        np.pad(dark, reach),
    )
    lines = np.where(letter_mask(dark, width)[..., None], np.uint8(255), ink)
    for turn in range(reach):
        rows = np.minimum(lines, np.minimum(np.roll(lines, 1, 0), np.roll(lines, -1, 0)))
        beside = (
            lines if turn % 2 else rows
        )  # a cross and a square in turn make an octagon, near enough a pen
        lines = np.minimum(rows, np.minimum(np.roll(beside, 1, 1), np.roll(beside, -1, 1)))
    return np.minimum(ink, lines)


def letter_mask(dark, width):
    """Return which pixels of bool (height, width) belong to letters: connected ink that is small, and longer than a line across it."""
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
    """Return (runs, label): each horizontal run of ink in bool (height, width) as (row, begin, end), and the connected part it belongs to."""
    wide = dark.shape[1] + 2
    edges = np.flatnonzero(
        np.diff(np.pad(dark, ((0, 0), (1, 1))).ravel().astype(np.int8))
    )  # begin and end of each run in turn
    begin, end = edges[::2] + 1, edges[1::2] + 1
    first, last = (
        np.searchsorted(end, begin + wide),
        np.searchsorted(begin, end + wide, "right"),
    )  # runs of the next row that it touches
    touched = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(begin)), touched)
    below = (
        np.arange(touched.sum())
        - np.repeat(np.cumsum(touched) - touched, touched)
        + np.repeat(first, touched)
    )
    label = np.arange(len(begin))
    while True:
        lowest, before = np.minimum(label[above], label[below]), label.copy()
        for ends in (label[above], label[below]):
            np.minimum.at(label, ends, lowest)
        np.minimum.at(label, above, lowest)
        np.minimum.at(label, below, lowest)
        label = label[label]
        if (label == before).all():
            break
    return np.stack(
        [begin // wide, begin % wide - 1, end - begin // wide * wide - 1], 1
    ), np.unique(label, return_inverse=True)[1]


def read_picture(path):
    """Return a PNG or JPEG on white paper, uint8 (height, width, 3). Raises Rejected for what is not a picture, or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Rejected(
                        f"{image.width} x {image.height} pixels are too many; make it smaller than {MAX_PIXELS // 10**6} million"
                    )
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
                    image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
                image = image.convert("RGBA")
                paper = Image.new("RGBA", image.size, paper_under(image))
                return np.asarray(Image.alpha_composite(paper, image).convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Rejected(
            f"too many pixels; make it smaller than {MAX_PIXELS // 10**6} million"
        ) from None
    except FileNotFoundError:
        raise Rejected("no such file") from None
    except (OSError, ValueError, SyntaxError, EOFError, Warning) as error:
        reason = (
            "not a PNG or JPEG picture"
            if isinstance(error, Image.UnidentifiedImageError)
            else f"damaged: {str(error)[:100]}"
        )
        raise Rejected(reason) from None


def paper_under(image):
    """Return the colour that a transparent picture was meant to lie on: black under light ink, else white."""
    pixels = np.asarray(image)
    solid = pixels[pixels[..., 3] > 127]
    transparent = len(solid) < 0.8 * pixels[..., 3].size
    return (
        "black"
        if transparent
        and len(solid)
        and np.median(solid[:, :3].max(1)) > 200
        and np.median(solid[:, :3].min(1)) > 150
        else "white"
    )


def to_black_on_white(pixels):
    """Return RGB pixels, uint8 (height, width, 3), with the paper made white; a dark picture's lightness is inverted, its hues stay."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = np.median(rim, 0)
    values = pixels.astype(np.float32)
    if paper.mean() < 128:
        turn = lambda colour: (
            colour + 255 - colour.max(-1, keepdims=True) - colour.min(-1, keepdims=True)
        )  # HSL's lightness
        values, paper = turn(values), turn(paper)
    return (values * (255 / np.maximum(paper, 64))).clip(0, 255).round().astype(np.uint8)


def line_width(dark):
    """Return the typical width of the lines in bool (height, width), in pixels: half of the ink lies in runs shorter than that."""
    return float(np.median(np.minimum(run_lengths(dark), run_lengths(dark.T).T)[dark]))


def run_lengths(dark):
    """Return for each pixel of bool (height, width) the length of the horizontal run of ink it lies in, int (height, width)."""
    edges = np.flatnonzero(np.diff(np.pad(dark, ((0, 0), (1, 1))).ravel().astype(np.int8)))
    lengths, each = np.zeros(dark.shape, int), edges[1::2] - edges[::2]
    lengths[dark] = np.repeat(each, each)
    return lengths
