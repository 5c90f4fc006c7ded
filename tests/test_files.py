import csv
import gzip
import os

import click
import numpy as np
import pytest
from conftest import mistake

import render
from moleclip.files import (
    check_output,
    final_path,
    one_line,
    packed,
    read_arrays,
    save_arrays,
    save_json,
    save_table,
)


def test_arrays_are_read_as_they_were_saved(tmp_path):
    saved = {"data": np.arange(200, dtype=np.uint8), "row": np.arange(3)}
    save_arrays(tmp_path / "a.npz", **saved)
    found = read_arrays(tmp_path / "a.npz", ("data", "row"))
    assert isinstance(found["data"], np.memmap) and list(found) == ["data", "row"]
    assert all((found[name] == saved[name]).all() for name in saved)
    save_arrays(tmp_path / "b.npz", data=np.zeros(0, np.uint8))
    assert read_arrays(tmp_path / "b.npz", ("data",))["data"].shape == (0,)
    with pytest.raises(click.ClickException, match="has no array 'offsets'"):
        read_arrays(tmp_path / "a.npz", ("data", "offsets"))
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-9])
    for name, says in (("c", "truncated"), ("nowhere", "no such file")):
        with pytest.raises(click.ClickException, match=says):
            read_arrays(tmp_path / f"{name}.npz", ())
    np.savez_compressed(tmp_path / "d.npz", **saved)  # can't be a memory map
    with pytest.raises(click.ClickException, match="not a file that numpy can read"):
        read_arrays(tmp_path / "d.npz", ("data",))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    (tmp_path / "a.smi").write_text("CCO\n")
    said = mistake(render.main, tmp_path / "a.smi", "-o", tmp_path / "out")
    assert "can't be written (No space left on device)" in said
    assert not list((tmp_path / "out").glob("*.npz")) and not list((tmp_path / "out").glob(".*"))


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("there.json", "new.json"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "there.json").write_text("old")
    for name in ("there.json", "new.json"):
        check_output(tmp_path / name)
        save_json(tmp_path / name, {"new": 1})
        assert (tmp_path / name).is_symlink() and final_path(tmp_path / name).parent.name == "disk"
        assert "new" in (tmp_path / "disk" / name).read_text()
    assert sorted(os.listdir(tmp_path / "disk")) == ["new.json", "there.json"]


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in ("/dev/null", *(tmp_path / name for name in ("pipe", "loop", "null"))):
        for write in (check_output, lambda path: save_table(path, ["a"], [])):
            with pytest.raises(click.ClickException, match="is no regular file"):
                write(path)
    assert (tmp_path / "pipe").is_fifo() and os.path.exists("/dev/null")
    assert not list(tmp_path.glob(".*"))


def test_a_table_is_gzipped_as_its_name_says(tmp_path):
    rows = [["a", "é"], ["b", "\udce9"]]
    for name in ("a.csv", "a.csv.gz", "b.csv.gz"):
        save_table(tmp_path / name, ["x", "y"], rows)
    plain, zipped = (tmp_path / "a.csv").read_bytes(), (tmp_path / "a.csv.gz").read_bytes()
    assert zipped[:2] == b"\x1f\x8b" and gzip.decompress(zipped) == plain
    assert zipped == (tmp_path / "b.csv.gz").read_bytes()
    with open(tmp_path / "a.csv", newline="", errors="surrogateescape") as stream:
        assert list(csv.reader(stream)) == [["x", "y"], *rows]
    assert packed(tmp_path / "a.csv", plain) == plain
    pieces = [packed("a.csv.gz", plain[:5]), packed("a.csv.gz", plain[5:])]
    assert gzip.decompress(b"".join(pieces)) == plain


def test_what_goes_wrong_fits_a_line():
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError" and len(one_line(ValueError("x" * 999))) == 200
