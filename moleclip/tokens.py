"""SMILES and texts as lists of token numbers, 0 for what only fills up."""

import json
import re
from pathlib import Path

import click
import numpy as np
from rdkit import Chem

from moleclip.files import library, one_line
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
LONGEST = {"smiles": 200, "text": 256}  # tokens; what is longer is cut


def smiles_tokens(smiles):
    """Return the token numbers of a SMILES, a list, at most LONGEST, BEGIN first."""
    words = []
    for token in PATTERN.findall(smiles):
        inner = token[0] == "[" and token not in VOCABULARY
        words += ["[", *IN_BRACKET.findall(token[1:-1]), "]"] if inner else [token]
    return [BEGIN, *(VOCABULARY.get(word, OTHER) for word in words)][: LONGEST["smiles"]]


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


class TextTokens:
    """The tokeniser of a folder in Hugging Face's layout, or of the text that is kept of one.

    text: all of it, JSON; longest: tokens that are kept of a text. Raises click.ClickException.
    """

    def __init__(self, folder=None, text=None, longest=LONGEST["text"]):
        tokenizers = library("tokenizers", folder or "texts")
        try:
            self.reader = tokenizers.Tokenizer.from_str(text or tokenizer_text(folder, tokenizers))
        except Exception as error:  # of tokenizers: it has no kinds of its own
            raise click.ClickException(
                f"{folder or 'model'}: its tokenizer.json can't be read ({one_line(error)})"
            ) from None
        self.reader.no_padding()
        self.reader.no_truncation()
        self.text, self.longest = self.reader.to_str(), longest

    def __call__(self, text):
        """Return the token numbers of a text, a list, the last one kept where it is too long."""
        found = self.reader.encode(text).ids
        return found[: self.longest - 1] + found[-1:] if len(found) > self.longest else found

    def count(self, text):
        """Return how many tokens a text has."""
        return len(self.reader.encode(text).ids)


def tokenizer_text(folder, tokenizers):
    """Return a folder's tokenizer.json, or what its vocab.txt of BERT's older layout stands for."""
    path = Path(folder) / "tokenizer.json"
    if path.is_file() or not path.with_name("vocab.txt").is_file():
        return path.read_text(encoding="utf-8")
    config = path.with_name("tokenizer_config.json")
    facts = json.loads(config.read_text()) if config.is_file() else {}
    lower = facts.get("do_lower_case", True)
    words = str(path.with_name("vocab.txt"))
    return tokenizers.BertWordPieceTokenizer(words, lowercase=lower).to_str()
