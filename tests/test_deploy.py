import csv
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, mistake

import export
import finetune
import predict


def rows_of(path):
    return list(csv.DictReader(open(path, newline="")))


def test_contract_of_the_file(road):
    session, facts = predict.open_model(str(road / "model.onnx"), "cpu")
    (images,), outputs = session.get_inputs(), {o.name: o for o in session.get_outputs()}
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [224, 224, 3]) and isinstance(images.shape[0], str)
    assert outputs["embedding"].shape[1] == 512 and outputs["prediction"].shape[1] == 1
    assert facts["targets"] == ["labels"] and facts["task"] == "regression" and facts["metrics"]["test"]["pooled"]["MAE"] > 0
    onnx.checker.check_model(str(road / "model.onnx"), full_check=True)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_onnx_gives_what_torch_gives(road, count):
    model, checkpoint = finetune.load_model(road / "runs" / "solubility" / "model.pt")
    session, _ = predict.open_model(str(road / "model.onnx"), "cpu")
    images = export.probe_pictures(count)
    embedding, prediction = session.run(["embedding", "prediction"], {"images": images})
    with torch.no_grad():
        wanted = [t.numpy() for t in export.Deployed(model, checkpoint["task"])(torch.from_numpy(images))]
    assert np.abs(embedding - wanted[0]).max() < 1e-4 and np.abs(prediction - wanted[1]).max() < 1e-4 * model.spread.item()


def test_predictions_are_those_of_the_run_folder(road, desk):
    desk.write("some.smi", [line["smiles"] for line in rows_of(road / "runs" / "solubility" / "predictions.csv")][:20])
    desk.run(["python", "predict.py", road / "model.onnx", "some.smi"])
    wanted = [float(line["predicted_labels"]) for line in rows_of(road / "runs" / "solubility" / "predictions.csv")][:20]
    assert [float(line["labels"]) for line in rows_of(desk / "predictions.csv")] == pytest.approx(wanted, abs=1e-4)


def test_one_line_for_every_row(road):
    lines, source = rows_of(road / "predictions.csv"), (ROOT / "data" / "new_molecules.txt").read_text().splitlines()
    assert len(lines) == len(source) == 22 and [int(line["row"]) for line in lines] == list(range(22))
    for line, text in zip(lines, source):
        assert text == f"{line['smiles']} {line['name']}" and bool(line["error"]) != bool(line["labels"])
    assert [row for row, line in enumerate(lines) if line["error"]] == [5, 13]
    assert "20 molecules predicted on CPU, 2 rows could not be" in road.said["predict"]


def test_neither_batch_nor_neighbours_matter(road, desk):
    desk.write("one.smi", ["CC(=O)Nc1ccc(O)cc1"])
    desk.run(["python", "predict.py", road / "model.onnx", "one.smi", "--batch", "1"])
    assert float(rows_of(desk / "predictions.csv")[0]["labels"]) == pytest.approx(float(rows_of(road / "predictions.csv")[1]["labels"]), abs=1e-4)


def test_standard_input(road, desk):
    done = subprocess.run([sys.executable, "predict.py", road / "model.onnx", "-"], input="CCO ethanol\n", text=True, cwd=desk.folder, capture_output=True)
    assert done.returncode == 0 and rows_of(desk / "predictions.csv")[0]["name"] == "ethanol"


def test_predict_needs_no_torch(road, desk):
    (desk / "block.py").write_text("import sys\nfor name in ('torch', 'clip', 'sklearn', 'scipy', 'matplotlib', 'onnx'): sys.modules[name] = None\n"
                                   f"sys.path.insert(0, {str(ROOT)!r})\nimport predict\npredict.main()\n")
    desk.run(["python", "block.py", road / "model.onnx", "new_molecules.txt"])
    assert (desk / "predictions.csv").read_bytes() == (road / "predictions.csv").read_bytes()


def test_a_sigmoid_is_in_the_graph(road, tmp_path):
    model, checkpoint = finetune.load_model(road / "runs" / "solubility" / "model.pt")
    export.to_onnx(export.Deployed(model, "classification").eval(), tmp_path / "m.onnx", {"format": 1})
    values = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["prediction"], {"images": export.probe_pictures(3)})[0]
    assert ((values > 0) & (values < 1)).all()


def test_export_mistakes(road, tmp_path):
    for name, says in (("nowhere", "finetune first"), (road / "encoder.pt", "holds no finetuned model"), (road / "labels.npz", "not a PyTorch checkpoint")):
        assert says in mistake(export.main, name, "-o", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_predict_mistakes(road, tmp_path):
    whole = (road / "model.onnx").read_bytes()
    stranger = onnx.load(str(road / "model.onnx"))
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    stranger.metadata_props.add(key="moleclip", value=json.dumps({"format": 99, "targets": [], "task": "", "render": {}}))
    onnx.save(stranger, tmp_path / "future.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.smi").write_text("CCO\n")
    for model, source, says in ((tmp_path / "nowhere.onnx", "a.smi", "no such file"), (tmp_path / "cut.onnx", "a.smi", "truncated"),
                                (tmp_path / "stranger.onnx", "a.smi", "not exported by moleclip"), (tmp_path / "future.onnx", "a.smi", "newer"),
                                (road / "model.onnx", "nowhere.smi", "no such file"), (road / "model.onnx", "empty.txt", "is empty")):
        assert says in mistake(predict.main, model, tmp_path / source, "-o", tmp_path / "out.csv")
    assert "can't be written" in mistake(predict.main, road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.smi" / "out.csv")
    assert "is the input itself" in mistake(predict.main, road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.smi")
    assert not (tmp_path / "out.csv").exists() and not list(tmp_path.glob(".*"))
