"""The run folder: its files agree with each other, with the aggregate, and after interruptions."""

import json
import shutil

import numpy as np
import pytest
from conftest import invoke, rows_of
from sklearn import metrics as skm

import finetune


def read_json(path):
    return json.loads(path.read_text())


def test_the_run_folder(road):
    folder = road / "runs" / "solubility"
    names = "model.pt metrics.json predictions.csv splits.csv history.csv report.png config.json"
    for name in (*names.split(), "scores.csv"):
        assert (folder / name).exists() and (folder / "seed-1" / name).exists(), name
    lines, history = rows_of(folder / "predictions.csv"), rows_of(folder / "history.csv")
    assert [int(line["row"]) for line in lines] == list(range(80))
    assert [h["epoch"] for h in history] == ["0", "1", "2", "3"]
    metrics = read_json(folder / "seed-1" / "metrics.json")
    best = min(history, key=lambda h: (float(h["val_loss"]), -int(h["epoch"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    test = [line for line in lines if line["split"] == "test"]
    truth = [float(line["true_log_solubility"]) for line in test]
    predicted = [float(line["predicted_log_solubility"]) for line in test]
    mae = {name: scores["pooled"]["MAE"] for name, scores in metrics["test"].items()}
    assert len(test) == 8
    assert set(mae) == {"this model", "ECFP + MLP", "ECFP + random forest", "mean of training"}
    error = skm.mean_absolute_error(truth, predicted)
    assert mae["this model"] == pytest.approx(error, rel=1e-4)
    train = [float(line["true_log_solubility"]) for line in lines if line["split"] == "train"]
    error = np.abs(np.array(truth) - np.mean(train)).mean()
    assert mae["mean of training"] == pytest.approx(error, rel=1e-4)
    for word in ("this model", "ECFP + MLP", "64 train, 8 val, 8 test"):
        assert word in road.said["finetune"]


def test_the_metrics_of_the_aggregate(toy):
    out = toy / "runs" / "toy"
    facts = read_json(out / "metrics.json")
    summary = facts["test"]["this model"]["pooled"]["MAE"]
    each = [run["test"]["this model"]["pooled"]["MAE"] for run in facts["runs"]]
    assert summary["mean"] == pytest.approx(np.mean(each))
    assert summary["sd"] == pytest.approx(np.std(each, ddof=1)) and summary["ci95"] > summary["sd"]
    best = min(facts["runs"], key=lambda run: run["val_against_mean"])["seed"]
    models = [(folder / "model.pt").read_bytes() for folder in (out, out / f"seed-{best}")]
    assert facts["best_seed"] == best and models[0] == models[1]
    keys = ("method", "target", "metric")
    scores = {tuple(line[key] for key in keys): line for line in rows_of(out / "scores.csv")}
    written = float(scores["this model", "", "MAE"]["ci95"])
    assert written == pytest.approx(summary["ci95"], rel=1e-4)
    assert ("ECFP + MLP", "log_solubility", "RMSE") in scores


def test_the_rows_of_the_aggregate(toy):
    out = toy / "runs" / "toy"
    best = read_json(out / "metrics.json")["best_seed"]
    seeds = [rows_of(out / f"seed-{seed}" / "predictions.csv") for seed in (1, 2)]
    lines = rows_of(out / "predictions.csv")
    splits = {int(line["row"]): line for line in rows_of(out / "splits.csv")}
    assert len(lines) == 40 and len(splits) == 39 and 4 not in splits
    for i in splits:
        line, pair = lines[i], [run[i] for run in seeds]
        values = [float(each["predicted_log_solubility"]) for each in pair]
        assert line["predicted_log_solubility"] == pair[best - 1]["predicted_log_solubility"]
        assert float(line["mean_log_solubility"]) == pytest.approx(np.mean(values), rel=1e-5)
        assert int(line["tested"]) == sum(each["split"] == "test" for each in pair)
        assert splits[i]["split"] == pair[best - 1]["split"]
        assert [splits[i]["seed_1"], splits[i]["seed_2"]] == [each["split"] for each in pair]


def test_an_interrupted_run_goes_on(toy):
    out, words = toy / "runs" / "toy", "python finetune.py --data toy.csv --head mlp --seeds 1,2"
    names = ("predictions.csv", "metrics.json", "splits.csv", "scores.csv", "report.png")
    before = {name: (out / name).read_bytes() for name in names}
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "seed-2")
    untouched = (out / "seed-1" / "model.pt").stat().st_mtime_ns
    assert "another epochs (2, now 3)" in toy.run(f"{words} --epochs 3", code=1)
    toy.run(f"{words} --epochs 2", OMP_NUM_THREADS="1")
    assert (out / "seed-1" / "model.pt").stat().st_mtime_ns == untouched
    assert {name: (out / name).read_bytes() for name in names} == before


def test_the_grid_is_decided_on_validation(toy, tmp_path):
    grid = tmp_path / "grid"
    words = ["--data", toy / "toy.csv", "--init", toy / "encoder.pt", "--epochs", 2, "--freeze"]
    words += ["--lr-head", "4e-4,1e-2", "--seeds", "1,2", "-o", grid]
    said = invoke(finetune.main, *words)
    lines = rows_of(grid / "grid.csv")
    assert len(lines) == 2 and [line["chosen"] for line in lines].count("yes") == 1
    best = min(lines, key=lambda line: float(line["val_loss"]))
    assert best["chosen"] == "yes" and f"lr_head {float(best['lr_head'])}" in said
    runs = read_json(grid / "metrics.json")["runs"]
    loss = np.mean([run["val_loss"] for run in runs])
    assert loss == pytest.approx(float(best["val_loss"]), rel=1e-4)
    assert read_json(grid / "config.json")["lr_head"] == float(best["lr_head"])
    assert len(list(grid.rglob("model.pt"))) == 3
    assert len(list((grid / "grid").rglob("metrics.json"))) == 4
    # Interrupted before its last file, it goes on from what is there, dropped trials too.
    names = ("grid.csv", "predictions.csv", "metrics.json", "model.pt", "report.png")
    before = {name: (grid / name).read_bytes() for name in names}
    (grid / "metrics.json").unlink()
    invoke(finetune.main, *words)
    assert {name: (grid / name).read_bytes() for name in names} == before
