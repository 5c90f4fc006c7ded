"""Children of molecules: the same from a seed, and none that no chemist would make."""

import numpy as np
import pytest

from moleclip.evolve import checked, likeness, made_of, pick_parents, sa_score
from moleclip.molecules import Rejected, parse

HOW = {"largest": 40, "hardest": 6.0, "edited": "", "least_like": 0.0, "takes": {"max_atoms": 40}}
PARENTS = "COc1ccc(CC(=O)O)cc1", "CC(C)Cc1ccc(cc1)C(C)C(=O)O"


def children(count, text, **changes):
    found = []
    for row in range(count):
        try:
            found.append(made_of(row, text, 1, **HOW | changes))
        except Rejected as reason:
            found.append(str(reason))
    return found


def test_children_follow_from_seed_and_number():
    pytest.importorskip("mol_ga")
    first, again = children(12, " ".join(PARENTS)), children(12, " ".join(PARENTS))
    smiles = lambda found: [getattr(each, "smiles", each) for each in found]
    assert smiles(first) == smiles(again)
    made = [each for each in first if not isinstance(each, str)]
    assert len(made) >= 3 and not {each.smiles for each in made} & {*PARENTS}
    for child in made:
        assert len(child.given.atoms) == parse(child.smiles).GetNumAtoms()
        assert child.sa == pytest.approx(sa_score(parse(child.smiles))) and child.like == 1


def test_mutants_stay_alike_where_that_is_asked():
    pytest.importorskip("mol_ga")
    found = children(20, PARENTS[1], edited=PARENTS[1], least_like=0.5)
    made = [each for each in found if not isinstance(each, str)]
    assert made and all(0.5 <= each.like < 1 for each in made)
    wanted = likeness(parse(made[0].smiles), parse(PARENTS[1]))
    assert made[0].like == pytest.approx(wanted)


@pytest.mark.parametrize(
    "smiles, reason",
    [
        ("CCO.CC", "no molecule, or two"),
        ("C" * 41, "too large"),
        ("C[Si](C)(C)C", "a rare element"),
        ("C[CH2]", "a radical or an ion"),
        ("CC(=O)[O-]", "a radical or an ion"),
        ("C1CCCCCCCCC1", "a ring too large"),
        ("COOC", "unstable"),
        ("CN(C)Cl", "unstable"),
        ("C1=CC1", "unstable"),
        ("OC(O)C", "unstable"),
    ],
)
def test_what_is_never_made(smiles, reason):
    with pytest.raises(Rejected, match=reason):
        checked(smiles, 40, 6.0)


def test_sound_molecules_are_not_turned_away():
    sound = "O=C(O)c1ccccc1O", "CS(=O)(=O)Nc1ccccc1", "CON=C(C)C", "FC(F)(F)c1ccccc1"
    for smiles in (*sound, *PARENTS, "NNc1ccccc1", "c1ccc2[nH]ccc2c1", "ClC(Cl)Cl"):
        assert checked(smiles, 40, 6.0).smiles
    with pytest.raises(Rejected, match="hard to make"):
        checked("C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O", 40, 1.5)


def test_good_parents_are_chosen_more_often():
    scores = np.linspace(0, 1, 50)
    chosen = pick_parents(scores, 4000, np.random.default_rng(0))
    assert {len(each) for each in chosen} == {1, 2}
    assert all(len(set(each)) == len(each) for each in chosen)
    counts = np.bincount(np.concatenate(chosen), minlength=50)
    assert counts[49] > 3 * counts[25] > 3 * counts[0] > 0
    assert pick_parents([1.0], 3, np.random.default_rng(0)) == [[0]] * 3
