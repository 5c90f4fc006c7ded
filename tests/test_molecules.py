import os
from pathlib import Path

import click
import pytest
from conftest import ROOT, small_molecules
from drawn import picture_of
from rdkit import Chem

from moleclip.drawing import draw, layout
from moleclip.molecules import (
    Part,
    Rejected,
    canonical,
    find_input,
    flat_smiles,
    parse,
    replace_terminals,
    scaffold,
)


def test_input_is_looked_for_in_data(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(find_input("dhbd.csv"), ROOT / "data" / "dhbd.csv")
    assert "taking" in capsys.readouterr().err
    with pytest.raises(click.ClickException, match="no such file"):
        find_input("nowhere.csv")


def test_a_part_has_every_nth_block():
    parts = [Part(index, 3) for index in (1, 2, 3)]
    for row in (0, 1023, 1024, 5000):
        assert [part.has(row) for part in parts] == [row // 1024 % 3 == i for i in range(3)]
    assert [part.blocks(5000) for part in parts] == [[0, 3], [1, 4], [2]]
    assert [part.size(5000) for part in parts] == [2048, 1928, 1024]
    assert parts[0].size(None) is None and Part().size(5000) == 5000
    assert parts[1].named(Path("out/a.csv")) == Path("out/a-2-of-3.csv")
    assert Part().named(Path("out/a.csv")) == Path("out/a.csv")
    assert parts[1].named(Path("out/a.v1.csv.gz")) == Path("out/a.v1-2-of-3.csv.gz")
    assert Part().named(Path("a.csv.gz")) == Path("a.csv.gz")


@pytest.mark.parametrize(
    "mapped, plain",
    [
        ("[cH:1]1[cH:2][cH:3][cH:4][cH:5][cH:6]1", "c1ccccc1"),
        ("[13CH3:7][OH:2]", "[13CH3]O"),
        ("[*:1]c1ccccc1", "*c1ccccc1"),
        ("[CH3:1][C@H:3]([CH3:2])O", "CC(C)O"),  # no centre but for the map
        ("[CH3:1]/[C:9]([CH3:2])=C/[CH3:7]", "CC=C(C)C"),
        ("[CH3:1][C@H:2](F)Cl", "C[C@H](F)Cl"),
    ],
)
def test_atom_maps_are_not_drawn(mapped, plain):
    assert (picture_of(mapped) == picture_of(plain)).all()
    assert canonical(mapped) == canonical(plain) and scaffold(mapped) == scaffold(plain)


def test_atom_maps_change_no_molecule():
    for seed, smiles in enumerate(small_molecules(30)):
        molecule = Chem.MolFromSmiles(smiles)
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum((atom.GetIdx() * 7 + seed) % 5)
        assert (picture_of(Chem.MolToSmiles(molecule)) == picture_of(smiles)).all()


@pytest.mark.parametrize(
    "note",
    [
        *("|$a;b;c;d$|", "|(0,0,;1,0,;1.5,1,;1.5,-1,)|", "|&1:1|", "|o1:1,r|", "|x| name"),
        *("|SgD:1:field:value:::|", "|atomProp:0.atomNote.there|", "name", "name |&1:1|"),
    ],
)
def test_notes_that_change_nothing_are_dropped(note):
    assert (picture_of(f"C[C@H](F)Cl {note}") == picture_of("C[C@H](F)Cl")).all()


@pytest.mark.parametrize(
    "smiles, says",
    [
        ("CCO |^1:0|", "another molecule than the SMILES"),
        ("C[C@H](F)Cl |w:1.0|", "another molecule than the SMILES"),
        ("CC(O)F |(0,0,;1,0,;1.5,1,;1.5,-1,),wU:1.0|", "another molecule than the SMILES"),
        ("*C |$Q_e;$|", "a query"),
        ("CC |u:0|", "a query"),
        ("C*.C1CCCCC1 |m:1:2.3.4|", "a query"),
        ("CCO |Sg:n:1::ht|", "a polymer"),
        ("OC1CCCC1 |LN:1:1.3.2.5|", "a polymer"),
        ("CC |$bad|", "can't read its CXSMILES note"),
        ("C~C", "SMARTS"),
        ("[#6]C", "SMARTS"),
        ("[C,N]C", "syntax"),
    ],
)
def test_queries_and_notes_that_make_another_molecule_are_refused(smiles, says):
    with pytest.raises(Rejected, match=says):
        parse(smiles)


@pytest.mark.parametrize("bad", ["C\xe9C", "C\udce9C", "\ufeffCC", "C−C"])
def test_what_is_not_ascii_is_no_smiles(bad):
    with pytest.raises(Rejected, match=r"^not a valid SMILES \(holds what is not ASCII\)$"):
        parse(bad)
    assert canonical(f"CCO |$R{bad};;$|") == "CCO"


def test_every_atom_but_hydrogen_counts():
    for smiles, atoms in (("*" * 151, 151), ("C" * 150 + "*", 151), ("[2H]" + "C" * 151, 151)):
        with pytest.raises(Rejected, match=f"^{atoms} heavy atoms, more than --max-atoms 150"):
            parse(smiles)
    parse("*" * 100 + "C" * 50)
    parse("C" * 149 + "C([2H])([2H])[2H]")
    with pytest.raises(Rejected, match="^no atoms"):
        parse("")


def test_r_groups_replace_terminal_single_bonds_only():
    replaced = replace_terminals(parse("CC(=O)Nc1ccc(C#N)cc1.[Na+].CC"))
    labels = [
        atom.GetProp("_displayLabel") for atom in replaced.GetAtoms() if atom.GetAtomicNum() == 54
    ]
    assert labels == ["R1", "R1", "R1"]  # not =O, #N, nor an atom on its own
    assert (picture_of("[NH4+]") == draw(layout(replace_terminals(parse("[NH4+]"))))).all()


def test_flat_smiles_are_equal_where_wedges_isotopes_and_maps_differ():
    for one, other in (
        ("C[C@H](N)C(=O)O", "OC(=O)[C@H](N)C"),
        ("F/C=C/F", "F/C=C\\F"),
        ("[2H]C([2H])O", "[CH3:4][OH:2]"),
        ("[13CH3]Cl", "CCl"),
    ):
        assert flat_smiles(0, one) == flat_smiles(0, other)
    assert len({flat_smiles(0, text) for text in ("CCO", "CCN", "CC[NH3+]", "COC", "CCO.Cl")}) == 5
