"""The tables of accuracy: a cell is known by all that made it, and says no more than it can."""

import accuracy
import embedding_map
import numpy as np
import pytest
import tables
from record import read_csv

from moleclip.files import save_table
from moleclip.molecules import scaffold

OLD = tuple(name for name in accuracy.FIELDS if name not in ("init", "data"))


@pytest.fixture
def desk_of_tables(tmp_path, monkeypatch):
    """Where results and runs go; the accuracy table has a row from before its keys."""
    for module in (accuracy, tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "RUNS", tmp_path / "runs")
    old = ["esol", "scaffold", "mine, frozen", "", "RMSE", "0.9", "0.1", "0.2", "3"]
    old += ["versions", "machine", "commit", "python finetune.py --data data/esol.csv"]
    save_table(tmp_path / "accuracy.csv", OLD, [old])
    return tmp_path


def cell(init="scratch:nano", seeds="1,2,3", way="frozen", **changes):
    facts = ("sets", "esol", "", way, init, "mine", seeds, "1e-5", False)
    return accuracy.Cell(*facts)._replace(**changes)


def row_of(one, mean, ci95, seeds):
    facts = {"set": "esol", "split": "scaffold", "model": one.model, "variant": ""}
    figures = {"metric": "RMSE", "mean": mean, "sd": "", "ci95": ci95, "seeds": seeds}
    return facts | figures | one.made_of() | {"versions": "", "machine": "", "commit": ""}


def test_all_that_makes_a_cell_is_its_key(tmp_path):
    encoder = tmp_path / "encoder.pt"
    encoder.write_bytes(b"one")
    first = cell(str(encoder))
    folder, rows = first.folder, [row_of(first, 1, "", 1)]
    assert accuracy.is_there(rows, first)
    others = [cell(str(encoder), seeds="1"), cell(str(encoder), way="finetuned"), cell()]
    others.append(cell(str(encoder), way="finetuned", lr_encoder="2e-5"))
    assert len({folder, *(other.folder for other in others)}) == 5
    assert not any(accuracy.is_there(rows, other) for other in others)
    encoder.write_bytes(b"two")  # another encoder of the same name
    assert first.folder != folder and not accuracy.is_there(rows, first)


def test_rows_made_otherwise_stand_beside_old_ones(desk_of_tables, capsys):
    path = desk_of_tables / "accuracy.csv"
    assert not accuracy.is_there(read_csv(path), cell())
    accuracy.save("sets", read_csv(path) + [row_of(cell(seeds="1"), 0.7, "", 1)])
    accuracy.save("sets", read_csv(path) + [row_of(cell(seeds="1"), 0.8, "", 1)])
    rows = read_csv(path)
    assert [(row["mean"], row["seeds"], bool(row["init"])) for row in rows] == [
        ("0.9", "3", False),
        ("0.8", "1", True),
    ]
    assert tables.accuracy_rows("esol", "RMSE")["mine, frozen"]["mean"] == "0.9"  # of most seeds
    accuracy.show("sets")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("0.900 ± 0.2") and shown[1].endswith("0.800 (one seed)")
    accuracy.save("sets", rows + [row_of(cell(), 0.6, 0.1, 3)])
    assert tables.accuracy_rows("esol", "RMSE")["mine, frozen"]["mean"] == "0.6"  # the last made


def test_baselines_are_made_once_for_seeds_and_data():
    first = cell("scratch:nano")
    row = row_of(first, 1, "", 1) | {"model": "ECFP + MLP", "init": ""}
    assert accuracy.compared([row], cell("scratch:tiny"))
    assert not accuracy.compared([row], cell(seeds="1"))
    assert not accuracy.compared([row | {"data": "another"}], first)
    assert not accuracy.compared([row | {"data": None}], first)


@pytest.mark.parametrize("ci95", ["", "0", "1e-16"])
def test_there_is_no_interval_without_a_spread(ci95):
    assert tables.interval({"mean": "0.478", "ci95": ci95}) == "0.478"


def test_views_are_tabled_where_they_were_run(desk_of_tables):
    assert tables.views() == tables.embedding_map() == ""
    header = [
        "set",
        "way",
        "metric",
        "seeds",
        "drawn",
        "molecules",
        "1 view",
        "1 view, ci95",
        "4 views",
    ]
    header += ["4 views, ci95", "difference", "difference, ci95", "seconds, 1", "seconds, 4"]
    lines = [["nhcs", "frozen", "MAE", 1, 1, 10, 0.02, "", 0.018, "", -0.002, "", 1.9, 2.61]]
    lines.append(["esol", "heads", "RMSE", 3, 2, 113, 0.9, 0.1, 0.88, 0.12, -0.02, 0.031, 4, 11])
    save_table(desk_of_tables / "views.csv", header, lines)
    _, _, first, second = tables.views().splitlines()
    cells = "0.900 ± 0.1 | 0.880 ± 0.12 | -0.02 ± 0.03 | 113 | 4.00 s | 11.0 s | 2 of 3 |"
    assert first == f"| ESOL, scaffold, RMSE, best head | {cells}"
    cells = "0.0200 | 0.0180 | -0.002 | 10 | 1.90 s | 2.61 s | 1 of 1 |"
    assert second == f"| NHCs, random, MAE, MLP on pictures | {cells}"


def test_frequent_scaffolds_are_of_different_molecules():
    smiles, numbers = embedding_map.chosen("freesolv")
    counts = np.bincount(numbers)
    assert len(smiles) == len(set(smiles)) == len(numbers) and 0 < len(counts) <= 10
    assert counts.min() >= 10 and (np.diff(counts) <= 0).all() and counts.max() <= 100
    found = {(number, scaffold(one)) for number, one in zip(numbers, smiles)}
    assert len(found) == len(counts) and not any(text == "" for _, text in found)
