"""Pictures of molecules from elsewhere, made to look like our own plain drawings."""

import hashlib
import os
import re
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from moleclip.molecules import Rejected
from moleclip.pixels import SIZE, connected_components, line_width, to_index

KINDS = (".png", ".jpg", ".jpeg")
OTHER_KINDS = (".gif", ".bmp", ".tif", ".tiff", ".webp", ".svg", ".heic")  # which can't be read
MARGIN = 10  # pixels that RDKit leaves on the longer sides of a drawing (8 to 11; median of 120)
ROOM = SIZE - 2 * MARGIN  # pixels: a drawing's longer side
LINE = 2.0  # pixels: RDKit's line width in the plain drawing
WORKED = 700  # pixels: a picture of twice this and more is made smaller before anything else
LETTER = 0.15  # of the drawing's longer side: connected ink that is smaller may be a letter
MAX_PIXELS = 50_000_000  # of a picture: 150 MB when decoded; more is a mistake or an attack
BAND = 16  # rows that are worked on at a time
INK = 40  # of 255: what is this much darker than the paper, in any colour, is ink and no noise
HUE = 50  # of 255: what differs so much between its channels is coloured
COLOURED = 0.005  # of the ink: 0.019 and more in ESOL's drawings, even as poor JPEGs
# Of a line's width: how far ink reaches across its longer axis (standard deviation). Of 163
# hydrocarbons' separate lines 0.2 to 0.4, of ESOL's letters 0.5 to 4.
BROAD = 0.5
COLOURLESS = "black and white: read well only if the encoder learned such drawings"
FRAMED = "a frame was left out"


def is_picture(path):
    """Tell whether a path names a picture, of a kind that can be read or of another."""
    return path.suffix.lower() in KINDS + OTHER_KINDS


def pictures_in(folder):
    """Return the pictures of a folder by name: 1, 2, 10."""

    def order(path):
        words = re.split(r"(\d+)", path.stem)
        return [int(word) if i % 2 else word for i, word in enumerate(words)], path.name

    return sorted(filter(is_picture, folder.iterdir()), key=order)


def content_hash(path):
    """Return the SHA-256 of a file, or "" of one that can't be read."""
    with suppress(OSError):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def to_drawing(path):
    """Return (drawing, note) of a file's picture of a molecule.

    drawing: as `draw` would draw it, uint8 (224, 224) indices; note: what makes its prediction
    worth less, or "". Raises Rejected.
    """
    ink, framed = without_frame(black_on_white(read_picture(path)))
    dark = (ink < 255 - INK).any(2)
    if not dark.any():
        raise Rejected("nothing is drawn on it")
    notes = [FRAMED] * framed + [COLOURLESS] * is_colourless(ink, dark)
    box = box_of(dark)
    plain = dark.shape == (SIZE, SIZE) and abs(max(dark[box].shape) - ROOM) <= 5
    if framed or not plain:
        ink = centre(thicken(ink[box], dark[box]))
    red, green, blue = np.moveaxis(ink.astype(np.uint32), 2, 0)
    return to_index(red << 16 | green << 8 | blue), "; ".join(notes)


def box_of(dark):
    """Return the slices of the smallest box around what is True in bool (height, width)."""
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def is_colourless(ink, dark):
    """Tell whether a drawing has letters but no colour; a hydrocarbon is black by right.

    ink: uint8 (height, width, 3), black on white; dark: bool (height, width), where it is.
    """
    coloured = np.ptp(ink, axis=2)[dark] > HUE
    if coloured.mean() > COLOURED:
        return False
    black = (ink < 128).any(2)  # where letters stand apart from bonds, in small pictures too
    if not black.any():
        return False
    found = pieces(black)
    small = found.side < LETTER * max(black[box_of(black)].shape)
    return bool((found.breadth[small] > BROAD).any())


def without_frame(ink):
    """Return (ink without the frames around the drawing, whether there are any)."""
    dark, framed = (ink < 255 - INK).any(2), False
    while dark.any() and (frame := frame_mask(dark)).any():
        ink, dark, framed = np.where(frame[..., None], np.uint8(255), ink), dark & ~frame, True
    return ink, framed


def frame_mask(dark):
    """Return which pixels of bool (height, width) are a frame, bool of the same shape.

    That is connected ink along all four sides of a drawing. What lies inside isn't lines alone:
    so they do in cyclobutadiene.
    """
    box, frame = box_of(dark), np.zeros_like(dark)
    inner, deep = dark[box], max(2, max(dark.shape) // 50)

    def surrounds(ink):
        ends = ink[:deep].any(0), ink[-deep:].any(0), ink[:, :deep].any(1), ink[:, -deep:].any(1)
        return min(end.mean() for end in ends) > 0.9

    if surrounds(inner):
        found = pieces(inner)
        largest = found.side.argmax()
        frame[box][inner] = found.owner == largest
        inside = np.delete(found.breadth, largest) > BROAD
        if not (surrounds(frame[box]) and inside.any()):
            frame[:] = False
    return frame


class Pieces(NamedTuple):
    """The connected pieces of ink in a mask."""

    owner: np.ndarray  # int (pixels of ink,): which piece each belongs to
    area: np.ndarray  # int (pieces,): pixels
    side: np.ndarray  # int (pieces,): the longer one of the box around it
    breadth: np.ndarray  # float (pieces,): standard deviation across its longer axis, in lines


def pieces(dark):
    """Return the Pieces of bool (height, width)."""
    runs, label = connected_components(dark)
    owner, places = np.repeat(label, runs[:, 2] - runs[:, 1]), np.nonzero(dark)
    area = np.bincount(owner)
    low, high = np.full((2, len(area)), max(dark.shape)), np.zeros((2, len(area)), int)
    for axis, place in enumerate(places):
        np.minimum.at(low[axis], owner, place)
        np.maximum.at(high[axis], owner, place)
    y, x = (place - low[axis][owner] for axis, place in enumerate(places))

    def mean(values):
        return np.bincount(owner, values) / area

    yy, xx = mean(y * y) - mean(y) ** 2, mean(x * x) - mean(x) ** 2
    xy = mean(x * y) - mean(x) * mean(y)
    least = (yy + xx) / 2 - np.hypot((yy - xx) / 2, xy)  # eigenvalue of their covariance
    breadth = np.sqrt(np.maximum(least, 0)) / line_width(dark)
    return Pieces(owner, area, (high - low).max(0) + 1, breadth)


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
    found, letters = pieces(dark), np.zeros(dark.shape, bool)
    small = found.side < LETTER * max(dark.shape)
    letters[dark] = (small & (found.area > 1.7 * width * found.side))[found.owner]
    return letters


def read_picture(path):
    """Return a PNG or JPEG on its paper, uint8 (height, width, 3).

    Raises Rejected for what is not a picture, or is too large.
    """
    limit = f"smaller than {MAX_PIXELS // 10**6} million"
    if not os.path.exists(path):
        dangling = os.path.islink(path)
        raise Rejected("a link to a file that is not there" if dangling else "no such file")
    if not os.path.isfile(path):
        raise Rejected("is no file")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    pixels = f"{image.width} x {image.height} pixels"
                    raise Rejected(f"{pixels} are too many; make it {limit}")
                return decode(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Rejected(f"too many pixels; make it {limit}") from None
    except Image.UnidentifiedImageError:
        raise Rejected("not a PNG or JPEG picture") from None
    except PermissionError:
        raise Rejected("may not be read (permission denied)") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Rejected(f"damaged: {str(error)[:100]}") from None


def decode(image):
    """Return an opened image upright and on its paper, uint8 (height, width, 3)."""
    image.load()
    with suppress(Exception):  # of many kinds: EXIF that can't be read turns nothing
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    image = image.convert("RGBA")
    colour, pixels = paper_under(image), np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND):
        part = image.crop((0, top, image.width, min(top + BAND, image.height)))
        paper = Image.new("RGBA", part.size, colour)
        pixels[top : top + BAND] = np.asarray(Image.alpha_composite(paper, part).convert("RGB"))
    return pixels


def paper_under(image):
    """Return the colour a transparent picture is meant for: black under light ink, else white."""
    step = max(1, max(image.size) // WORKED)
    sample = image.resize([-(-side // step) for side in image.size], Image.Resampling.NEAREST)
    pixels = np.asarray(sample if step > 1 else image)
    solid = pixels[pixels[..., 3] > 127]
    transparent = len(solid) < 0.8 * pixels[..., 3].size
    if not transparent or not len(solid):
        return "white"
    lightest, darkest = np.median(solid[:, :3].max(1)), np.median(solid[:, :3].min(1))
    return "black" if lightest > 200 and darkest > 150 else "white"


def black_on_white(pixels):
    """Return RGB pixels, uint8 (height, width, 3), with the paper made white.

    A dark picture's lightness is inverted, its hues stay. A huge one is made smaller, each square
    of its pixels as the darkest of them, in bands: as floats it takes gigabytes.
    """
    paper, least = paper_of(pixels), min(pixels.shape[:2])  # a strip may be one pixel high
    step = max(1, min(max(pixels.shape[:2]) // WORKED, least))
    height, width = (side // step * step for side in pixels.shape[:2])
    bands = []
    for top in range(0, height, BAND * step):
        band = whiten(pixels[top : min(top + BAND * step, height), :width], paper)
        squares = band.reshape(len(band) // step, step, width // step, step, 3)
        bands.append(squares.min((1, 3)))
    return np.concatenate(bands)


def paper_of(pixels):
    """Return the paper's colour, (3,): the rim's, or where the rim is a frame, most of it."""
    step = max(1, max(pixels.shape[:2]) // WORKED)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    around, all_over = np.median(rim, 0), np.median(pixels[::step, ::step], (0, 1))
    return all_over if np.abs(around - all_over).max() > INK else around


def whiten(pixels, paper):
    """Return pixels, uint8 (..., 3), as on white instead of this paper."""
    values = pixels.astype(np.float32)
    if paper.mean() < 128:
        values, paper = invert_lightness(values), invert_lightness(paper)
    return (values * (255 / np.maximum(paper, 64))).clip(0, 255).round().astype(np.uint8)


def invert_lightness(colour):
    """Return colours (..., 3), 0 to 255, with HSL's lightness inverted."""
    return colour + 255 - colour.max(-1, keepdims=True) - colour.min(-1, keepdims=True)
