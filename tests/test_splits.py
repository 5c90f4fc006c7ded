"""Splits: the paper's own, whole scaffolds, and those a user brings."""

import click
import numpy as np
import pytest
from conftest import ROOT, table_of

from moleclip.molecules import scaffold
from moleclip.splits import make_split, random_scaffold_split, random_split, scaffold_split
from moleclip.table import Data


@pytest.mark.parametrize(
    "name, sizes, means",
    [
        ("bace", (1210, 151, 152), (0.397, 0.861, 0.533)),
        ("bbbp", (1631, 204, 204), (0.839, 0.407, 0.529)),
        ("esol", (902, 113, 113), (-2.867, -3.765, -3.798)),
        ("freesolv", (513, 64, 65), (-3.259, -6.049, -5.882)),
    ],
)
def test_scaffold_splits_are_the_papers(name, sizes, means):
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    parts = scaffold_split(range(len(data)), data.smiles)
    assert tuple(map(len, parts)) == sizes and sorted(sum(parts, [])) == list(range(len(data)))
    assert [round(float(data.labels[rows].mean()), 3) for rows in parts] == list(means)


def test_the_random_split_is_the_papers():
    usable = [row for row in range(1129) if row != 3]  # a rejected row shifts nobody's number
    train, val, test = random_split([[i] for i in usable], 2)
    np.random.seed(2)
    order = list(range(1128))
    np.random.shuffle(order)
    assert test == [usable[i] for i in order[:112]]
    assert val == [usable[i] for i in order[112:224]]
    assert train == [usable[i] for i in order[224:]]


def test_random_scaffolds_stay_together():
    esol = Data(str(ROOT / "data" / "esol.csv"))
    usable = list(range(len(esol)))
    parts, others = (random_scaffold_split(usable, esol.smiles, seed) for seed in (1, 2))
    assert sorted(sum(parts, [])) == usable and parts != others
    assert all(100 < len(rows) <= 112 for rows in parts[1:])
    train, val, test = ({scaffold(esol.smiles[i]) for i in rows} for rows in parts)
    assert not train & val and not train & test and not val & test


def test_a_split_of_ones_own(tmp_path, capsys):
    words = ["train", "Valid", "test", "", "training", "val"]
    lines = [f"{'C' * (i + 1)}O,{i}.5,{word}" for i, word in enumerate(words)]
    text = "\n".join(["smiles,y,fold", *lines, ""])
    data = table_of(tmp_path, text, split_column="fold")
    assert data.targets == ["y"]
    split = make_split(data, range(6), "column", 1)
    assert split == {"train": [0, 4], "val": [1, 5], "test": [2]}
    assert "2 train, 2 val, 1 test, 1 rows in no part;" in capsys.readouterr().out
    own = tmp_path / "s.csv"
    own.write_text("row,split,seed_2\n0,train,test\n1,val,val\n2,test,train\n")
    first, second = (make_split(data, range(6), str(own), seed) for seed in (1, 2))
    assert first == {"train": [0], "val": [1], "test": [2]}
    assert second == {"train": [2], "val": [1], "test": [0]}
    for text, says in (
        ("row,split\n0,train\n9,test\n", "ends at row 5"),
        ("row,split\n0,tarin\n", "row 0 is 'tarin'"),
        ("row,split\n0,train\n1,val\n0,test\n", "names a row twice"),
        ("a,b\n1,2\n", "not a splits.csv"),
    ):
        own.write_text(text)
        with pytest.raises(click.ClickException, match=says):
            make_split(data, range(6), str(own), 1)


def test_molecules_on_both_sides_are_counted(tmp_path, capsys):
    text = "smiles,y,split\nCCO,1.5,train\nOCC,2.5,test\nCCC,1.0,val\nC(O)C,3,test\n"
    data = table_of(tmp_path, text, split_column="split")
    make_split(data, range(4), "column", 1)
    says = "2 rows of val and test hold molecules that stand in the training part"
    assert says in capsys.readouterr().err
