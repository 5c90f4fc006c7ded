import csv
import json
import shutil

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, Desk, first_lines, invoke, mistake
from sklearn import metrics as skm

import finetune
import pretrain
from moleclip.heads import train_head
from moleclip.metrics import print_table, score_all, summarise
from moleclip.model import load_model, predict_rows
from moleclip.molecules import scaffold
from moleclip.splits import make_split, random_scaffold_split, random_split, scaffold_split
from moleclip.table import Data, check_targets, label_scaling, positive_weights
from moleclip.training import Loss, PictureSource, scale_lr, take_step, warmup_cosine
from moleclip.weights import load_encoder


def read(tmp_path, text, **options):
    (tmp_path / "t.csv").write_text(text)
    return Data(str(tmp_path / "t.csv"), **options)


def rows_of(path):
    return list(csv.DictReader(open(path, newline="")))


@pytest.fixture(scope="module")
def esol():
    return Data(str(ROOT / "data" / "esol.csv"))


def test_esol_is_read_as_it_is(esol):
    assert (len(esol), esol.targets, esol.task, esol.smiles_column) == (
        1128,
        ["labels"],
        "regression",
        "smiles",
    )
    assert esol.labels.mean() == pytest.approx(-3.05, abs=0.005)


def test_columns_as_people_have_them(tmp_path):
    data = read(
        tmp_path,
        "num,SMILES,name,active,note,pIC50\n7,CCO,a,1,x,\n8,CCN,b,0,y,5.5\n9,CCC,c,,z,6 \n",
    )
    assert data.targets == ["active", "pIC50"] and data.task == "regression"
    assert (
        np.isnan(data.labels[2, 0])
        and data.labels[1].tolist() == [0, 5.5]
        and np.isnan(data.labels[0, 1])
    )
    assert (
        read(tmp_path, "SMILES,active,pIC50\nCCO,1,4.5\nCCN,0,\n", targets=["active"]).task
        == "classification"
    )


def test_several_labels_in_one_column(tmp_path):
    data = read(tmp_path, "indices,smiles,labels\n1,CCO, 0.2 0.3\n2,CCN, 0.4 nan\n")
    assert (
        data.targets == ["labels_1", "labels_2"]
        and np.isnan(data.labels[1, 1])
        and data.labels[0, 1] == pytest.approx(0.3)
    )


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
    train, val, test = random_split(usable, 2)
    np.random.seed(2)
    order = list(range(1128))
    np.random.shuffle(order)
    assert (
        test == [usable[i] for i in order[:112]]
        and val == [usable[i] for i in order[112:224]]
        and train == [usable[i] for i in order[224:]]
    )


def test_random_scaffolds_stay_together(esol):
    usable = list(range(len(esol)))
    parts, others = (random_scaffold_split(usable, esol.smiles, seed) for seed in (1, 2))
    assert (
        sorted(sum(parts, [])) == usable
        and parts != others
        and all(100 < len(rows) <= 112 for rows in parts[1:])
    )
    scaffolds = [{scaffold(esol.smiles[i]) for i in rows} for rows in parts]
    assert (
        not scaffolds[0] & scaffolds[1]
        and not scaffolds[0] & scaffolds[2]
        and not scaffolds[1] & scaffolds[2]
    )


def test_a_split_of_ones_own(tmp_path, capsys):
    words = ["train", "Valid", "test", "", "training", "val"]
    data = read(
        tmp_path,
        "smiles,y,fold\n"
        + "".join(f"{'C' * (i + 1)}O,{i}.5,{word}\n" for i, word in enumerate(words)),
        split_column="fold",
    )
    assert data.targets == ["y"]
    split = make_split(data, range(6), "column", 1)
    assert (
        split == {"train": [0, 4], "val": [1, 5], "test": [2]}
        and "2 train, 2 val, 1 test" in capsys.readouterr().out
    )
    (tmp_path / "s.csv").write_text("row,split,seed_2\n0,train,test\n1,val,val\n2,test,train\n")
    assert make_split(data, range(6), str(tmp_path / "s.csv"), 1) == {
        "train": [0],
        "val": [1],
        "test": [2],
    }
    assert make_split(data, range(6), str(tmp_path / "s.csv"), 2) == {
        "train": [2],
        "val": [1],
        "test": [0],
    }
    for text, says in (
        ("row,split\n0,train\n9,test\n", "ends at row 5"),
        ("row,split\n0,tarin\n", "row 0 is 'tarin'"),
        ("a,b\n1,2\n", "not a splits.csv"),
    ):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(click.ClickException, match=says):
            make_split(data, range(6), str(tmp_path / "s.csv"), 1)


def test_molecules_on_both_sides_are_counted(tmp_path, capsys):
    data = read(
        tmp_path,
        "smiles,y,split\nCCO,1.5,train\nOCC,2.5,test\nCCC,1.0,val\nC(O)C,3,test\n",
        split_column="split",
    )
    make_split(data, range(4), "column", 1)
    assert (
        "2 rows of val and test hold molecules that stand in the training part"
        in capsys.readouterr().err
    )


def test_metrics_leave_out_what_is_undefined():
    truth = np.array([[0, 1.0], [1, 1], [1, 1], [np.nan, 1]], np.float32)
    scores = score_all(
        truth,
        np.array([[0.2, 0.9], [0.4, 0.8], [0.1, 0.7], [0.5, 0.6]]),
        ["a", "b"],
        "classification",
    )
    each = scores["targets"]
    assert each["a"]["ROC-AUC"] == 0.5 and "ROC-AUC" not in each["b"] and each["b"]["accuracy"] == 1
    assert scores["pooled"]["ROC-AUC"] == 0.5 and scores["pooled"]["ROC-AUC defined for"] == 1
    assert all(
        np.isfinite(value) for part in (scores["pooled"], *each.values()) for value in part.values()
    )


def test_labels_of_any_size_are_standardised():
    labels = np.array([[1e-12, 1e9, 5.0], [3e-12, 1e9 + 50, 5.0], [np.nan, 1e9 + 100, 5.0]])
    center, spread = label_scaling(labels, "regression")
    assert center == pytest.approx([2e-12, 1e9 + 50, 5]) and spread == pytest.approx(
        [1e-12, np.std([0, 50, 100]), 5], rel=1e-6
    )


def test_the_loss_skips_missing_labels():
    outputs, labels = (
        torch.tensor([[1.0, 5.0], [2.0, 7.0]]),
        torch.tensor([[0.0, float("nan")], [4.0, float("nan")]]),
    )
    assert Loss("regression").mean(outputs, labels).item() == pytest.approx(1.5)
    logits, truth = torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.0], [0.0]])
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, truth, reduction="none"
    ).ravel()
    assert Loss("classification", [5.0])(logits, truth).item() == pytest.approx(
        (5 * each[0] + each[1]).item()
    )


def test_rare_positives_weigh_more():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, np.nan, 1], [0, 1, np.nan]])
    assert (
        positive_weights(labels, "auto").tolist() == [3, 2, 1]
        and positive_weights(labels, 2.5).tolist() == [2.5] * 3
    )


def test_intervals_over_seeds_are_students():
    found = summarise([1.0, 2.0, 4.0])
    assert (
        found["mean"] == pytest.approx(7 / 3)
        and found["sd"] == pytest.approx(1.527525)
        and found["ci95"] == pytest.approx(4.302653 * 1.527525 / 3**0.5, rel=1e-5)
    )
    assert summarise([2.0]) == {"mean": 2.0, "sd": None, "ci95": None, "seeds": 1}


def test_a_table_of_long_numbers_keeps_its_columns_apart(capsys):
    long = {"mean": -0.0009665, "sd": 0.0013, "ci95": 0.0013, "seeds": 5}
    print_table(
        {
            "mean of training": {
                "pooled": {"RMSE": long | {"mean": 2.115}, "R2": long | {"mean": -0.00096654}},
                "targets": {},
            }
        },
        5,
    )
    assert capsys.readouterr().out.splitlines()[-1].split("  ")[-1].strip() == "-0.0009665 ± 0.0013"


def test_the_run_folder(road):
    folder = road / "runs" / "solubility"
    for name in (
        "model.pt",
        "metrics.json",
        "predictions.csv",
        "splits.csv",
        "history.csv",
        "report.png",
        "config.json",
        "scores.csv",
    ):
        assert (folder / name).exists() and (folder / "seed-1" / name).exists(), name
    lines, history = rows_of(folder / "predictions.csv"), rows_of(folder / "history.csv")
    assert [int(line["row"]) for line in lines] == list(range(80)) and [
        h["epoch"] for h in history
    ] == ["0", "1", "2", "3"]
    metrics = json.loads((folder / "seed-1" / "metrics.json").read_text())
    best = min(history, key=lambda h: (float(h["val_loss"]), -int(h["epoch"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    test = [line for line in lines if line["split"] == "test"]
    truth, predicted = (
        [float(line[kind + "_labels"]) for line in test] for kind in ("true", "predicted")
    )
    assert len(test) == 8 and metrics["test"]["this model"]["pooled"]["MAE"] == pytest.approx(
        skm.mean_absolute_error(truth, predicted), rel=1e-4
    )
    assert set(metrics["test"]) == {
        "this model",
        "ECFP + MLP",
        "ECFP + random forest",
        "mean of training",
    }
    train = [float(line["true_labels"]) for line in lines if line["split"] == "train"]
    assert metrics["test"]["mean of training"]["pooled"]["MAE"] == pytest.approx(
        np.abs(np.array(truth) - np.mean(train)).mean(), rel=1e-4
    )
    for word in ("this model", "ECFP + MLP", "64 train, 8 val, 8 test"):
        assert word in road.said["finetune"]


def check_the_model_file(folder, source, rows=(0, 40, 79)):
    """The model.pt of a folder gives the predictions written beside it."""
    model, checkpoint = load_model(folder / "model.pt")
    data = Data(str(source))
    pictures = finetune.draw_rows(data)
    got = predict_rows(model, pictures, rows, checkpoint["task"], 2, torch.device("cpu"))
    lines = rows_of(folder / "predictions.csv")
    for t, name in enumerate(checkpoint["targets"]):
        assert got[:, t] == pytest.approx(
            [float(lines[row][f"predicted_{name}"]) for row in rows], abs=2e-4
        )
    return model


def test_the_model_file_gives_the_written_predictions(road):
    check_the_model_file(road / "runs" / "solubility", road / "solubility.csv")


@pytest.fixture(scope="module")
def toy(tmp_path_factory, road):
    """A desk with a table of 40 molecules, one unreadable, and the run over two seeds that it gave."""
    desk = Desk(tmp_path_factory.mktemp("toy"))
    (desk / "encoder.pt").symlink_to(road / "encoder.pt")
    lines = first_lines("esol.csv", 41)
    lines[5] = lines[5].replace(lines[5].split(",")[1], "C1CC")
    desk.write("toy.csv", lines)
    desk.said = desk.run(
        "python finetune.py --data toy.csv --epochs 2 --seeds 1,2", OMP_NUM_THREADS="1"
    )
    return desk


def test_same_seed_same_numbers_and_two_seeds(toy):
    assert (
        "row 4 (line 6) is left out: not a valid SMILES" in toy.said
        and "an epoch of both takes" in toy.said
        and "--freeze" in toy.said
    )
    toy.run("python finetune.py --data toy.csv --epochs 2 -o again", OMP_NUM_THREADS="1")
    for name in ("predictions.csv", "splits.csv", "scores.csv"):
        assert (toy / "again" / "seed-1" / name).read_bytes() == (
            toy / "runs" / "toy" / "seed-1" / name
        ).read_bytes()
    lines = rows_of(toy / "again" / "predictions.csv")
    assert (
        len(lines) == 40
        and "SMILES" in lines[4]["error"]
        and lines[4]["predicted_labels"] == ""
        and lines[5]["predicted_labels"] != ""
    )


def test_the_aggregate_over_seeds(toy):
    out = toy / "runs" / "toy"
    facts, seeds = (
        json.loads((out / "metrics.json").read_text()),
        [rows_of(out / f"seed-{seed}" / "predictions.csv") for seed in (1, 2)],
    )
    summary, each = (
        facts["test"]["this model"]["pooled"]["MAE"],
        [run["test"]["this model"]["pooled"]["MAE"] for run in facts["runs"]],
    )
    assert (
        summary["mean"] == pytest.approx(np.mean(each))
        and summary["sd"] == pytest.approx(np.std(each, ddof=1))
        and summary["ci95"] > summary["sd"]
    )
    best = min(facts["runs"], key=lambda run: run["val_loss"])["seed"]
    assert (
        facts["best_seed"] == best
        and (out / "model.pt").read_bytes() == (out / f"seed-{best}" / "model.pt").read_bytes()
    )
    lines, splits = (
        rows_of(out / "predictions.csv"),
        {line["row"]: line for line in rows_of(out / "splits.csv")},
    )
    assert len(lines) == 40 and len(splits) == 39
    for i, line in enumerate(lines):
        pair = [run[i]["predicted_labels"] for run in seeds]
        if i != 4:
            assert line["predicted_labels"] == pair[best - 1] and float(
                line["mean_labels"]
            ) == pytest.approx(np.mean([float(p) for p in pair]), rel=1e-5)
            assert int(line["tested"]) == sum(run[i]["split"] == "test" for run in seeds)
            assert [
                splits[str(i)]["seed_1"],
                splits[str(i)]["seed_2"],
                splits[str(i)]["split"],
            ] == [run[i]["split"] for run in seeds] + [seeds[best - 1][i]["split"]]
    scores = {
        (line["method"], line["target"], line["metric"]): line
        for line in rows_of(out / "scores.csv")
    }
    assert (
        float(scores["this model", "", "MAE"]["ci95"]) == pytest.approx(summary["ci95"], rel=1e-4)
        and ("ECFP + MLP", "labels", "RMSE") in scores
    )


def test_an_interrupted_run_goes_on(toy):
    out = toy / "runs" / "toy"
    before = {
        name: (out / name).read_bytes()
        for name in ("predictions.csv", "metrics.json", "splits.csv", "scores.csv")
    }
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "seed-2")
    untouched = (out / "seed-1" / "model.pt").stat().st_mtime_ns
    assert "another epochs (2, now 3)" in toy.run(
        "python finetune.py --data toy.csv --epochs 3 --seeds 1,2", code=1
    )
    toy.run("python finetune.py --data toy.csv --epochs 2 --seeds 1,2", OMP_NUM_THREADS="1")
    facts = [
        json.loads(text) for text in (before["metrics.json"], (out / "metrics.json").read_bytes())
    ]
    assert facts[0] == facts[1] and (out / "seed-1" / "model.pt").stat().st_mtime_ns == untouched
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_seed_goes_on_after_its_last_epoch(toy, monkeypatch):
    monkeypatch.setattr(finetune, "SAVE_EVERY", -1)
    words = [
        "--data",
        toy / "toy.csv",
        "--init",
        toy / "encoder.pt",
        "--epochs",
        3,
        "--batch",
        32,
        "--lr-encoder",
        0.01,
        "-o",
    ]  # so that epoch 0 is best
    real, taken = take_step, []

    def power_cut(source, *rest):
        taken.append(isinstance(source, PictureSource))
        if sum(taken) == 4:
            raise KeyboardInterrupt
        return real(source, *rest)

    monkeypatch.setattr(finetune, "take_step", power_cut)
    assert (
        CliRunner().invoke(finetune.main, [str(word) for word in [*words, toy / "cut"]]).exit_code
        and (toy / "cut" / "seed-1" / "progress.pt").exists()
    )
    monkeypatch.setattr(finetune, "take_step", real)
    assert "going on after epoch 1" in invoke(finetune.main, *words, toy / "cut")
    invoke(finetune.main, *words, toy / "whole")
    assert not (toy / "cut" / "seed-1" / "progress.pt").exists()
    for name in ("predictions.csv", "scores.csv"):
        assert (toy / "cut" / name).read_bytes() == (toy / "whole" / name).read_bytes()
    cut, whole = (
        [
            (line["epoch"], line["train_loss"], line["val_loss"])
            for line in rows_of(toy / name / "history.csv")
        ]
        for name in ("cut", "whole")
    )
    assert cut == whole and min(whole, key=lambda line: float(line[2]))[0] == "0"


def test_two_processes_learn_what_one_does(toy):
    """In fp32, since bf16 rounds each slice on its own; with augmentation, an odd batch and a short last one."""
    toy.write(
        "fp32.py",
        [
            f"import sys; sys.path.insert(0, {str(ROOT)!r})",
            "import finetune",
            "finetune.pretrain.pick_precision = lambda *_: (None, 'test')",
            "finetune.main()",
        ],
    )
    words = "fp32.py --data toy.csv --epochs 2 --batch 7"
    toy.run(f"torchrun --nproc_per_node=2 {words} -o two", OMP_NUM_THREADS="1")
    toy.run(f"python {words} -o one", OMP_NUM_THREADS="1")
    one, two = (rows_of(toy / name / "history.csv") for name in ("one", "two"))
    for kind in ("train_loss", "val_loss"):
        assert [float(h[kind]) for h in two] == pytest.approx(
            [float(h[kind]) for h in one], rel=1e-4
        )
    one, two = (rows_of(toy / name / "predictions.csv") for name in ("one", "two"))
    assert [float(line["predicted_labels"] or 0) for line in two] == pytest.approx(
        [float(line["predicted_labels"] or 0) for line in one], rel=1e-3, abs=1e-3
    )


def test_the_grid_is_decided_on_validation(toy):
    said = toy.run(
        "python finetune.py --data toy.csv --epochs 2 --lr-head 4e-4,1e-2 --freeze --seeds 1,2 -o grid",
        OMP_NUM_THREADS="1",
    )
    lines = rows_of(toy / "grid" / "grid.csv")
    assert len(lines) == 2 and [line["chosen"] for line in lines].count("yes") == 1
    best = min(lines, key=lambda line: float(line["val_loss"]))
    assert best["chosen"] == "yes" and f"lr_head {float(best['lr_head'])}" in said
    runs = json.loads((toy / "grid" / "metrics.json").read_text())["runs"]
    assert np.mean([run["val_loss"] for run in runs]) == pytest.approx(
        float(best["val_loss"]), rel=1e-4
    )
    assert json.loads((toy / "grid" / "config.json").read_text())["lr_head"] == float(
        best["lr_head"]
    )
    assert (
        len(list((toy / "grid").rglob("model.pt"))) == 3
        and len(list((toy / "grid" / "grid").rglob("metrics.json"))) == 4
    )


def test_a_frozen_encoder_stays_and_its_head_fits(toy, road):
    toy.run("python finetune.py --data toy.csv --epochs 5 --freeze -o frozen")
    model = check_the_model_file(
        toy / "frozen", toy / "toy.csv", rows=(0, 20, 39)
    )  # the scaling of embeddings is in the head
    start = load_encoder(str(road / "encoder.pt")).visual.state_dict()
    assert all(
        torch.equal(value, start[name]) for name, value in model.encoder.visual.state_dict().items()
    )
    assert "leave out --lr-encoder" in toy.run(
        "python finetune.py --data toy.csv --freeze --augment none -o x", code=2
    )


def test_rates_rise_over_a_tenth_and_fall():
    assert [warmup_cosine(done) for done in (0.01, 0.05, 0.1, 0.55, 1)] == pytest.approx(
        [0.1, 0.5, 1, 0.5, 0], abs=1e-9
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizers = [torch.optim.Adam([weight], 3e-5), torch.optim.Adam([weight], 1e-4)]
    for factor in (0.25, 1, 0.5):  # of the rate given, not of the last one
        scale_lr(optimizers, factor)
        assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == pytest.approx(
            [factor * 3e-5, factor * 1e-4]
        )
    fresh = torch.optim.Adam([weight], 1.0)  # as after a resumption
    fresh.load_state_dict(optimizers[0].state_dict())
    scale_lr([fresh], 1)
    assert fresh.param_groups[0]["lr"] == pytest.approx(3e-5)


def test_the_head_learns_first(toy, monkeypatch):
    """Epoch 0 is what a frozen run gives; it is kept if training both makes it worse, and a grid trains a head once for each of its rates."""
    real, factors, heads = scale_lr, [], []
    monkeypatch.setattr(
        finetune,
        "set_rates",
        lambda optimizers, factor: (
            factors.append((len(optimizers), factor)),
            real(optimizers, factor),
        ),
    )
    head = train_head
    monkeypatch.setattr(
        finetune,
        "train_head",
        lambda *words, **more: (heads.append(more["name"]), head(*words, **more))[1],
    )
    monkeypatch.setattr(
        pretrain, "pick_precision", lambda *_: (None, "test")
    )  # embeddings are fp32's, and so may be the rest
    words = [
        "--data",
        toy / "toy.csv",
        "--init",
        toy / "encoder.pt",
        "--lr-head",
        "1e-3",
        "--batch",
        16,
    ]
    invoke(
        finetune.main,
        *words,
        "--freeze",
        "--epochs",
        finetune.HEAD_EPOCHS,
        "--patience",
        finetune.HEAD_PATIENCE,
        "-o",
        toy / "head",
    )
    said = invoke(
        finetune.main,
        *words,
        "--epochs",
        3,
        "--augment",
        "none",
        "--lr-encoder",
        "1e-9,0.01",
        "-o",
        toy / "both",
    )
    frozen = rows_of(toy / "head" / "seed-1" / "history.csv")
    kept = min(frozen, key=lambda h: (float(h["val_loss"]), -int(h["epoch"])))
    assert heads == ["seed 1", "seed 1, head"] and "going on" not in said
    both = rows_of(toy / "both" / "history.csv")
    assert [line["epoch"] for line in both] == ["0", "1", "2", "3"]
    assert {factor for optimizers, factor in factors if optimizers == 1} == {1.0}
    assert [factor for optimizers, factor in factors if optimizers == 2] == pytest.approx(
        [warmup_cosine((i + 0.5) / 9) for i in range(9)] * 2
    )  # 33 molecules
    grid = rows_of(toy / "both" / "grid.csv")
    ruined = json.loads(
        (
            toy
            / "both"
            / "grid"
            / "lr-encoder-0.01_lr-head-0.001_augment-none"
            / "seed-1"
            / "metrics.json"
        ).read_text()
    )
    assert (
        ruined["best_epoch"] == 0
        and ruined["val_loss"] == pytest.approx(float(both[0]["val_loss"]))
        and len(grid) == 2
    )
    assert float(both[1]["train_loss"]) < 0.6 * float(
        frozen[0]["train_loss"]
    )  # a young head stands at 0.8
    assert float(both[0]["val_loss"]) == pytest.approx(float(kept["val_loss"]), rel=1e-5)
    invoke(
        finetune.main,
        *words,
        "--epochs",
        3,
        "--augment",
        "none",
        "--lr-encoder",
        0.01,
        "-o",
        toy / "ruined",
    )
    frozen, ruined = (
        [float(line["predicted_labels"] or 0) for line in rows_of(toy / name / "predictions.csv")]
        for name in ("head", "ruined")
    )
    assert ruined == pytest.approx(frozen, abs=1e-4)  # the weights of epoch 0, encoder and head


def test_raw_labels_r_groups_and_a_model_as_start(toy):
    toy.run(
        "python finetune.py --data toy.csv --epochs 1 --raw-labels --r-groups --augment intense --init runs/toy/model.pt -o raw"
    )
    model, checkpoint = load_model(toy / "raw" / "model.pt")
    assert (
        model.center.item() == 0
        and model.spread.item() == 1
        and checkpoint["config"]["r_groups"] is True
    )
    data = Data(str(toy / "toy.csv"))
    plain, ends = finetune.draw_rows(data), finetune.draw_rows(data, r_groups=True)
    assert not np.array_equal(plain[0], ends[0])
    got = predict_rows(model, ends, [0, 7], "regression", 2, torch.device("cpu"))
    assert got[:, 0] == pytest.approx(
        [
            float(rows_of(toy / "raw" / "predictions.csv")[row]["predicted_labels"])
            for row in (0, 7)
        ],
        abs=1e-4,
    )


def test_out_of_memory_names_the_flag(toy, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(finetune, "train_whole", full)
    assert "lower --batch" in mistake(
        finetune.main, "--data", toy / "toy.csv", "--init", toy / "encoder.pt", "-o", toy / "full"
    )


def test_targets_that_cannot_be_scored(tmp_path, capsys):
    rows = [
        ("train", 1, "", 0),
        ("train", 0, "", 0),
        ("val", 1, 1, 0),
        ("test", 1, 0, 0),
        ("test", 1, 1, 1),
    ]
    data = read(
        tmp_path,
        "smiles,a,b,c,split\n"
        + "".join(
            f"{'C' * (i + 1)},{a},{b},{c},{part}\n" for i, (part, a, b, c) in enumerate(rows)
        ),
        split_column="split",
    )
    split = make_split(data, range(5), "column", 1)
    check_targets(data, split)
    said = capsys.readouterr().err
    assert (
        "1 of 3 targets: no label in training, it is not scored: b" in said
        and "one value only in test, no AUC: a" in said
        and "one value only in training: c" in said
    )
    only = read(
        tmp_path, "smiles,y,split\nC,1,train\nCC,2.5,val\nCCC,,test\n", split_column="split"
    )
    with pytest.raises(
        click.ClickException, match="no target has labels both in training and in test"
    ):
        check_targets(only, {"train": [0], "val": [1], "test": [2]})


def test_dhbd_as_written(road, desk):
    """`python finetune.py --data dhbd.csv` takes the set in data/ and reads all its 6,994 rows (here it stops at the encoder)."""
    said = desk.run("python finetune.py --data dhbd.csv --init nowhere.pt", code=1)
    assert "taking" in said and "dhbd.csv" in said and "nowhere.pt: no such file" in said
    data = Data(str(ROOT / "data" / "dhbd.csv"))
    assert (len(data), data.targets, data.task) == (
        6994,
        ["labels"],
        "regression",
    ) and data.labels.mean() == pytest.approx(7.778, abs=0.001)


def test_a_classification_run(toy):
    """As BBBP was first published: SMILES in the last column, some unreadable; 27 targets as SIDER has; rare positives."""
    values = [
        (line.split(",")[1], float(line.split(",")[2])) for line in first_lines("esol.csv", 61)[1:]
    ]
    names = [f"effect {k}" for k in range(27)]
    toy.write(
        "dissolves.csv",
        ["num,name," + ",".join(names) + ",smiles"]
        + [
            f"{i},x{i},"
            + ",".join("" if (i + k) % 11 == 0 else str(int(y > -3 - 0.1 * k)) for k in range(27))
            + f",{'C(C' if i in (3, 9) else s}"
            for i, (s, y) in enumerate(values)
        ],
    )
    said = toy.run("python finetune.py --data dissolves.csv --epochs 1 --pos-weight auto --freeze")
    assert (
        "27 targets (effect 0, " in said
        and "classification" in said
        and "ROC-AUC" in said
        and "row 3 (line 5) is left out" in said
    )
    lines = rows_of(toy / "runs" / "dissolves" / "predictions.csv")
    assert len(lines) == 60 and all(
        0 < float(line["predicted_effect 26"]) < 1
        for i, line in enumerate(lines)
        if i not in (3, 9)
    )
    scores = json.loads((toy / "runs" / "dissolves" / "metrics.json").read_text())["test"][
        "ECFP + random forest"
    ]
    assert len(scores["targets"]) == 27 and 0 <= scores["pooled"]["ROC-AUC"]["mean"] <= 1


@pytest.mark.parametrize(
    "text, words, says",
    [
        ("name,value\na,1\n", [], "no SMILES column"),
        ("smiles,name\nCCO,a\n", [], "no column of numbers"),
        ("smiles,y\nCCO,1.5\nCCN,>100\nCCC,2\n", [], "row 1 (line 3): y is '>100', not a number"),
        ("smiles,y\nCCO,1.5\n", ["--target", "z"], "no column 'z'"),
        (
            "smiles,y\nCCO,1\nCCN,2\n",
            ["--task", "classification"],
            "labels 0 and 1 only; there is 2",
        ),
        ("smiles,y\nCCO,\nCCN,\n", ["--target", "y"], "every label in y is blank"),
        ("smiles,y\nC1CC,1.5\n?,2.5\n", [], "none of its 2 rows is a readable molecule"),
        ("smiles,y\nCCO,1.5\nCCN,2.5\n", [], "at least 10 are needed"),
        ("", [], "is empty"),
        ("smiles,y\n", [], "but for its header"),
        ("smiles,y,y_1\nCCO,1 2,3\nCCN,2 3,4\n", [], "two targets would be called 'y_1'"),
        ('smiles,name,y\nCCO,"3-methyl,1\nCCN,b,2\nCCC,"c",3\n', [], "not a readable table"),
        ("smiles,y\nCCO,1e31\nCCN,2\nCCC,2\n", [], "row 0 (line 2)"),
    ],
)
def test_mistakes(road, tmp_path, text, words, says):
    (tmp_path / "t.csv").write_text(text)
    line = mistake(
        finetune.main,
        "--data",
        tmp_path / "t.csv",
        "--init",
        road / "encoder.pt",
        "-o",
        tmp_path / "run",
        *words,
    )
    assert says in line and "t.csv" in line and not (tmp_path / "run").exists()


def test_a_finished_run_is_kept(road):
    line = mistake(
        finetune.main,
        "--data",
        road / "solubility.csv",
        "--init",
        road / "encoder.pt",
        "-o",
        road / "runs" / "solubility",
    )
    assert "holds a finished run" in line
    assert "each once" in mistake(finetune.main, "--data", "esol.csv", "--seeds", "3,3", code=2)
    for words, says in (
        (["--seeds", "1;2"], "1,2,3"),
        (["--lr-head", "0"], "a learning rate"),
        (["--augment", "some"], "none, default, intense"),
        (["--split", "sorted"], "nor a splits.csv that exists"),
        (["--pos-weight", "-1"], "neither auto nor"),
    ):
        assert says in mistake(finetune.main, "--data", "esol.csv", *words, code=2)
    assert "no column 'fold' for --split-column" in mistake(
        finetune.main, "--data", road / "solubility.csv", "--split-column", "fold"
    )
