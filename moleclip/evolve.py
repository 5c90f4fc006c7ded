"""Molecules made of others by crossover and mutation, and what makes one worth looking at.

The steps are those of Jensen's genetic algorithm on graphs (Chem. Sci. 2019, 10, 3567), by the
library mol_ga; which molecules are kept is decided here.
"""

import sys
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from rdkit import Chem, DataStructs, RDConfig
from rdkit.Chem import Descriptors

from moleclip.features import morgan
from moleclip.files import library
from moleclip.graphs import graph_of
from moleclip.molecules import Rejected

# Elements of drug-like molecules: a scorer has seen few of the others.
ELEMENTS = {"H", "B", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"}
RINGS = range(3, 9)  # atoms of a ring
# What no chemist would make: bonds that break by themselves, or tautomers of something else.
UNSTABLE = (
    "[O;X2][O;X2]",  # peroxides
    "[N,O,S;!$([N+]);!$(N=*)]-[F,Cl,Br,I]",
    "[#7;X3;!a]-[#7;X3;!a]-[#7;X3;!a]",
    "[#6;R0]=[#6;R0]=[#6;R0]",  # allenes
    "[r3,r4]=[r3,r4]",
    "[R]=[R]=[R]",
    "[CX3;!R]=[CX3;!R]-[OX2H]",  # enols
    "[CX4]([OX2H])[OX2H]",
)
MUTATED = 0.3  # of children, those of one parent
MUTATIONS = 0.2  # of children of two parents, those that are mutated, too


class Child(NamedTuple):
    """A molecule that is new, and can be embedded."""

    smiles: str  # canonical
    given: object  # what an aligned model embeds: of `graph_of`
    sa: float  # synthetic accessibility by Ertl and Schuffenhauer: 1 easy, 10 hard
    like: float  # Tanimoto similarity of ECFP4 to the molecule that is edited, or 1


def made_of(row, text, seed, largest, hardest, edited, least_like, takes):
    """Return a Child of parents. A task of `parallel`. Raises Rejected with why there is none.

    text: SMILES of one or two parents; row: the child's number, which with the seed decides
    everything by chance; largest: heavy atoms; hardest: SA score; edited: SMILES, or ""; takes:
    options of `graph_of`.
    """
    steps, random = (
        library("mol_ga.graph_ga.gen_candidates", "generate.py"),
        Random(f"{seed} {row}"),
    )
    parents = text.split()
    if len(parents) == 1:
        smiles = steps.mutate(parents[0], random)
    else:
        smiles = steps.reproduce(*parents, MUTATIONS, random)
    if not smiles:
        raise Rejected("none came of it")
    return checked(smiles, largest, hardest, edited, least_like, takes)


def checked(smiles, largest, hardest, edited="", least_like=0.0, takes=None):
    """Return the Child that a SMILES is. Raises Rejected with what speaks against it."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or "." in smiles:
        raise Rejected("no molecule, or two")
    if molecule.GetNumHeavyAtoms() > largest:
        raise Rejected("too large")
    atoms, rings = molecule.GetAtoms(), molecule.GetRingInfo().AtomRings()
    if {atom.GetSymbol() for atom in atoms} - ELEMENTS:
        raise Rejected("a rare element")
    if Descriptors.NumRadicalElectrons(molecule) or Chem.GetFormalCharge(molecule):
        raise Rejected("a radical or an ion")
    if any(len(ring) not in RINGS for ring in rings):
        raise Rejected("a ring too large")
    if any(molecule.HasSubstructMatch(pattern) for pattern in unstable()):
        raise Rejected("unstable")
    sa = sa_score(molecule)
    if sa > hardest:
        raise Rejected("hard to make")
    like = likeness(molecule, Chem.MolFromSmiles(edited)) if edited else 1.0
    if like < least_like:
        raise Rejected("unlike the molecule that is edited")
    smiles = Chem.MolToSmiles(molecule)
    return Child(smiles, graph_of(0, smiles, **(takes or {})), sa, like)


def likeness(one, other):
    """Return the Tanimoto similarity of two molecules' ECFP4."""
    return DataStructs.TanimotoSimilarity(*(morgan().GetFingerprint(m) for m in (one, other)))


@cache
def unstable():
    """Return the patterns of UNSTABLE."""
    return [Chem.MolFromSmarts(text) for text in UNSTABLE]


@cache
def scorer():
    """Return RDKit's own module of the SA score, which lies among its contributions."""
    folder = str(Path(RDConfig.RDContribDir) / "SA_Score")
    if folder not in sys.path:
        sys.path.append(folder)
    return library("sascorer", "generate.py")


def sa_score(molecule):
    """Return the synthetic accessibility of a molecule, 1 (easy) to 10."""
    return float(scorer().calculateScore(molecule))


def pick_parents(scores, count, random):
    """Return the places of parents of so many children, [[i], [i, j], ...], good ones more often.

    scores: float (n,); the chance falls with the rank, as 1 / (rank + n / 10).
    """
    ranks = np.argsort(np.argsort(-np.asarray(scores), kind="stable"), kind="stable")
    chances = 1 / (ranks + max(1.0, len(ranks) / 10))
    chances /= chances.sum()
    alone = random.random(count) < MUTATED
    if len(ranks) < 2:
        alone[:] = True
    return [
        random.choice(len(ranks), 1 if one else 2, replace=False, p=chances).tolist()
        for one in alone
    ]
