"""Styles: how a molecule is drawn, plain, as the paper drew it, or as chemists' figures are."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

FACES = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique "
    "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique "
    "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic "
    "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta "
    "cmr10 cmb10 cmss10 cmti10 cmtt10"
)
FONTS = [f"{face}.ttf" for face in FACES.split()]  # all in matplotlib
COLOURS = {  # schemes, by what RDKit calls them
    "default": "useDefaultAtomPalette",
    "black": "useBWAtomPalette",
    "gray": "useBWAtomPalette",  # in which black is then gray
    "cdk": "useCDKAtomPalette",
    "avalon": "useAvalonAtomPalette",
}
GRAY = (0.4, 0.4, 0.4)


class Layout(NamedTuple):
    """Where the atoms of a drawing lie, and which are drawn. The defaults are RDKit's."""

    coordgen: bool = False  # by CoordGen, where the molecule is simple enough
    mirrored: bool = False
    wedges: bool = True
    abbreviated: bool = False  # OMe, CF3, NO2 and the like as one label each


class Style(NamedTuple):
    """How a molecule is drawn.

    The defaults are RDKit's, None meaning that RDKit decides (MoleCLIP's plain view).
    """

    line_width: int = 2
    font_size: int | None = None  # pixels
    bond_length: float | None = None  # pixels
    multiple_bond_offset: float = 0.15  # of the bond length
    rotation: float = 0.0  # degrees
    font: str | None = None  # a file name out of FONTS
    line_share: float | None = None  # lines' width, of the bond length, in place of line_width
    font_share: float | None = None  # font size, of the bond length, in place of font_size
    colours: str = "default"  # a key of COLOURS
    black_bonds: bool = False  # only labels have colours
    label_padding: float = 0.0  # around labels, of the font size
    margin: float = 0.05  # at least, of the picture
    methyls: bool = False  # CH3 at the ends of chains
    layout: Layout = Layout()


PLAIN = Style()


def random_style(seed, row, view):
    """Return the random style of a row's view; the same arguments always give the same one.

    The ranges are the paper's (MoleCLIP, 9). The order of the draws is part of the format.
    """
    u = np.random.default_rng([seed, row, view])
    return Style(
        line_width=int(u.integers(2, 6)),
        font_size=int(u.integers(14, 25)),
        bond_length=u.uniform(20, 100),
        multiple_bond_offset=u.uniform(0.1, 0.4),
        rotation=u.uniform(0, 360),
        font=FONTS[u.integers(len(FONTS))],
    )


def wide_style(seed, row, view):
    """Return the style of a row's view out of those of papers, slides and sketches.

    The same arguments always give the same one; the order of the draws is part of the format.
    """
    u = np.random.default_rng([seed, row, view, 1])  # 1: other draws than those of random_style
    figure = chance(u, 0.7)
    style = figure_style(u) if figure else random_style(seed, row, view)
    layout = Layout(coordgen=chance(u, 0.3), mirrored=chance(u, 0.5), wedges=chance(u, 0.96))
    # At a font size in pixels RDKit finds too little room for long labels.
    return style._replace(layout=layout._replace(abbreviated=figure and chance(u, 0.2)))


def figure_style(u):
    """Return a style as chemists' figures have it: one proportion at all sizes of molecules.

    u: a numpy Generator. A third has those of ACS Document 1996, of ChemDraw's style sheet.
    """
    if chance(u, 0.35):  # 0.6 pt lines, 14.4 pt bonds, 10 pt font
        style = Style(line_share=0.6 / 14.4, font_share=10 / 14.4, multiple_bond_offset=0.18)
    else:
        style = Style(
            line_share=u.uniform(0.04, 0.14),
            font_share=u.uniform(0.4, 0.8),
            multiple_bond_offset=u.uniform(0.1, 0.25),
        )
    return style._replace(
        colours=str(u.choice(list(COLOURS), p=[0.25, 0.45, 0.1, 0.1, 0.1])),
        black_bonds=chance(u, 0.4),
        bond_length=u.uniform(18, 45) if chance(u, 0.6) else None,
        rotation=30.0 * u.integers(12) if chance(u, 0.6) else u.uniform(0, 360),
        font=FONTS[u.integers(len(FONTS))] if chance(u, 0.5) else None,
        label_padding=u.uniform(0, 0.12),
        margin=u.uniform(0.02, 0.15),
        methyls=chance(u, 0.2),
    )


def chance(u, share):
    """Return True in a share of the draws from a numpy Generator."""
    return bool(u.random() < share)


def styles_of(kind, seed, row, views):
    """Return the styles of a row's views, the first plain; kind: "paper" or "wide"."""
    other = {"paper": random_style, "wide": wide_style}[kind]
    return [PLAIN] + [other(seed, row, view) for view in range(1, views)]


@cache
def font_path(name):
    """Return the full path of a font that matplotlib ships.

    Raises click.ClickException if it isn't there: RDKit would silently fall back to its own.
    """
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name if spec else None
    if path is None or not path.is_file():
        raise click.ClickException(f"font {name} not found: pip install matplotlib, which ships it")
    return str(path)
