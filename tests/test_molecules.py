import os
from pathlib import Path

import click
import pytest
from conftest import ROOT
from drawn import picture_of

from moleclip.drawing import draw, layout
from moleclip.molecules import Part, find_input, parse, replace_terminals


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


def test_r_groups_replace_terminal_single_bonds_only():
    replaced = replace_terminals(parse("CC(=O)Nc1ccc(C#N)cc1.[Na+].CC"))
    labels = [
        atom.GetProp("_displayLabel") for atom in replaced.GetAtoms() if atom.GetAtomicNum() == 54
    ]
    assert labels == ["R1", "R1", "R1"]  # not =O, #N, nor an atom on its own
    assert (picture_of("[NH4+]") == draw(layout(replace_terminals(parse("[NH4+]"))))).all()
