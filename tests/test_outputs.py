"""What predict.py leaves when it is interrupted, and the page of --html."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, invoke, mistake, rows_of, small_molecules

import predict
from moleclip import outputs
from moleclip.onnxmodel import OnnxModel
from moleclip.outputs import ResumableCsv

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CLICKS = """<script>
    const rows = () => [...document.querySelectorAll("tbody tr")]
        .map(tr => tr.children[1].textContent).join(",");
    const seen = [document.title, rows()];
    const press = name => [...document.querySelectorAll("th button")]
        .find(b => b.textContent === name).click();
    for (const name of ["log_solubility", "log_solubility", "smiles"]) {
        press(name);
        seen.push(rows());
    }
    const box = document.getElementById("filter");
    box.value = "a&b";
    box.dispatchEvent(new Event("input"));
    seen.push(rows(), document.images.length);
    const out = document.createElement("pre");
    out.id = "seen";
    out.textContent = seen.join("|");
    document.body.append(out);
</script></html>"""


class Stopped(OnnxModel):
    """A model whose run is interrupted in its second window, as by Ctrl-C."""

    calls = 0

    def run(self, streams):
        self.calls += 1
        if self.calls > 40:
            raise KeyboardInterrupt
        return super().run(streams)


class StoppedEarly(Stopped):
    """One that is interrupted at once."""

    calls = 99


def test_resume_gives_the_same_bytes(road, predicted, library, tmp_path, monkeypatch):
    model, out, embeddings = road / "model.onnx", tmp_path / "a.csv", tmp_path / "a.npy"
    words = "-o", out, "--embeddings", embeddings, "--workers", "1"
    monkeypatch.setattr(predict, "OnnxModel", Stopped)
    line = mistake(predict.main, model, library, *words, code=130)
    assert "interrupted; 256 rows are kept" in line and "--resume" in line
    assert not out.exists() and not embeddings.exists()
    monkeypatch.undo()
    with open(tmp_path / "a.csv.part", "a") as stream:
        stream.write("256,CCO,half a li")  # what a power cut may leave
    refuse_others(model, library, words, tmp_path / "other.smi")
    said = invoke(predict.main, model, library, *words, "--resume")
    assert "597 molecules predicted" in said and "3 rows could not be" in said
    assert out.read_bytes() == predicted.read_bytes()
    assert embeddings.read_bytes() == predicted.with_suffix(".npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.npy", "other.smi"}
    # Nothing to go on with: from the start.
    invoke(predict.main, model, library, *words, "--resume")
    assert out.read_bytes() == predicted.read_bytes()


def refuse_others(model, library, words, other):
    """Hold that an interrupted run is not begun anew, nor resumed with other arguments."""
    other.write_text("CCO\n")
    assert "go on with --resume" in mistake(predict.main, model, library, *words)
    line = mistake(predict.main, model, library, *words, "--resume", "--batch", "5")
    assert "another batch" in line
    assert "another input" in mistake(predict.main, model, other, *words, "--resume")


def test_a_killed_run_resumes(road, predicted, library, tmp_path):
    words = road / "model.onnx", library, "-o", tmp_path / "a.csv", "--workers", "1"
    command = [sys.executable, ROOT / "predict.py", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal, deadline = tmp_path / "a.csv.part.json", time.time() + 60
    while not journal.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130 and "--resume" in said and "Traceback" not in said
    kept = (tmp_path / "a.csv.part").read_bytes()
    assert kept == predicted.read_bytes()[: len(kept)] and kept.count(b"\n") in (257, 513)
    invoke(predict.main, *words, "--resume")
    assert (tmp_path / "a.csv").read_bytes() == predicted.read_bytes()


def test_damaged_journals(road, library, tmp_path):
    out = tmp_path / "a.csv"
    for text in ("{", "[]", '{"rows": 1, "failed": 0, "bytes": {"csv": 10}, "facts": {}}'):
        (tmp_path / "a.csv.part.json").write_text(text)
        words = road / "model.onnx", library, "-o", out, "--resume"
        assert "delete" in mistake(predict.main, *words)


def test_nothing_is_kept_of_no_window(road, library, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OnnxModel", StoppedEarly)
    words = road / "model.onnx", library, "-o", tmp_path / "a.csv"
    assert mistake(predict.main, *words, code=130).endswith("interrupted")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(road, library, tmp_path, monkeypatch):
    out, write = tmp_path / "a.csv", ResumableCsv.write

    def full(output, *words):
        if output.rows:
            raise OSError(28, "No space left on device")
        write(output, *words)

    monkeypatch.setattr(ResumableCsv, "write", full)
    line = mistake(predict.main, road / "model.onnx", library, "-o", out, "--workers", "1")
    says = "a.csv: can't be written (No space left on device); 256 rows are kept"
    assert says in line and not out.exists()
    (tmp_path / "b.csv.part").mkdir()
    line = mistake(predict.main, road / "model.onnx", library, "-o", tmp_path / "b.csv")
    assert "b.csv: can't be written (Is a directory)" in line


# ----------------------------------------------------------------------------------------------
# The page


def write_page(road, folder, lines):
    """Predict lines, and return the page's path and what was said."""
    (folder / "a.smi").write_text("\n".join(lines) + "\n")
    words = road / "model.onnx", folder / "a.smi", "-o", folder / "a.csv", "--workers", "1"
    said = invoke(predict.main, *words, "--html", folder / "a.html")
    assert "open it in a browser" in said
    return folder / "a.html"


def data_of(page):
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.S)
    return json.loads(found[1])


@pytest.fixture
def page(road, tmp_path):
    evil = [
        "CCO <img src=x onerror=alert(1)>",
        "CCCCO </script><script>document.title='broken'</script>",
        "C1CC",
        "c1ccccc1O a&b",
    ]
    return write_page(road, tmp_path, evil)


def test_the_page_is_one_file_and_escapes_everything(page):
    text, data = page.read_text(), data_of(page)
    assert "<img" not in text and text.count("<script") == 2 == text.count("</script")
    assert not re.search(r"https?://", text) and len(text) < 40_000
    columns = ["row", "smiles", "name", "log_solubility", "nearest_training", "error"]
    assert data["columns"] == columns and data["more"] == 0
    names = [line["name"] for line in rows_of(page.with_suffix(".csv"))]
    assert [row[2] for row in data["rows"]] == names and names[0].startswith("<img")
    assert [bool(image) for image in data["images"]] == [True, True, False, True]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_page_sorts_and_filters_in_chromium(page):
    """A script that clicks as a user would is added to the page; what it then shows is read."""
    page.write_text(page.read_text().replace("</html>", CLICKS))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'browser'}", f"file://{page}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1]
    title, at_first, down, up, by_smiles, filtered, images = seen.split("|")
    lines = rows_of(page.with_suffix(".csv"))
    order = sorted((0, 1, 3), key=lambda row: float(lines[row]["log_solubility"]))
    assert title == "log_solubility, predicted for a.smi" and at_first == "0,1,2,3"
    assert filtered == "3" and images == "1" and by_smiles == "2,3,1,0"
    assert up == ",".join(map(str, [*order, 2]))
    assert down == ",".join(map(str, [*order[::-1], 2]))


def test_a_long_page_says_what_it_leaves_out(road, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "REPORTED", 5)
    data = data_of(write_page(road, tmp_path, small_molecules(8)))
    assert len(data["rows"]) == len(data["images"]) == 5 and data["more"] == 3
