"""The error by likeness to training: set by set, of one encoder, whoever is asked again."""

import accuracy
import likeness
import numpy as np
import pytest
import record
from click.testing import CliRunner

from moleclip.files import save_table
from moleclip.splits import make_split


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Names of the cells that were asked for; each is a run that predicts 1 for every row."""
    asked = []

    def finetuned(cell):
        asked.append(cell.set)
        data = likeness.Data(str(record.ROOT / "data" / f"{cell.set}.csv"))
        for seed in map(int, cell.seeds.split(",")):
            split = make_split(data, range(len(data)), "random", seed, warn=False)
            parts = {row: part for part, rows in split.items() for row in rows}
            ones = [1] * len(data.targets)
            lines = [[row, parts[row], *ones] for row in range(len(data))]
            header = ["row", "split", *(f"predicted_{name}" for name in data.targets)]
            save_table(cell.folder / f"seed-{seed}" / "predictions.csv", header, lines)

    monkeypatch.setattr(accuracy, "finetuned", finetuned)
    for module in (accuracy, likeness, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path, raising=False)
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs", raising=False)
    return asked


def run(sets):
    done = CliRunner().invoke(likeness.main, ["--sets", sets], catch_exceptions=False)
    assert not done.exit_code
    return record.read_csv(likeness.RESULTS / "likeness.csv")


def test_sets_are_kept_while_the_encoder_is_the_same(made, monkeypatch):
    first = run("phosphines_yield")
    rows = run("nhcs")
    assert made == ["phosphines_yield", "nhcs"] and len({row["init"] for row in rows}) == 1
    assert list({row["set"]: None for row in rows}) == ["nhcs", "phosphines_yield"]
    assert [row for row in rows if row["set"] == "phosphines_yield"] == first
    head = (likeness.RESULTS / "likeness.csv").read_text().splitlines()[0].split(",")
    assert len(head) == len(set(head))
    by = {row["nearest_training"]: row for row in rows if row["set"] == "nhcs"}
    whole, bins = by.pop("all"), by.values()
    assert int(whole["molecules"]) >= max(int(row["molecules"]) for row in bins)
    labels = likeness.Data(str(record.ROOT / "data" / "nhcs.csv")).labels
    assert float(whole["MAE"]) == pytest.approx(np.abs(1 - labels).mean(), rel=0.2)
    monkeypatch.setattr(likeness, "encoder", lambda: "another")
    assert {row["set"] for row in run("nhcs")} == {"nhcs"}
