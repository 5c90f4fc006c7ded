"""predict.py as a user runs it: one line for every row, whatever the input."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, invoke, mistake, rows_of
from drawn import DRUG, figure
from PIL import Image

import predict
from moleclip import molecules
from moleclip.drawing import draw_views
from moleclip.onnxmodel import OnnxModel

BLOCKED = ("torch", "clip", "sklearn", "scipy", "matplotlib", "onnx", "pandas")
OWN = ["row", "smiles", "name"]


def values_of(path, column="log_solubility"):
    return [float(line[column]) if line[column] else None for line in rows_of(path)]


def say(road, source, out, *words):
    return invoke(predict.main, road / "model.onnx", source, "-o", out, "--workers", "1", *words)


# ----------------------------------------------------------------------------------------------
# Molecules


def test_one_row_for_every_line_in_order(predicted):
    lines, bad = rows_of(predicted), [3, 256, 599]
    assert [int(line["row"]) for line in lines] == list(range(600))
    assert [line["name"] for line in lines[:3]] == ["m0", "m1", "m2"]
    assert [i for i, line in enumerate(lines) if line["error"]] == bad
    assert [i for i, value in enumerate(values_of(predicted)) if value is None] == bad
    embeddings = np.load(predicted.with_suffix(".npy"))
    assert embeddings.shape == (600, 512) and embeddings.dtype == np.float32
    assert list(np.flatnonzero(np.isnan(embeddings).any(1))) == bad
    assert not list(predicted.parent.glob("*.part*"))


def test_one_line_for_every_row(road):
    lines = rows_of(road / "predictions.csv")
    source = (ROOT / "data" / "new_molecules.txt").read_text().splitlines()
    assert [int(line["row"]) for line in lines] == list(range(22)) and len(source) == 22
    for line, text in zip(lines, source):
        assert text == f"{line['smiles']} {line['name']}"
        assert bool(line["error"]) != bool(line["log_solubility"])
    assert [row for row, line in enumerate(lines) if line["error"]] == [5, 13]
    assert "20 molecules predicted on CPU, 2 rows could not be" in road.said["predict"]


def test_predictions_are_those_of_the_run_folder(road, desk):
    known = rows_of(road / "runs" / "solubility" / "predictions.csv")[:20]
    desk.write("some.smi", [line["smiles"] for line in known])
    desk.run(["python", "predict.py", road / "model.onnx", "some.smi"])
    wanted = [float(line["predicted_log_solubility"]) for line in known]
    assert values_of(desk / "predictions.csv") == pytest.approx(wanted, abs=1e-4)


def test_neither_batch_nor_neighbours_matter(road, desk):
    desk.write("one.smi", ["CC(=O)Nc1ccc(O)cc1"])
    desk.run(["python", "predict.py", road / "model.onnx", "one.smi", "--batch", "1"])
    wanted = values_of(road / "predictions.csv")[1]
    assert values_of(desk / "predictions.csv") == pytest.approx([wanted], abs=1e-4)


def test_standard_input(road, desk):
    words = [sys.executable, "predict.py", road / "model.onnx", "-"]
    how = {"text": True, "cwd": desk.folder, "capture_output": True}
    done = subprocess.run(words, input="CCO ethanol\n", **how)
    assert done.returncode == 0 and rows_of(desk / "predictions.csv")[0]["name"] == "ethanol"


def test_batch_and_part_do_not_matter(road, predicted, library, tmp_path, monkeypatch):
    say(road, library, tmp_path / "a.csv", "--batch", "64")
    before, now = values_of(predicted), values_of(tmp_path / "a.csv")
    known = [i for i, value in enumerate(before) if value is not None]
    wanted = pytest.approx([before[i] for i in known], abs=1e-4)
    assert [now[i] for i in known] == wanted
    monkeypatch.setattr(molecules, "BLOCK", 256)
    for part in ("1/2", "2/2"):
        files = tmp_path / "p.csv", "--embeddings", tmp_path / "p.npy"
        say(road, library, *files, "--part", part)
    first, second = rows_of(tmp_path / "p-1-of-2.csv"), rows_of(tmp_path / "p-2-of-2.csv")
    assert [int(line["row"]) for line in second] == list(range(256, 512))
    assert sorted(first + second, key=lambda line: int(line["row"])) == rows_of(predicted)
    embeddings = np.load(predicted.with_suffix(".npy"))[256:512]
    assert np.array_equal(np.load(tmp_path / "p-2-of-2.npy"), embeddings, equal_nan=True)


def test_keep_columns(road, tmp_path):
    text = 'SMILES,id,log_solubility,memo\nCCO,7,1.5,"two\nlines, one cell"\nC1CC,8\nCCN,9,2.5,\n'
    (tmp_path / "a.csv").write_text(text)
    said = say(road, tmp_path / "a.csv", tmp_path / "o.csv", "--keep-columns")
    lines = rows_of(tmp_path / "o.csv")
    kept = ["SMILES", "id", "input_log_solubility", "memo"]
    assert list(lines[0]) == [*OWN, *kept, "log_solubility", "nearest_training", "note", "error"]
    assert [line["id"] for line in lines] == ["7", "8", "9"]
    assert lines[0]["memo"] == "two\nlines, one cell" and lines[2]["input_log_solubility"] == "2.5"
    assert "fields where the header has 4" in lines[1]["error"] and lines[1]["log_solubility"] == ""
    assert "2 molecules" in said
    (tmp_path / "b.csv").write_text("smiles,name,row\nCCO,ethanol,x\n")
    say(road, tmp_path / "b.csv", tmp_path / "o.csv", "--keep-columns")
    first = [("row", "0"), ("smiles", "CCO"), ("name", "ethanol"), ("input_row", "x")]
    assert list(rows_of(tmp_path / "o.csv")[0].items())[:4] == first


def test_a_column_called_name_is_the_name(road, tmp_path):
    (tmp_path / "a.csv").write_text("smiles,Name,name,note\nCCO,ethanol,other,mine\n")
    say(road, tmp_path / "a.csv", tmp_path / "o.csv", "--keep-columns")
    (line,) = rows_of(tmp_path / "o.csv")
    kept = {"name": "ethanol", "Name": "ethanol", "input_name": "other", "input_note": "mine"}
    assert kept.items() <= line.items() and line["note"] == ""


def test_columns_that_cannot_be_kept(road, tmp_path):
    (tmp_path / "c.csv").write_text("smiles,log_solubility,input_log_solubility\nCCO,1,2\n")
    (tmp_path / "d.smi").write_text("CCO\n")
    for name, says in (
        ("c.csv", "two kept columns would be called 'input_log_solubility'"),
        ("d.smi", "needs a .csv or .tsv"),
    ):
        words = road / "model.onnx", tmp_path / name, "--keep-columns"
        assert says in mistake(predict.main, *words)


def test_views_are_the_random_drawings_of_the_row(road, tmp_path):
    (tmp_path / "a.smi").write_text(f"CCO\n{DRUG}\nC1CC\n")
    files = tmp_path / "a.csv", "--embeddings", tmp_path / "a.npy"
    say(road, tmp_path / "a.smi", *files, "--views", "4")
    line = rows_of(tmp_path / "a.csv")[1]
    outputs = OnnxModel(str(road / "model.onnx"), "cpu").run(draw_views(1, DRUG, views=4, seed=0))
    told, spread = outputs["prediction"], float(line["log_solubility_view_spread"])
    assert float(line["log_solubility"]) == pytest.approx(told.mean(), abs=1e-4)
    assert spread == pytest.approx(told.std(), abs=1e-4) and told.std() > 0
    assert np.load(tmp_path / "a.npy")[1] == pytest.approx(outputs["embedding"].mean(0), abs=1e-4)
    numbers = ["log_solubility", "log_solubility_view_spread", "nearest_training"]
    wanted = [*OWN, *numbers, "note", "error"]
    assert list(line) == wanted


# ----------------------------------------------------------------------------------------------
# Pictures


def test_a_folder_of_pictures_and_what_is_none(road, tmp_path):
    folder, out = tmp_path / "figures", tmp_path / "a.csv"
    folder.mkdir()
    assert "holds no .png" in mistake(predict.main, road / "model.onnx", folder, "-o", out)
    fill_folder(folder)
    said = say(road, folder, out, "--html", tmp_path / "a.html")
    found = {line["name"]: line["error"] for line in rows_of(out)}
    names = ["a.PNG", "b.png", "b2.png", "b10.png", "cut.png", "empty.jpg", "gone.png"]
    names += ["huge.png", "not.png", "old.gif", "vast.png"]
    assert list(found) == names and "4 molecules predicted" in said
    notes = {line["name"]: line["note"] for line in rows_of(out) if line["note"]}
    assert list(notes) == ["b2.png", "b10.png"] and "2 have a caveat, see the column note" in said
    assert all(text.startswith("black and white") for text in notes.values())
    assert found["old.gif"] == "not a PNG or JPEG picture"
    assert found["gone.png"] == "a link to a file that is not there"
    assert found["a.PNG"] == found["b.png"] == ""
    assert "damaged" in found["cut.png"] and found["empty.jpg"] == "nothing is drawn on it"
    assert found["not.png"] == "not a PNG or JPEG picture"
    assert "smaller than 50 million" in found["huge.png"]
    assert "smaller than 50 million" in found["vast.png"]
    for name, says in (
        ("not.png", "not a PNG or JPEG"),
        ("nowhere.png", "no such file"),
        ("old.gif", "not a PNG or JPEG"),
        ("huge.png", "9000 x 9000 pixels are too many"),
    ):
        words = road / "model.onnx", folder / name, "-o", tmp_path / "b.csv"
        assert f"{name}: {says}" in mistake(predict.main, *words)
    assert "needs SMILES" in mistake(predict.main, road / "model.onnx", folder, "--views", "2")
    words = road / "model.onnx", folder, "--keep-columns"
    assert "needs a .csv or .tsv" in mistake(predict.main, *words)
    assert not (tmp_path / "b.csv").exists()


def fill_folder(folder):
    """Write four good pictures, two of them black, and what is none, into a folder."""
    for name, content in (
        ("b.png", figure("dark", "CCO")),
        ("a.PNG", figure("white")),
        ("b10.png", figure("black", "CCO")),
        ("b2.png", figure("black")),
        ("not.png", b"no picture"),
        ("cut.png", figure("white")[:3000]),
        ("z.txt", b""),
    ):
        (folder / name).write_bytes(content)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    Image.new("RGB", (300, 200), "white").save(folder / "empty.jpg")
    Image.new("RGB", (300, 200), "white").save(folder / "old.gif")
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    Image.new("1", (20000, 20000)).save(folder / "vast.png")


# ----------------------------------------------------------------------------------------------
# Without PyTorch, and mistakes


def blocking(folder):
    """Return the start of a script that runs the predict.py of a folder without BLOCKED."""
    block = f"import sys; sys.modules |= dict.fromkeys({BLOCKED!r}); "
    return f"{block}sys.path.insert(0, {str(folder)!r}); import predict; predict.main()"


def test_predict_needs_no_torch(road, desk):
    words = ["python", "-c", blocking(ROOT), road / "model.onnx", "new_molecules.txt"]
    desk.run(words)
    assert (desk / "predictions.csv").read_bytes() == (road / "predictions.csv").read_bytes()


def test_predict_needs_only_its_own_files(road, tmp_path):
    """predict.py, moleclip/ and their requirements in a folder of their own, as for a server."""
    for name in ("predict.py", "requirements-predict.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "moleclip", tmp_path / "moleclip")
    shutil.copy(road / "model.onnx", tmp_path)
    shutil.copy(ROOT / "data" / "new_molecules.txt", tmp_path)
    words = ["model.onnx", "new_molecules.txt", "--html", "page.html"]
    command = [sys.executable, "-I", "-c", blocking(tmp_path), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = (road / "predictions.csv").read_bytes()
    assert (tmp_path / "predictions.csv").read_bytes() == wanted
    assert (tmp_path / "page.html").exists()


def test_mistakes(road, tmp_path):
    (tmp_path / "a.smi").write_text("CCO\n")
    (tmp_path / "empty.txt").touch()
    words = road / "model.onnx", tmp_path / "a.smi"
    for source, says in (("nowhere.smi", "no such file"), ("empty.txt", "is empty")):
        out = tmp_path / "out.csv"
        assert says in mistake(predict.main, words[0], tmp_path / source, "-o", out)
    for extra, says in (
        (("-o", tmp_path / "a.smi" / "out.csv"), "can't be written"),
        (("-o", tmp_path / "a.smi"), "is the input itself"),
        (("--html", tmp_path / "a.smi"), "is the input itself"),
        (("-o", tmp_path / "x", "--html", tmp_path / "x"), "two different outputs"),
    ):
        assert says in mistake(predict.main, *words, *extra)
    assert "2/8" in mistake(predict.main, *words, "--part", "3/2", code=2)
    assert (tmp_path / "a.smi").read_text() == "CCO\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.smi", "empty.txt"}


def test_a_model_and_a_source_are_needed(road):
    for words in ((), (road / "model.onnx",), (road / "model.onnx", "a.smi", "b.smi")):
        mistake(predict.main, *words, code=2)


def test_standard_input_cannot_be_read_twice(road):
    for words in (("--resume",), ("--part", "1/2")):
        line = mistake(predict.main, road / "model.onnx", "-", *words, code=2)
        assert "standard input can't be read twice" in line
