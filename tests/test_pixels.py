import os

import numpy as np
from conftest import small_molecules
from drawn import ASPIRIN, picture_of, rdkit_picture
from rdkit import Chem

from moleclip import pixels
from moleclip.drawing import draw, layout
from moleclip.molecules import parse
from moleclip.pixels import ATOM_COLOURS, to_rgb
from moleclip.styles import PLAIN, random_style


def test_pixels_come_from_cairo_and_are_those_of_the_png(monkeypatch):
    molecules = [layout(parse(smiles)) for smiles in small_molecules(6)]
    styles = [PLAIN, random_style(0, 1, 1)]
    straight = [draw(molecule, style) for molecule in molecules for style in styles]
    assert pixels.cairo_tap() is not None or not os.path.exists("/proc/self/maps")
    monkeypatch.setattr(pixels, "cairo_tap", lambda: None)
    by_png = [draw(molecule, style) for molecule in molecules for style in styles]
    assert all((a == b).all() for a, b in zip(straight, by_png))


def test_rdkit_still_gives_its_png_to_others():
    picture_of(ASPIRIN)
    assert rdkit_picture(ASPIRIN).min() == 0  # the tap is there only while we draw


def test_every_element_has_rdkits_hue():
    for number in (0, *range(1, 119)):
        symbol = f"[{Chem.GetPeriodicTable().GetElementSymbol(number)}]" if number else "*"
        ours, theirs = to_rgb(picture_of(symbol)).astype(int), rdkit_picture(symbol).astype(int)
        assert np.abs(ours - theirs)[theirs.min(-1) < 128].mean() < 6, f"element {number}"


def test_indexed_colour_is_rdkits_picture():
    smiles = small_molecules(30)
    ours = np.stack([to_rgb(picture_of(each)).astype(int) for each in smiles])
    off = np.abs(ours - np.stack([rdkit_picture(each) for each in smiles]))
    assert off.mean() <= 0.15 and (off.max(-1) > 16).mean() <= 0.001


def test_every_atom_colour_survives():
    for number, colour in ATOM_COLOURS.items():
        symbol = Chem.GetPeriodicTable().GetElementSymbol(number)
        ink = to_rgb(picture_of(f"C{symbol}"))
        assert (np.abs(ink.astype(int) - colour).max(-1) <= 2).any(), f"element {number}"
