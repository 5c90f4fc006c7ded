"""Heads that held-out folds choose: from finetune.py to predict.py, with and without pictures."""

import json

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, Desk, first_lines, invoke, mistake, rows_of
from PIL import Image

import export
import finetune
import predict
from moleclip import choice, forest, heads
from moleclip.choice import MLP_FROM, Candidate, candidates
from moleclip.drawing import draw, layout
from moleclip.folds import tenths_of
from moleclip.molecules import parse, scaffold
from moleclip.onnxmodel import OnnxModel
from moleclip.pixels import deflate, to_rgb
from moleclip.table import Data


def finetuned(folder, *words, **parts):
    """Run finetune.py into folder/run."""
    line = [*map(str, words), "-o", str(folder / "run")]
    finetune.run(finetune.main.make_context("finetune.py", line), **parts)
    return folder / "run"


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A desk with a run of a Gaussian process on pictures and fingerprints, and its model.onnx."""
    desk = Desk(tmp_path_factory.mktemp("process"))
    table = desk.write("t.csv", first_lines("esol.csv", 71))
    words = ["--data", table, "--init", "scratch:nano", "--head", "gp"]
    finetuned(desk.folder, *words, "--features", "picture+ecfp", with_baselines=False)
    invoke(export.main, desk / "run", "-o", desk / "m.onnx")
    return desk


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
    """A desk with a run on fingerprints alone, of two classes, its head chosen, and model.onnx."""
    desk = Desk(tmp_path_factory.mktemp("bits"))
    lines = [line.split(",") for line in first_lines("esol.csv", 61)]
    words = {True: "soluble", False: "not"}
    rows = [
        f"{smiles},{words[float(value) > -2.5]}" for _, smiles, value in (x[:3] for x in lines[1:])
    ]
    table = desk.write("t.csv", ["smiles,water", *rows])
    finetuned(desk.folder, "--data", table, "--features", "ecfp")
    invoke(export.main, desk / "run", "-o", desk / "m.onnx")
    return desk


def predicted(desk, source, *words):
    """Run predict.py and return (its lines, what it said)."""
    out = desk / "p.csv"
    said = invoke(predict.main, desk / "m.onnx", source, "-o", out, "--workers", "1", *words)
    return rows_of(out), said


def numbers(lines, name):
    return [float(line[name]) for line in lines]


def test_the_run_says_what_was_chosen(process):
    facts = json.loads((process / "run" / "seed-1" / "metrics.json").read_text())
    head = facts["head"]
    assert head["chosen"] == "Gaussian process on picture+ecfp" and head["rows"] == 63
    assert head["learned_from"] == "train and val" and facts["best_epoch"] is None
    (line,) = rows_of(process / "run" / "choice.csv")
    assert line["chosen"] == "yes" and float(line["loss"]) == pytest.approx(facts["val_loss"])
    pooled = facts["test"]["this model"]["pooled"]
    test = [
        each for each in rows_of(process / "run" / "predictions.csv") if each["split"] == "test"
    ]
    truth, low, high = (numbers(test, f"{kind}_log_solubility") for kind in ("true", "low", "high"))
    inside = [a <= x <= b for x, a, b in zip(truth, low, high)]
    assert pooled["coverage"] == pytest.approx(np.mean(inside))
    assert pooled["width"] == pytest.approx(np.mean(np.subtract(high, low)), rel=1e-5)
    assert not (process / "run" / "history.csv").exists()


def test_the_file_gives_what_the_run_gave(process):
    """Mean, spread and interval; a row that can't be read has its reason."""
    known = rows_of(process / "run" / "predictions.csv")[:12]
    smiles = [line["smiles"] for line in known] + ["C1CC"]
    (process / "a.smi").write_text("\n".join(smiles) + "\n")
    lines, _ = predicted(process, process / "a.smi")
    name = "log_solubility"
    for ours, theirs in (
        ("predicted", ""),
        ("spread", "_spread"),
        ("low", "_low"),
        ("high", "_high"),
    ):
        wanted = numbers(known, f"{ours}_{name}")
        assert numbers(lines[:-1], f"{name}{theirs}") == pytest.approx(wanted, abs=1e-4), ours
    assert lines[-1][f"{name}_low"] == "" and "SMILES" in lines[-1]["error"]
    table = OnnxModel(str(process / "m.onnx"), "cpu").predict(smiles)
    assert list(table) == [column for column in lines[0] if column != "name"]
    assert table[name][:-1] == pytest.approx(numbers(lines[:-1], name), abs=1e-5)
    assert np.isnan(table[name][-1]) and table["error"][-1] == lines[-1]["error"]
    assert list(table["row"]) == list(range(13)) and table["nearest_training"][0] == 1
    narrow, _ = predicted(process, process / "a.smi", "--interval", "0.5")
    for wide, line in zip(lines[:-1], narrow):
        assert float(wide[f"{name}_low"]) < float(line[f"{name}_low"]) < float(line[name])
    lines, said = predicted(process, process / "a.smi", "--interval", "0.99")
    assert "too few held-out molecules" in said and f"{name}_low" not in lines[0]


def test_a_picture_without_smiles_has_a_head_of_its_own(process):
    index = draw(layout(parse("CC(=O)Nc1ccc(O)cc1")))
    Image.fromarray(to_rgb(index)).save(process / "figure.png")
    lines, said = predicted(process, process / "figure.png")
    assert "predicted from pictures alone" in said
    model = OnnxModel(str(process / "m.onnx"), "cpu")
    assert model.inputs == ["images", "fingerprint"]
    told = model.run([deflate(index)])
    assert float(lines[0]["log_solubility"]) == pytest.approx(told["prediction"].item(), abs=0.05)
    assert told["prediction"] == told["prediction_picture"] and told["spread"].item() > 0
    assert float(lines[0]["log_solubility_low"]) < float(lines[0]["log_solubility_high"])


def test_fingerprints_that_can_not_be_left_out(process):
    line = mistake(export.main, process / "run", "-o", process / "x.onnx", "--no-fingerprints")
    assert "--head mlp" in line and not (process / "x.onnx").exists()


def test_fingerprints_alone_need_no_encoder(bits):
    """A classification: probabilities, Brier score, all candidates in the table."""
    facts = json.loads((bits / "run" / "seed-1" / "metrics.json").read_text())
    assert set(facts["head"]["among"]) == {"Gaussian process on ecfp", "random forest on ecfp"}
    assert facts["head"]["chosen"] == facts["head"]["rival"]
    assert {"Brier", "calibration error"} <= set(facts["test"]["this model"]["pooled"])
    names = {"ECFP + MLP", "ECFP + random forest", "ECFP + Gaussian process", "mean of training"}
    assert set(facts["test"]) == names | {"this model"}
    graph = onnx.load(bits / "m.onnx").graph
    assert [given.name for given in graph.input] == ["fingerprint"]
    known = rows_of(bits / "run" / "predictions.csv")
    (bits / "a.smi").write_text("\n".join(line["smiles"] for line in known) + "\n")
    lines, _ = predicted(bits, bits / "a.smi")
    assert numbers(lines, "water") == pytest.approx(numbers(known, "predicted_water"), abs=1e-4)
    assert all(0 < value < 1 for value in numbers(lines, "water"))
    words = bits / "m.onnx", bits / "a.smi", "-o", bits / "x.csv"
    assert "has no drawings" in mistake(predict.main, *words, "--views", "2")
    assert "has no embedding" in mistake(predict.main, *words, "--embeddings", bits / "x.npy")
    Image.new("RGB", (300, 300), "white").save(bits / "figure.png")
    words = bits / "m.onnx", bits / "figure.png", "-o", bits / "x.csv"
    assert "give SMILES" in mistake(predict.main, *words)


def test_forests_of_two_seeds_and_r_groups(tmp_path, monkeypatch):
    """One file of both, for any number of molecules at once; ends are dummy atoms."""
    monkeypatch.setattr(forest, "TREES", 8)
    monkeypatch.setattr(forest, "FOLD_TREES", 4)
    desk = Desk(tmp_path)
    table = desk.write("t.csv", first_lines("esol.csv", 61))
    words = ["--data", table, "--init", "scratch:nano", "--head", "forest", "--r-groups"]
    words += ["--features", "picture+ecfp", "--seeds", "1,2"]
    run = finetuned(desk.folder, *words, with_baselines=False)
    seeds = [rows_of(run / f"seed-{seed}" / "predictions.csv") for seed in (1, 2)]
    desk.write("a.smi", [line["smiles"] for line in seeds[0][:30]])
    name, wide = "predicted_log_solubility", ("log_solubility_low", "log_solubility_high")
    invoke(export.main, run / "seed-1", run / "seed-2", "-o", desk / "m.onnx")
    lines, _ = predicted(desk, desk / "a.smi", "--batch", "7")
    wanted = np.mean([numbers(each[:30], name) for each in seeds], 0)
    assert numbers(lines, "log_solubility") == pytest.approx(wanted, abs=0.02)
    apart = np.subtract(*(numbers(each[:30], name) for each in seeds)) / 2
    assert (np.array(numbers(lines, "log_solubility_spread")) > abs(apart) - 0.02).all()
    held = [a < b for a, b in zip(*(numbers(lines, end) for end in wide))]
    assert all(held)
    line = mistake(export.main, run, "-o", desk / "x.onnx", "--no-fingerprints")
    assert "--head mlp" in line


def test_an_mlp_keeps_no_training_molecules(tmp_path):
    """Nor does the head beside it, for pictures without SMILES."""
    table = Desk(tmp_path).write("t.csv", first_lines("esol.csv", 41))
    words = ["--data", table, "--init", "scratch:nano", "--head", "mlp"]
    run = finetuned(tmp_path, *words, "--features", "picture+ecfp", with_baselines=False)
    model = torch.load(run / "model.pt", weights_only=True)
    assert [head["kind"] for head in model["heads"]] == ["mlp", "mlp"]
    invoke(export.main, run, "-o", tmp_path / "m.onnx", "--no-fingerprints")


def test_an_mlp_has_intervals_too(tmp_path):
    table = Desk(tmp_path).write("t.csv", first_lines("esol.csv", 241))
    run = finetuned(tmp_path, "--data", table, "--features", "ecfp", "--head", "mlp")
    lines = [line for line in rows_of(run / "predictions.csv") if line["split"] == "test"]
    ends = [f"{end}_log_solubility" for end in ("low", "predicted", "high")]
    assert all(float(line[a]) < float(line[b]) for line in lines for a, b in zip(ends, ends[1:]))
    facts = json.loads((run / "seed-1" / "metrics.json").read_text())
    pooled = facts["test"]["this model"]["pooled"]
    assert 0.6 <= pooled["coverage"] <= 1 and pooled["width"] > 0
    assert 0 < facts["val_against_mean"] < 1  # of the rows that it was not fitted to


def test_an_interrupted_run_goes_on(bits):
    names = ("predictions.csv", "metrics.json", "choice.csv", "scores.csv", "report.png")
    before = {name: (bits / "run" / name).read_bytes() for name in names}
    (bits / "run" / "metrics.json").unlink()
    finetuned(bits.folder, "--data", bits / "t.csv", "--features", "ecfp")
    assert {name: (bits / "run" / name).read_bytes() for name in names} == before


def test_the_mlp_is_compared_on_a_tenth(tmp_path, monkeypatch):
    """From 2,000 rows on; and where a Gaussian process would cost too much, it is left out."""
    monkeypatch.setattr(choice, "MLP_FROM", 40)
    monkeypatch.setattr(choice, "EPOCHS", 3)
    monkeypatch.setattr(choice, "too_costly", lambda labels: True)
    (tmp_path / "t.csv").write_text("\n".join(first_lines("esol.csv", 71)) + "\n")
    words = ["--data", tmp_path / "t.csv", "--features", "ecfp", "--lr-head", "1e-3"]
    run = finetuned(tmp_path, *words, with_baselines=False)
    head = json.loads((run / "seed-1" / "metrics.json").read_text())["head"]
    assert set(head["among"]) == {"random forest on ecfp", "MLP on ecfp"}
    assert head["held_out"] == "a tenth"
    words = [
        "--data",
        tmp_path / "t.csv",
        "--features",
        "ecfp",
        "--head",
        "gp",
        "-o",
        tmp_path / "x",
    ]
    assert "take --head forest" in mistake(finetune.main, *words)


def test_tenths_are_whole_scaffolds_or_molecules():
    data = Data(str(ROOT / "data" / "freesolv.csv"))
    rows = list(range(300))
    tenths = tenths_of(data, rows, "scaffold", 1)
    found = {}
    for row, tenth in zip(rows, tenths):
        found.setdefault(scaffold(data.smiles[row]), set()).add(tenth)
    # half have no ring, a fifth a benzene ring alone: a scaffold split never tests them
    assert len(found.pop("")) == len(found.pop("c1ccccc1")) == 10
    assert all(len(each) == 1 for each in found.values())
    assert set(np.bincount(tenths, minlength=10)) == {30}
    sizes = np.bincount(tenths_of(data, rows, "random", 1), minlength=10)
    assert sizes.max() - sizes.min() <= 2 and sizes.sum() == 300


def test_what_is_compared():
    names = lambda *words: {(each.kind, each.uses) for each in candidates(*words)}
    for seen in (("picture",), ("graph",), ("picture", "graph")):
        both = (*seen, "ecfp")
        few = {("gp", both), ("gp", ("ecfp",)), ("gp", seen)}
        few |= {("forest", both), ("forest", ("ecfp",))}
        assert names("auto", "auto", seen, 100, False) == few
        many = few | {("mlp", both), ("mlp", ("ecfp",))}
        assert names("auto", "auto", seen, MLP_FROM, False) == many
        named = "+".join(seen)
        assert names("auto", named, seen, 100, True) == {("forest", seen)}
        left = {each for each in many if each[0] != "gp"}
        assert names("auto", "auto", seen, 20_000, True) == left
        assert candidates("mlp", f"{named}+ecfp", seen, 100, False) == [Candidate("mlp", both)]


def test_embeddings_that_are_no_numbers(tmp_path, monkeypatch):
    """Of one row: it is named, before any head is fitted."""
    plain = heads.FrozenEncoder.embeddings

    def broken(self, encoder, seed):
        found = plain(self, encoder, seed)
        found[7, 3] = float("nan")
        return found

    monkeypatch.setattr(heads.FrozenEncoder, "embeddings", broken)
    table = Desk(tmp_path).write("t.csv", first_lines("esol.csv", 21))
    words = ["--data", table, "--init", "scratch:nano", "--freeze", "-o", tmp_path / "run"]
    line = mistake(finetune.main, *words)
    assert "row 7 (line 9): the encoder's embedding is not a number" in line


def test_options_that_contradict(tmp_path):
    words = ["--data", "esol.csv", "-o", tmp_path / "run"]
    for more, says in (
        (["--head", "gp", "--lr-head", "1e-3"], "is of the MLP"),
        (["--features", "ecfp", "--epochs", "5"], "is of the MLP"),
        (["--features", "ecfp", "--init", "scratch:nano"], "need no encoder"),
        (["--head", "forest", "--augment", "none"], "leave out --lr-encoder and --augment"),
    ):
        assert says in mistake(finetune.main, *words, *more, code=2)
