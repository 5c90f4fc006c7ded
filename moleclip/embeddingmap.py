"""Where molecules lie in a model's eyes: two axes of its embeddings, and the page that shows them.

The axes are the first two principal components of the training molecules' embeddings.
"""

import base64
import csv
import itertools
import json
import zlib
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from moleclip.files import library, open_text, save_whole
from moleclip.reportpage import REPORTED, draw_lines, fill_page

SIDE, MARGIN, DOT = 900, 60, 5  # pixels of the .png, of its edge, and of a molecule in it
GREY, PAPER = (196, 201, 208), (255, 255, 255)
# From low to high: numbers of viridis, which colour-blind eyes can order, too.
COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])


def principal_axes(embeddings):
    """Return the text of a map of training molecules' embeddings, float32 (n, width).

    It holds the mean and two axes, float32, and of each molecule its place on them, float16.
    """
    middle = embeddings.mean(0)
    _, sizes, axes = np.linalg.svd(embeddings - middle, full_matrices=False)
    axes = np.concatenate([axes[:2], np.zeros((2, axes.shape[1]))])[:2].astype(np.float32)
    # Signs are arbitrary: the same for the same molecules.
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    axes *= np.where(signs < 0, -1, 1)[:, None].astype(np.float32)
    told = sizes**2 / max(float((sizes**2).sum()), 1e-30)
    places = (embeddings - middle) @ axes.T
    arrays = middle.astype(np.float32), axes, places.astype(np.float16)
    data = [np.ascontiguousarray(array).tobytes() for array in arrays]
    facts = {"width": len(middle), "told": [*map(float, told[:2]), 0.0, 0.0][:2]}
    text = base64.b64encode(zlib.compress(b"".join(data), 9)).decode()
    return json.dumps(facts | {"data": text})


class EmbeddingMap:
    """The map that an exported file holds.

    middle, float32 (width,), axes, float32 (2, width), places of training molecules, float32
    (n, 2), and told: which part of the variance each axis tells. Raises click.ClickException.
    """

    def __init__(self, path, text):
        try:
            facts = json.loads(text)
            data, width = zlib.decompress(base64.b64decode(facts["data"])), facts["width"]
            numbers = np.frombuffer(data, np.float32, 3 * width)
            self.middle, self.axes = numbers[:width], numbers[width:].reshape(2, width)
            self.places = np.frombuffer(data, np.float16, offset=12 * width).reshape(-1, 2)
            self.places, self.told = self.places.astype(np.float32), facts["told"]
        except (ValueError, KeyError, TypeError, zlib.error):
            raise click.ClickException(f"{path}: its map is damaged; export it again") from None

    def locate(self, embeddings):
        """Return the places of embeddings, float32 (n, 2), NaN where those are."""
        return (embeddings - self.middle) @ self.axes.T


def neighbours_kept(embeddings, seed=0):
    """Return t-SNE's places of embeddings, float32 (n, 2), NaN where those are.

    Raises click.ClickException without scikit-learn, or for fewer than 4 molecules.
    """
    known = np.isfinite(embeddings).all(1)
    if known.sum() < 4:
        raise click.ClickException("--map-by tsne: needs 4 molecules that can be read, or more")
    manifold = library("sklearn.manifold", "--map-by tsne")
    perplexity = min(30.0, (known.sum() - 1) / 3)
    method = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed)
    places = np.full((len(embeddings), 2), np.nan, np.float32)
    places[known] = method.fit_transform(embeddings[known])
    return places


def write_map(path, table, places, training, title, target, files, workers, **options):
    """Write a map of the first REPORTED rows of a finished predictions.csv: a page, or a .png.

    places: of the rows, float32 (n, 2), NaN for one that isn't shown; training: of training
    molecules, float32 (m, 2), grey; target: the column that colours the rest, or None.
    """
    with open_text(table) as stream:
        reader = csv.reader(stream)
        header = next(reader)
        lines = list(itertools.islice(reader, REPORTED))
    places = places[: len(lines)]
    shown = np.flatnonzero(np.isfinite(places).all(1))
    values = [lines[i][header.index(target)] if target else "" for i in shown]
    if Path(path).suffix.lower() == ".png":
        picture = plot(places[shown], training, [float(v) if v else np.nan for v in values])
        save_whole(path, lambda name: picture.save(name, "PNG"))
        return len(shown)
    images = draw_lines([lines[i] for i in shown], files, workers, **options)
    molecules = []
    for i, value in zip(shown, values):
        row, smiles, name, *_ = lines[i]
        molecules.append([*np.round(places[i], 4).astype(float), value, smiles, name, int(row)])
    data = {"title": title, "target": target or "", "molecules": molecules, "images": images}
    data["training"] = np.round(training, 4).astype(float).tolist()
    fill_page(path, "map.html", data)
    return len(shown)


def plot(places, training, values):
    """Return a picture of the map: training molecules grey, the others by their values."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), PAPER)  # twice as large: smooth dots
    draw, every = ImageDraw.Draw(image), np.concatenate([training, places])
    low, high = (every.min(0), every.max(0)) if len(every) else (np.zeros(2), np.ones(2))
    size = max(float((high - low).max()), 1e-9)
    spot = lambda place: (place - (low + high) / 2) / size * (SIDE - 2 * MARGIN) * [2, -2] + SIDE
    for place in training:
        dot(draw, spot(place), GREY)
    for place, shade in zip(places, shades(values)):
        dot(draw, spot(place), shade)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def dot(draw, place, fill):
    """Draw one molecule."""
    draw.ellipse([*(place - DOT), *(place + DOT)], fill=fill, outline=PAPER)


def shades(values):
    """Return a colour for each of some values, low to high; dark grey for NaN."""
    values = np.array(values, float)
    known = np.isfinite(values)
    low, high = (np.quantile(values[known], [0.02, 0.98])) if known.any() else (0.0, 1.0)
    parts = np.nan_to_num((values - low) / max(high - low, 1e-30)).clip(0, 1) * (len(COLOURS) - 1)
    mixed = [np.interp(parts, range(len(COLOURS)), column) for column in COLOURS.T]
    colours = np.stack(mixed, 1).round().astype(int)
    colours[~known] = 90
    return [tuple(map(int, colour)) for colour in colours]
