"""Drawings that the tests compare: ours, and RDKit's own."""

import io

import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.drawing import PLAIN, draw, layout
from moleclip.molecules import parse

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def picture_of(smiles, style=PLAIN):
    """Our drawing, palette indices, uint8 (224, 224)."""
    return draw(layout(parse(smiles)), style)


def rdkit_picture(smiles):
    """RDKit's drawing, RGB, uint8 (224, 224, 3)."""
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.MolFromSmiles(Chem.CanonSmiles(smiles)))
    canvas.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())))
