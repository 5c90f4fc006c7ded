"""How much each atom carries a prediction: what is predicted when the atom can't be seen.

In a picture its ink is erased, as far as no other atom is nearer; from a graph it is taken out with
its bonds; of a fingerprint the environments fall away that it is part of.
"""

import base64
import io

import numpy as np
from PIL import Image
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.drawing import draw_with_places, layout
from moleclip.features import Features, dummy_ends, featurize, inked_patches, morgan
from moleclip.graphs import BLANK, Graph
from moleclip.molecules import parse, read_smiles, replace_terminals
from moleclip.pixels import deflate
from moleclip.styles import PLAIN

ENDING = "_atoms"  # of the columns
SIDE = 240  # pixels of a drawing of contributions
RADIUS = 0.42  # of an atom's spot in it, in units of a bond's length of 1.5
RED, BLUE = np.array([0.84, 0.15, 0.16]), np.array([0.13, 0.4, 0.72])  # raises it, lowers it
COLOURS = 48  # of a drawing


def explained(row, text, **how):
    """Return `featurize`'s Features of a SMILES with `hidden` filled. A task of `parallel`."""
    whole = featurize(row, text, **how)
    molecule, r_groups = parse(text, how["max_atoms"]), how.get("r_groups", False)
    count = molecule.GetNumAtoms()
    streams, ink, counts, graphs = [[b""]] * count, [[0]] * count, [None] * count, [None] * count
    if whole.streams[0]:
        pictures = erased(molecule, r_groups)
        streams = [[deflate(picture)] for picture in pictures]
        ink = [[inked_patches(picture, how.get("patch", 0))] for picture in pictures]
    if whole.counts is not None:
        counts = fewer_counts(molecule, r_groups)
    if whole.graph is not None:
        graphs = [without_atom(whole.graph, i) for i in range(count)]
    columns = zip(streams, ink, counts, graphs)
    hidden = [Features(s, i, None, counts=c, graph=g) for s, i, c, g in columns]
    return whole._replace(hidden=[hidden[i] for i in places_in(text)])


def places_in(text):
    """Return for each atom of a SMILES, as written, its place in `parse`'s molecule.

    Hydrogens that RDKit makes part of their atom are no atoms.
    """
    written = read_smiles(text)
    Chem.MolToSmiles(written)  # leaves the order of its output
    order = written.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
    return np.argsort(list(order))


def erased(molecule, r_groups=False):
    """Return plain drawings of a molecule, each without the ink nearest to one of its atoms.

    uint8 (atoms, 224, 224), in the order of atoms.
    """
    count = molecule.GetNumAtoms()
    shown = layout(replace_terminals(molecule) if r_groups else molecule)
    index, places = draw_with_places(shown, PLAIN, count)
    pictures = np.repeat(index[None], count, 0)
    y, x = np.nonzero(index)
    away = np.hypot(x + 0.5 - places[:, :1], y + 0.5 - places[:, 1:]).astype(np.float32)
    nearest = np.where(np.isnan(away), np.inf, away).argmin(0)
    for i, picture in enumerate(pictures):
        mine = nearest == i
        picture[y[mine], x[mine]] = 0
    return pictures


def fewer_counts(molecule, r_groups=False):
    """Return ECFP counts without the environments of each atom, uint8 (atoms, 2048)."""
    molecule = dummy_ends(molecule) if r_groups else molecule
    told = rdFingerprintGenerator.AdditionalOutput()
    told.AllocateBitInfoMap()
    whole = morgan().GetCountFingerprintAsNumPy(molecule, additionalOutput=told).astype(int)
    away = Chem.GetDistanceMatrix(molecule)
    fewer = np.repeat(whole[None], len(away), 0)
    for bit, found in told.GetBitInfoMap().items():
        for centre, radius in found:
            fewer[away[centre] <= radius, bit] -= 1
    return fewer.clip(0, 255).astype(np.uint8)


def without_atom(graph, atom):
    """Return a Graph without one of its atoms, and without its bonds; BLANK if none is left."""
    if len(graph.atoms) == 1:
        return BLANK
    kept = (graph.bonds != atom).all(1)
    bonds = graph.bonds[kept]
    return Graph(
        np.delete(graph.atoms, atom, 0),
        (bonds - (bonds > atom)).astype(graph.bonds.dtype),
        graph.kinds[kept],
        np.delete(graph.ranks, atom),
        graph.mass,
        graph.formula,
    )


def contributions(model, given, predicted, batch):
    """Return how much each atom of a molecule carries its predictions, float64 (targets, atoms).

    What a prediction (targets,) loses without an atom; then the same is added to all, so that they
    sum up to the difference from the mean of training. given: Features with `hidden`.
    """
    parts = [given.hidden[i : i + batch] for i in range(0, len(given.hidden), batch)]
    told = np.concatenate([model.run_on(part)["prediction"] for part in parts])
    drops = (predicted - told.astype(np.float64)).T
    rest = predicted - model.means - drops.sum(1)
    return drops + rest[:, None] / drops.shape[1]


def cell(values):
    """Return contributions as they stand in a table."""
    return " ".join(f"{value:.4g}" for value in values)


def scale_of(cells):
    """Return the contribution that has the full colour: 98% of all are smaller."""
    values = [abs(float(word)) for text in cells for word in text.split()]
    return float(np.quantile(values, 0.98)) or 1.0 if values else 1.0


def draw_contributions(row, text, scale):
    """Return a molecule with coloured atoms as PNG in base64. A task of `parallel`.

    text: the SMILES, a tab, and its contributions as `cell` writes them.
    """
    smiles, _, words = text.rpartition("\t")
    molecule = parse(smiles, 10**6)
    values = np.zeros(molecule.GetNumAtoms())
    values[places_in(smiles)] = [float(word) for word in words.split()]
    colours = {i: colour(value / scale) for i, value in enumerate(values)}
    canvas = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    options = canvas.drawOptions()
    options.useBWAtomPalette()
    options.fillHighlights, options.prepareMolsBeforeDrawing = True, False  # `layout` did it
    options.highlightBondWidthMultiplier = 1
    radii = dict.fromkeys(colours, RADIUS)
    canvas.DrawMolecule(
        layout(molecule),
        highlightAtoms=list(colours),
        highlightAtomColors=colours,
        highlightAtomRadii=radii,
        highlightBonds=[],
    )
    canvas.FinishDrawing()
    image = Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")
    out = io.BytesIO()
    image.quantize(COLOURS).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def colour(part):
    """Return the colour of a contribution, a part of the scale: white to red, or to blue."""
    end, share = (RED if part > 0 else BLUE), min(1.0, abs(part))
    return tuple(float(value) for value in 1 - share * (1 - end))
