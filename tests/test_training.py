"""The training loop: its loss, its rates, and going on after an interruption."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import invoke, rows_of

import finetune
from moleclip import training
from moleclip.device import ALONE
from moleclip.drawing import draw, layout
from moleclip.embedder import Embedder
from moleclip.molecules import parse
from moleclip.movement import N_UNIFORMS
from moleclip.pixels import SIZE
from moleclip.table import Data
from moleclip.training import EncoderSource, Loss, scale_lr, take_step, warmup_cosine
from moleclip.weights import load_encoder


def test_the_loss_skips_missing_labels():
    missing = float("nan")
    outputs = torch.tensor([[1.0, 5.0], [2.0, 7.0]])
    labels = torch.tensor([[0.0, missing], [4.0, missing]])
    assert Loss("regression").mean(outputs, labels).item() == pytest.approx(1.5)
    logits, truth = torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.0], [0.0]])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    each = entropy(logits, truth, reduction="none").ravel()
    wanted = (5 * each[0] + each[1]).item()
    assert Loss("classification", [5.0])(logits, truth).item() == pytest.approx(wanted)


def test_rates_rise_over_a_tenth_and_fall():
    factors = [warmup_cosine(done) for done in (0.01, 0.05, 0.1, 0.55, 1)]
    assert factors == pytest.approx([0.1, 0.5, 1, 0.5, 0], abs=1e-9)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizers = [torch.optim.Adam([weight], 3e-5), torch.optim.Adam([weight], 1e-4)]
    for factor in (0.25, 1, 0.5):  # of the rate given, not of the last one
        scale_lr(optimizers, factor)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        assert rates == pytest.approx([factor * 3e-5, factor * 1e-4])
    fresh = torch.optim.Adam([weight], 1.0)  # as after a resumption
    fresh.load_state_dict(optimizers[0].state_dict())
    scale_lr([fresh], 1)
    assert fresh.param_groups[0]["lr"] == pytest.approx(3e-5)


def test_pictures_stay_packed_and_are_learned_as_drawn(toy):
    data = Data(str(toy / "toy.csv"))
    pictures = finetune.read_rows(data)[0]["picture"]
    rows, random = sorted(pictures), np.random.default_rng(1).random((len(pictures), N_UNIFORMS))
    assert sum(map(len, pictures.values())) < len(rows) * SIZE * SIZE / 10
    drawn = np.stack([draw(layout(parse(data.smiles[row]))) for row in rows])
    encoder = load_encoder("scratch:nano").eval()
    embedder = Embedder(encoder, torch.device("cpu"), None, "intense", 8)
    head = torch.nn.Linear(512, 1)
    source = EncoderSource(SimpleNamespace(head=head), pictures, embedder, ALONE)
    with torch.no_grad():
        assert torch.equal(source.features(rows), embedder.embed_batch(drawn, None))
        for part, outputs in source.micro_batches(rows, random):
            assert torch.equal(outputs, head(embedder.embed(drawn[part], random[part])))


def test_a_seed_goes_on_after_its_last_epoch(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", -1)
    words = ["--data", toy / "toy.csv", "--init", toy / "encoder.pt", "--epochs", 3]
    words += [
        "--head",
        "mlp",
        "--batch",
        32,
        "--precision",
        "fp32",
        "--lr-encoder",
        0.01,
        "-o",
    ]  # epoch 0 is best
    cut, whole, taken = tmp_path / "cut", tmp_path / "whole", []

    def power_cut(source, *rest):
        taken.append(isinstance(source, EncoderSource))
        if sum(taken) == 4:
            raise KeyboardInterrupt
        return take_step(source, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "take_step", power_cut)
        assert CliRunner().invoke(finetune.main, [*map(str, words), str(cut)]).exit_code
    assert (cut / "seed-1" / "progress.pt").exists()
    assert "going on after epoch 1" in invoke(finetune.main, *words, cut)
    invoke(finetune.main, *words, whole)
    assert not (cut / "seed-1" / "progress.pt").exists()
    for name in ("predictions.csv", "scores.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    keys = ("epoch", "train_loss", "val_loss")
    lines = [[line[key] for key in keys] for line in rows_of(whole / "history.csv")]
    assert lines == [[line[key] for key in keys] for line in rows_of(cut / "history.csv")]
    assert min(lines, key=lambda line: float(line[2]))[0] == "0"
