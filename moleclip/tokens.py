"""SMILES as lists of token numbers, 0 for what only fills up."""

import re

import numpy as np
from rdkit import Chem

from moleclip.molecules import MAX_ATOMS, parse

PAD, MASK, OTHER, BEGIN = 0, 1, 2, 3  # numbers that are no part of a SMILES
PATTERN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|[BCNOPSFIbcnops]|[()=#$/\\.+@:~*-]|\d|[A-Za-z]")
# fmt: off
SIMPLE = (
    "C", "c", "N", "n", "O", "o", "S", "s", "P", "p", "F", "Cl", "Br", "I", "B", "b", "(", ")", "=",
    "#", "-", "/", "\\", ".", ":", "$", "~", "*", "1", "2", "3", "4", "5", "6", "7", "8", "9", "0",
    "%10", "%11", "%12", "%13", "%14", "%15",
)
INSIDE = (  # of brackets: they are read sign by sign
    "[", "]", "H", "@", "@@", "+", "++", "--", "Si", "Se", "se", "As", "Na", "K", "Li", "Mg", "Ca",
    "Al", "Zn", "Fe", "Cu", "Co", "Ni", "Mn", "Pd", "Pt", "Ru", "Rh", "Ir", "Au", "Ag", "Hg", "Sn",
    "Pb", "Te", "te", "Ti", "V", "Cr", "Mo", "W", "Os", "Re", "Zr", "Cd", "Bi", "Sb", "Ge", "Ga",
    "In", "Tl", "Ba", "Sr", "Y", "La", "Gd", "Xe", "He", "U",
)
# fmt: on
VOCABULARY = {token: i for i, token in enumerate((*SIMPLE, *INSIDE), BEGIN + 1)}
SIZE = 160  # of the vocabulary, with room
IN_BRACKET = re.compile(r"@@?|\+\+|--|[A-Z][a-z]?|[a-z]{1,2}|\d|[+*:-]")
LONGEST = 200  # tokens; what is longer is cut


def smiles_tokens(smiles):
    """Return the token numbers of a SMILES, a list, at most LONGEST, BEGIN first."""
    words = []
    for token in PATTERN.findall(smiles):
        inner = token[0] == "[" and token not in VOCABULARY
        words += ["[", *IN_BRACKET.findall(token[1:-1]), "]"] if inner else [token]
    return [BEGIN, *(VOCABULARY.get(word, OTHER) for word in words)][:LONGEST]


def smiles_views(row, smiles, views=1, seed=0, max_atoms=MAX_ATOMS):
    """Return the token numbers of a molecule's canonical SMILES and of `views` - 1 random ones.

    A task of `parallel`. Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    texts = [Chem.MolToSmiles(molecule)]
    for view in range(1, views):
        order = np.random.default_rng((seed, row, view)).permutation(molecule.GetNumAtoms())
        shuffled = Chem.RenumberAtoms(molecule, order.tolist())
        texts.append(Chem.MolToSmiles(shuffled, canonical=False))
    return [np.array(smiles_tokens(text), np.uint8) for text in texts]


def padded_tokens(lists):
    """Return lists of token numbers as rows, int64 (n, longest), filled up with PAD."""
    rows = np.full((len(lists), max(map(len, lists))), PAD, np.int64)
    for row, tokens in zip(rows, lists):
        row[: len(tokens)] = tokens
    return rows
