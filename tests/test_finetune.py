import csv
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, first_lines, mistake
from sklearn import metrics as skm

import finetune


def table(tmp_path, text, **options):
    (tmp_path / "t.csv").write_text(text)
    return finetune.Data(str(tmp_path / "t.csv"), **options)


def rows_of(path):
    return list(csv.DictReader(open(path, newline="")))


@pytest.fixture(scope="module")
def esol():
    return finetune.Data(str(ROOT / "data" / "esol.csv"))


def test_esol_is_read_as_it_is(esol):
    assert (len(esol), esol.targets, esol.task, esol.smiles_column) == (1128, ["labels"], "regression", "smiles")
    assert esol.labels.mean() == pytest.approx(-3.05, abs=0.005)


def test_columns_as_people_have_them(tmp_path):
    data = table(tmp_path, "num,SMILES,name,active,note,pIC50\n7,CCO,a,1,x,\n8,CCN,b,0,y,5.5\n9,CCC,c,,z,6 \n")
    assert data.targets == ["active", "pIC50"] and data.task == "regression"
    assert np.isnan(data.labels[2, 0]) and data.labels[1].tolist() == [0, 5.5] and np.isnan(data.labels[0, 1])
    assert table(tmp_path, "SMILES,active,pIC50\nCCO,1,4.5\nCCN,0,\n", targets=["active"]).task == "classification"


def test_several_labels_in_one_column(tmp_path):
    data = table(tmp_path, "indices,smiles,labels\n1,CCO, 0.2 0.3\n2,CCN, 0.4 nan\n")
    assert data.targets == ["labels_1", "labels_2"] and np.isnan(data.labels[1, 1]) and data.labels[0, 1] == pytest.approx(0.3)


def test_the_scaffold_split_is_the_papers(esol):
    train, val, test = finetune.scaffold_split(range(1128), [m.smiles for m in esol.molecules])
    assert (len(train), len(val), len(test)) == (902, 113, 113)
    assert [round(float(esol.labels[rows].mean()), 3) for rows in (train, val, test)] == [-2.867, -3.765, -3.798]
    assert sorted(train + val + test) == list(range(1128))


def test_the_random_split_is_the_papers():
    usable = [row for row in range(1129) if row != 3]             # a rejected row shifts nobody's number
    train, val, test = finetune.random_split(usable, 2)
    np.random.seed(2)
    order = list(range(1128))
    np.random.shuffle(order)
    assert test == [usable[i] for i in order[:112]] and val == [usable[i] for i in order[112:224]] and train == [usable[i] for i in order[224:]]


def test_metrics_leave_out_what_is_undefined():
    truth = np.array([[0, 1.0], [1, 1], [1, 1], [np.nan, 1]], np.float32)
    scores = finetune.score_all(truth, np.array([[0.2, 0.9], [0.4, 0.8], [0.1, 0.7], [0.5, 0.6]]), ["a", "b"], "classification")
    each = scores["targets"]
    assert each["a"]["ROC-AUC"] == 0.5 and "ROC-AUC" not in each["b"] and each["b"]["accuracy"] == 1
    assert scores["pooled"]["ROC-AUC"] == 0.5 and scores["pooled"]["ROC-AUC defined for"] == 1
    assert all(np.isfinite(value) for part in (scores["pooled"], *each.values()) for value in part.values())


def test_labels_of_any_size_are_standardised():
    labels = np.array([[1e-12, 1e9, 5.0], [3e-12, 1e9 + 50, 5.0], [np.nan, 1e9 + 100, 5.0]])
    center, spread = finetune.label_scaling(labels, "regression")
    assert center == pytest.approx([2e-12, 1e9 + 50, 5]) and spread == pytest.approx([1e-12, np.std([0, 50, 100]), 5], rel=1e-6)


def test_the_loss_skips_missing_labels():
    outputs, labels = torch.tensor([[1.0, 5.0], [2.0, 7.0]]), torch.tensor([[0.0, float("nan")], [4.0, float("nan")]])
    assert finetune.masked_loss(outputs, labels, "regression").item() == pytest.approx(1.5)


def test_the_run_folder(road):
    folder = road / "runs" / "solubility"
    for name in ("model.pt", "metrics.json", "predictions.csv", "splits.csv", "history.csv", "report.png", "config.json"):
        assert (folder / name).exists() and (folder / "seed-1" / name).exists(), name
    lines, history = rows_of(folder / "predictions.csv"), rows_of(folder / "history.csv")
    assert [int(line["row"]) for line in lines] == list(range(80)) and len(history) == 3
    metrics = json.loads((folder / "seed-1" / "metrics.json").read_text())
    best = min(history, key=lambda h: (float(h["val_loss"]), -int(h["epoch"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    test = [line for line in lines if line["split"] == "test"]
    truth, predicted = ([float(line[kind + "_labels"]) for line in test] for kind in ("true", "predicted"))
    assert len(test) == 8 and metrics["test"]["this model"]["pooled"]["MAE"] == pytest.approx(skm.mean_absolute_error(truth, predicted), rel=1e-4)
    assert set(metrics["test"]) == {"this model", "ECFP + MLP", "ECFP + random forest", "mean of training"}
    train = [float(line["true_labels"]) for line in lines if line["split"] == "train"]
    assert metrics["test"]["mean of training"]["pooled"]["MAE"] == pytest.approx(np.abs(np.array(truth) - np.mean(train)).mean(), rel=1e-4)
    for word in ("this model", "ECFP + MLP", "64 train, 8 val, 8 test"):
        assert word in road.said["finetune"]


def test_the_model_file_gives_the_written_predictions(road):
    model, checkpoint = finetune.load_model(road / "runs" / "solubility" / "model.pt")
    data = finetune.Data(str(road / "solubility.csv"))
    pictures = finetune.draw_rows(data, 1, 150)
    got = finetune.predict_rows(model, pictures, [0, 40, 79], checkpoint["task"], 2, torch.device("cpu"))
    lines = rows_of(road / "runs" / "solubility" / "predictions.csv")
    assert got[:, 0] == pytest.approx([float(lines[row]["predicted_labels"]) for row in (0, 40, 79)], abs=1e-4)


def test_same_seed_same_numbers_and_two_seeds(road, desk):
    (desk / "encoder.pt").symlink_to(road / "encoder.pt")
    lines = first_lines("esol.csv", 41)
    lines[5] = lines[5].replace(lines[5].split(",")[1], "C1CC")
    desk.write("toy.csv", lines)
    said = desk.run("python finetune.py --data toy.csv --epochs 1 --seeds 1,2 --precision fp32 --split random")
    assert "row 4 (line 6) is left out: not a valid SMILES" in said
    desk.run("python finetune.py --data toy.csv --epochs 1 --seeds 1 --precision fp32 -o again")
    for name in ("predictions.csv", "splits.csv"):
        assert (desk / "again" / "seed-1" / name).read_bytes() == (desk / "runs" / "toy" / "seed-1" / name).read_bytes()
    lines = rows_of(desk / "again" / "predictions.csv")
    assert len(lines) == 40 and "SMILES" in lines[4]["error"] and lines[4]["predicted_labels"] == "" and lines[5]["predicted_labels"] != ""
    test = json.loads((desk / "runs" / "toy" / "metrics.json").read_text())["test"]["this model"]["MAE"]
    assert test["seeds"] == 2 and test["sd"] > 0


def test_dhbd_as_written(road, desk):
    """`python finetune.py --data dhbd.csv` takes the set in data/ and reads all its 6,994 rows (here it stops at the encoder)."""
    said = desk.run("python finetune.py --data dhbd.csv --init nowhere.pt", code=1)
    assert "taking" in said and "dhbd.csv" in said and "nowhere.pt: no such file" in said
    data = finetune.Data(str(ROOT / "data" / "dhbd.csv"))
    assert (len(data), data.targets, data.task) == (6994, ["labels"], "regression") and data.labels.mean() == pytest.approx(7.778, abs=0.001)


def test_a_classification_run(road, desk):
    (desk / "encoder.pt").symlink_to(road / "encoder.pt")
    lines = first_lines("esol.csv", 61)
    halves = [f"{line.split(',')[1]},{int(float(line.split(',')[2]) > -3)}" for line in lines[1:]]
    desk.write("dissolves.csv", ["smiles,dissolves"] + halves)
    said = desk.run("python finetune.py --data dissolves.csv --epochs 1 --split scaffold")
    assert "classification" in said and "ROC-AUC" in said
    probabilities = [float(line["predicted_dissolves"]) for line in rows_of(desk / "runs" / "dissolves" / "predictions.csv")]
    assert all(0 < p < 1 for p in probabilities)


@pytest.mark.parametrize("text, words, says", [
    ("name,value\na,1\n", [], "no SMILES column"),
    ("smiles,name\nCCO,a\n", [], "no column of numbers"),
    ("smiles,y\nCCO,1.5\nCCN,>100\nCCC,2\n", [], "row 1 (line 3): y is '>100', not a number"),
    ("smiles,y\nCCO,1.5\n", ["--target", "z"], "no column 'z'"),
    ("smiles,y\nCCO,1\nCCN,2\n", ["--task", "classification"], "labels 0 and 1 only; there is 2"),
    ("smiles,y\nCCO,\nCCN,\n", ["--target", "y"], "every label in y is blank"),
    ("smiles,y\nC1CC,1.5\n?,2.5\n", [], "none of its 2 rows is a readable molecule"),
    ("smiles,y\nCCO,1.5\nCCN,2.5\n", [], "at least 10 are needed"),
    ("", [], "is empty"),
    ("smiles,y\n", [], "but for its header"),
    ("smiles,y,y_1\nCCO,1 2,3\nCCN,2 3,4\n", [], "two targets would be called 'y_1'"),
    ('smiles,name,y\nCCO,"3-methyl,1\nCCN,b,2\nCCC,"c",3\n', [], "not a readable table"),
    ("smiles,y\nCCO,1e31\nCCN,2\nCCC,2\n", [], "row 0 (line 2)"),
])
def test_mistakes(road, tmp_path, text, words, says):
    (tmp_path / "t.csv").write_text(text)
    line = mistake(finetune.main, "--data", tmp_path / "t.csv", "--init", road / "encoder.pt", "-o", tmp_path / "run", *words)
    assert says in line and "t.csv" in line and not (tmp_path / "run").exists()


def test_a_finished_run_is_kept(road):
    line = mistake(finetune.main, "--data", road / "solubility.csv", "--init", road / "encoder.pt", "-o", road / "runs" / "solubility")
    assert "--overwrite" in line
    assert "each seed once" in mistake(finetune.main, "--data", "esol.csv", "--seeds", "3,3", code=2)
    assert "1,2,3" in mistake(finetune.main, "--data", "esol.csv", "--seeds", "1;2", code=2)
