"""Frozen heads first, then finetuning: what stands when, what is kept, and how it goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest
from conftest import ROOT, Desk, first_lines, mistake

import finetune
from moleclip import experiment, forest
from moleclip.model import load_model
from moleclip.stages import decide, read_validation, row_losses
from moleclip.table import Data

NAME = "log_solubility"


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A desk with 200 molecules, so that 20 validate, and the words of a run on them."""
    desk = Desk(tmp_path_factory.mktemp("stages"))
    desk.write("t.csv", first_lines("esol.csv", 201))
    desk.words = ["--data", desk / "t.csv", "--init", "scratch:nano", "--epochs", 1]
    desk.words += ["--precision", "fp32", "--augment", "none", "-o", desk / "run"]
    return desk


@pytest.fixture(autouse=True)
def small_forests(monkeypatch):
    monkeypatch.setattr(forest, "TREES", 5)
    monkeypatch.setattr(forest, "FOLD_TREES", 5)


def facts_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def run_without_baselines(words):
    line = [str(word) for word in words]
    finetune.run(finetune.main.make_context("finetune.py", line), with_baselines=False)


def test_an_interruption_keeps_the_frozen_head(stages, monkeypatch):
    """Exit code, message, a model to export; another --epochs may go on from there."""

    def leave(*_, **__):
        raise KeyboardInterrupt

    run = stages / "run"
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train", leave)
        with pytest.raises(click.ClickException) as stopped:
            run_without_baselines([*stages.words, "--epochs", 30])
    line, code = stopped.value.message, stopped.value.exit_code
    assert code == 130 and "keeps the frozen heads' model" in line
    assert "the same command goes on" in line
    facts = facts_of(run)
    assert facts["stage"] == "frozen" and "decision" not in facts
    assert facts["runs"][0]["head"]["learned_from"] == "train and val"
    assert load_model(run / "model.pt")[1]["heads"][0]["kind"] == "gp"  # what export.py takes
    untouched = (run / "frozen" / "seed-1" / "model.pt").stat().st_mtime_ns
    line = mistake(finetune.main, *stages.words, "--head", "mlp")
    assert "holds a finished run" in line
    shutil.copytree(run, stages / "better")
    run_without_baselines(stages.words)
    assert (run / "frozen" / "seed-1" / "metrics.json").stat().st_mtime_ns >= untouched
    facts = facts_of(run)
    # One epoch of a small random encoder can't gain on fingerprints.
    assert facts["stage"] == facts["decision"]["kept"] == "frozen"
    assert facts["decision"]["molecules"] == 20 and "standard error" in facts["decision"]["why"]
    assert (run / "seed-1" / "model.pt").read_bytes() == (run / "model.pt").read_bytes()
    assert not (run / "frozen" / "seed-1" / "model.pt").exists()
    assert "holds a finished run" in mistake(finetune.main, *stages.words)


def test_finetuned_is_kept_where_it_gains(stages):
    """As if the frozen head had said 9 of all validation molecules."""
    run = stages / "better"
    path = run / "frozen" / "seed-1" / "validation.csv"
    told = read_validation(path.parent)
    assert len(told) == 20
    path.write_text(f"row,predicted_{NAME}\n" + "".join(f"{row},9\n" for row in told))
    run_without_baselines([*stages.words[:-1], run])
    facts = facts_of(run)
    assert facts["stage"] == facts["decision"]["kept"] == "finetuned"
    assert set(facts["test"]) == {"this model", "frozen head"}
    models = [run / name / "model.pt" for name in ("", "seed-1")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert (run / "frozen" / "seed-1" / "model.pt").exists() and (run / "history.csv").exists()
    frozen = facts_of(run / "frozen" / "seed-1")["test"]["this model"]["pooled"]["MAE"]
    assert facts["test"]["frozen head"]["pooled"]["MAE"]["mean"] == pytest.approx(frozen, rel=1e-5)
    # The stage is what --head mlp gives.
    run_without_baselines([*stages.words[:-1], stages / "mlp", "--head", "mlp"])
    for name in ("history.csv", "predictions.csv"):
        texts = [(stages / each / name).read_text().splitlines() for each in ("better", "mlp")]
        if name == "history.csv":
            texts = [[line.rpartition(",")[0] for line in text] for text in texts]  # its seconds
        assert texts[0] == texts[1]


def test_few_validation_molecules_decide_nothing(stages):
    stages.write("few.csv", first_lines("esol.csv", 61))
    run_without_baselines(
        ["--data", stages / "few.csv", "--init", "scratch:nano", "-o", stages / "few"]
    )
    facts = facts_of(stages / "few")
    assert facts["stage"] == "frozen" and "6 validation molecules" in facts["decision"]["why"]
    assert "--head mlp" in facts["decision"]["why"] and not (stages / "few" / "finetuned").exists()


def test_sigterm_ends_it_as_elsewhere(stages):
    words = ["--data", "dhbd.csv", "--init", "scratch:nano", "-o", stages / "killed"]
    command = [sys.executable, ROOT / "finetune.py", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(0.1)
    process.stderr.readline()  # it reads the table: signals are heard
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.endswith("Error: interrupted\n")


def test_the_decision_is_paired():
    data = Data(str(ROOT / "data" / "esol.csv"))
    split = {"train": list(range(100)), "val": list(range(100, 140)), "test": [140]}
    truth, random = data.labels, np.random.default_rng(0)
    near = {row: truth[row] + random.normal(0, 0.1, 1) for row in split["val"]}
    far = {row: truth[row] + random.normal(0, 1, 1) for row in split["val"]}
    found = decide(data, [(split, far)], [(split, near)])
    losses = [row_losses(data, split, each) for each in (far, near)]
    gains = np.array([losses[0][row] - losses[1][row] for row in split["val"]])
    assert found["kept"] == "finetuned" and found["molecules"] == 40
    assert found["frozen"] - found["finetuned"] == pytest.approx(gains.mean())
    assert found["standard_error"] == pytest.approx(gains.std(ddof=1) / 40**0.5)
    unit = truth[split["train"]].std()
    assert losses[0][100] == pytest.approx(abs(far[100] - truth[100]).item() / unit)
    assert decide(data, [(split, near)], [(split, far)])["kept"] == "frozen"
    assert decide(data, [(split, near)], [(split, near)])["kept"] == "frozen"
    twice = decide(data, [(split, far)] * 2, [(split, near)] * 2)  # the same molecules
    assert twice["standard_error"] == pytest.approx(found["standard_error"])
