"""SMILES as tokens, and a transformer that learns their language."""

import re

import numpy as np
import torch
from conftest import small_molecules
from rdkit import Chem

from moleclip import tokens
from moleclip.tokens import BEGIN, LONGEST, OTHER, PAD, SIZE, VOCABULARY, padded_tokens
from moleclip.transformer import SMILES_ARCH, TokenEncoder, learn_language

NAMES = {number: token for token, number in VOCABULARY.items()}


def spelled(numbers):
    """The SMILES that token numbers stand for."""
    assert numbers[0] == BEGIN
    return "".join(NAMES[int(number)] for number in numbers[1:])


def test_tokens_say_the_smiles():
    for text in (
        "CC(=O)Oc1ccccc1C(=O)[O-]",
        "C[C@@H](N)C(=O)O",
        "[Na+].[Cl-]",
        "F/C=C\\Br",
        "[13CH4]",
        "c1cc[se]c1",
        "C%10CCCC%10",
        "*C",
    ):
        assert spelled(tokens.smiles_tokens(text)) == text
    assert OTHER in tokens.smiles_tokens("[Po]") and len(VOCABULARY) + BEGIN < SIZE
    assert len(tokens.smiles_tokens("C" * 500)) == LONGEST["smiles"]


def test_spellings_are_of_one_molecule():
    for row, text in enumerate(small_molecules(40)):
        smiles = text.split()[0]
        views = tokens.smiles_views(row, smiles, views=4)
        again = tokens.smiles_views(row, smiles, views=4)
        assert all(np.array_equal(*pair) for pair in zip(views, again))
        own = Chem.CanonSmiles(smiles)
        assert spelled(views[0]) == own
        assert {Chem.CanonSmiles(spelled(view)) for view in views} == {own}
    assert len({spelled(view) for view in views}) > 1


def test_padding_changes_nothing():
    torch.manual_seed(0)
    encoder = TokenEncoder(SMILES_ARCH | {"layers": 1, "width": 16, "hidden": 16, "heads": 2})
    short, long = tokens.smiles_tokens("CCO"), tokens.smiles_tokens("CC(=O)Oc1ccccc1")
    rows = padded_tokens([short, long])
    assert rows.shape == (2, len(long)) and rows[0, len(short) :].tolist() == [PAD] * (
        len(long) - len(short)
    )
    with torch.no_grad():
        both = encoder.eval()(torch.from_numpy(rows))
        alone = encoder(torch.from_numpy(padded_tokens([short])))
    assert torch.allclose(both[:1], alone, atol=1e-6)


def test_hidden_tokens_are_told_better_than_by_frequency():
    """A language of one word order: what is hidden follows from its neighbours."""
    views = [[np.array(tokens.smiles_tokens("CNO" * 6), np.uint8)]] * 64
    said, small = [], {"layers": 1, "width": 32, "hidden": 32, "heads": 2}
    torch.manual_seed(0)
    learn_language(TokenEncoder(SMILES_ARCH | small), views, 0, 80, said.append)
    assert float(re.search(r"(0\.\d+|1\.0+) of hidden", said[-1])[1]) > 0.8
