"""export.py: one file of a model, an ensemble or an encoder, that gives what PyTorch gives."""

import functools
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import invoke, mistake, rows_of
from drawn import picture_of
from theirs import original_checkpoint

import export
import predict
from moleclip import trained
from moleclip.deploy import combine
from moleclip.drawing import draw, layout
from moleclip.features import pack_fingerprint, pack_text
from moleclip.model import load_model, mlp
from moleclip.molecules import parse, replace_terminals
from moleclip.onnxmodel import OnnxModel
from moleclip.pixels import to_rgb
from moleclip.weights import load_encoder, save_checkpoint

PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"


def variant(road, folder, seed, new_encoder=False, **changes):
    """Write folder/model.pt: the road's model with another head, and return the folder.

    new_encoder: whether its encoder is another, too; changes: of its entries.
    """
    _, checkpoint = load_model(road / "runs" / "solubility" / "model.pt")
    count = len(changes.get("targets", checkpoint["targets"]))
    torch.manual_seed(seed)
    entries = {
        "head": mlp(512, count).state_dict(),
        "center": torch.full((count,), float(seed)),
        "spread": torch.full((count,), 2.0),
        "encoder": {
            name: value + 0.01 * torch.randn_like(value) * new_encoder
            for name, value in checkpoint["encoder"].items()
        },
    }
    folder.mkdir(parents=True)
    shutil.copy(road / "runs" / "solubility" / "predictions.csv", folder)
    save_checkpoint(folder / "model.pt", **checkpoint | entries | changes)
    return folder


def to_pixels(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def torch_says(folder, images):
    """Return (embedding, prediction) of a run folder's model by PyTorch, without export.py."""
    model, checkpoint = load_model(folder / "model.pt")
    with torch.no_grad():
        embedding = model.encoder(to_pixels(images))
        return embedding.numpy(), model.unscale(model.head(embedding), checkpoint["task"]).numpy()


def onnx_says(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": images})))


def predict_into(out, model, source, *words):
    """Run predict.py and return the lines that it writes."""
    invoke(predict.main, model, source, "-o", out, "--workers", "1", *words)
    return rows_of(out)


@pytest.fixture
def prebuilt(road, monkeypatch):
    """Exports that are about what surrounds the graph take a finished one.

    PyTorch takes seconds to make one. It is the road's; a call names another file or changes it.
    """

    def take(path=road / "model.onnx", change=lambda graph: graph):
        monkeypatch.setattr(export, "to_onnx", lambda deployed, precision: change(onnx.load(path)))

    take()
    return take


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_onnx_gives_what_torch_gives(road, count):
    images = export.probe_pictures()[:count]
    got = onnx_says(road / "model.onnx", images)
    embedding, prediction = torch_says(road / "runs" / "solubility", images)
    assert np.abs(got["embedding"] - embedding).max() < 1e-4
    assert np.abs(got["prediction"] - prediction).max() < 1e-4


def test_a_finetuned_model_of_the_original(tmp_path):
    path = tmp_path / "11-28-26 10-05_1_seed1 - best_val.pth"
    network = original_checkpoint(path, layers=2)
    said = invoke(export.main, path, "-o", tmp_path / "m.onnx")
    assert "of classes logits" in said and "predicts output_1, output_2" in said
    images = export.probe_pictures()[:3]
    got, wanted = onnx_says(tmp_path / "m.onnx", images), network(to_pixels(images))
    assert np.abs(got["prediction"] - wanted).max() < 1e-4 and np.ptp(wanted[:, 0]) > 1e-3
    (line,) = predict_into(tmp_path / "a.csv", tmp_path / "m.onnx", small_file(tmp_path))
    assert float(line["output_2"]) == pytest.approx(wanted[0, 1], abs=1e-4)
    # --init takes its encoder, as it takes that of a run
    encoder, (model, _) = load_encoder(str(path)), load_model(path)
    assert encoder.arch == model.encoder.arch and encoder.arch["channels"] == "bgr"
    with torch.no_grad():
        assert torch.equal(encoder(to_pixels(images)), model.encoder(to_pixels(images)))


def small_file(folder):
    """A file of the first of the molecules that exports are tried on."""
    (folder / "a.smi").write_text(export.PROBES[0] + "\n")
    return folder / "a.smi"


@pytest.mark.parametrize(
    "layers, inputs, change, says",
    [
        (0, 512, {}, None),
        (3, 512, {}, None),
        (1, 640, {}, "its head takes 640 numbers, the encoder gives 512"),  # with a protein
        (1, 512, {"head": {}}, "its head doesn't fit"),
        (1, 512, {"head": {"0.weight": torch.zeros(2, 512)}}, "its head doesn't fit"),
        (1, 512, {"model": {}}, "holds no encoder"),
    ],
)
def test_heads_of_the_original(tmp_path, layers, inputs, change, says):
    network = original_checkpoint(tmp_path / "a.pth", layers, inputs)
    torch.save(torch.load(tmp_path / "a.pth") | change, tmp_path / "a.pth")
    if says:
        line = mistake(export.main, tmp_path / "a.pth", "-o", tmp_path / "m.onnx")
        assert f"a.pth: {says}" in line
        return
    model, _ = load_model(tmp_path / "a.pth")
    pixels = to_pixels(export.probe_pictures()[:2])
    with torch.no_grad():
        told = model.unscale(model.head(model.encoder(pixels)), "regression")
    assert np.abs(told.numpy() - network(pixels)).max() < 1e-4


def test_an_ensemble_has_mean_and_spread(road, tmp_path):
    folders = []
    for seed in (1, 2):
        kind = {"new_encoder": seed > 1, "task": "classification"}
        folders.append(variant(road, tmp_path / f"seed-{seed}", seed, **kind))
    said = invoke(export.main, *folders, "-o", tmp_path / "m.onnx")
    images = export.probe_pictures()[:5]
    got = onnx_says(tmp_path / "m.onnx", images)
    members = np.stack([torch_says(folder, images)[1] for folder in folders])
    assert list(got) == ["prediction", "spread"] and "an ensemble of 2" in said
    assert got["prediction"] == pytest.approx(members.mean(0), abs=1e-5)
    assert got["spread"] == pytest.approx(members.std(0), abs=1e-5) and got["spread"].min() > 0
    assert ((got["prediction"] > 0) & (got["prediction"] < 1)).all()
    (tmp_path / "a.smi").write_text("CCO\nC1CC\n")
    words = tmp_path / "m.onnx", tmp_path / "a.smi"
    first, second = predict_into(tmp_path / "a.csv", *words)
    columns = ["log_solubility", "log_solubility_spread", "nearest_training", "note", "error"]
    assert list(first) == ["row", "smiles", "name", *columns]
    assert float(first["log_solubility"]) == pytest.approx(got["prediction"][0, 0], abs=1e-5)
    assert float(first["log_solubility_spread"]) == pytest.approx(got["spread"][0, 0], abs=1e-5)
    assert second["log_solubility_spread"] == "" and second["error"]
    line = mistake(predict.main, *words, "--embeddings", tmp_path / "e.npy")
    assert "has no embedding" in line


def test_heads_on_one_frozen_encoder_share_it(road, tmp_path):
    two = {"targets": ["x", "y"], "center": torch.tensor([5.0, -5.0])}
    one = {"targets": ["active"], "task": "classification"}
    folders = [variant(road, tmp_path / "a", 1, **two), variant(road, tmp_path / "b", 2, **one)]
    out = tmp_path / "m.onnx"
    invoke(export.main, *folders, "-o", out, "--no-sketch")  # the older name
    images = export.probe_pictures()[:4]
    got, wanted = onnx_says(out, images), [torch_says(folder, images) for folder in folders]
    assert got["embedding"] == pytest.approx(wanted[0][0], abs=1e-4)
    columns = np.concatenate([wanted[0][1], wanted[1][1]], 1)
    assert got["prediction"] == pytest.approx(columns, abs=1e-4)
    facts = OnnxModel(str(out), "cpu").facts
    assert facts["targets"] == ["x", "y", "active"] and facts["task"] == "mixed"
    assert facts["tasks"] == ["regression", "regression", "classification"]
    # A head more, no second encoder.
    assert out.stat().st_size < (road / "model.onnx").stat().st_size + 4 * 1.2e6


def test_r_groups_are_drawn_as_in_training(road, tmp_path, prebuilt):
    run, out = variant(road, tmp_path / "run", 3, config={"r_groups": True}), tmp_path / "m.onnx"
    # By force: its weights are the road's.
    invoke(export.main, run, "-o", out, "--force", "--precision", "int8")
    (tmp_path / "a.smi").write_text(f"{PARACETAMOL}\n")
    (line,) = predict_into(tmp_path / "p.csv", out, tmp_path / "a.smi")
    replaced = draw(layout(replace_terminals(parse(PARACETAMOL))))
    images = to_rgb(np.stack([picture_of(PARACETAMOL), replaced]))
    plain, ends = onnx_says(road / "model.onnx", images)["prediction"].ravel()
    assert float(line["log_solubility"]) == pytest.approx(ends, abs=1e-4)
    assert plain != pytest.approx(ends, abs=1e-4)


def test_what_cannot_be_one_file(road, tmp_path):
    plain, run = variant(road, tmp_path / "plain", 1), road / "runs" / "solubility"
    out = tmp_path / "m.onnx"
    for name, says, seed, changes in (
        ("b", "export them separately", 2, {"new_encoder": True, "targets": ["x"]}),
        ("c", "'log_solubility' stands in several", 2, {"targets": ["x", "log_solubility"]}),
        ("d", "hold the same model", 1, {}),
        ("e", "was trained on other drawings", 2, {"config": {"max_atoms": 40}}),
    ):
        other = variant(road, tmp_path / name, seed, **changes)
        assert says in mistake(export.main, plain, other, "-o", out)
    assert "hold the same model" in mistake(export.main, run, run / "seed-1", "-o", out)
    assert "takes one run" in mistake(export.main, plain, run, "--encoder-only")
    assert not out.exists()


def test_what_means_different_things_is_no_ensemble(road, tmp_path, capsys):
    config = load_model(road / "runs" / "solubility" / "model.pt")[1]["config"]
    other = {"data": "dhbd.csv", "data_sha256": "0" * 64}
    older = {key: value for key, value in config.items() if key != "data_sha256"}
    far, wide = {"center": torch.tensor([9.0])}, {"spread": torch.tensor([5.0])}
    plain = variant(road, tmp_path / "plain", 1)
    for name, says, changes in (
        ("a", "on different tables (solubility.csv, dhbd.csv)", {"config": config | other}),
        ("b", "their labels' scales differ (mean [1.0], SD [2.0]", {"config": older} | far),
        ("c", "their labels' scales differ", {"config": older} | wide),
        ("d", "in different units", {"units": ["mol/L"]}),
        ("e", "of different classes", {"classes": [["active", "inactive"]]}),
    ):
        run = variant(road, tmp_path / name, 2, **changes)
        line = mistake(export.main, plain, run, "-o", tmp_path / "m.onnx")
        assert says in line and "--force" in line
        deployed, _ = combine([plain / "model.pt", run / "model.pt"], force=True)
        assert deployed.ensemble and f"warning: {plain}" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()
    # Older runs that can't say more, and a label scale of another part of the same table.
    for name, changes in (("f", {"config": older}), ("g", {"center": torch.tensor([9.0])})):
        run = variant(road, tmp_path / name, 2, **changes)
        assert combine([plain / "model.pt", run / "model.pt"])[0].ensemble


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_stay_within_their_bounds(road, tmp_path, precision, request, monkeypatch):
    run, out = road / "runs" / "solubility", tmp_path / "m.onnx"
    if precision == "int8":  # it begins with the graph that the road has already
        fitted = [{"images": export.probe_pictures()}]
        change = functools.partial(export.to_int8, given=fitted)
        request.getfixturevalue("prebuilt")(change=change)
    words = run, "--precision", precision, "-o"
    assert "cosine" in invoke(export.main, *words, out)
    images = export.probe_pictures()
    got, prediction = onnx_says(out, images), torch_says(run, images)[1]
    gap = np.abs(got["prediction"] - prediction) / load_model(run / "model.pt")[1]["spread"].item()
    bounds = export.BOUNDS[precision]
    assert 0 < gap.max() < bounds["worst"] and gap.mean() < bounds["mean"]
    assert got["prediction"].dtype == got["embedding"].dtype == np.float32
    check_weights(onnx.load(out).graph.initializer, precision)
    assert out.stat().st_size < (road / "model.onnx").stat().st_size
    request.getfixturevalue("prebuilt")(out)
    monkeypatch.setitem(export.BOUNDS, precision, {"worst": 1e-9, "mean": 1e-9, "cosine": 1.0})
    line = mistake(export.main, *words, tmp_path / "refused.onnx")
    assert "worst difference" in line and "--force" in line
    assert not (tmp_path / "refused.onnx").exists()
    said = invoke(export.main, *words, tmp_path / "forced.onnx", "--force")
    assert "written because of --force" in said


def check_weights(weights, precision):
    """Hold that the encoder's weights have this precision, and the heads' are fp32."""
    kinds = {weight.data_type for weight in weights if np.prod(weight.dims) == 64 * 256}  # its MLPs
    small = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}
    assert kinds == {small[precision]}
    heads = [weight for weight in weights if ".head." in weight.name and len(weight.dims) == 2]
    assert len(heads) == 4 and {head.data_type for head in heads} == {onnx.TensorProto.FLOAT}


def test_fp32_that_differs_is_refused_even_by_force(road, tmp_path, monkeypatch, prebuilt):
    monkeypatch.setitem(export.BOUNDS, "fp32", {"worst": 0.0, "mean": 0.0, "cosine": 2.0})
    words = road / "runs" / "solubility", "-o", tmp_path / "m.onnx", "--force"
    assert "not written" in mistake(export.main, *words)
    assert not list(tmp_path.iterdir())
    nothing = {"worst": float("nan"), "mean": 0.0, "cosine": None}
    assert "nan" in export.broken_bounds(nothing, "int8")
    nothing = {"worst": 0.0, "mean": 0.0, "cosine": float("nan")}
    assert "cosine nan" in export.broken_bounds(nothing, "int8")


def test_the_encoder_alone(road, tmp_path):
    out = tmp_path / "e.onnx"
    invoke(export.main, road / "encoder.pt", "--encoder-only", "-o", out)
    images = export.probe_pictures()[:3]
    with torch.no_grad():
        wanted = load_encoder(str(road / "encoder.pt"))(to_pixels(images)).numpy()
    got = onnx_says(out, images)
    assert list(got) == ["embedding"] and got["embedding"] == pytest.approx(wanted, abs=1e-4)
    (tmp_path / "a.smi").write_text("CCO\n")
    words = out, tmp_path / "a.smi"
    assert "give --embeddings" in mistake(predict.main, *words, "-o", tmp_path / "a.csv")
    embeddings = "--embeddings", tmp_path / "a.npy"
    (line,) = predict_into(tmp_path / "a.csv", *words, *embeddings)
    assert np.load(tmp_path / "a.npy") == pytest.approx(wanted[:1], abs=1e-4)
    assert list(line) == ["row", "smiles", "name", "note", "error"]


def trained_on(run):
    """The training molecules of a run folder."""
    lines = rows_of(run / "predictions.csv")
    return [line["smiles"] for line in lines if line["split"] == "train"]


def test_the_fingerprints_are_of_the_training_molecules(road, tmp_path):
    model, train = road / "model.onnx", trained_on(road / "runs" / "solubility")
    wanted = {pack_fingerprint(parse(smiles)).tobytes() for smiles in train}
    known = OnnxModel(str(model), "cpu")
    assert {row.tobytes() for row in known.training} == wanted
    assert known.facts["runs"][0]["targets"] == ["log_solubility"]
    (tmp_path / "a.smi").write_text(f"{train[3]}\nC[Si](C)(C)C#C[Ge]\n")
    lines = predict_into(tmp_path / "a.csv", model, tmp_path / "a.smi")
    first, second = (float(line["nearest_training"]) for line in lines)
    assert first == 1 and second < 0.3


def test_at_most_so_many_fingerprints(road, monkeypatch):
    run = road / "runs" / "solubility"
    monkeypatch.setattr(trained, "MAX_FINGERPRINTS", 10)
    training, molecules = trained.training_fingerprints([rows_of(run / "predictions.csv")])
    assert 0 < len(training) <= 10 and molecules == len(set(trained_on(run)))
    assert len(pack_text(training)) < 2000


def test_a_file_without_fingerprints(road, tmp_path, prebuilt):
    run, out = road / "runs" / "solubility", tmp_path / "m.onnx"
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "model.pt", tmp_path / "bare")
    for words, notice in (
        ([run, "--no-fingerprints"], ""),
        ([tmp_path / "bare"], "will lack nearest_training"),
    ):
        assert notice in invoke(export.main, *words, "-o", out)
        model = OnnxModel(str(out), "cpu")
        assert model.training is None and model.facts["sketch"] is None
    (tmp_path / "a.smi").write_text("CCO\n")
    (line,) = predict_into(tmp_path / "b.csv", out, tmp_path / "a.smi")
    assert list(line) == ["row", "smiles", "name", "log_solubility", "note", "error"]


def test_mistakes(road, tmp_path):
    for name, says in (
        ("nowhere", "finetune first"),
        (road / "encoder.pt", "holds no finetuned model"),
        (road / "labels.npz", "not a PyTorch checkpoint"),
    ):
        assert says in mistake(export.main, name, "-o", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
