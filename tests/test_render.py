import csv
import gzip
import io
import json
import os

import click
import numpy as np
import pytest
from conftest import ROOT, first_lines, mistake, small_molecules
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

import render

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def picture_of(smiles, style=render.Style()):
    return render.draw(render.layout(render.parse(smiles)), style)


def rdkit_picture(smiles):
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.MolFromSmiles(Chem.CanonSmiles(smiles)))
    canvas.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())))


def test_shard_holds_what_the_design_says(road):
    shard = render.read_shard(road / "shards" / "shard-00000.npz")
    kinds = {name: (shard[name].dtype.kind, shard[name].dtype.itemsize, shard[name].ndim) for name in ("data", "offsets", "palette", "row", "views")}
    assert shard["smiles"].dtype.kind == "U" and kinds == {"data": ("u", 1, 1), "offsets": ("i", 8, 1), "palette": ("u", 1, 2), "row": ("i", 8, 1), "views": ("i", 8, 0)}
    assert shard["offsets"].shape == (95 * 2 + 1,) and shard["offsets"][-1] == len(shard["data"])
    assert shard["smiles"].dtype.kind == "U" and (shard["palette"] == render.palette()).all()
    with np.load(road / "shards" / "shard-00000.npz", allow_pickle=False) as plain:      # a person opens it with numpy alone
        assert (plain["data"] == shard["data"]).all()


def test_a_rejected_row_leaves_a_gap(road):
    shard = render.read_shard(road / "shards" / "shard-00000.npz")
    assert shard["row"].tolist() == [row for row in range(96) if row != 7]
    lines = (road / "molecules.smi").read_text().splitlines()
    assert shard["smiles"].tolist() == [lines[row] for row in shard["row"]]
    rejected = list(csv.DictReader(open(road / "shards" / "rejected.csv")))
    assert [(r["row"], r["line"], r["smiles"]) for r in rejected] == [("7", "8", "C1CC")] and "SMILES" in rejected[0]["reason"]
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["drawn"], manifest["rejected"], manifest["complete"]) == (96, 95, 1, True)


def test_shard_pictures_are_those_of_draw(road):
    shard = render.read_shard(road / "shards" / "shard-00000.npz")
    for member in (0, 40, 94):
        molecule = render.layout(render.parse(str(shard["smiles"][member])))
        assert (render.picture(shard, member, 0) == render.draw(molecule)).all()
        style = render.random_style(0, int(shard["row"][member]), 1)
        assert (render.picture(shard, member, 1) == render.draw(molecule, style)).all()


def test_indexed_colour_is_rdkits_picture():
    off = np.array([np.abs(render.to_rgb(picture_of(smiles)).astype(int) - rdkit_picture(smiles)) for smiles in small_molecules(30)])
    assert off.mean() <= 0.15 and (off.max(-1) > 16).mean() <= 0.001


def test_every_atom_colour_survives():
    for number, colour in render.ATOM_COLOURS.items():
        symbol = Chem.GetPeriodicTable().GetElementSymbol(number)
        ink = render.to_rgb(picture_of(f"C{symbol}"))
        assert (np.abs(ink.astype(int) - colour).max(-1) <= 2).any(), f"element {number}"


def test_two_spellings_one_picture():
    for smiles in small_molecules(12):
        plain = picture_of(smiles)
        for seed in range(3):
            other = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 1, randomSeed=seed)[0]
            assert (picture_of(other) == plain).all(), (smiles, other)


def test_same_bytes_for_any_workers_and_after_an_interruption(desk, road):
    desk.run(["python", "render.py", road / "molecules.smi", "-o", "one", "--workers", "1"])
    whole = (desk / "one" / "shard-00000.npz").read_bytes()
    assert whole == (road / "shards" / "shard-00000.npz").read_bytes()
    (desk / "one" / "shard-00000.npz").unlink()
    desk.run(["python", "render.py", road / "molecules.smi", "-o", "one", "--workers", "3", "--resume"])
    assert whole == (desk / "one" / "shard-00000.npz").read_bytes()
    assert len((desk / "one" / "rejected.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("name, content", [
    ("a.smi", b"CCO ethyl alcohol\r\n\r\nc1ccccc1\tbenzene\r\n"),
    ("b.smi", b"\xef\xbb\xbfCCO ethyl alcohol\n\nc1ccccc1 benzene"),
    ("c.txt.gz", gzip.compress(b"CCO ethyl alcohol\n\nc1ccccc1 benzene\n")),
])
def test_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(render.read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles, m.name) for m in found] == [
        (0, 1, "CCO", "ethyl alcohol"), (1, 2, "", ""), (2, 3, "c1ccccc1", "benzene")]
    assert found[1].problem == "empty line"


@pytest.mark.parametrize("name, content", [
    ("a.csv", b'id,SMILES,note\r\n1,CCO,"a, b"\r\n\r\n2,,x\r\n3,c1ccccc1,"two\r\nlines"\r\n'),
    ("b.tsv", b"\xef\xbb\xbfid\tSMILES\tnote\n1\tCCO\ta, b\n\n2\t\tx\n3\tc1ccccc1\ttwo\n"),
    ("c.csv.gz", gzip.compress(b"id;SMILES;note\n1;CCO;a, b\n\n2;;x\n3;c1ccccc1;two\n")),
])
def test_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(render.read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles) for m in found] == [(0, 2, "CCO"), (1, 4, ""), (2, 5, "c1ccccc1")]
    assert found[0].fields["note"] == "a, b" and "no SMILES" in found[1].problem


def test_a_header_may_span_lines_and_a_stray_quote_may_not_swallow_rows(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('smiles,"IC50\n(nM)"\nCCO,1\nCCN,2\n')
    assert [(m.row, m.line, m.smiles) for m in render.read_molecules(str(tmp_path / "a.csv"))] == [(0, 3, "CCO"), (1, 4, "CCN")]
    for text in ('name,smiles\n"3-methyl,CCO\nb,CCN\n', 'smiles,name\nCCO,"a\nCCN",b\n'):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(click.ClickException):
            list(render.read_molecules(str(tmp_path / "b.csv")))
    (tmp_path / "c.csv").write_text('name,smiles\n"two\nlines",CCC\n')             # may be meant so, may be not: it is said
    assert next(render.read_molecules(str(tmp_path / "c.csv"))).fields["name"] == "two\nlines"
    assert "lines 2 to 3 are one record" in capsys.readouterr().err


def test_a_field_too_many_is_rejected_not_shifted(tmp_path):
    (tmp_path / "a.csv").write_text("name,smiles\nethanol,CCO\n2,3-butanediol,CC(O)C(C)O\n")
    found = list(render.read_molecules(str(tmp_path / "a.csv")))
    assert not found[0].problem and "3 fields where the header has 2" in found[1].problem


def test_a_crash_or_a_stall_costs_one_row(monkeypatch):
    items = [render.Molecule(row, row + 1, smiles) for row, smiles in enumerate(small_molecules(10))]
    items[3], items[6] = render.Molecule(3, 4, "die"), render.Molecule(6, 7, "sleep")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    results = [result for _, result in render.parallel("faulty:draw", items, 2, group=4, limit=3)]
    assert "crashed" in results[3] and "longer than 3 s" in results[6]
    assert all(result == "drawn" for row, result in enumerate(results) if row not in (3, 6))


@pytest.mark.parametrize("name, content, says", [
    ("empty.smi", "", "is empty"),
    ("none.csv", "name,value\na,1\n", "no SMILES column"),
    ("broken.smi", "C1CC\nnonsense\n", "none of its 2 rows could be drawn"),
    ("kind.sdf", "CCO\n", "unknown kind of file"),
    ("twice.csv", "smiles,x,x\nCCO,1,2\n", "two columns are named 'x'"),
])
def test_mistakes(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    line = mistake(render.main, tmp_path / name, "-o", tmp_path / "out")
    assert says in line and name in line
    assert not list(tmp_path.glob("out/shard-*.npz")) or "rejected.csv" in line


@pytest.mark.parametrize("smiles", [b"[#119]", b"C\xe9C", b"CC>>CC", b"c1ccccc1" * 40])
def test_odd_smiles_cost_their_own_row(tmp_path, smiles):
    (tmp_path / "a.smi").write_bytes(b"CCO\n" + smiles + b"\nCCN\n")
    results = [result for _, result in render.draw_all(render.read_molecules(str(tmp_path / "a.smi")), 1)]
    assert isinstance(results[1], str) and "crashed" not in results[1] and isinstance(results[0], list) and isinstance(results[2], list)


def test_a_missing_font_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "FONTS", [*render.FONTS, "NoSuchFont.ttf"])
    assert "NoSuchFont.ttf not found" in mistake(render.main, "new_molecules.txt", "-o", tmp_path / "out")


def test_truncated_gzip(tmp_path):
    (tmp_path / "cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 10_000)[:40])
    assert "truncated" in mistake(render.main, tmp_path / "cut.smi.gz", "-o", tmp_path / "out")


def test_a_folder_with_other_shards_is_left_alone(road, tmp_path):
    folder = road / "shards"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "--resume" in mistake(render.main, road / "molecules.smi", "-o", folder)
    other = tmp_path / "other.smi"
    other.write_text("\n".join(first_lines("chembl_3000.smi", 5)))
    assert "another folder" in mistake(render.main, other, "-o", folder, "--resume")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_input_is_looked_for_in_data(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(render.find_input("dhbd.csv"), ROOT / "data" / "dhbd.csv")
    assert "taking" in capsys.readouterr().err
    with pytest.raises(click.ClickException, match="no such file"):
        render.find_input("nowhere.csv")
