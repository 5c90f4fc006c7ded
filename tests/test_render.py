import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import first_lines, invoke, mistake, small_molecules
from drawn import ASPIRIN, picture_of
from PIL import Image

import render
from moleclip import molecules, shards
from moleclip.pixels import to_rgb
from moleclip.shards import read_manifest
from moleclip.styles import FONTS


def test_same_bytes_for_any_workers_and_after_an_interruption(desk, road):
    desk.run(["python", "render.py", road / "molecules.smi", "-o", "one", "--workers", "1"])
    whole = (desk / "one" / "shard-00000.npz").read_bytes()
    assert whole == (road / "shards" / "shard-00000.npz").read_bytes()
    (desk / "one" / "shard-00000.npz").unlink()
    command = ["python", "render.py", road / "molecules.smi", "-o", "one", "--resume"]
    desk.run([*command, "--workers", "3"])
    assert whole == (desk / "one" / "shard-00000.npz").read_bytes()
    assert len((desk / "one" / "rejected.csv").read_text().splitlines()) == 2


def test_wide_drawings_and_places_are_the_same_for_any_workers(desk, monkeypatch):
    desk.write("a.smi", [*small_molecules(70), "C1CC"])
    monkeypatch.chdir(desk.folder)
    for workers in (1, 3):
        words = "--atoms", "--styles", "wide", "--views", 3, "--workers", workers
        invoke(render.main, "a.smi", "-o", f"{workers}", *words)
    one, three = ((desk / name / "shard-00000.npz").read_bytes() for name in "13")
    assert one == three
    assert read_manifest("1")["styles"] == "wide" and read_manifest("1")["atoms"] is True
    same = "a.smi", "-o", "1", "--resume", "--views", 3
    said = mistake(render.main, *same, "--styles", "wide")
    assert "holds shards with atoms True, not False" in said
    said = mistake(render.main, *same, "--atoms")
    assert "holds shards with styles wide, not paper" in said


def test_parts_lie_side_by_side_and_make_the_same_shards(desk, monkeypatch):
    for module in (molecules, shards, render):
        monkeypatch.setattr(module, "BLOCK", 8)
    desk.write("a.smi", small_molecules(20) + ["C1CC"] + small_molecules(9))
    monkeypatch.chdir(desk.folder)
    invoke(render.main, "a.smi", "-o", "whole", "--workers", 1)
    invoke(render.main, "a.smi", "-o", "cut", "--workers", 1, "--part", "2/2")
    with pytest.raises(click.ClickException, match="--part 1/2 --resume"):
        read_manifest("cut")
    invoke(render.main, "a.smi", "-o", "cut", "--workers", 1, "--part", "1/2")
    assert "already holds" in mistake(render.main, "a.smi", "-o", "cut", "--part", "1/2")
    assert "parts 2, not 3" in mistake(render.main, "a.smi", "-o", "cut", "--part", "3/3")
    for name in (f"shard-{i:05d}.npz" for i in range(4)):
        assert (desk / "cut" / name).read_bytes() == (desk / "whole" / name).read_bytes()
    whole, cut = read_manifest("whole"), read_manifest("cut")
    for counts in (cut, whole):
        assert [counts[key] for key in ("rows", "drawn", "rejected")] == [30, 29, 1]
    assert "20,21,C1CC" in (desk / "cut" / "rejected-1-of-2.csv").read_text()
    assert "C1CC" not in (desk / "cut" / "rejected-2-of-2.csv").read_text()


def test_what_is_no_part():
    for words in (
        "new_molecules.txt --part 0/2",
        "new_molecules.txt --part 3/2",
        "new_molecules.txt --part 2",
        "- --part 1/2",
        "- --resume",
    ):
        mistake(render.main, *words.split(), code=2)


def test_a_killed_run_resumes_to_the_same_bytes(desk):
    desk.write("a.smi", small_molecules(1200) * 3)
    command = [sys.executable, "render.py", "a.smi", "-o", "cut", "--views", "1"]
    with subprocess.Popen(command, cwd=desk.folder, stderr=subprocess.DEVNULL) as process:
        while not (desk / "cut" / "shard-00000.npz").exists():
            time.sleep(0.01)
        process.kill()
    before = sorted(path.name for path in (desk / "cut").glob("shard-*.npz"))
    assert 1 <= len(before) < 4
    assert not json.loads((desk / "cut" / "manifest.json").read_text())["complete"]
    desk.run(["python", *command[1:], "--resume"])
    desk.run(["python", "render.py", "a.smi", "-o", "whole", "--views", "1"])
    names = sorted(path.name for path in (desk / "whole").glob("shard-*.npz"))
    assert len(names) == 4
    for name in names:
        assert (desk / "cut" / name).read_bytes() == (desk / "whole" / name).read_bytes()


def test_ctrl_c_leaves_no_process_and_no_noise(desk):
    desk.write("a.smi", small_molecules(1200) * 3)
    # A shell that runs the tests in the background has the signal ignored.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "render.py", "a.smi", "-o", "out"],
        cwd=desk.folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    )
    while not (desk / "out" / "shard-00000.npz").exists():  # at work, not still at its imports
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode != 0 and "Traceback" not in said
    assert not list((desk / "out").glob(".*"))
    assert not any(folder_of(path) == str(desk.folder) for path in Path("/proc").glob("[0-9]*"))


def folder_of(process):
    """The folder in which a process runs."""
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""


def test_preview(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke(render.main, "new_molecules.txt", "--views", 3, "--preview", "grid.png", "--workers", 1)
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert grid.shape == (12 * 252, 3 * 232 + 8, 3) and not (tmp_path / "shards").exists()
    aspirin = to_rgb(picture_of(ASPIRIN))
    assert (grid[24:248, 8:232] == aspirin).all()


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("empty.smi", "", "is empty"),
        ("none.csv", "name,value\na,1\n", "no SMILES column"),
        ("broken.smi", "C1CC\nnonsense\n", "none of its 2 rows could be drawn"),
        ("kind.mol", "CCO\n", "unknown kind of file"),
        ("twice.csv", "smiles,x,x\nCCO,1,2\n", "two columns are named 'x'"),
    ],
)
def test_mistakes(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    line = mistake(render.main, tmp_path / name, "-o", tmp_path / "out")
    assert says in line and name in line
    assert not list(tmp_path.glob("out/shard-*.npz")) or "rejected.csv" in line


def test_a_missing_font_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "FONTS", [*FONTS, "NoSuchFont.ttf"])
    said = mistake(render.main, "new_molecules.txt", "-o", tmp_path / "out")
    assert "NoSuchFont.ttf not found" in said


def test_a_folder_with_other_shards_is_left_alone(road, tmp_path):
    folder = road / "shards"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "--resume" in mistake(render.main, road / "molecules.smi", "-o", folder)
    other = tmp_path / "other.smi"
    other.write_text("\n".join(first_lines("chembl_3000.smi", 5)))
    assert "another folder" in mistake(render.main, other, "-o", folder, "--resume")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
