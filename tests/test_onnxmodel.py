"""The contract of model.onnx: what stands in the file, and what is refused."""

import json
from types import SimpleNamespace

import click
import numpy as np
import onnx
import pytest
from conftest import ROOT, invoke, mistake, rows_of

import predict
from moleclip import session
from moleclip.onnxfacts import metadata_props, read_metadata, told_by_runs
from moleclip.onnxmodel import OnnxModel


def test_contract_of_the_file(road):
    model = OnnxModel(str(road / "model.onnx"), "cpu")
    session, facts = model.session, model.facts
    (images,), outputs = session.get_inputs(), {o.name: o for o in session.get_outputs()}
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape[1:] == [224, 224, 3] and isinstance(images.shape[0], str)
    assert outputs["embedding"].shape[1] == 512 and outputs["prediction"].shape[1] == 1
    assert facts["targets"] == ["log_solubility"] and facts["task"] == "regression"
    assert facts["runs"][0]["metrics"]["test"]["pooled"]["MAE"] > 0
    onnx.checker.check_model(str(road / "model.onnx"), full_check=True)


def test_the_names_in_the_file_stay(road):
    """Files of 2026 predict: neither the names of the metadata nor what they hold may change."""
    props = {entry.key: entry.value for entry in onnx.load(road / "model.onnx").metadata_props}
    assert set(props) == {"moleclip", "moleclip_sketch", "moleclip_map", "moleclip_drawings"}
    facts = json.loads(props["moleclip"])
    assert facts["format"] == 1 and facts["sketch"]["bits"] == 2048
    assert facts["render"] == {"size": 224, "max_atoms": 150, "r_groups": False}
    packed = OnnxModel(str(road / "model.onnx"), "cpu").training
    assert packed.shape == (facts["sketch"]["molecules"], 256) and packed.dtype == np.uint8


def test_the_file_does_not_say_where_it_was_made(road):
    bundled = [ROOT / "weights" / f"aligned-{kind}.onnx" for kind in ("nmr13c", "text")]
    for path in (road / "model.onnx", *bundled):
        content = path.read_bytes()
        assert b"deploy.py" not in content and b"stack_trace" not in content
        assert str(ROOT).encode() not in content and str(road.folder).encode() not in content


def session_of(props):
    """A session as `read_metadata` asks it."""
    images = SimpleNamespace(name="images", type="tensor(uint8)", shape=["n", 224, 224, 3])
    prediction = SimpleNamespace(name="prediction", shape=["n", 2])
    return SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=props),
        get_inputs=lambda: [images],
        get_outputs=lambda: [prediction],
    )


def test_what_is_written_is_read():
    facts = {"targets": ["x", "y"], "render": {"max_atoms": 150}}
    known = np.random.default_rng(0).integers(0, 256, (5, 256), np.uint8)
    props = metadata_props(facts, known, 7)
    assert all(isinstance(text, str) for text in props.values())
    read, training = read_metadata("m.onnx", session_of(props))
    sketch = {"molecules": 5, "of": 7, "bits": 2048, "radius": 2}
    assert read == facts | {"format": 1, "sketch": sketch} and (training == known).all()
    read, training = read_metadata("m.onnx", session_of(metadata_props(facts)))
    assert read == facts | {"format": 1, "sketch": None} and training is None


def negation():
    """A model that takes and gives numbers."""
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3])
        for name in ("x", "y")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets)


def test_what_is_no_model_of_ours(road, tmp_path):
    whole = (road / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    onnx.save(negation(), tmp_path / "other.onnx")
    stranger = onnx.load(str(road / "model.onnx"))
    future = {"format": 99, "targets": [], "task": "", "render": {}}
    known = {"format": 1, "targets": ["x"], "render": {"max_atoms": 150}}
    for name, text in (
        ("stranger", None),
        ("odd", '{"format": 1, "targets": "labels"}'),
        ("odd2", json.dumps(known | {"runs": [{"targets": ["x"], "classes": [["one"]]}]})),
        ("future", json.dumps(future)),
    ):
        onnx.helper.set_model_props(stranger, {"moleclip": text} if text else {})
        onnx.save(stranger, tmp_path / f"{name}.onnx")
    (tmp_path / "a.smi").write_text("CCO\n")
    images = "an input 'images', uint8 (batch, 224, 224, 3)"
    for model, says in (
        ("nowhere.onnx", "no such file"),
        ("cut.onnx", "truncated"),
        ("stranger.onnx", "it lacks the metadata 'moleclip'"),
        ("odd.onnx", "is damaged"),
        ("odd2.onnx", "is damaged"),
        ("other.onnx", f"{images} and an output 'prediction' or 'embedding'"),
        (ROOT / "README.md", "not an ONNX file"),
        ("future.onnx", "newer"),
    ):
        words = tmp_path / model, tmp_path / "a.smi", "-o", tmp_path / "out.csv"
        assert says in mistake(predict.main, *words)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "told, columns, meaning",
    [
        ({"units": ["log mol/L"]}, ["log_solubility (log mol/L)"], ""),
        (
            {"classes": [["no", "yes"]]},
            ["log_solubility", "log_solubility_class"],
            "probability of yes",
        ),
        ({}, ["log_solubility"], ""),
    ],
)
def test_units_and_classes_stand_in_table_and_page(road, tmp_path, told, columns, meaning):
    model = onnx.load(str(road / "model.onnx"))
    props = {entry.key: entry.value for entry in model.metadata_props}
    facts = json.loads(props["moleclip"])
    facts["runs"][0] |= {"units": [""], "classes": [[]]} | told
    facts["tasks"] = ["classification" if "classes" in told else "regression"]
    onnx.helper.set_model_props(model, props | {"moleclip": json.dumps(facts)})
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "a.smi").write_text("CCO\nC1CC\n")
    out, page = tmp_path / "a.csv", tmp_path / "a.html"
    words = tmp_path / "m.onnx", tmp_path / "a.smi", "-o", out, "--workers", "1", "--html", page
    invoke(predict.main, *words)
    first, broken = rows_of(out)
    assert list(first)[3:-3] == columns and not any(broken[name] for name in columns)
    if "classes" in told:
        assert first[columns[1]] == ("yes" if float(first[columns[0]]) > 0.5 else "no")
    assert json.dumps(dict.fromkeys(columns[:1], meaning)) in page.read_text()


def test_an_ensemble_tells_what_its_members_agree_on():
    runs = [{"targets": ["x"], "units": [unit]} for unit in ("nM", "µM", None)]
    del runs[2]["units"]  # an older one
    facts = {"targets": ["x"], "kind": "ensemble"}
    assert told_by_runs(facts | {"runs": runs[:1] * 2}, "units", "") == ["nM"]
    assert told_by_runs(facts | {"runs": runs[:2]}, "units", "") == [""]
    assert told_by_runs(facts | {"runs": runs[1:]}, "units", "") == [""]
    heads = {"targets": ["x", "x2"], "kind": "model", "runs": runs[:2]}
    assert told_by_runs(heads, "units", "") == ["nM", "µM"]


def test_damaged_fingerprints_are_said(road, tmp_path):
    model = onnx.load(str(road / "model.onnx"))
    props = {entry.key: entry.value for entry in model.metadata_props}
    for text in (props["moleclip_sketch"][:-8], "x"):
        onnx.helper.set_model_props(model, props | {"moleclip_sketch": text})
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(click.ClickException, match="its metadata 'moleclip' is damaged"):
            OnnxModel(tmp_path / "m.onnx", "cpu")


def test_a_provider_that_fails(road, tmp_path, monkeypatch):
    (tmp_path / "a.smi").write_text("CCO\n")
    words = road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.csv", "--workers", "1"
    assert "--provider cuda: " in mistake(predict.main, *words, "--provider", "cuda")
    # As if there were a GPU: its session fails, or silently takes the CPU.
    monkeypatch.setattr(session, "no_cuda", lambda: "")
    monkeypatch.setattr(session, "has_gpu", lambda: True)
    assert "--provider cuda: " in mistake(predict.main, *words, "--provider", "cuda")
    said = invoke(predict.main, *words)
    assert "taking the CPU: " in said and "predicted on CPU" in said
