import json

import click
import numpy as np
import pytest
from conftest import invoke, rows_of, small_molecules

import render
from moleclip.drawing import draw, draw_views, layout
from moleclip.molecules import parse
from moleclip.pixels import palette
from moleclip.shards import picture, places_of, read_manifest, read_shard, smiles_of
from moleclip.styles import random_style


def test_shard_holds_what_the_design_says(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    kinds = {
        name: (shard[name].dtype.kind, shard[name].dtype.itemsize, shard[name].ndim)
        for name in ("data", "offsets", "palette", "row", "views")
    }
    assert shard["smiles"].dtype.kind == "S" and kinds == {
        "data": ("u", 1, 1),
        "offsets": ("i", 8, 1),
        "palette": ("u", 1, 2),
        "row": ("i", 8, 1),
        "views": ("i", 8, 0),
    }
    assert shard["offsets"].shape == (95 * 2 + 1,) and shard["offsets"][-1] == len(shard["data"])
    assert shard["smiles"].dtype.kind == "S" and (shard["palette"] == palette()).all()
    # A person opens it with numpy alone.
    with np.load(road / "shards" / "shard-00000.npz", allow_pickle=False) as plain:
        assert (plain["data"] == shard["data"]).all()


def test_a_cell_with_more_than_ascii_is_kept_as_written(tmp_path):
    (tmp_path / "a.csv").write_bytes("smiles\nCCO caf\u00e9\nCCN\n".encode("utf-8"))
    invoke(render.main, tmp_path / "a.csv", "-o", tmp_path / "out", "--views", 1, "--workers", 1)
    shard = read_shard(tmp_path / "out" / "shard-00000.npz")
    assert [smiles_of(shard, i) for i in (0, 1)] == ["CCO caf\u00e9", "CCN"]


def test_a_rejected_row_leaves_a_gap(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    assert shard["row"].tolist() == [row for row in range(96) if row != 7]
    lines = (road / "molecules.smi").read_text().splitlines()
    assert [smiles_of(shard, i) for i in range(95)] == [lines[row] for row in shard["row"]]
    (rejected,) = rows_of(road / "shards" / "rejected.csv")
    assert [rejected[key] for key in ("row", "line", "smiles")] == ["7", "8", "C1CC"]
    assert "SMILES" in rejected["reason"]
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    counts = [manifest[key] for key in ("rows", "drawn", "rejected", "complete")]
    assert counts == [96, 95, 1, True]


def test_shard_pictures_are_those_of_draw(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    for member in (0, 40, 94):
        molecule = layout(parse(smiles_of(shard, member)))
        assert (picture(shard, member, 0) == draw(molecule)).all()
        style = random_style(0, int(shard["row"][member]), 1)
        assert (picture(shard, member, 1) == draw(molecule, style)).all()


def test_places_of_atoms_in_shards(tmp_path):
    lines = small_molecules(12)
    lines[4] = "C1CC"
    (tmp_path / "a.smi").write_text("\n".join(lines) + "\n")
    options = "--views", 3, "--seed", 2, "--workers", 1, "--atoms"
    invoke(render.main, tmp_path / "a.smi", "-o", tmp_path / "out", *options)
    path = tmp_path / "out" / "shard-00000.npz"
    shard = read_shard(path)
    assert shard["row"].tolist() == [row for row in range(12) if row != 4]
    for member, row in enumerate(shard["row"]):
        streams, places = draw_views(int(row), lines[row], 3, 2, level=8, atoms=True)
        for view in range(3):
            assert (places_of(shard, member, view) == places[view]).all()
    assert shard["places"].shape == (3 * shard["atom_offsets"][-1], 2)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["atoms"] is True
    arrays = dict(np.load(path))
    short = {"places": arrays["places"][1:]}, {"atom_offsets": arrays["atom_offsets"][1:]}
    for change in (*short, {"places": arrays["places"].astype(np.float32)}):
        np.savez(path, **arrays | change)
        with pytest.raises(click.ClickException, match="don't fit together"):
            read_shard(path)


def test_shards_without_places_are_as_they_were(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    assert not {"places", "atom_offsets"} & {*shard}
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    assert not {"atoms", "styles"} & {*manifest}
    assert read_manifest(road / "shards")["atoms"] is False
