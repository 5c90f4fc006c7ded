"""model.pt: it gives the predictions that are written beside it."""

import pytest
import torch
from conftest import rows_of

from moleclip.experiment import read_rows
from moleclip.model import load_model, predict_rows
from moleclip.table import Data
from moleclip.weights import load_encoder


def check_the_model_file(folder, source, rows=(0, 40, 79)):
    """The model.pt of a folder gives the predictions written beside it."""
    model, checkpoint = load_model(folder / "model.pt")
    pictures = read_rows(Data(str(source)))[0]["picture"]
    got = predict_rows(model, pictures, rows, checkpoint["task"], 2, torch.device("cpu"))
    lines = rows_of(folder / "predictions.csv")
    for t, name in enumerate(checkpoint["targets"]):
        written = [float(lines[row][f"predicted_{name}"]) for row in rows]
        assert got[:, t] == pytest.approx(written, abs=2e-4)
    return model


def test_the_model_file_gives_the_written_predictions(road):
    check_the_model_file(road / "runs" / "solubility", road / "solubility.csv")


def test_the_label_scale_keeps_its_names_in_the_file(road):
    """Files of all versions say center and spread."""
    model, checkpoint = load_model(road / "runs" / "solubility" / "model.pt")
    known = rows_of(road / "runs" / "solubility" / "predictions.csv")
    train = [float(line["true_log_solubility"]) for line in known if line["split"] == "train"]
    values = torch.tensor(train)
    assert checkpoint["center"].item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert checkpoint["spread"].item() == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    assert torch.equal(model.label_mean, checkpoint["center"])
    assert torch.equal(model.label_std, checkpoint["spread"])


def test_a_frozen_encoder_stays_and_its_head_fits(toy, road):
    toy.run("python finetune.py --data toy.csv --epochs 5 --freeze -o frozen")
    # The scaling of embeddings is in the head.
    model = check_the_model_file(toy / "frozen", toy / "toy.csv", rows=(0, 20, 39))
    start = load_encoder(str(road / "encoder.pt")).visual.state_dict()
    for name, value in model.encoder.visual.state_dict().items():
        assert torch.equal(value, start[name])
    words = "python finetune.py --data toy.csv --freeze --augment none -o x"
    assert "leave out --lr-encoder" in toy.run(words, code=2)


def test_raw_labels_r_groups_and_a_model_as_start(toy):
    words = "--raw-labels --r-groups --augment intense --init runs/toy/model.pt --force -o raw"
    said = toy.run(f"python finetune.py --data toy.csv --epochs 1 {words}")
    assert "--raw-labels is of the MLP: --head mlp" in said
    model, checkpoint = load_model(toy / "raw" / "model.pt")
    assert model.label_mean.item() == 0 and model.label_std.item() == 1
    assert checkpoint["config"]["r_groups"] is True
    data = Data(str(toy / "toy.csv"))
    plain = read_rows(data)[0]["picture"]
    ends = read_rows(data, r_groups=True)[0]["picture"]
    assert plain[0] != ends[0]
    got = predict_rows(model, ends, [0, 7], "regression", 2, torch.device("cpu"))
    lines = rows_of(toy / "raw" / "predictions.csv")
    written = [float(lines[row]["predicted_log_solubility"]) for row in (0, 7)]
    assert got[:, 0] == pytest.approx(written, abs=1e-4)
