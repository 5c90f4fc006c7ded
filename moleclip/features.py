"""What is computed of a molecule: fingerprints, descriptors, what a model is given."""

import base64
import zlib
from functools import cache
from typing import NamedTuple

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors, rdPartialCharges

from moleclip.drawing import draw, layout
from moleclip.graphs import Graph, bare_graph
from moleclip.molecules import (
    MAX_ATOMS,
    Rejected,
    flat_smiles,
    parse,
    read_molecules,
    replace_terminals,
)
from moleclip.pictures import to_drawing
from moleclip.pixels import SIZE, deflate
from moleclip.styles import PLAIN, random_style
from moleclip.targets import MAX_SD, UNKNOWN
from moleclip.workers import parallel

BITS, RADIUS = 2048, 2  # of Morgan fingerprints: ECFP4, of the baselines and of nearest_training
# Of rdMolDescriptors: those that take well under a millisecond; some give several numbers.
# fmt: off
DESCRIPTORS = (
    "CalcExactMolWt", "CalcNumHeavyAtoms", "CalcCrippenDescriptors", "CalcTPSA", "CalcLabuteASA",
    "CalcNumHBA", "CalcNumHBD", "CalcNumRotatableBonds", "CalcNumHeteroatoms", "CalcNumRings",
    "CalcNumAromaticRings", "CalcNumAliphaticRings", "CalcNumSaturatedRings",
    "CalcNumHeterocycles", "CalcNumAmideBonds", "CalcNumBridgeheadAtoms", "CalcNumSpiroAtoms",
    "CalcFractionCSP3", "CalcChi0v", "CalcChi1v", "CalcChi2v", "CalcChi3v", "CalcChi4v",
    "CalcKappa1", "CalcKappa2", "CalcKappa3", "CalcHallKierAlpha",
    "SlogP_VSA_", "SMR_VSA_", "PEOE_VSA_",
)
# fmt: on
# What each atom has to tell, and how it is scaled: (value - middle) / spread, about -1 to 1.
ATOM_NUMBERS = {
    "gasteiger_charge": (0, 0.2),
    "crippen_logp": (0, 0.4),
    "crippen_mr": (3, 1.5),
    "tpsa": (0, 8),
    "labute_asa": (6, 2.5),
    "hydrogens": (0, 1),
    "degree": (2, 1),
    "ring": (0.5, 0.5),
    "aromatic": (0.5, 0.5),
    "formal_charge": (0, 1),
}
ANY_SIZE = {"group": 256, "max_atoms": 10**6}  # of molecules that are only compared
ATOM = np.dtype([("r1", "u4"), ("r2", "u4"), ("numbers", "f2", len(ATOM_NUMBERS))])


@cache
def morgan():
    """Return RDKit's generator of ECFP4."""
    return rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)


def fingerprints(smiles):
    """Return the ECFP4 of a list of SMILES, float32 (n, 2048) of 0 and 1."""
    bits = [morgan().GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]
    return np.stack(bits).astype(np.float32)


def dummy_ends(molecule):
    """Return a molecule with dummy atoms, all of one kind, where R-groups are drawn."""
    molecule = replace_terminals(molecule)
    for atom in molecule.GetAtoms():
        if atom.HasProp("_displayLabel"):
            atom.SetAtomicNum(0)
    return molecule


def count_fingerprint(molecule, r_groups=False):
    """Return how often each fragment of a molecule's ECFP4 occurs, uint8 (2048,), at most 255.

    With r_groups its terminal atoms are dummy atoms.
    """
    molecule = dummy_ends(molecule) if r_groups else molecule
    counts = morgan().GetCountFingerprintAsNumPy(molecule)
    return np.minimum(counts, 255).astype(np.uint8)


def count_fingerprints(smiles, r_groups=False):
    """Return the count_fingerprint of each of a list of SMILES, uint8 (n, 2048)."""
    found = [count_fingerprint(parse(text, max_atoms=10**9), r_groups) for text in smiles]
    return np.stack(found) if found else np.zeros((0, BITS), np.uint8)


def pack_fingerprint(molecule):
    """Return a molecule's ECFP4, packed: uint8 (256,). So are all training fingerprints."""
    return np.packbits(morgan().GetFingerprintAsNumPy(molecule), bitorder="little")


def pack_text(training):
    """Return training fingerprints, uint8 (n, 256), as the text that model.onnx holds."""
    return base64.b64encode(zlib.compress(training.tobytes(), 9)).decode()


def unpack_text(text):
    """Return the training fingerprints of a text, uint8 (n, 256). Raises ValueError, zlib.error."""
    packed = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(packed, np.uint8).reshape(-1, BITS // 8)


@cache
def load_training(path):
    """Return the training fingerprints of a .npy file, uint8 (n, 256), as RDKit's vectors."""
    vectors = []
    for row in np.load(path, allow_pickle=False):
        vector = DataStructs.ExplicitBitVect(BITS)
        vector.SetBitsFromList(np.flatnonzero(np.unpackbits(row, bitorder="little")).tolist())
        vectors.append(vector)
    return vectors


def max_similarity(molecule, path):
    """Return a molecule's Tanimoto similarity to the closest training fingerprint of a .npy."""
    known = load_training(path)
    return max(DataStructs.BulkTanimotoSimilarity(morgan().GetFingerprint(molecule), known))


def descriptors(row, smiles, max_atoms=MAX_ATOMS):
    """Return a molecule's DESCRIPTORS as the bytes of float32 numbers. A task of `parallel`.

    Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    values = [getattr(rdMolDescriptors, name)(molecule) for name in DESCRIPTORS]
    return np.hstack(values).astype(np.float32).tobytes()


def environments(molecule):
    """Return the Morgan ids of each atom's environments of radius 1 and 2, two uint32 (atoms,).

    Where RDKit drops one, since another atom's covers the same bonds, the atom's largest smaller
    one stands in: so the ids are those that the molecule's ECFP counts.
    """
    found = rdFingerprintGenerator.AdditionalOutput()
    found.AllocateAtomToBits()
    morgan().GetSparseCountFingerprint(molecule, additionalOutput=found)
    ids = found.GetAtomToBits()  # of each atom those of radius 0, 1, 2, as far as there are
    return np.array([[bits[:2][-1] for bits in ids], [bits[-1] for bits in ids]], np.uint32)


def atom_numbers(molecule):
    """Return the ATOM_NUMBERS of a molecule, scaled and cut off at -5 and 5, float32 (atoms, 10).

    NaN where one isn't defined, as Gasteiger charges aren't beside a metal.
    """
    rdPartialCharges.ComputeGasteigerCharges(molecule)
    logp, mr = np.transpose(rdMolDescriptors._CalcCrippenContribs(molecule))
    area, _ = rdMolDescriptors._CalcLabuteASAContribs(molecule)
    atoms = molecule.GetAtoms()
    values = np.array(
        [
            [atom.GetDoubleProp("_GasteigerCharge") for atom in atoms],
            logp,
            mr,
            rdMolDescriptors._CalcTPSAContribs(molecule),
            area,
            [atom.GetTotalNumHs() for atom in atoms],
            [atom.GetDegree() for atom in atoms],
            [atom.IsInRing() for atom in atoms],
            [atom.GetIsAromatic() for atom in atoms],
            [atom.GetFormalCharge() for atom in atoms],
        ],
        np.float32,
    ).T
    middle, spread = np.array(list(ATOM_NUMBERS.values()), np.float32).T
    scaled = ((values - middle) / spread).clip(-MAX_SD, MAX_SD)
    return np.where(np.isfinite(values), scaled, np.nan)


def atom_targets(row, smiles, max_atoms=MAX_ATOMS):
    """Return what each of a molecule's atoms has to tell, ATOM (atoms,), as bytes.

    In the order of atoms of `parse`. A task of `parallel`. Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    targets = np.empty(molecule.GetNumAtoms(), ATOM)
    targets["r1"], targets["r2"] = environments(molecule)
    targets["numbers"] = atom_numbers(molecule)
    return targets.tobytes()


def most_frequent(ids, size):
    """Return the most frequent of Morgan ids, at most so many, uint32; of equals the lowest."""
    distinct, counts = np.unique(ids, return_counts=True)
    return distinct[np.argsort(-counts, kind="stable")[:size]]


def numbers_in(ids, vocabulary):
    """Return the number of each of n Morgan ids in a vocabulary, uint16 (n,), or UNKNOWN."""
    order = np.argsort(vocabulary)
    place = order[np.searchsorted(vocabulary, ids, sorter=order).clip(max=len(order) - 1)]
    return np.where(vocabulary[place] == ids, place, UNKNOWN).astype(np.uint16)


def overlap(source, smiles_column, others, workers=None):
    """Return which rows of a file hold a molecule that also stands in others, bool (rows,).

    Compared by `flat_smiles`. A row that can't be read is in no file.
    """
    known, common = set(), []
    for other in others:
        molecules = read_molecules(other)
        known.update(text for _, text in parallel(flat_smiles, molecules, workers, **ANY_SIZE))
    molecules = read_molecules(source, smiles_column)
    for _, text in parallel(flat_smiles, molecules, workers, **ANY_SIZE):
        common.append(not isinstance(text, Rejected) and text in known)
    return np.array(common)


class Features(NamedTuple):
    """What a model is given of one molecule."""

    streams: list  # of each picture, a zlib stream of its palette indices
    ink: list  # of each picture, how many of its patches have ink
    nearest: float | None  # likeness to the closest training molecule
    note: str = ""  # what makes its prediction worth less
    counts: np.ndarray | None = None  # ECFP counts, uint8 (2048,), where the model looks at them
    graph: Graph | None = None  # where the model looks at it
    hidden: list | None = None  # Features without each atom in turn: see explain.py
    protein: np.ndarray | None = None  # features, float32 (width,), where the model looks at one
    like: float | None = None  # of a picture its likeness to drawings: see familiar.py


def featurize(
    row,
    text,
    views=1,
    max_atoms=MAX_ATOMS,
    r_groups=False,
    patch=0,
    training=None,
    pictures=False,
    counts=False,
    drawn=True,
    graph=False,
):
    """Return the Features of a SMILES, or of a picture's path. A task of `parallel`.

    patch: side of the model's patches if ink matters to its speed, else 0. training: .npy file
    of the training molecules' fingerprints. counts, drawn, graph: whether the model looks at
    fingerprints, pictures, graphs. Raises Rejected.
    """
    if pictures:
        picture, note = to_drawing(text)
        return Features([deflate(picture)], [inked_patches(picture, patch)], None, note)
    molecule = parse(text, max_atoms)
    nearest = max_similarity(molecule, training) if training else None
    counted = count_fingerprint(molecule, r_groups) if counts else None
    built = bare_graph(dummy_ends(molecule) if r_groups else molecule) if graph else None
    if not drawn:
        return Features([b""], [0], nearest, counts=counted, graph=built)
    molecule = layout(replace_terminals(molecule) if r_groups else molecule)
    styles = [PLAIN] + [random_style(0, row, view) for view in range(1, views)]
    indices = [draw(molecule, style) for style in styles]
    ink = [inked_patches(index, patch) for index in indices]
    streams = [deflate(index) for index in indices]
    return Features(streams, ink, nearest, counts=counted, graph=built)


def inked_patches(index, patch):
    """Return how many patches of an index picture, uint8 (224, 224), are not plain paper."""
    count = SIZE // patch if patch else 0
    return int(index.reshape(count, patch, count, patch).any((1, 3)).sum()) if patch else 0
