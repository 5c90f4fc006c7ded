"""Drawings that the tests compare: ours, and RDKit's own."""

import io

import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.drawing import draw, layout
from moleclip.molecules import parse
from moleclip.styles import PLAIN

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
DRUG = "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3"


def picture_of(smiles, style=PLAIN):
    """Our drawing, palette indices, uint8 (224, 224)."""
    return draw(layout(parse(smiles)), style)


def rdkit_picture(smiles):
    """RDKit's drawing, RGB, uint8 (224, 224, 3)."""
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.MolFromSmiles(Chem.CanonSmiles(smiles)))
    canvas.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())))


def figure(kind, smiles=DRUG, size=(600, 600)):
    """A drawing as RDKit exports it for a paper or a slide, a PNG as bytes."""
    canvas = rdMolDraw2D.MolDraw2DCairo(*size)
    if kind == "transparent":
        canvas.drawOptions().setBackgroundColour((1, 1, 1, 0))
    if kind == "black":
        canvas.drawOptions().useBWAtomPalette()
    if kind == "dark":
        rdMolDraw2D.SetDarkMode(canvas)
    canvas.DrawMolecule(layout(parse(smiles)))
    canvas.FinishDrawing()
    return canvas.GetDrawingText()
