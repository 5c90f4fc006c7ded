"""What predict.py writes: whole whatever happens, by one run at a time; parts joined; the page."""

import csv
import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, invoke, mistake, rows_of, small_molecules
from drawn import figure

import predict
from moleclip import molecules, reportpage
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
    seen.push(document.querySelector("tbody td.target").textContent);
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
# What is gone on with, and by whom


def interrupt(monkeypatch, *words):
    """Interrupt a run after its first window."""
    with monkeypatch.context() as patch:
        patch.setattr(predict, "OnnxModel", Stopped)
        assert "256 rows are kept" in mistake(predict.main, *words, "--workers", "1", code=130)


def test_another_column_is_not_gone_on_with(road, tmp_path, monkeypatch):
    lines = [f"{smiles},C" for smiles in small_molecules(330)]
    (tmp_path / "a.csv").write_text("\n".join(["smiles,other_smiles", *lines]))
    words = road / "model.onnx", tmp_path / "a.csv", "-o", tmp_path / "o.csv"
    interrupt(monkeypatch, *words)
    for change, says in (
        (("--smiles-column", "other_smiles"), "another SMILES column (smiles, now other_smiles)"),
        (("--keep-columns",), "another columns"),
        (("--views", "2"), "another columns"),
    ):
        assert says in mistake(predict.main, *words, *change, "--resume")
    # The same column, named.
    assert "330 mol" in invoke(predict.main, *words, "--smiles-column", "smiles", "--resume")


def test_an_edited_picture_is_not_gone_on_with(road, tmp_path, monkeypatch):
    folder = tmp_path / "figures"
    folder.mkdir()
    for row in range(330):
        (folder / f"{row}.png").write_bytes(figure("white", "CCO", (100, 100)))
    words = road / "model.onnx", folder, "-o", tmp_path / "o.csv"
    interrupt(monkeypatch, *words)
    size, other = (folder / "3.png").stat().st_size, figure("white", "CCN", (100, 100))
    (folder / "3.png").write_bytes(other + bytes(max(0, size - len(other))))
    assert "another input" in mistake(predict.main, *words, "--resume")


def test_one_run_at_a_time_on_one_output(road, library, predicted, tmp_path, monkeypatch):
    """While a run goes on, another is begun on the same files, and one on other files."""
    (tmp_path / "other.smi").write_text("CCO\nCCN\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    model, said = road / "model.onnx", []

    def begin(out, *words, command=mistake):
        words = model, tmp_path / "other.smi", "-o", tmp_path / out, "--workers", "1", *words
        said.append(command(predict.main, *words))

    class Busy(OnnxModel):
        def run(self, streams):
            if not said:
                monkeypatch.setattr(predict, "OnnxModel", OnnxModel)
                begin("a.csv")
                begin("a.csv", "--resume")
                begin("link.csv")
                begin("b.csv", "--embeddings", tmp_path / "a.npy")
                begin("a.csv", "--part", "1/2", command=invoke)
            return super().run(streams)

    monkeypatch.setattr(predict, "OnnxModel", Busy)
    files = "-o", tmp_path / "a.csv", "--embeddings", tmp_path / "a.npy"
    invoke(predict.main, model, library, *files, "--workers", "1")
    assert ["another run is writing it" in line for line in said] == [True] * 4 + [False]
    assert (tmp_path / "a.csv").read_bytes() == predicted.read_bytes()
    names = {"a.csv", "a.npy", "link.csv", "other.smi", "a-1-of-2.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_journal_without_work_is_none(road, tmp_path):
    """As it is left where a run was killed between giving its files their names and its end."""
    (tmp_path / "a.smi").write_text("CCO\n")
    (tmp_path / "a.csv.part.json").write_text("{}")
    words = road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "a.csv"
    assert "delete both" in mistake(predict.main, *words, "--resume")
    assert "1 molecules" in invoke(predict.main, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"a.smi", "a.csv"}


def test_a_link_is_written_through_and_a_device_is_refused(road, tmp_path):
    (tmp_path / "a.smi").write_text("CCO\n")
    (tmp_path / "real").mkdir()
    (tmp_path / "a.csv").symlink_to(tmp_path / "real" / "b.csv")
    (tmp_path / "c.csv").symlink_to("/dev/null")
    words = road / "model.onnx", tmp_path / "a.smi", "-o"
    invoke(predict.main, *words, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").is_symlink() and len(rows_of(tmp_path / "real" / "b.csv")) == 1
    for name in ("/dev/null", tmp_path / "c.csv"):
        assert "is no regular file" in mistake(predict.main, *words, name)
    two = mistake(predict.main, *words, tmp_path / "a.csv", "--html", tmp_path / "real" / "b.csv")
    assert "two different outputs" in two


def test_a_name_that_ends_in_gz_is_gzipped(road, predicted, library, tmp_path, monkeypatch):
    words = road / "model.onnx", library, "-o", tmp_path / "a.csv.gz"
    interrupt(monkeypatch, *words)
    invoke(predict.main, *words, "--resume", "--html", tmp_path / "a.html")
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == predicted.read_bytes()
    assert len(data_of(tmp_path / "a.html")["rows"]) == 600


# ----------------------------------------------------------------------------------------------
# Parts


@pytest.fixture
def parts(road, tmp_path, monkeypatch):
    """A folder with what three parts of 700 molecules gave, some of whose names have two lines."""
    monkeypatch.setattr(molecules, "BLOCK", 256)
    monkeypatch.setattr("moleclip.parts.BLOCK", 256)
    monkeypatch.setattr(predict, "BLOCK", 256)
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        lines = [[smiles, f"m{row}\n, b"] for row, smiles in enumerate(small_molecules(700))]
        csv.writer(stream).writerows([["smiles", "name"], *lines])
    words = road / "model.onnx", tmp_path / "a.csv", "--workers", "1"
    for part in ((), ("--part", "1/3"), ("--part", "2/3"), ("--part", "3/3")):
        files = "-o", tmp_path / "p.csv", "--embeddings", tmp_path / "p.npy"
        invoke(predict.main, *words, *files, *part)
    return tmp_path


def test_parts_join_to_the_whole(parts):
    whole, names = parts / "p.csv", [parts / f"p-{i}-of-3.csv" for i in (2, 3, 1)]
    said = invoke(predict.main, "--join", *names, "-o", parts / "joined.csv")
    assert "700 rows of 3 parts" in said
    assert (parts / "joined.csv").read_bytes() == whole.read_bytes()
    invoke(predict.main, "--join", *names, "-o", parts / "joined.csv.gz")
    assert gzip.decompress((parts / "joined.csv.gz").read_bytes()) == whole.read_bytes()
    arrays = [name.with_suffix(".npy") for name in names]
    assert ".npy" in mistake(predict.main, "--join", *arrays)
    invoke(predict.main, "--join", *arrays, "-o", parts / "joined.npy")
    assert (parts / "joined.npy").read_bytes() == whole.with_suffix(".npy").read_bytes()


def test_parts_that_are_not_all_there(parts):
    names = [parts / f"p-{i}-of-3.csv" for i in (1, 2, 3)]
    out, second = parts / "joined.csv", names[1].read_text()
    lines = list(csv.reader(second.splitlines(True)))
    assert "p-2-of-3.csv: this part is missing" in refused(out, names[0], names[2])
    assert "is none of the 3" in refused(out, *names, parts / "p.csv")
    assert "is not named as --part does" in refused(out, parts / "p.csv")
    assert "is the input itself" in refused(names[0], *names)
    for change, says in (
        (lines[:8] + lines[9:], "p-2-of-3.csv: row 263 is missing"),
        (lines[:8] + lines[7:], "p-2-of-3.csv: row 262 is there twice"),
        (lines[:-1], "p-2-of-3.csv: row 511 is missing"),
        ([[*lines[0][:-1], "x"], *lines[1:]], "p-2-of-3.csv: its columns are not those"),
        (lines[:8] + [lines[8][:-1]] + lines[9:], "p-2-of-3.csv: damaged: line"),
    ):
        with open(names[1], "w", newline="") as stream:
            csv.writer(stream).writerows(change)
        assert says in refused(out, *names)
    names[1].write_text(second[: second.index("m300\n") + 5])
    assert "p-2-of-3.csv: damaged" in refused(out, *names)
    names[1].write_text("")
    assert "p-2-of-3.csv: its columns are not those" in refused(out, *names)
    arrays = [name.with_suffix(".npy") for name in names]
    np.save(arrays[1], np.load(arrays[1])[1:])
    assert "lacks rows" in refused(parts / "joined.npy", *arrays)
    arrays[2].write_bytes(b"")
    assert "p-3-of-3.npy: damaged" in refused(parts / "joined.npy", *arrays)
    assert not out.exists() and not (parts / "joined.npy").exists()


def refused(out, *names):
    """The one line with which parts are not joined."""
    return mistake(predict.main, "--join", *names, "-o", out)


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
    columns = ["row", "smiles", "name", "log_solubility", "nearest_training", "note", "error"]
    assert data["columns"] == columns and data["more"] == 0
    names = [line["name"] for line in rows_of(page.with_suffix(".csv"))]
    assert [row[2] for row in data["rows"]] == names and names[0].startswith("<img")
    assert [bool(image) for image in data["images"]] == [True, True, False, True]
    assert "toPrecision" not in text and "toFixed" not in text  # a number keeps its digits
    assert "less sure" not in text  # likeness doesn't tell: docs/results.md


def clicked(page, script):
    """What a script that clicks as a user would, added to the page, has seen in Chromium."""
    page.write_text(page.read_text().replace("</html>", script))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'browser'}", f"file://{page}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1].split("|")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_page_shows_intervals_and_sorts_by_their_width(tmp_path):
    lines = ["row,smiles,name,y (nM),y_low (nM),y_high (nM),nearest_training,note,error"]
    lines += [
        "0,CCO,,2,1.5,2.5,,,",
        "1,CCN,,5,1,9,,,",
        "2,C1CC,,,,,,,broken",
        "3,CCC,,3,2.9,3.1,,,",
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    told = {"y (nM)": ""}, [("y_low (nM)", "y_high (nM)")], 0.9
    reportpage.write_report(tmp_path / "a.html", tmp_path / "a.csv", "y", told, None, 1)
    heads, at_first, widest, narrowest, shown = clicked(
        tmp_path / "a.html",
        CLICKS.replace("log_solubility", "y interval (nM)")
        .replace('"smiles"]', "]")
        .replace("document.title", "head.textContent")
        .replace("seen.push(rows(), document.images.length);", "")
        .replace("td.target", "tr:last-child td:nth-child(5)")
        .replace('box.value = "a&b"', 'box.value = "CCN"'),
    )
    assert "y interval (nM)90%, sorts by width" in heads and "high" not in heads
    assert (at_first, widest, narrowest, shown) == ("0,1,2,3", "1,0,3,2", "3,0,1,2", "1 to 9")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_page_sorts_and_filters_in_chromium(page):
    seen = clicked(page, CLICKS)
    title, at_first, down, up, by_smiles, filtered, images, value = seen
    lines = rows_of(page.with_suffix(".csv"))
    assert value == lines[3]["log_solubility"]
    order = sorted((0, 1, 3), key=lambda row: float(lines[row]["log_solubility"]))
    assert title == "log_solubility, predicted for a.smi" and at_first == "0,1,2,3"
    assert filtered == "3" and images == "1" and by_smiles == "2,3,1,0"
    assert up == ",".join(map(str, [*order, 2]))
    assert down == ",".join(map(str, [*order[::-1], 2]))


def test_a_long_page_says_what_it_leaves_out(road, tmp_path, monkeypatch):
    monkeypatch.setattr(reportpage, "REPORTED", 5)
    data = data_of(write_page(road, tmp_path, small_molecules(8)))
    assert len(data["rows"]) == len(data["images"]) == 5 and data["more"] == 3
