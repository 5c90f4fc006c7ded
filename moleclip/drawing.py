"""TODO"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.molecules import MAX_ATOMS, Rejected, parse, replace_terminals
from moleclip.pixels import SIZE, deflate, pixels_of, to_index
from moleclip.workers import parallel

FONTS = [
    f"DejaVu{face}.ttf"
    for face in (
        "Sans",
        "Sans-Bold",
        "Sans-Oblique",
        "Sans-BoldOblique",
        "SansMono",
        "SansMono-Bold",
        "SansMono-Oblique",
        "SansMono-BoldOblique",
        "Serif",
        "Serif-Bold",
        "Serif-Italic",
        "Serif-BoldItalic",
    )
] + [
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
]


class Style(NamedTuple):
    """How a molecule is drawn; the defaults are RDKit's, None meaning that RDKit decides (MoleCLIP, plain view)."""

    line_width: int = 2
    font_size: int | None = None  # pixels
    bond_length: float | None = None  # pixels
    multiple_bond_offset: float = 0.15  # of the bond length
    rotation: float = 0.0  # degrees
    font: str | None = None  # a file name out of FONTS


def random_style(seed, row, view):
    """Return the random style of a row's view; the same arguments always give the same one (ranges: MoleCLIP, 9)."""
    u = np.random.default_rng([seed, row, view])
    return Style(
        int(u.integers(2, 6)),
        int(u.integers(14, 25)),
        u.uniform(20, 100),
        u.uniform(0.1, 0.4),
        u.uniform(0, 360),
        FONTS[u.integers(len(FONTS))],
    )


@cache
def font_path(name):
    """Return the full path of a font that matplotlib ships. RDKit would silently fall back to its own."""
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name if spec else None
    if path is None or not path.is_file():
        raise click.ClickException(f"font {name} not found: pip install matplotlib, which ships it")
    return str(path)


def layout(molecule):
    """Return the molecule kekulised, with wedges and 2D coordinates, ready for `draw`. Raises Rejected."""
    try:
        return rdMolDraw2D.PrepareMolForDrawing(molecule)
    except (ValueError, RuntimeError):
        try:
            return rdMolDraw2D.PrepareMolForDrawing(molecule, kekulize=False)
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"RDKit can't lay it out: {str(error).splitlines()[0]}") from None


def draw(molecule, style=Style()):
    """Draw a molecule that `layout` prepared, as palette indices, uint8 (224, 224). 0 is the white background.

    Training and deployment both see exactly what this function returns. Raises Rejected.
    """
    canvas = rdMolDraw2D.MolDraw2DCairo(SIZE, SIZE)
    options = canvas.drawOptions()
    options.includeMetadata = False
    options.prepareMolsBeforeDrawing = False  # `layout` did it, once for all views
    options.bondLineWidth = style.line_width
    options.multipleBondOffset = style.multiple_bond_offset
    options.rotate = style.rotation
    if style.font_size:
        options.minFontSize = options.maxFontSize = style.font_size
    if style.bond_length:
        options.fixedBondLength = style.bond_length
    if style.font:
        options.fontFile = font_path(style.font)
    try:
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
    except (ValueError, RuntimeError) as error:
        raise Rejected(f"RDKit can't draw it: {str(error).splitlines()[0]}") from None
    return to_index(pixels_of(canvas))


def draw_views(row, smiles, views=1, seed=0, max_atoms=MAX_ATOMS, r_groups=False, level=None):
    """Return `views` drawings of a SMILES, each a zlib stream of uint8 (224, 224) palette indices.

    The first is plain; the others' random styles follow from seed and row. level: of zlib. A
    task of `parallel`. Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    molecule = layout(replace_terminals(molecule) if r_groups else molecule)
    styles = [Style()] + [random_style(seed, row, view) for view in range(1, views)]
    return [deflate(draw(molecule, style), level) for style in styles]


def draw_all(molecules, workers=None, **options):
    """Yield (molecule, result) of `draw_views` for an iterable of `Molecule`, in order."""
    return parallel(draw_views, molecules, workers, **options)
