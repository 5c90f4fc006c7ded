"""How far a picture lies from drawings of molecules in a model's eyes: is it one of them at all?

Embeddings of drawings lie near a flat of fewer dimensions than they have numbers. Those of
photographs, plots and text don't, and what a head says of them means nothing.
"""

import base64
import json
import zlib

import click
import numpy as np

DRAWINGS = 500  # that the flat is fitted to, and its bound
AXES = 128  # of the flat, of 512 dimensions; of narrower embeddings a quarter
HELD_OUT = 5  # every fifth drawing tells how far such lie away
# Times the distance that 1 in 100 of held-out drawings exceeds. Other programs' drawings lie a
# little further away than RDKit's, plots a fifth and photographs half as far again.
SLACK = 1.1


def flat_of(embeddings):
    """Return the text of the flat near which drawings' embeddings lie, float32 (n, width)."""
    held = np.arange(len(embeddings)) % HELD_OUT == 0
    fitted, width = embeddings[~held], embeddings.shape[1]
    middle, count = fitted.mean(0), min(AXES, width // 4, len(fitted) // 3)
    axes = np.linalg.svd(fitted - middle, full_matrices=False)[2][:count]
    arrays = middle.astype(np.float32), axes.astype(np.float16)
    bound = SLACK * np.percentile(away_from(embeddings[held], *arrays), 99)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    text = base64.b64encode(zlib.compress(data, 9)).decode()
    return json.dumps({"width": width, "bound": float(bound), "data": text})


def away_from(embeddings, middle, axes):
    """Return which part of each embedding's distance from the middle leads off the flat, (n,)."""
    apart = (embeddings - middle).astype(np.float64)
    off = apart - apart @ axes.T.astype(np.float64) @ axes.astype(np.float64)
    return np.linalg.norm(off, axis=1) / np.maximum(np.linalg.norm(apart, axis=1), 1e-12)


class Familiar:
    """The flat that an exported file holds, of its text; bound: how far off it drawings lie.

    Raises click.ClickException.
    """

    def __init__(self, path, text):
        try:
            facts = json.loads(text)
            data, width = zlib.decompress(base64.b64decode(facts["data"])), int(facts["width"])
            self.middle, self.bound = np.frombuffer(data, np.float32, width), float(facts["bound"])
            self.axes = np.frombuffer(data, np.float16, offset=4 * width).reshape(-1, width)
        except (ValueError, KeyError, TypeError, zlib.error):
            raise click.ClickException(
                f"{path}: its drawings are damaged; export it again"
            ) from None

    def judge(self, given, embedding):
        """Return a picture's Features with its likeness to drawings, and a note if it is none.

        The likeness is 1 on the flat and 0 at right angles to it.
        """
        away = float(away_from(embedding[None], self.middle, self.axes)[0])
        note = given.note
        if away > self.bound:
            least = f"picture_like {1 - away:.2f}, of drawings {1 - self.bound:.2f} or more"
            note = "; ".join([*[note] * bool(note), f"unlike a drawing of a molecule: {least}"])
        return given._replace(like=1 - away, note=note)
