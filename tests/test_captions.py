"""Captions: what the structure bears out is said, what it denies is not."""

from rdkit import Chem

from moleclip.captions import Structure, agreement, compose, tokens_of


def test_a_structure_denies_what_it_has_not():
    ester = Structure(Chem.MolFromSmiles("COC(=O)c1ccccc1Cl"))
    for text, denied in (
        ("It is a methyl ester and a member of monochlorobenzenes.", 0),
        ("It is a monocarboxylic acid and a bromoarene.", 2),
        ("It derives from a bromobenzene.", 0),
        ("It is a conjugate base of a chlorobenzoate.", 0),
        ("It is a dihydroxybenzene.", 2),  # it has no hydroxy group, and not two
    ):
        assert ester.denied(text) == denied, text
    assert Structure(Chem.MolFromSmiles("CC(=O)[O-]")).denied("It is a conjugate acid of a base.")


def test_agreement_is_of_words_and_pairs():
    one, other = tokens_of("an acid, 2 rings"), tokens_of("an acid")
    assert one == ["an", "acid", ",", "2", "rings"] and agreement(one, one) == 1
    assert abs(agreement(one, other) - (2 * 2 / 7 + 2 * 1 / 5) / 2) < 1e-9
    assert agreement(tokens_of("word"), tokens_of("other")) == 0


def test_a_caption_is_of_several_texts():
    base = "The molecule is an ethanol. It is a primary alcohol and an organochlorine compound."
    role = "It has a role as a solvent."
    texts = [
        (0.9, base),
        (0.88, f"The molecule is a propanol. {role} It is a primary alcohol and an alkanol."),
        (0.88, f"The molecule is a butanol. {role} It is an alkanol."),
        (0.1, "The molecule is a steroid. It has a ring. It is a ketone."),
    ]
    caption = compose(Chem.MolFromSmiles("CCO"), texts)
    assert "solvent" in caption and "an alkanol" in caption and "primary alcohol" in caption
    assert "chlor" not in caption and "ring" not in caption and "ketone" not in caption
    assert compose(Chem.MolFromSmiles("CCCl"), [(1.0, "One sentence.")]) == "One sentence."
