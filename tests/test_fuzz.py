"""A small share of benchmarks/fuzz.py, and that it sees what it is to see."""

import click
import fuzz
import pytest
from conftest import table_of
from rdkit import rdBase

from moleclip.table import Data


@pytest.fixture(autouse=True)
def silence():
    with rdBase.BlockLogs():
        yield


def test_hostile_lines_are_rows_with_a_reason(tmp_path):
    findings, tally = fuzz.fuzz_lines(200, 1, tmp_path)
    assert not findings and sum(tally.values()) == 200 and tally["read"] >= 40, findings


def test_what_is_learned_of_a_table_was_planted(tmp_path):
    findings, tally, good = fuzz.fuzz_tables(20, 1, tmp_path)
    assert not findings and sum(tally.values()) == 20 and good, findings


def test_it_finds_rows_that_shift_and_labels_that_change(tmp_path):
    known = fuzz.known_smiles()
    *_, good = fuzz.fuzz_tables(20, 1, tmp_path)
    table, data = good[0], Data(str(good[0].path))
    assert not fuzz.check_table(table, data)
    known_row = next(row for row, value in enumerate(data.labels[:, 0]) if value == value)
    data.labels[known_row, 0] = float("nan")
    assert "is nan, not" in fuzz.check_table(table, data)[0]
    data.columns[0] = "an index"
    assert "is learned, which nobody can" in fuzz.check_table(table, data)[-1]
    data.smiles[1:] = data.smiles[:-1]
    assert "row 1 is" in fuzz.check_table(table, data)[0]
    path = tmp_path / "lines.smi"
    path.write_text(f"C\n{known[0]} planted-0\n")
    assert "is not the planted" in fuzz.check_lines(path, 2, {0: known[0]}, fuzz.Counter())[0]
    assert "2 rows of 3 lines" in fuzz.check_lines(path, 3, {}, fuzz.Counter())


def test_a_refusal_is_one_line_whatever_the_cells_hold(tmp_path):
    lines = [f'C{"C" * row},"{"two" if row % 2 else "one"}\nlines"' for row in range(12)]
    lines = [line if row % 3 else f"C{'C' * row},three" for row, line in enumerate(lines)]
    with pytest.raises(click.ClickException) as error:
        table_of(tmp_path, "\n".join(["smiles,remarks", *lines]) + "\n")
    assert "3 different words" in error.value.message and "\n" not in error.value.message
