import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, invoke, mistake

import export
import predict
from moleclip.drawing import draw, layout
from moleclip.features import fingerprint
from moleclip.model import load_model, mlp
from moleclip.molecules import parse, replace_terminals
from moleclip.onnxmodel import OnnxModel
from moleclip.pixels import to_rgb
from moleclip.weights import load_encoder, save_checkpoint


def rows_of(path):
    return list(csv.DictReader(open(path, newline="")))


def variant(road, folder, seed, new_encoder=False, **changes):
    """Write folder/model.pt: the road's model with another head, and another encoder if asked for; changes: of its entries."""
    _, checkpoint = load_model(road / "runs" / "solubility" / "model.pt")
    targets = changes.get("targets", checkpoint["targets"])
    torch.manual_seed(seed)
    head = mlp(512, len(targets)).state_dict()
    encoder = {
        name: value + 0.01 * torch.randn_like(value) * new_encoder
        for name, value in checkpoint["encoder"].items()
    }
    scaling = {
        "center": torch.full((len(targets),), float(seed)),
        "spread": torch.full((len(targets),), 2.0),
    }
    folder.mkdir(parents=True)
    shutil.copy(road / "runs" / "solubility" / "predictions.csv", folder)
    save_checkpoint(
        folder / "model.pt", **checkpoint | {"encoder": encoder, "head": head} | scaling | changes
    )
    return folder


def torch_says(folder, images):
    """Return (embedding, prediction) of a run folder's model by PyTorch, without export.py."""
    model, checkpoint = load_model(folder / "model.pt")
    with torch.no_grad():
        embedding = model.encoder(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        return embedding.numpy(), model.unscale(model.head(embedding), checkpoint["task"]).numpy()


def onnx_says(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": images})))


@pytest.fixture
def exported(road, monkeypatch):
    """Exports that are about what surrounds the graph take the road's, which takes PyTorch seconds to make."""
    monkeypatch.setattr(
        export, "graph_of", lambda deployed, precision: onnx.load(road / "model.onnx")
    )


def test_contract_of_the_file(road):
    model = OnnxModel(str(road / "model.onnx"), "cpu")
    session, facts = model.session, model.facts
    (images,), outputs = session.get_inputs(), {o.name: o for o in session.get_outputs()}
    assert (images.name, images.type, images.shape[1:]) == (
        "images",
        "tensor(uint8)",
        [224, 224, 3],
    ) and isinstance(images.shape[0], str)
    assert outputs["embedding"].shape[1] == 512 and outputs["prediction"].shape[1] == 1
    assert (
        facts["targets"] == ["labels"]
        and facts["task"] == "regression"
        and facts["runs"][0]["metrics"]["test"]["pooled"]["MAE"] > 0
    )
    onnx.checker.check_model(str(road / "model.onnx"), full_check=True)


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_onnx_gives_what_torch_gives(road, count):
    images = export.probe_pictures()[:count]
    got, (embedding, prediction) = (
        onnx_says(road / "model.onnx", images),
        torch_says(road / "runs" / "solubility", images),
    )
    assert (
        np.abs(got["embedding"] - embedding).max() < 1e-4
        and np.abs(got["prediction"] - prediction).max() < 1e-4
    )


def test_an_ensemble_has_mean_and_spread(road, tmp_path):
    folders = [
        variant(road, tmp_path / f"seed-{seed}", seed, new_encoder=seed > 1, task="classification")
        for seed in (1, 2)
    ]
    said = invoke(export.main, *folders, "-o", tmp_path / "m.onnx")
    images = export.probe_pictures()[:5]
    got, members = (
        onnx_says(tmp_path / "m.onnx", images),
        np.stack([torch_says(folder, images)[1] for folder in folders]),
    )
    assert list(got) == ["prediction", "spread"] and "an ensemble of 2" in said
    assert got["prediction"] == pytest.approx(members.mean(0), abs=1e-5) and got[
        "spread"
    ] == pytest.approx(members.std(0), abs=1e-5)
    assert ((got["prediction"] > 0) & (got["prediction"] < 1)).all() and got["spread"].min() > 0
    (tmp_path / "a.smi").write_text("CCO\nC1CC\n")
    invoke(
        predict.main,
        tmp_path / "m.onnx",
        tmp_path / "a.smi",
        "-o",
        tmp_path / "a.csv",
        "--workers",
        "1",
    )
    first, second = rows_of(tmp_path / "a.csv")
    assert list(first) == [
        "row",
        "smiles",
        "name",
        "labels",
        "labels_spread",
        "nearest_training",
        "error",
    ]
    assert float(first["labels"]) == pytest.approx(got["prediction"][0, 0], abs=1e-5) and float(
        first["labels_spread"]
    ) == pytest.approx(got["spread"][0, 0], abs=1e-5)
    assert second["labels_spread"] == "" and second["error"]
    assert "has no embedding" in mistake(
        predict.main, tmp_path / "m.onnx", tmp_path / "a.smi", "--embeddings", tmp_path / "e.npy"
    )


def test_heads_on_one_frozen_encoder_share_it(road, tmp_path):
    folders = [
        variant(road, tmp_path / "a", 1, targets=["x", "y"], center=torch.tensor([5.0, -5.0])),
        variant(road, tmp_path / "b", 2, targets=["active"], task="classification"),
    ]
    invoke(export.main, *folders, "-o", tmp_path / "m.onnx", "--no-sketch")
    images = export.probe_pictures()[:4]
    got, wanted = (
        onnx_says(tmp_path / "m.onnx", images),
        [torch_says(folder, images) for folder in folders],
    )
    assert got["embedding"] == pytest.approx(wanted[0][0], abs=1e-4)
    assert got["prediction"] == pytest.approx(
        np.concatenate([wanted[0][1], wanted[1][1]], 1), abs=1e-4
    )
    facts = OnnxModel(str(tmp_path / "m.onnx"), "cpu").facts
    assert (
        facts["targets"] == ["x", "y", "active"]
        and facts["tasks"] == ["regression", "regression", "classification"]
        and facts["task"] == "mixed"
    )
    assert (tmp_path / "m.onnx").stat().st_size < (
        road / "model.onnx"
    ).stat().st_size + 4 * 1.2e6  # a head more, no second encoder


def test_r_groups_are_drawn_as_in_training(road, tmp_path, exported):
    run = variant(road, tmp_path / "run", 3, config={"r_groups": True})
    invoke(
        export.main, run, "-o", tmp_path / "m.onnx", "--force", "--precision", "int8"
    )  # whose weights are the road's
    (tmp_path / "a.smi").write_text("CC(=O)Nc1ccc(O)cc1\n")
    invoke(predict.main, tmp_path / "m.onnx", tmp_path / "a.smi", "-o", tmp_path / "p.csv")
    molecule = parse("CC(=O)Nc1ccc(O)cc1")
    plain, ends = (
        onnx_says(road / "model.onnx", to_rgb(draw(layout(m)))[None])["prediction"]
        for m in (molecule, replace_terminals(molecule))
    )
    assert float(rows_of(tmp_path / "p.csv")[0]["labels"]) == pytest.approx(
        ends.item(), abs=1e-4
    ) and plain.item() != pytest.approx(ends.item(), abs=1e-4)


def test_what_cannot_be_one_file(road, tmp_path):
    plain, run = variant(road, tmp_path / "plain", 1), road / "runs" / "solubility"
    for other, says in (
        (
            variant(road, tmp_path / "b", 2, new_encoder=True, targets=["x"]),
            "export them separately",
        ),
        (variant(road, tmp_path / "c", 2, targets=["x", "labels"]), "'labels' stands in several"),
        (variant(road, tmp_path / "d", 1), "hold the same model"),
        (
            variant(road, tmp_path / "e", 2, config={"max_atoms": 40}),
            "was trained on other drawings",
        ),
    ):
        assert says in mistake(export.main, plain, other, "-o", tmp_path / "m.onnx")
    assert "hold the same model" in mistake(
        export.main, run, run / "seed-1", "-o", tmp_path / "m.onnx"
    )
    assert "takes one run" in mistake(export.main, plain, run, "--encoder-only")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_stay_within_their_bounds(road, tmp_path, precision, monkeypatch):
    run, out = road / "runs" / "solubility", tmp_path / "m.onnx"
    if precision == "int8":  # it begins with the graph that the road has already
        monkeypatch.setattr(
            export,
            "graph_of",
            lambda deployed, precision: export.to_int8(onnx.load(road / "model.onnx")),
        )
    said = invoke(export.main, run, "-o", out, "--precision", precision)
    images = export.probe_pictures()
    got, (embedding, prediction) = onnx_says(out, images), torch_says(run, images)
    gap = np.abs(got["prediction"] - prediction) / load_model(run / "model.pt")[0].spread.item()
    assert (
        0 < gap.max() < export.BOUNDS[precision]["worst"]
        and gap.mean() < export.BOUNDS[precision]["mean"]
        and "cosine" in said
    )
    assert got["prediction"].dtype == got["embedding"].dtype == np.float32
    weights = {
        w.data_type for w in onnx.load(out).graph.initializer if np.prod(w.dims) == 64 * 256
    }  # the MLPs'
    assert weights == {onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8}
    heads = [w for w in onnx.load(out).graph.initializer if ".head." in w.name and len(w.dims) == 2]
    assert len(heads) == 4 and {w.data_type for w in heads} == {onnx.TensorProto.FLOAT}
    assert out.stat().st_size < (road / "model.onnx").stat().st_size
    monkeypatch.setattr(export, "graph_of", lambda deployed, precision: onnx.load(out))
    monkeypatch.setitem(export.BOUNDS, precision, {"worst": 1e-9, "mean": 1e-9, "cosine": 1.0})
    line = mistake(export.main, run, "-o", tmp_path / "refused.onnx", "--precision", precision)
    assert (
        "worst difference" in line
        and "--force" in line
        and not (tmp_path / "refused.onnx").exists()
    )
    assert "written because of --force" in invoke(
        export.main, run, "-o", tmp_path / "forced.onnx", "--precision", precision, "--force"
    )


def test_fp32_that_differs_is_refused_even_by_force(road, tmp_path, monkeypatch, exported):
    monkeypatch.setitem(export.BOUNDS, "fp32", {"worst": 0.0, "mean": 0.0, "cosine": 2.0})
    assert "not written" in mistake(
        export.main, road / "runs" / "solubility", "-o", tmp_path / "m.onnx", "--force"
    )
    assert not list(tmp_path.iterdir())
    assert "nan" in export.broken_bounds(
        {"worst": float("nan"), "mean": 0.0, "cosine": None}, "int8"
    )


def test_the_encoder_alone(road, tmp_path):
    invoke(export.main, road / "encoder.pt", "--encoder-only", "-o", tmp_path / "e.onnx")
    images = export.probe_pictures()[:3]
    with torch.no_grad():
        wanted = load_encoder(str(road / "encoder.pt"))(
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        ).numpy()
    got = onnx_says(tmp_path / "e.onnx", images)
    assert list(got) == ["embedding"] and got["embedding"] == pytest.approx(wanted, abs=1e-4)
    (tmp_path / "a.smi").write_text("CCO\n")
    assert "give --embeddings" in mistake(
        predict.main, tmp_path / "e.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.csv"
    )
    invoke(
        predict.main,
        tmp_path / "e.onnx",
        tmp_path / "a.smi",
        "-o",
        tmp_path / "a.csv",
        "--embeddings",
        tmp_path / "a.npy",
        "--workers",
        "1",
    )
    assert np.load(tmp_path / "a.npy") == pytest.approx(wanted[:1], abs=1e-4) and list(
        rows_of(tmp_path / "a.csv")[0]
    ) == ["row", "smiles", "name", "error"]


def test_the_sketch_is_of_the_training_molecules(road, tmp_path, monkeypatch, exported):
    run, model = road / "runs" / "solubility", OnnxModel(str(road / "model.onnx"), "cpu")
    train = [
        line["smiles"] for line in rows_of(run / "predictions.csv") if line["split"] == "train"
    ]
    wanted = {fingerprint(parse(smiles)).tobytes() for smiles in train}
    assert {row.tobytes() for row in model.facts["sketch"]} == wanted and model.facts["runs"][0][
        "targets"
    ] == ["labels"]
    (tmp_path / "a.smi").write_text(f"{train[3]}\nC[Si](C)(C)C#C[Ge]\n")
    invoke(
        predict.main,
        road / "model.onnx",
        tmp_path / "a.smi",
        "-o",
        tmp_path / "a.csv",
        "--workers",
        "1",
    )
    first, second = (float(line["nearest_training"]) for line in rows_of(tmp_path / "a.csv"))
    assert first == 1 and second < 0.3
    monkeypatch.setattr(export, "SKETCHED", 10)
    kept, text = export.sketch_of([rows_of(run / "predictions.csv")])
    assert kept["molecules"] <= 10 and kept["of"] == len(set(train)) and len(text) < 2000
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "model.pt", tmp_path / "bare")
    for words, notice in (
        ([run, "--no-sketch"], ""),
        ([tmp_path / "bare"], "will lack nearest_training"),
    ):
        assert notice in invoke(export.main, *words, "-o", tmp_path / "m.onnx")
        assert OnnxModel(str(tmp_path / "m.onnx"), "cpu").facts["sketch"] is None
    invoke(
        predict.main,
        tmp_path / "m.onnx",
        tmp_path / "a.smi",
        "-o",
        tmp_path / "b.csv",
        "--workers",
        "1",
    )
    assert list(rows_of(tmp_path / "b.csv")[0]) == ["row", "smiles", "name", "labels", "error"]


def test_predictions_are_those_of_the_run_folder(road, desk):
    desk.write(
        "some.smi",
        [line["smiles"] for line in rows_of(road / "runs" / "solubility" / "predictions.csv")][:20],
    )
    desk.run(["python", "predict.py", road / "model.onnx", "some.smi"])
    wanted = [
        float(line["predicted_labels"])
        for line in rows_of(road / "runs" / "solubility" / "predictions.csv")
    ][:20]
    assert [float(line["labels"]) for line in rows_of(desk / "predictions.csv")] == pytest.approx(
        wanted, abs=1e-4
    )


def test_one_line_for_every_row(road):
    lines, source = (
        rows_of(road / "predictions.csv"),
        (ROOT / "data" / "new_molecules.txt").read_text().splitlines(),
    )
    assert len(lines) == len(source) == 22 and [int(line["row"]) for line in lines] == list(
        range(22)
    )
    for line, text in zip(lines, source):
        assert text == f"{line['smiles']} {line['name']}" and bool(line["error"]) != bool(
            line["labels"]
        )
    assert [row for row, line in enumerate(lines) if line["error"]] == [5, 13]
    assert "20 molecules predicted on CPU, 2 rows could not be" in road.said["predict"]


def test_neither_batch_nor_neighbours_matter(road, desk):
    desk.write("one.smi", ["CC(=O)Nc1ccc(O)cc1"])
    desk.run(["python", "predict.py", road / "model.onnx", "one.smi", "--batch", "1"])
    assert float(rows_of(desk / "predictions.csv")[0]["labels"]) == pytest.approx(
        float(rows_of(road / "predictions.csv")[1]["labels"]), abs=1e-4
    )


def test_standard_input(road, desk):
    done = subprocess.run(
        [sys.executable, "predict.py", road / "model.onnx", "-"],
        input="CCO ethanol\n",
        text=True,
        cwd=desk.folder,
        capture_output=True,
    )
    assert done.returncode == 0 and rows_of(desk / "predictions.csv")[0]["name"] == "ethanol"


def test_predict_needs_no_torch(road, desk):
    (desk / "block.py").write_text(
        "import sys\nfor name in ('torch', 'clip', 'sklearn', 'scipy', 'matplotlib', 'onnx'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nimport predict\npredict.main()\n"
    )
    desk.run(["python", "block.py", road / "model.onnx", "new_molecules.txt"])
    assert (desk / "predictions.csv").read_bytes() == (road / "predictions.csv").read_bytes()


def test_export_mistakes(road, tmp_path):
    for name, says in (
        ("nowhere", "finetune first"),
        (road / "encoder.pt", "holds no finetuned model"),
        (road / "labels.npz", "not a PyTorch checkpoint"),
    ):
        assert says in mistake(export.main, name, "-o", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_predict_mistakes(road, tmp_path):
    whole = (road / "model.onnx").read_bytes()
    stranger = onnx.load(str(road / "model.onnx"))
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    onnx.save(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node("Neg", ["x"], ["y"])],
                "g",
                [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
                [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
            ),
            ir_version=10,
            opset_imports=[onnx.helper.make_opsetid("", 20)],
        ),
        tmp_path / "other.onnx",
    )
    stranger.metadata_props.add(key="moleclip", value='{"format": 1, "targets": "labels"}')
    onnx.save(stranger, tmp_path / "odd.onnx")
    del stranger.metadata_props[:]
    stranger.metadata_props.add(
        key="moleclip", value=json.dumps({"format": 99, "targets": [], "task": "", "render": {}})
    )
    onnx.save(stranger, tmp_path / "future.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.smi").write_text("CCO\n")
    for model, source, says in (
        (tmp_path / "nowhere.onnx", "a.smi", "no such file"),
        (tmp_path / "cut.onnx", "a.smi", "truncated"),
        (tmp_path / "stranger.onnx", "a.smi", "it lacks the metadata 'moleclip'"),
        (tmp_path / "odd.onnx", "a.smi", "is damaged"),
        (
            tmp_path / "other.onnx",
            "a.smi",
            "an input 'images', uint8 (batch, 224, 224, 3) and an output 'prediction' or 'embedding'",
        ),
        (ROOT / "README.md", "a.smi", "not an ONNX file"),
        (tmp_path / "future.onnx", "a.smi", "newer"),
        (road / "model.onnx", "nowhere.smi", "no such file"),
        (road / "model.onnx", "empty.txt", "is empty"),
    ):
        assert says in mistake(predict.main, model, tmp_path / source, "-o", tmp_path / "out.csv")
    assert "can't be written" in mistake(
        predict.main, road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.smi" / "out.csv"
    )
    assert "is the input itself" in mistake(
        predict.main, road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.smi"
    )
    assert (
        not (tmp_path / "out.csv").exists()
        and not list(tmp_path.glob(".*"))
        and not list(tmp_path.glob("*.part*"))
    )
