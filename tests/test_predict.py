import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, first_lines, invoke, mistake, small_molecules
from PIL import Image
from rdkit.Chem.Draw import rdMolDraw2D

import predict
from moleclip.drawing import draw, draw_views, layout
from moleclip.molecules import parse
from moleclip.onnxmodel import OnnxModel
from moleclip.outputs import ResumableCsv
from moleclip.pictures import to_drawing
from moleclip.pixels import deflate, to_rgb

DRUG = "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3"


def rows_of(path):
    return list(csv.DictReader(open(path, newline="")))


def values_of(path, column="labels"):
    return [float(line[column]) if line[column] else None for line in rows_of(path)]


def say(road, source, out, *words):
    return invoke(predict.main, road / "model.onnx", source, "-o", out, "--workers", "1", *words)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """600 rows, three windows, some of them broken."""
    lines = [f"{smiles} m{i}" for i, smiles in enumerate(small_molecules(600))]
    lines[3], lines[256], lines[599] = "C1CC broken", "", "?"
    path = tmp_path_factory.mktemp("library") / "library.smi"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(road, library):
    """What an uninterrupted run writes for it."""
    say(road, library, library.parent / "whole.csv", "--embeddings", library.parent / "whole.npy")
    return library.parent / "whole.csv"


def test_one_row_for_every_line_in_order(whole, library):
    lines = rows_of(whole)
    assert [int(line["row"]) for line in lines] == list(range(600)) and [
        line["name"] for line in lines[:3]
    ] == ["m0", "m1", "m2"]
    assert (
        [i for i, line in enumerate(lines) if line["error"]]
        == [3, 256, 599]
        == [i for i, v in enumerate(values_of(whole)) if v is None]
    )
    embeddings = np.load(whole.with_suffix(".npy"))
    assert (
        embeddings.shape == (600, 512)
        and embeddings.dtype == np.float32
        and list(np.flatnonzero(np.isnan(embeddings).any(1))) == [3, 256, 599]
    )
    assert not list(whole.parent.glob("*.part*"))


def test_batch_and_part_do_not_matter(road, whole, library, tmp_path, monkeypatch):
    say(road, library, tmp_path / "a.csv", "--batch", "64")
    known = [i for i, v in enumerate(values_of(whole)) if v is not None]
    assert [values_of(tmp_path / "a.csv")[i] for i in known] == pytest.approx(
        [values_of(whole)[i] for i in known], abs=1e-4
    )
    monkeypatch.setattr(predict, "BLOCK", 256)
    for part in "12":
        say(
            road,
            library,
            tmp_path / "p.csv",
            "--part",
            f"{part}/2",
            "--embeddings",
            tmp_path / "p.npy",
        )
    first, second = rows_of(tmp_path / "p-1-of-2.csv"), rows_of(tmp_path / "p-2-of-2.csv")
    assert [int(line["row"]) for line in second] == list(range(256, 512))
    assert sorted(first + second, key=lambda line: int(line["row"])) == rows_of(whole)
    assert np.array_equal(
        np.load(tmp_path / "p-2-of-2.npy"),
        np.load(whole.with_suffix(".npy"))[256:512],
        equal_nan=True,
    )


class Stopped(OnnxModel):
    """A model whose run is interrupted in its second window, as by Ctrl-C."""

    def run(self, streams):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 40:
            raise KeyboardInterrupt
        return super().run(streams)


def test_resume_gives_the_same_bytes(road, whole, library, tmp_path, monkeypatch):
    words = (
        road / "model.onnx",
        library,
        "-o",
        tmp_path / "a.csv",
        "--embeddings",
        tmp_path / "a.npy",
        "--workers",
        "1",
    )
    monkeypatch.setattr(predict, "Model", Stopped)
    line = mistake(predict.main, *words, code=130)
    assert "interrupted; 256 rows are kept" in line and "--resume" in line
    assert not (tmp_path / "a.csv").exists() and not (tmp_path / "a.npy").exists()
    monkeypatch.undo()
    with open(tmp_path / "a.csv.part", "a") as stream:
        stream.write("256,CCO,half a li")  # what a power cut may leave
    assert "go on with --resume" in mistake(predict.main, *words)
    assert "another batch" in mistake(predict.main, *words, "--resume", "--batch", "5")
    (tmp_path / "other.smi").write_text("CCO\n")
    assert "another input" in mistake(
        predict.main, words[0], tmp_path / "other.smi", *words[2:], "--resume"
    )
    said = invoke(predict.main, *words, "--resume")
    assert "597 molecules predicted" in said and "3 rows could not be" in said
    assert (tmp_path / "a.csv").read_bytes() == whole.read_bytes()
    assert (tmp_path / "a.npy").read_bytes() == whole.with_suffix(".npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.npy", "other.smi"}
    invoke(predict.main, *words, "--resume")  # nothing to go on with: from the start
    assert (tmp_path / "a.csv").read_bytes() == whole.read_bytes()


def test_a_killed_run_resumes(road, whole, library, tmp_path):
    command = [
        sys.executable,
        ROOT / "predict.py",
        road / "model.onnx",
        library,
        "-o",
        tmp_path / "a.csv",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while (
        not (tmp_path / "a.csv.part.json").exists()
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130 and "--resume" in said and "Traceback" not in said
    kept = (tmp_path / "a.csv.part").read_bytes()
    assert kept == whole.read_bytes()[: len(kept)] and kept.count(b"\n") in (257, 513)
    say(road, library, tmp_path / "a.csv", "--resume")
    assert (tmp_path / "a.csv").read_bytes() == whole.read_bytes()


def test_damaged_journals_and_inputs(road, library, tmp_path, monkeypatch):
    out = tmp_path / "a.csv"
    for text in ("{", "[]", '{"rows": 1, "failed": 0, "bytes": {"csv": 10}, "facts": {}}'):
        (tmp_path / "a.csv.part.json").write_text(text)
        assert "delete" in mistake(
            predict.main, road / "model.onnx", library, "-o", out, "--resume"
        )
    (tmp_path / "a.csv.part.json").unlink()
    monkeypatch.setattr(
        predict, "Model", type("Early", (OnnxModel,), {"run": Stopped.run, "calls": 99})
    )
    assert mistake(predict.main, road / "model.onnx", library, "-o", out, code=130).endswith(
        "interrupted"
    )
    assert not list(tmp_path.iterdir())  # no window was whole: nothing to keep
    assert "standard input can't be read twice" in mistake(
        predict.main, road / "model.onnx", "-", "--resume", code=2
    )


def test_keep_columns(road, tmp_path):
    (tmp_path / "a.csv").write_text(
        'SMILES,id,labels,note\nCCO,7,1.5,"two\nlines, one cell"\nC1CC,8\nCCN,9,2.5,\n'
    )
    (tmp_path / "b.csv").write_text("smiles,name,row\nCCO,ethanol,x\n")
    (tmp_path / "c.csv").write_text("smiles,labels,input_labels\nCCO,1,2\n")
    (tmp_path / "d.smi").write_text("CCO\n")
    said = say(road, tmp_path / "a.csv", tmp_path / "o.csv", "--keep-columns")
    lines = rows_of(tmp_path / "o.csv")
    assert list(lines[0]) == [
        "row",
        "smiles",
        "name",
        "SMILES",
        "id",
        "input_labels",
        "note",
        "labels",
        "nearest_training",
        "error",
    ]
    assert (
        [line["id"] for line in lines] == ["7", "8", "9"]
        and lines[0]["note"] == "two\nlines, one cell"
        and lines[2]["input_labels"] == "2.5"
    )
    assert (
        "fields where the header has 4" in lines[1]["error"]
        and lines[1]["labels"] == ""
        and "2 molecules" in said
    )
    say(road, tmp_path / "b.csv", tmp_path / "o.csv", "--keep-columns")
    assert list(rows_of(tmp_path / "o.csv")[0].items())[:4] == [
        ("row", "0"),
        ("smiles", "CCO"),
        ("name", "ethanol"),
        ("input_row", "x"),
    ]
    assert "two kept columns would be called 'input_labels'" in mistake(
        predict.main, road / "model.onnx", tmp_path / "c.csv", "--keep-columns"
    )
    assert "needs a .csv or .tsv" in mistake(
        predict.main, road / "model.onnx", tmp_path / "d.smi", "--keep-columns"
    )


def test_views_are_the_random_drawings_of_the_row(road, tmp_path):
    (tmp_path / "a.smi").write_text(f"CCO\n{DRUG}\nC1CC\n")
    say(
        road,
        tmp_path / "a.smi",
        tmp_path / "a.csv",
        "--views",
        "4",
        "--embeddings",
        tmp_path / "a.npy",
    )
    model, line = OnnxModel(str(road / "model.onnx"), "cpu"), rows_of(tmp_path / "a.csv")[1]
    outputs = model.run(draw_views((1, DRUG, ""), views=4, seed=0))
    assert float(line["labels"]) == pytest.approx(outputs["prediction"].mean(), abs=1e-4)
    assert (
        float(line["labels_view_spread"]) == pytest.approx(outputs["prediction"].std(), abs=1e-4)
        and outputs["prediction"].std() > 0
    )
    assert np.load(tmp_path / "a.npy")[1] == pytest.approx(outputs["embedding"].mean(0), abs=1e-4)
    assert list(line) == [
        "row",
        "smiles",
        "name",
        "labels",
        "labels_view_spread",
        "nearest_training",
        "error",
    ]


def figure(kind, smiles=DRUG, size=(600, 600)):
    """Return a drawing as RDKit exports it for a paper or a slide, a PNG as bytes."""
    canvas = rdMolDraw2D.MolDraw2DCairo(*size)
    if kind == "transparent":
        canvas.drawOptions().setBackgroundColour((1, 1, 1, 0))
    if kind == "dark":
        rdMolDraw2D.SetDarkMode(canvas)
    canvas.DrawMolecule(layout(parse(smiles)))
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


@pytest.fixture(scope="module")
def learned(road):
    """A model that sees molecules: the bundled encoder with a head for 320 of ESOL. One of random weights sees pixels."""
    road.write("more.csv", first_lines("esol.csv", 321))
    road.run(
        "python finetune.py --data more.csv --init bundled --freeze --epochs 60 --lr-head 1e-3 -o learned"
    )
    road.run("python export.py learned -o learned.onnx")
    return road / "learned.onnx"


@pytest.mark.parametrize(
    "kind", ["white", "transparent", "dark", "jpeg", "palette", "gray16", "turned"]
)
def test_a_picture_is_predicted_like_its_molecule(learned, tmp_path, kind):
    path, image = tmp_path / "figure.png", Image.open(io.BytesIO(figure(kind)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    {
        "jpeg": lambda: image.convert("RGB").save(path.with_suffix(".jpg"), quality=80),
        "palette": lambda: image.quantize(16).save(path),
        "gray16": lambda: Image.fromarray(
            np.asarray(image.convert("L")).astype(np.uint16) * 257
        ).save(path),
        "turned": lambda: (
            image.convert("RGB")
            .transpose(Image.Transpose.ROTATE_90)
            .save(path.with_suffix(".jpg"), exif=exif)
        ),
    }.get(kind, lambda: image.save(path))()
    (path,) = tmp_path.iterdir()
    drawn, fitted = draw(layout(parse(DRUG))), to_drawing(path)
    assert np.abs(to_rgb(fitted).astype(int) - to_rgb(drawn)).mean() < (
        8 if kind == "gray16" else 5
    )
    ends = [[(part.min(), part.max()) for part in np.nonzero(index)] for index in (drawn, fitted)]
    assert np.abs(np.subtract(*ends)).max() <= 3  # in the same place, and as large
    said = invoke(predict.main, learned, path, "-o", tmp_path / "a.csv")
    (line,) = rows_of(tmp_path / "a.csv")
    model = OnnxModel(str(learned), "cpu")
    wanted, others = (
        model.run([deflate(i) for i in some])["prediction"]
        for some in ([drawn], [draw(layout(parse(s))) for s in small_molecules(20)])
    )
    assert abs(float(line["labels"]) - wanted[0, 0]) < max(0.5 * others.std(), 0.01)
    assert (line["smiles"], line["name"], line["nearest_training"], line["error"]) == (
        "",
        path.name,
        "",
        "",
    ) and "1 molecules" in said


def test_a_drawing_of_this_size_stays_as_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(figure("white", size=(224, 224)))
    drawn = draw(layout(parse(DRUG)))
    assert np.abs(to_rgb(to_drawing(tmp_path / "a.png")).astype(int) - to_rgb(drawn)).mean() < 0.2


def test_a_folder_of_pictures_and_what_is_none(road, tmp_path, monkeypatch):
    folder, out = tmp_path / "figures", tmp_path / "a.csv"
    folder.mkdir()
    assert "holds no .png" in mistake(predict.main, road / "model.onnx", folder, "-o", out)
    for name, content in (
        ("b.png", figure("dark", "CCO")),
        ("a.PNG", figure("white")),
        ("not.png", b"no picture"),
        ("cut.png", figure("white")[:3000]),
        ("z.txt", b""),
    ):
        (folder / name).write_bytes(content)
    Image.new("RGB", (300, 200), "white").save(folder / "empty.jpg")
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    Image.new("1", (20000, 20000)).save(folder / "vast.png")
    said = say(road, folder, out, "--html", tmp_path / "a.html")
    found = {line["name"]: line["error"] for line in rows_of(out)}
    assert (
        list(found) == ["a.PNG", "b.png", "cut.png", "empty.jpg", "huge.png", "not.png", "vast.png"]
        and "2 molecules predicted" in said
    )
    assert (
        found["a.PNG"] == found["b.png"] == ""
        and "damaged" in found["cut.png"]
        and found["empty.jpg"] == "nothing is drawn on it"
    )
    assert (
        found["not.png"] == "not a PNG or JPEG picture"
        and "smaller than 50 million" in found["huge.png"]
        and "smaller than 50 million" in found["vast.png"]
    )
    for name, says in (
        ("not.png", "not a PNG or JPEG"),
        ("nowhere.png", "no such file"),
        ("huge.png", "9000 x 9000 pixels are too many"),
    ):
        assert f"{name}: {says}" in mistake(
            predict.main, road / "model.onnx", folder / name, "-o", tmp_path / "b.csv"
        )
    assert "needs SMILES" in mistake(predict.main, road / "model.onnx", folder, "--views", "2")
    assert not (tmp_path / "b.csv").exists()


@pytest.fixture
def page(road, tmp_path):
    evil = [
        "CCO <img src=x onerror=alert(1)>",
        "CCCCO </script><script>document.title='broken'</script>",
        "C1CC",
        "c1ccccc1O a&b",
    ]
    (tmp_path / "evil.smi").write_text("\n".join(evil) + "\n")
    said = say(road, tmp_path / "evil.smi", tmp_path / "a.csv", "--html", tmp_path / "a.html")
    assert "open it in a browser" in said
    return tmp_path / "a.html"


def test_the_page_is_one_file_and_escapes_everything(page):
    text = page.read_text()
    assert (
        "<img" not in text
        and text.count("<script") == 2 == text.count("</script")
        and not re.search(r"https?://", text)
    )
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])
    assert (
        data["columns"] == ["row", "smiles", "name", "labels", "nearest_training", "error"]
        and data["more"] == 0
    )
    assert [row[2] for row in data["rows"]] == [
        line["name"] for line in rows_of(page.with_suffix(".csv"))
    ] and data["rows"][0][2].startswith("<img")
    assert [bool(image) for image in data["images"]] == [True, True, False, True] and len(
        text
    ) < 40_000


@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")), reason="no Chromium here"
)
def test_the_page_sorts_and_filters_in_chromium(page):
    """A script that clicks as a user would is added to a copy of the page, and what it then shows is read."""
    clicks = """<script>
        const rows = () => [...document.querySelectorAll("tbody tr")].map(tr => tr.children[1].textContent).join(","), seen = [document.title, rows()];
        const press = name => [...document.querySelectorAll("th button")].find(b => b.textContent === name).click();
        for (const name of ["labels", "labels", "smiles"]) { press(name); seen.push(rows()); }
        const box = document.getElementById("filter"); box.value = "a&b"; box.dispatchEvent(new Event("input")); seen.push(rows(), document.images.length);
        const out = document.createElement("pre"); out.id = "seen"; out.textContent = seen.join("|"); document.body.append(out);
    </script></html>"""
    page.write_text(page.read_text().replace("</html>", clicks))
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'browser'}",
            "--dump-dom",
            f"file://{page}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    title, at_first, down, up, by_smiles, filtered, images = re.search(
        r'<pre id="seen">(.*?)</pre>', done.stdout
    )[1].split("|")
    values = values_of(page.with_suffix(".csv"))
    order = sorted((0, 1, 3), key=lambda row: values[row])
    assert (
        title == "labels, predicted for evil.smi"
        and at_first == "0,1,2,3"
        and filtered == "3"
        and images == "1"
    )
    assert (
        up == ",".join(map(str, [*order, 2]))
        and down == ",".join(map(str, [*order[::-1], 2]))
        and by_smiles == "2,3,1,0"
    )


def test_a_long_page_says_what_it_leaves_out(road, library, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "REPORTED", 5)
    (tmp_path / "a.smi").write_text("\n".join(small_molecules(8)) + "\n")
    say(road, tmp_path / "a.smi", tmp_path / "a.csv", "--html", tmp_path / "a.html")
    data = json.loads(
        re.search(
            r'type="application/json">(.*?)</script>', (tmp_path / "a.html").read_text(), re.S
        )[1]
    )
    assert len(data["rows"]) == len(data["images"]) == 5 and data["more"] == 3


def test_a_provider_that_fails(road, tmp_path, monkeypatch):
    (tmp_path / "a.smi").write_text("CCO\n")
    words = road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.csv", "--workers", "1"
    assert "--provider cuda: " in mistake(predict.main, *words, "--provider", "cuda")
    monkeypatch.setattr(
        predict, "no_cuda", lambda: ""
    )  # as if there were a GPU: its session fails, or silently takes the CPU
    monkeypatch.setattr(predict, "has_gpu", lambda: True)
    assert "--provider cuda: " in mistake(predict.main, *words, "--provider", "cuda")
    said = invoke(predict.main, *words)
    assert "taking the CPU: " in said and "predicted on CPU" in said


def test_more_mistakes(road, tmp_path):
    (tmp_path / "a.smi").write_text("CCO\n")
    words = road / "model.onnx", tmp_path / "a.smi"
    assert "two different outputs" in mistake(
        predict.main, *words, "-o", tmp_path / "x", "--html", tmp_path / "x"
    )
    assert "is the input itself" in mistake(predict.main, *words, "--html", tmp_path / "a.smi")
    assert "2/8" in mistake(predict.main, *words, "--part", "3/2", code=2)
    assert (tmp_path / "a.smi").read_text() == "CCO\n" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk(road, library, tmp_path, monkeypatch):
    out, write = tmp_path / "a.csv", ResumableCsv.write

    def full(output, *words):
        if output.rows:
            raise OSError(28, "No space left on device")
        write(output, *words)

    monkeypatch.setattr(ResumableCsv, "write", full)
    line = mistake(predict.main, road / "model.onnx", library, "-o", out, "--workers", "1")
    assert (
        "a.csv: can't be written (No space left on device); 256 rows are kept" in line
        and not out.exists()
    )
    (tmp_path / "b.csv.part").mkdir()
    assert "b.csv: can't be written (Is a directory)" in mistake(
        predict.main, road / "model.onnx", library, "-o", tmp_path / "b.csv"
    )
