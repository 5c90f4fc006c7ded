"""Molecules as graphs: atoms and bonds as small numbers, and many graphs as one batch."""

from functools import cache
from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator, rdMolDescriptors

from moleclip.molecules import MAX_ATOMS, parse

HYBRIDS = ("UNSPECIFIED", "S", "SP", "SP2", "SP3", "SP2D", "SP3D", "SP3D2")
STEREO = {"STEREOZ": 1, "STEREOCIS": 1, "STEREOE": 2, "STEREOTRANS": 2}
CHIRAL = {"R": 1, "S": 2}
LARGEST_RING = 8  # larger ones count as this
# How many values each number of an atom has: atomic number, neighbours, hydrogens, charge,
# hybridisation, aromatic, smallest ring, chirality.
ATOM_SIZES = (119, 7, 5, 7, len(HYBRIDS), 2, LARGEST_RING + 1, 3)
BOND_TYPES = {1.0: 0, 2.0: 1, 3.0: 2, 1.5: 3}  # any other is 4
BOND_SIZE = 5 * 2 * 3  # type, in a ring or not, stereo
CARBON = 6
ELEMENT, HYDROGENS = 0, 2  # places among an atom's numbers
CIRCULAR, PAIRS = 4096, 2048  # counted fragments: around atoms, and pairs of atoms
FRAGMENTS = CIRCULAR + PAIRS


class Graph(NamedTuple):
    """One molecule's."""

    atoms: np.ndarray  # uint8 (n, 8): each less than its ATOM_SIZES
    bonds: np.ndarray  # uint8 or int32 (m, 2): from atom, to atom; each bond both ways
    kinds: np.ndarray  # uint8 (m,): each less than BOND_SIZE
    ranks: np.ndarray  # uint8 or int32 (n,): equal for atoms that symmetry exchanges
    mass: float  # monoisotopic, in u
    formula: str
    # which fragments it has, uint16 (k,), and how often, uint8 (k,), where they are asked for
    fragments: tuple | None = None

    def alike(self, nucleus):
        """Return one atom of each class of equal ones that a nucleus's spectrum shows, int64 (c,).

        nucleus: "nmr13c": carbons; "nmr1h": atoms with hydrogens.
        """
        shown = self.atoms[:, ELEMENT] == CARBON
        if nucleus == "nmr1h":
            shown = self.atoms[:, HYDROGENS] > 0
        places = np.flatnonzero(shown)
        return places[np.unique(self.ranks[places], return_index=True)[1]]


# A stand-in, one atom, where a model has to be fed a molecule that isn't wanted.
BLANK = Graph(
    np.zeros((1, len(ATOM_SIZES)), np.uint8),
    np.zeros((0, 2), np.uint8),
    np.zeros(0, np.uint8),
    np.zeros(1, np.uint8),
    0.0,
    "",
    (np.zeros(0, np.uint16), np.zeros(0, np.uint8)),
)


class Graphs(NamedTuple):
    """A batch: the graphs' atoms and bonds one after another, as a model takes them."""

    atoms: np.ndarray  # uint8 (N, 8)
    bonds: np.ndarray  # int64 (M, 2): places among all N atoms
    kinds: np.ndarray  # uint8 (M,)
    owner: np.ndarray  # int64 (N,): which graph an atom belongs to
    counts: np.ndarray  # int64 (graphs,): atoms of each

    @property
    def starts(self):
        """Where each graph's atoms begin, int64 (graphs,)."""
        return np.cumsum(self.counts) - self.counts


def join(graphs):
    """Return Graphs of a list of Graph, which may not be empty."""
    counts = np.array([len(graph.atoms) for graph in graphs], np.int64)
    starts = np.cumsum(counts) - counts
    bonds = np.concatenate([graph.bonds.astype(np.int64) for graph in graphs])
    bonds += np.repeat(starts, [len(graph.bonds) for graph in graphs])[:, None]
    return Graphs(
        np.concatenate([graph.atoms for graph in graphs]),
        bonds,
        np.concatenate([graph.kinds for graph in graphs]),
        np.repeat(np.arange(len(graphs)), counts),
        counts,
    )


def graph_of(row, smiles, max_atoms=MAX_ATOMS, fragments=False):
    """Return the Graph of a SMILES, atoms in the order of `parse`. A task of `parallel`.

    fragments: count them, too. Raises Rejected.
    """
    return graph_from(parse(smiles, max_atoms), fragments)


def graph_from(molecule, fragments=False):
    """Return the Graph of RDKit's molecule, its atoms in their order."""
    ranks = list(Chem.CanonicalRankAtoms(molecule, breakTies=False))
    return bare_graph(molecule)._replace(
        ranks=np.array(ranks, np.uint8 if len(ranks) <= 256 else np.int32),
        mass=Descriptors.ExactMolWt(molecule),
        formula=rdMolDescriptors.CalcMolFormula(molecule),
        fragments=fragments_of(molecule) if fragments else None,
    )


def bare_graph(molecule):
    """Return a Graph with what an encoder looks at alone: no ranks, mass and formula."""
    small = np.uint8 if molecule.GetNumAtoms() <= 256 else np.int32
    bonds, kinds = bonds_of(molecule)
    smallest = smallest_rings(molecule)
    atoms = [atom_numbers(atom, smallest.get(atom.GetIdx(), 0)) for atom in molecule.GetAtoms()]
    return BLANK._replace(
        atoms=np.array(atoms, np.uint8),
        bonds=np.array(bonds, small).reshape(-1, 2),
        kinds=np.array(kinds, np.uint8),
        ranks=np.zeros(len(atoms), small),
    )


def smallest_rings(molecule):
    """Return {atom: atoms of its smallest ring, at most LARGEST_RING} of those in a ring."""
    found = {}
    for ring in sorted(molecule.GetRingInfo().AtomRings(), key=len, reverse=True):
        found |= dict.fromkeys(ring, min(len(ring), LARGEST_RING))
    return found


@cache
def counters():
    """Return RDKit's generators of fragments: Morgan's with chirality, radius 2, and atom pairs."""
    make = rdFingerprintGenerator
    circular = make.GetMorganGenerator(radius=2, fpSize=CIRCULAR, includeChirality=True)
    return circular, make.GetAtomPairGenerator(fpSize=PAIRS)


def fragments_of(molecule):
    """Return (which fragments a molecule has, how often each), see Graph."""
    found = [each.GetCountFingerprintAsNumPy(molecule) for each in counters()]
    counts = np.concatenate(found)
    which = np.flatnonzero(counts)
    return which.astype(np.uint16), np.minimum(counts[which], 255).astype(np.uint8)


def fragment_counts(graphs):
    """Return how often each fragment occurs in a list of Graph, uint8 (n, FRAGMENTS)."""
    rows = np.zeros((len(graphs), FRAGMENTS), np.uint8)
    for row, graph in zip(rows, graphs):
        which, counts = graph.fragments
        row[which] = counts
    return rows


def atom_numbers(atom, ring):
    """Return the eight numbers of an atom, see ATOM_SIZES. ring: size of its smallest, or 0."""
    code = CHIRAL.get(atom.GetProp("_CIPCode"), 0) if atom.HasProp("_CIPCode") else 0
    return (
        atom.GetAtomicNum(),
        min(atom.GetDegree(), 6),
        min(atom.GetTotalNumHs(), 4),
        min(max(atom.GetFormalCharge(), -3), 3) + 3,
        hybrids().get(atom.GetHybridization(), 0),
        atom.GetIsAromatic(),
        ring,
        code,
    )


@cache
def hybrids():
    """Return {RDKit's hybridisation: its number}."""
    return {getattr(Chem.HybridizationType, name): i for i, name in enumerate(HYBRIDS)}


def bonds_of(molecule):
    """Return ([(from atom, to atom), ...], [kind, ...]) of a molecule's bonds, each both ways."""
    bonds, kinds = [], []
    for bond in molecule.GetBonds():
        one, other = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        kind = BOND_TYPES.get(bond.GetBondTypeAsDouble(), 4)
        stereo = STEREO.get(bond.GetStereo().name, 0)
        kind = (kind * 2 + bond.IsInRing()) * 3 + stereo
        bonds += [(one, other), (other, one)]
        kinds += [kind, kind]
    return bonds, kinds
