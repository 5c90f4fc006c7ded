"""Metrics: what is undefined is left out, intervals over seeds, the printed table."""

import numpy as np
import pytest

from moleclip.metrics import print_table, score_all, summarise


def test_metrics_leave_out_what_is_undefined():
    truth = np.array([[0, 1.0], [1, 1], [1, 1], [np.nan, 1]], np.float32)
    predicted = np.array([[0.2, 0.9], [0.4, 0.8], [0.1, 0.7], [0.5, 0.6]])
    scores = score_all(truth, predicted, ["a", "b"], "classification")
    each, pooled = scores["targets"], scores["pooled"]
    assert each["a"]["ROC-AUC"] == 0.5
    assert "ROC-AUC" not in each["b"] and each["b"]["accuracy"] == 1
    assert pooled["ROC-AUC"] == 0.5 and pooled["ROC-AUC defined for"] == 1
    for found in (pooled, *each.values()):
        assert all(np.isfinite(value) for value in found.values())


def test_intervals_over_seeds_are_students():
    found = summarise([1.0, 2.0, 4.0])
    assert found["mean"] == pytest.approx(7 / 3) and found["sd"] == pytest.approx(1.527525)
    assert found["ci95"] == pytest.approx(4.302653 * 1.527525 / 3**0.5, rel=1e-5)
    assert summarise([0.1 + 0.2, 0.3, 0.3])["ci95"] == 0  # rounding is no spread
    assert summarise([2.0]) == {"mean": 2.0, "sd": None, "ci95": None, "seeds": 1}


def test_a_table_of_long_numbers_keeps_its_columns_apart(capsys):
    long = {"mean": -0.0009665, "sd": 0.0013, "ci95": 0.0013, "seeds": 5}
    pooled = {"RMSE": long | {"mean": 2.115}, "R2": long | {"mean": -0.00096654}}
    print_table({"mean of training": {"pooled": pooled, "targets": {}}})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split("  ")[-1].strip() == "-0.0009665 ± 0.0013"
