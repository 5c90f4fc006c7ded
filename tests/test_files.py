import click
import numpy as np
import pytest
from conftest import mistake

import render
from moleclip.files import one_line, read_arrays, save_arrays


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


def test_what_goes_wrong_fits_a_line():
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError" and len(one_line(ValueError("x" * 999))) == 200
