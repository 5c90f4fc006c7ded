"""Pictures against fingerprints alone: whose errors are lower, and how sure that is."""

import accuracy
import likeness
import numpy as np
import pytest
import record
import rival
from click.testing import CliRunner

from moleclip.files import save_json, save_table
from moleclip.metrics import MODEL
from moleclip.splits import make_split
from moleclip.table import Data


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Runs whose predictions are off by 1 with pictures, by 1 + 0.1 the seed's number without."""

    def finetuned(cell):
        data = Data(str(record.ROOT / "data" / f"{cell.set}.csv"))
        for seed in map(int, cell.seeds.split(",")):
            off = 1 if cell.way == "heads" else 1 + 0.1 * seed
            split = make_split(data, range(len(data)), "random", seed, warn=False)
            parts = {row: part for part, rows in split.items() for row in rows}
            lines = [[row, parts[row], *(data.labels[row] + off)] for row in range(len(data))]
            header = ["row", "split", *(f"predicted_{name}" for name in data.targets)]
            folder = cell.folder / f"seed-{seed}"
            save_table(folder / "predictions.csv", header, lines)
            scores = {"test": {MODEL: {"pooled": {"MAE": off}}}}
            head = "gp on picture+ecfp" if cell.way == "heads" else f"head {seed > 1}"
            save_json(folder / "metrics.json", scores | {"head": {"chosen": head}})
        return {"seconds": 30.0}

    monkeypatch.setattr(accuracy, "finetuned", finetuned)
    for module in (accuracy, likeness, rival, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path, raising=False)
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs", raising=False)


def run(*words):
    done = CliRunner().invoke(rival.main, words, catch_exceptions=False)
    assert not done.exit_code
    return record.read_csv(rival.RESULTS / "rival.csv")


def test_the_difference_is_paired_and_its_sign_is_told(made, monkeypatch):
    run("--sets", "esol", "--seeds", "1,2")
    found = run("--sets", "nhcs", "--seeds", "1,2,3")
    by_molecules, by_splits = sorted(found, key=lambda row: row["set"])
    assert by_molecules["set"] == "esol" and by_molecules["over"] == "test molecules"
    # every test molecule is off by the same: nothing to resample
    told = [float(by_molecules[key]) for key in ("less", "low", "high")]
    assert told == pytest.approx([-0.15] * 3)
    assert by_splits["over"] == "splits" and float(by_splits["less"]) == pytest.approx(-0.2)
    half = 4.302653 * 0.1 / np.sqrt(3)  # of three seeds, SD 0.1
    assert float(by_splits["high"]) == pytest.approx(-0.2 + half, abs=1e-5)
    assert (by_molecules["verdict"], by_splits["verdict"]) == ("ahead", "open")
    assert by_splits["our heads"] == "gp on picture+ecfp (3)"
    assert by_splits["rival's heads"] == "head True (2), head False (1)"
    assert by_splits["our seconds a seed"] == "10"
    monkeypatch.setattr(rival, "encoder", lambda: "another")
    assert [row["set"] for row in run("--sets", "nhcs", "--seeds", "1")] == ["nhcs"]


@pytest.mark.parametrize(
    "low, high, task, told",
    [
        (-2, -1, "regression", "ahead"),
        (1, 2, "regression", "behind"),
        (1, 2, "classification", "ahead"),
        (-2, -1, "classification", "behind"),
        (-1, 1, "classification", "open"),
    ],
)
def test_lower_errors_and_higher_areas_are_ahead(low, high, task, told):
    assert rival.verdict(low, high, task) == told
