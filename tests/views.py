"""Drawings of real molecules as an encoder sees them."""

import numpy as np
from conftest import small_molecules

from moleclip.drawing import draw, layout
from moleclip.embedder import to_pixels
from moleclip.molecules import parse
from moleclip.styles import PLAIN, random_style


def index_pictures(count):
    """Plain and styled drawings, two uint8 (count, 224, 224)."""
    molecules = [layout(parse(smiles)) for smiles in small_molecules(count)]
    plain = [draw(molecule, PLAIN) for molecule in molecules]
    styled = [draw(molecule, random_style(0, i, 1)) for i, molecule in enumerate(molecules)]
    return [np.stack(plain), np.stack(styled)]


def real_pixels(count):
    """Plain drawings as float RGB pixels (count, 3, 224, 224)."""
    return to_pixels(index_pictures(count)[0], "cpu")
