import json

import numpy as np
from conftest import invoke, rows_of

import render
from moleclip.drawing import draw, layout, random_style
from moleclip.molecules import parse
from moleclip.pixels import palette
from moleclip.shards import picture, read_shard


def test_shard_holds_what_the_design_says(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    kinds = {
        name: (shard[name].dtype.kind, shard[name].dtype.itemsize, shard[name].ndim)
        for name in ("data", "offsets", "palette", "row", "views")
    }
    assert shard["smiles"].dtype.kind == "U" and kinds == {
        "data": ("u", 1, 1),
        "offsets": ("i", 8, 1),
        "palette": ("u", 1, 2),
        "row": ("i", 8, 1),
        "views": ("i", 8, 0),
    }
    assert shard["offsets"].shape == (95 * 2 + 1,) and shard["offsets"][-1] == len(shard["data"])
    assert shard["smiles"].dtype.kind == "U" and (shard["palette"] == palette()).all()
    # A person opens it with numpy alone.
    with np.load(road / "shards" / "shard-00000.npz", allow_pickle=False) as plain:
        assert (plain["data"] == shard["data"]).all()


def test_a_cell_with_more_than_ascii_is_kept_as_written(tmp_path):
    (tmp_path / "a.csv").write_bytes("smiles\nCCO caf\u00e9\nCCN\n".encode("utf-8"))
    invoke(render.main, tmp_path / "a.csv", "-o", tmp_path / "out", "--views", 1, "--workers", 1)
    shard = read_shard(tmp_path / "out" / "shard-00000.npz")
    assert shard["smiles"].tolist() == ["CCO caf\u00e9", "CCN"]


def test_a_rejected_row_leaves_a_gap(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    assert shard["row"].tolist() == [row for row in range(96) if row != 7]
    lines = (road / "molecules.smi").read_text().splitlines()
    assert shard["smiles"].tolist() == [lines[row] for row in shard["row"]]
    (rejected,) = rows_of(road / "shards" / "rejected.csv")
    assert [rejected[key] for key in ("row", "line", "smiles")] == ["7", "8", "C1CC"]
    assert "SMILES" in rejected["reason"]
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    counts = [manifest[key] for key in ("rows", "drawn", "rejected", "complete")]
    assert counts == [96, 95, 1, True]


def test_shard_pictures_are_those_of_draw(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    for member in (0, 40, 94):
        molecule = layout(parse(str(shard["smiles"][member])))
        assert (picture(shard, member, 0) == draw(molecule)).all()
        style = random_style(0, int(shard["row"][member]), 1)
        assert (picture(shard, member, 1) == draw(molecule, style)).all()
