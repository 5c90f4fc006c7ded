"""Drawing: the styles, and the one function through which training and deployment see molecules."""

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

FACES = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique "
    "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-Oblique DejaVuSansMono-BoldOblique "
    "DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic "
    "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta "
    "cmr10 cmb10 cmss10 cmti10 cmtt10"
)
FONTS = [f"{face}.ttf" for face in FACES.split()]  # all in matplotlib


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


def layout(molecule):
    """Return the molecule kekulised, with wedges and 2D coordinates, ready for `draw`.

    Raises Rejected.
    """
    try:
        return rdMolDraw2D.PrepareMolForDrawing(molecule)
    except (ValueError, RuntimeError):
        try:
            return rdMolDraw2D.PrepareMolForDrawing(molecule, kekulize=False)
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"RDKit can't lay it out: {str(error).splitlines()[0]}") from None


def draw(molecule, style=PLAIN):
    """Draw a molecule that `layout` prepared, as palette indices, uint8 (224, 224).

    0 is the white background. Training and deployment both see exactly what this function
    returns. Raises Rejected.
    """
    return to_index(pixels_of(drawn_canvas(molecule, style)))


def draw_with_places(molecule, style, count):
    """Return (drawing, places) of a molecule that `layout` prepared.

    drawing: what `draw` returns. places: where each of the first `count` atoms lies in it, x and
    y in pixels from its upper left corner, float16 (count, 2); NaN for an atom that is hidden
    under a label of its own (R1 to R8) or lies outside. `layout` keeps the order of the atoms
    and only appends hydrogens. Raises Rejected.
    """
    canvas = drawn_canvas(molecule, style)
    places = np.full((count, 2), np.nan, np.float16)
    for atom in molecule.GetAtoms():
        number = atom.GetIdx()
        if number < count and not atom.HasProp("_displayLabel"):
            point = canvas.GetDrawCoords(number)
            if 0 <= point.x <= SIZE and 0 <= point.y <= SIZE:  # NaN isn't
                places[number] = point.x, point.y
    return to_index(pixels_of(canvas)), places


def drawn_canvas(molecule, style):
    """Return RDKit's finished canvas of a molecule that `layout` prepared. Raises Rejected."""
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
    return canvas


def draw_views(
    row, smiles, views=1, seed=0, max_atoms=MAX_ATOMS, r_groups=False, level=None, atoms=False
):
    """Return `views` drawings of a SMILES, each a zlib stream of uint8 (224, 224) palette indices.

    The first is plain; the others' random styles follow from seed and row. level: of zlib.
    With atoms=True return (drawings, places): where each atom of `parse` lies in each, float16
    (views, atoms, 2), as `draw_with_places`. A task of `parallel`. Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    count = molecule.GetNumAtoms()
    molecule = layout(replace_terminals(molecule) if r_groups else molecule)
    styles = [PLAIN] + [random_style(seed, row, view) for view in range(1, views)]
    if not atoms:
        return [deflate(draw(molecule, style), level) for style in styles]
    drawn = [draw_with_places(molecule, style, count) for style in styles]
    return [deflate(index, level) for index, _ in drawn], np.stack([each for _, each in drawn])


def draw_all(molecules, workers=None, **options):
    """Yield (molecule, result) of `draw_views` for an iterable of `Molecule`, in order."""
    return parallel(draw_views, molecules, workers, **options)
