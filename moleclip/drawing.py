"""Drawing: the one function through which training and deployment see molecules."""

from contextlib import suppress

import numpy as np
from rdkit.Chem import rdAbbreviations, rdCoordGen
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.molecules import MAX_ATOMS, Rejected, parse, replace_terminals
from moleclip.pixels import SIZE, deflate, pixels_of, to_index
from moleclip.styles import COLOURS, GRAY, PLAIN, font_path, styles_of
from moleclip.workers import parallel

UNIT = 1.5  # RDKit's bond length before it is scaled to pixels
# CoordGen may never end on large rings (rdkit#8812). Of 14,149 drug-like molecules none took
# longer than 0.03 s within these bounds.
COORDGEN_ATOMS, COORDGEN_RING = 50, 8


def layout(molecule, wanted=PLAIN.layout):
    """Return the molecule kekulised, with wedges and 2D coordinates, ready for `draw`.

    Where another Layout than RDKit's fails it is RDKit's. Raises Rejected.
    """
    if wanted != PLAIN.layout:
        with suppress(Rejected, ValueError, RuntimeError):
            return rearranged(molecule, wanted)
    return prepared(molecule)


def prepared(molecule, **options):
    """Return what RDKit prepares for drawing, kekulised if possible. Raises Rejected."""
    try:
        return rdMolDraw2D.PrepareMolForDrawing(molecule, **options)
    except (ValueError, RuntimeError):
        try:
            return rdMolDraw2D.PrepareMolForDrawing(molecule, **options | {"kekulize": False})
        except (ValueError, RuntimeError) as error:
            raise Rejected(f"RDKit can't lay it out: {str(error).splitlines()[0]}") from None


def rearranged(molecule, wanted):
    """Return the molecule laid out in another Layout. Raises what RDKit does, or Rejected."""
    if wanted.abbreviated:
        known = rdAbbreviations.GetDefaultAbbreviations()
        molecule = rdAbbreviations.CondenseMolAbbreviations(molecule, known)
    drawn = prepared(molecule, addChiralHs=wanted.wedges, wedgeBonds=False)
    if wanted.coordgen and coordgen_ends(drawn):
        rdCoordGen.AddCoords(drawn)
        move(drawn, UNIT)
    if wanted.mirrored:
        move(drawn, (-1, 1, 1))
    # Wedges follow from the places, so they come last.
    return prepared(drawn, kekulize=False, addChiralHs=False, wedgeBonds=wanted.wedges)


def coordgen_ends(molecule):
    """Tell whether a molecule is small and simple enough for CoordGen to be done soon."""
    rings = [len(ring) for ring in molecule.GetRingInfo().AtomRings()]
    return molecule.GetNumAtoms() <= COORDGEN_ATOMS and max(rings, default=0) <= COORDGEN_RING


def move(molecule, factors):
    """Multiply a molecule's coordinates. Raises ValueError if they are not finite."""
    places = molecule.GetConformer().GetPositions() * factors
    if not np.isfinite(places).all():
        raise ValueError("no finite coordinates")
    molecule.GetConformer().SetPositions(places)


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
    under a label (R1 to R8, OMe) or lies outside. `layout` keeps the order of the atoms
    and only appends hydrogens. Raises Rejected.
    """
    canvas = drawn_canvas(molecule, style)
    places, numbers = np.full((count, 2), np.nan, np.float16), range(count)
    if molecule.HasProp("_origAtomMapping"):  # some atoms have gone into abbreviations
        numbers = molecule.GetPropsAsDict(True)["_origAtomMapping"]
    seen, found = [], []
    for atom, number in zip(molecule.GetAtoms(), numbers):
        if not atom.HasProp("_displayLabel"):
            point = canvas.GetDrawCoords(atom.GetIdx())
            if 0 <= point.x <= SIZE and 0 <= point.y <= SIZE:  # NaN isn't
                seen.append(number)
                found.append((point.x, point.y))
    if seen:
        places[seen] = found
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
    if style.line_share:
        options.scaleBondWidth = True
        options.bondLineWidth = style.line_share * UNIT / 0.02  # RDKit's own factor
    if style.font_share:
        options.baseFontSize = style.font_share * UNIT
    getattr(options, COLOURS[style.colours])()
    if style.colours == "gray":
        options.setAtomPalette({-1: GRAY})
        options.setSymbolColour(GRAY)
    options.singleColourBonds = style.black_bonds
    options.additionalAtomLabelPadding = style.label_padding
    options.padding = style.margin
    options.explicitMethyl = style.methyls
    try:
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
    except (ValueError, RuntimeError) as error:
        raise Rejected(f"RDKit can't draw it: {str(error).splitlines()[0]}") from None
    return canvas


def draw_views(
    row,
    smiles,
    views=1,
    seed=0,
    max_atoms=MAX_ATOMS,
    r_groups=False,
    level=None,
    atoms=False,
    styles="paper",
):
    """Return `views` drawings of a SMILES, each a zlib stream of uint8 (224, 224) palette indices.

    The first is plain; the others' styles, "paper" or "wide", follow from seed and row. level: of
    zlib. With atoms=True return (drawings, places): where each atom of `parse` lies in each,
    float16 (views, atoms, 2), as `draw_with_places`. A task of `parallel`. Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    count = molecule.GetNumAtoms()
    molecule = replace_terminals(molecule) if r_groups else molecule
    chosen, known = styles_of(styles, seed, row, views), {}
    for style in chosen:
        if style.layout not in known:
            known[style.layout] = layout(molecule, style.layout)
    if not atoms:
        return [deflate(draw(known[style.layout], style), level) for style in chosen]
    drawn = [draw_with_places(known[style.layout], style, count) for style in chosen]
    return [deflate(index, level) for index, _ in drawn], np.stack([each for _, each in drawn])


def draw_all(molecules, workers=None, **options):
    """Yield (molecule, result) of `draw_views` for an iterable of `Molecule`, in order."""
    return parallel(draw_views, molecules, workers, **options)
