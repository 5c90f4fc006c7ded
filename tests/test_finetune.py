"""finetune.py as people run it: seeds, processes, parts left out, and their mistakes."""

import json

import pytest
import torch
from conftest import ROOT, first_lines, invoke, mistake, rows_of

import finetune
from moleclip import experiment, heads, training
from moleclip.heads import HEAD_EPOCHS, HEAD_PATIENCE, train_head
from moleclip.table import Data
from moleclip.training import scale_lr, warmup_cosine


def column(path, name):
    """A column of a CSV file as numbers, 0 where it is blank."""
    return [float(line[name] or 0) for line in rows_of(path)]


def test_same_seed_same_numbers_and_two_seeds(toy):
    assert "row 4 (line 6) is left out: not a valid SMILES" in toy.said
    assert "an epoch of both takes" in toy.said and "--freeze" in toy.said
    toy.run("python finetune.py --data toy.csv --head mlp --epochs 2 -o again", OMP_NUM_THREADS="1")
    for name in ("predictions.csv", "splits.csv", "scores.csv"):
        before = toy / "runs" / "toy" / "seed-1" / name
        assert (toy / "again" / "seed-1" / name).read_bytes() == before.read_bytes()
    lines = rows_of(toy / "again" / "predictions.csv")
    assert len(lines) == 40 and "SMILES" in lines[4]["error"]
    assert lines[4]["predicted_log_solubility"] == "" and lines[5]["predicted_log_solubility"] != ""


def test_two_processes_learn_what_one_does(toy):
    """In fp32, since bf16 rounds each slice on its own; with augmentation and odd batches."""
    words = "finetune.py --data toy.csv --head mlp --epochs 2 --batch 7 --precision fp32"
    toy.run(f"torchrun --nproc_per_node=2 {words} -o two", OMP_NUM_THREADS="1")
    said = toy.run(f"python {words} -o one", OMP_NUM_THREADS="1")
    assert "cpu in fp32 (as asked)" in said
    for kind in ("train_loss", "val_loss"):
        one, two = (column(toy / name / "history.csv", kind) for name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)
    files = (toy / name / "predictions.csv" for name in ("one", "two"))
    one, two = (column(path, "predicted_log_solubility") for path in files)
    assert two == pytest.approx(one, rel=1e-3, abs=1e-3)


@pytest.fixture
def watched(monkeypatch):
    """What training does: the names of heads that learn alone, and (optimizers, rates' factor)."""
    names, factors = [], []

    def watch_head(*words):
        names.append(words[-1].name)
        return train_head(*words)

    def watch_rates(optimizers, factor):
        factors.append((len(optimizers), factor))
        scale_lr(optimizers, factor)

    for module in (experiment, heads):
        monkeypatch.setattr(module, "train_head", watch_head)
    monkeypatch.setattr(training, "scale_lr", watch_rates)
    return names, factors


def test_the_head_learns_first(toy, tmp_path, watched):
    """Epoch 0 is what a frozen run gives; it is kept if training both makes it worse.

    A grid trains a head once for each of its rates. In fp32, as embeddings are.
    """
    names, factors = watched
    words = ["--data", toy / "toy.csv", "--init", toy / "encoder.pt", "--lr-head", "1e-3"]
    words += ["--head", "mlp", "--batch", 16, "--precision", "fp32"]
    frozen = ["--freeze", "--epochs", HEAD_EPOCHS, "--patience", HEAD_PATIENCE]
    head, both, alone = (tmp_path / name for name in ("head", "both", "alone"))
    invoke(finetune.main, *words, *frozen, "-o", head)
    words += ["--epochs", 3, "--augment", "none", "--lr-encoder"]
    said = invoke(finetune.main, *words, "1e-9,0.01", "-o", both)
    assert names == ["seed 1", "seed 1, head"] and "going on" not in said
    history, probed = rows_of(both / "history.csv"), rows_of(head / "history.csv")
    assert [line["epoch"] for line in history] == ["0", "1", "2", "3"]
    assert {factor for optimizers, factor in factors if optimizers == 1} == {1.0}
    wanted = [warmup_cosine((i + 0.5) / 9) for i in range(9)] * 2  # 33 molecules
    assert [factor for optimizers, factor in factors if optimizers == 2] == pytest.approx(wanted)
    ruined = both / "grid" / "lr-encoder-0.01_lr-head-0.001_augment-none" / "seed-1"
    facts = json.loads((ruined / "metrics.json").read_text())
    assert facts["best_epoch"] == 0 and len(rows_of(both / "grid.csv")) == 2
    assert facts["val_loss"] == pytest.approx(float(history[0]["val_loss"]))
    # A young head stands at 0.8 of its first loss.
    assert float(history[1]["train_loss"]) < 0.6 * float(probed[0]["train_loss"])
    kept = min(probed, key=lambda h: (float(h["val_loss"]), -int(h["epoch"])))
    assert float(history[0]["val_loss"]) == pytest.approx(float(kept["val_loss"]), rel=1e-5)
    invoke(finetune.main, *words, 0.01, "-o", alone)  # the weights of epoch 0, encoder and head
    files = (folder / "predictions.csv" for folder in (head, alone))
    head, alone = (column(path, "predicted_log_solubility") for path in files)
    assert alone == pytest.approx(head, abs=1e-4)


def test_parts_can_be_left_out(toy, tmp_path, watched):
    """For benchmarks: no fingerprints, no head that learns first, rates that stay."""
    names, factors = watched
    words = [
        "--data",
        toy / "toy.csv",
        "--init",
        toy / "encoder.pt",
        "--head",
        "mlp",
        "--epochs",
        1,
    ]
    context = finetune.main.make_context("finetune.py", [*map(str, words), "-o", str(tmp_path)])
    parts = {"with_baselines": False, "head_first": False, "rates": lambda done: 0.5}
    finetune.run(context, **parts)
    assert names == [] and set(factors) == {(2, 0.5)}
    assert [line["epoch"] for line in rows_of(tmp_path / "history.csv")] == ["1"]
    assert {line["method"] for line in rows_of(tmp_path / "scores.csv")} == {"this model"}


def test_out_of_memory_names_the_flag(toy, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(experiment, "train", full)
    words = ["--data", toy / "toy.csv", "--init", toy / "encoder.pt", "-o", tmp_path / "full"]
    words += ["--head", "mlp"]
    assert "lower --batch" in mistake(finetune.main, *words)


def test_dhbd_as_written(road, desk):
    """`python finetune.py --data dhbd.csv` takes the set in data/ and reads all its 6,994 rows.

    Here it stops at the encoder.
    """
    said = desk.run("python finetune.py --data dhbd.csv --init nowhere.pt", code=1)
    assert "taking" in said and "dhbd.csv" in said and "nowhere.pt: no such file" in said
    data = Data(str(ROOT / "data" / "dhbd.csv"))
    assert (len(data), data.targets, data.task) == (6994, ["gap_eV"], "regression")
    assert data.labels.mean() == pytest.approx(7.778, abs=0.001)


def side_effects():
    """The lines of a table as BBBP was first published, with 27 targets as SIDER has.

    SMILES in the last column, some unreadable; rare positives.
    """
    names = ",".join(f"effect {k}" for k in range(27))
    lines = [f"num,name,{names},smiles"]
    for i, line in enumerate(first_lines("esol.csv", 60, 1)):
        _, smiles, value = line.split(",")[:3]
        known = [str(int(float(value) > -3 - 0.1 * k)) for k in range(27)]
        labels = ["" if (i + k) % 11 == 0 else label for k, label in enumerate(known)]
        lines.append(f"{i},x{i},{','.join(labels)},{'C(C' if i in (3, 9) else smiles}")
    return lines


def test_a_classification_run(toy):
    toy.write("dissolves.csv", side_effects())
    words = "python finetune.py --data dissolves.csv --epochs 1 --pos-weight auto --freeze"
    said, out = toy.run(words), toy / "runs" / "dissolves"
    assert "27 targets (effect 0, " in said and "row 3 (line 5) is left out" in said
    assert "classification" in said and "ROC-AUC" in said
    lines = rows_of(out / "predictions.csv")
    assert len(lines) == 60
    for i, line in enumerate(lines):
        assert i in (3, 9) or 0 < float(line["predicted_effect 26"]) < 1
    metrics = json.loads((out / "metrics.json").read_text())
    scores = metrics["test"]["ECFP + random forest"]
    assert len(scores["targets"]) == 27 and 0 <= scores["pooled"]["ROC-AUC"]["mean"] <= 1


TWO = "--task classification needs two classes, such as 0 and 1; y has more"


@pytest.mark.parametrize(
    "text, words, says",
    [
        ("name,value\na,1\n", [], "no SMILES column"),
        ("smiles,name\nCCO,a\nCC,b\nC,c\n", [], "no column of numbers"),
        ("smiles,y\nCCO,1.5\nCCN,high\nCCC,2\n", [], "row 1 (line 3): y is 'high', not a number"),
        ("smiles,y\nCCO,1.5\nCC,2.5\n", ["--target", "z"], "no column 'z'"),
        ("smiles,y\nCCO,1.5\nCCN,2\n", ["--task", "classification"], TWO),
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
    files = ["--data", tmp_path / "t.csv", "--init", road / "encoder.pt", "-o", tmp_path / "run"]
    line = mistake(finetune.main, *files, *words)
    assert says in line and "t.csv" in line and not (tmp_path / "run").exists()


def test_a_finished_run_is_kept(road):
    data, out = ["--data", road / "solubility.csv"], road / "runs" / "solubility"
    line = mistake(finetune.main, *data, "--init", road / "encoder.pt", "-o", out)
    assert "holds a finished run" in line
    says = "no column 'fold' for --split-column"
    assert says in mistake(finetune.main, *data, "--split-column", "fold")


@pytest.mark.parametrize(
    "option, value, says",
    [
        ("--seeds", "3,3", "each once"),
        ("--seeds", "1;2", "1,2,3"),
        ("--lr-head", "0", "a learning rate"),
        ("--augment", "some", "none, default, intense"),
        ("--split", "sorted", "nor a splits.csv that exists"),
        ("--pos-weight", "-1", "neither auto nor"),
    ],
)
def test_values_that_no_option_takes(option, value, says):
    assert says in mistake(finetune.main, "--data", "esol.csv", option, value, code=2)
