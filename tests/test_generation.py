"""What generated molecules are measured by: the groups that texts ask for."""

import generation
import pytest
from conftest import ROOT
from rdkit import Chem
from record import read_csv

GROUPS = {row["name"]: row for row in read_csv(ROOT / "data" / "groups.csv")}
HAVE = {  # a molecule, and all groups that it has
    "CC(=O)Oc1ccccc1C(=O)O": {"carboxylic acid", "carboxylic ester"},
    "COc1cc(C=O)ccc1O": {"aldehyde", "phenol", "methoxy", "aromatic ether"},
    "CN1CCN(CC1)c1ncccn1": {"tertiary amine", "aniline", "pyrimidine", "piperazine"},
    "NS(=O)(=O)c1ccc(Cl)cc1": {"sulfonamide", "chloro", "monochlorobenzene"},
    "O=c1cc(-c2ccccc2)oc2ccccc12": {"flavone"},
    "NC(=O)CC#N": {"primary amide", "amide", "nitrile"},
    "C1CC1NC(=O)NCC(C)O": {"urea", "secondary alcohol"},
}


@pytest.mark.parametrize("smiles", HAVE)
def test_groups_are_found_where_they_are(smiles):
    found = {name for name, row in GROUPS.items() if generation.has_all(smiles, [row["smarts"]])}
    assert len(GROUPS) == 60 and found == HAVE[smiles]


def test_texts_ask_for_one_group_or_two():
    asked = generation.asked_for(50)
    assert len({text for text, _ in asked}) == 50 and asked == generation.asked_for(50)
    assert [len(smarts) for _, smarts in asked] == [1, 2] * 25
    known = {row["smarts"]: row["phrase"] for row in GROUPS.values()}
    for text, smarts in asked:
        assert text == f"The molecule is {' and '.join(known[each] for each in smarts)}."
        assert len(set(smarts)) == len(smarts)


def test_what_is_made_is_measured():
    lines = [{"smiles": smiles} for smiles in ("c1ccncc1", "Oc1ccncc1", "c1ccccc1")]
    known = {Chem.CanonSmiles("c1ccncc1")}
    found = generation.measure("text", ["n1ccccc1"], lines, "CCO", known, None)
    assert (found["made"], found["hit has all"], found["first has all"]) == (3, 0, 1)
    assert found["have all"] == pytest.approx(2 / 3) and found["new"] == pytest.approx(2 / 3)
    assert 0.3 < found["diversity"] < 1
    nothing = generation.measure("text", ["n1ccccc1"], [], "c1ccncc1", known, None)
    assert nothing["hit has all"] == 1 and nothing["have all"] == 0
    assert generation.means([found, nothing])["have all"] == pytest.approx(1 / 3)
