"""The original code's way of drawing (SVG, cairosvg, PIL), which ours is compared with.

Needs pip install -r requirements-extra.txt.
"""

import io

import cairosvg
import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT

from moleclip.molecules import read_molecules
from moleclip.pixels import SIZE
from moleclip.styles import font_path


def sample(name, count):
    """Return `count` SMILES of a file in data/, evenly spread over it."""
    lines = [molecule.smiles for molecule in read_molecules(str(ROOT / "data" / name))]
    return lines[:: len(lines) // count][:count]


def decoded(png):
    """Return a PNG's pixels as RGB, uint8 (224, 224, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def set_style(options, style):
    """Give RDKit's drawing options the values of a Style."""
    options.prepareMolsBeforeDrawing, options.bondLineWidth = False, style.line_width
    options.multipleBondOffset, options.rotate = style.multiple_bond_offset, style.rotation
    if style.font:
        options.minFontSize = options.maxFontSize = style.font_size
        options.fixedBondLength, options.fontFile = style.bond_length, font_path(style.font)


def original_picture(smiles, style=None):
    """Return a SMILES drawn as the original does, by way of SVG and PNG, uint8 (224, 224, 3)."""
    molecule = rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles(smiles))
    canvas = rdMolDraw2D.MolDraw2DSVG(SIZE, SIZE)
    if style:
        set_style(canvas.drawOptions(), style)
    canvas.DrawMolecule(molecule)
    canvas.FinishDrawing()
    return decoded(cairosvg.svg2png(bytestring=canvas.GetDrawingText().encode()))
