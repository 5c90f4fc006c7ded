import csv
import gzip
import io
import itertools
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
from conftest import ROOT, first_lines, invoke, mistake, small_molecules
from PIL import Image
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

import render
from moleclip.drawing import FONTS, Style, draw, draw_all, layout, random_style
from moleclip.molecules import Molecule, find_input, parse, read_molecules, replace_terminals
from moleclip.pixels import ATOM_COLOURS, cairo_tap, palette, to_rgb
from moleclip.shards import picture, read_manifest, read_shard
from moleclip.workers import parallel

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def picture_of(smiles, style=Style()):
    return draw(layout(parse(smiles)), style)


def rdkit_picture(smiles):
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, Chem.MolFromSmiles(Chem.CanonSmiles(smiles)))
    canvas.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(canvas.GetDrawingText())))


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
    with np.load(
        road / "shards" / "shard-00000.npz", allow_pickle=False
    ) as plain:  # a person opens it with numpy alone
        assert (plain["data"] == shard["data"]).all()


def test_a_rejected_row_leaves_a_gap(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    assert shard["row"].tolist() == [row for row in range(96) if row != 7]
    lines = (road / "molecules.smi").read_text().splitlines()
    assert shard["smiles"].tolist() == [lines[row] for row in shard["row"]]
    rejected = list(csv.DictReader(open(road / "shards" / "rejected.csv")))
    assert [(r["row"], r["line"], r["smiles"]) for r in rejected] == [
        ("7", "8", "C1CC")
    ] and "SMILES" in rejected[0]["reason"]
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["drawn"], manifest["rejected"], manifest["complete"]) == (
        96,
        95,
        1,
        True,
    )


def test_shard_pictures_are_those_of_draw(road):
    shard = read_shard(road / "shards" / "shard-00000.npz")
    for member in (0, 40, 94):
        molecule = layout(parse(str(shard["smiles"][member])))
        assert (picture(shard, member, 0) == draw(molecule)).all()
        style = random_style(0, int(shard["row"][member]), 1)
        assert (picture(shard, member, 1) == draw(molecule, style)).all()


def test_pixels_come_from_cairo_and_are_those_of_the_png(monkeypatch):
    molecules = [layout(parse(smiles)) for smiles in small_molecules(6)]
    styles = [Style(), random_style(0, 1, 1)]
    straight = [draw(molecule, style) for molecule in molecules for style in styles]
    assert cairo_tap() is not None or not os.path.exists("/proc/self/maps")
    monkeypatch.setattr(render, "cairo_tap", lambda: None)
    by_png = [draw(molecule, style) for molecule in molecules for style in styles]
    assert all((a == b).all() for a, b in zip(straight, by_png))


def test_rdkit_still_gives_its_png_to_others():
    picture_of(ASPIRIN)
    assert rdkit_picture(ASPIRIN).min() == 0  # the tap is there only while we draw


@pytest.mark.parametrize(
    "change",
    [
        {"line_width": 5},
        {"font_size": 24},
        {"bond_length": 20.0},
        {"multiple_bond_offset": 0.4},
        {"rotation": 75.0},
        {"font": "cmtt10.ttf"},
    ],
)
def test_each_of_the_six_options_changes_the_picture(change):
    plain, styled = picture_of(ASPIRIN), picture_of(ASPIRIN, Style()._replace(**change))
    assert (plain != styled).sum() > 50
    if "line_width" in change:
        assert (styled > 0).sum() > 1.3 * (plain > 0).sum()
    if "bond_length" in change:
        assert np.ptp(np.nonzero(styled)[1]) < 0.8 * np.ptp(np.nonzero(plain)[1])


def test_the_21_fonts_draw_21_pictures():
    pictures = {picture_of("NC(=O)CCl", Style(font_size=24, font=font)).tobytes() for font in FONTS}
    assert len(FONTS) == len(pictures) == 21


def test_random_styles_cover_their_ranges():
    styles = [random_style(7, row, 1) for row in range(400)]
    assert {s.line_width for s in styles} == {2, 3, 4, 5} and {s.font_size for s in styles} == set(
        range(14, 25)
    )
    assert {s.font for s in styles} == set(FONTS)
    for name, low, high in (
        ("bond_length", 20, 100),
        ("multiple_bond_offset", 0.1, 0.4),
        ("rotation", 0, 360),
    ):
        values = [getattr(s, name) for s in styles]
        assert (
            low <= min(values) < low + 0.05 * (high - low)
            and high - 0.05 * (high - low) < max(values) <= high
        )
    assert (
        len(
            {
                random_style(7, 0, 1),
                random_style(7, 0, 2),
                random_style(7, 1, 1),
                random_style(8, 0, 1),
            }
        )
        == 4
    )


def test_r_groups_are_black_labels_where_colours_were():
    plain = layout(parse("OCC(F)(Cl)C(Br)(I)CS"))
    replaced = layout(replace_terminals(parse("OCC(F)(Cl)C(Br)(I)CS")))
    labels = sorted(
        atom.GetProp("_displayLabel")
        for atom in replaced.GetAtoms()
        if atom.HasProp("_displayLabel")
    )
    assert labels == ["R2", "R4", "R5", "R6", "R7", "R8"]
    colourful, black = (to_rgb(draw(molecule)).astype(int) for molecule in (plain, replaced))
    assert (np.ptp(colourful, -1) > 60).sum() > 200 and np.ptp(black, -1).max() <= 16
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    canvas.drawOptions().prepareMolsBeforeDrawing = False
    canvas.DrawMolecule(replaced)
    for atom in replaced.GetAtoms():  # each label stands where its atom is
        if atom.GetAtomicNum() == 54:
            at = canvas.GetDrawCoords(atom.GetIdx())
            assert (
                black[int(at.y) - 7 : int(at.y) + 8, int(at.x) - 7 : int(at.x) + 8] < 128
            ).sum() > 20


def test_r_groups_replace_terminal_single_bonds_only():
    replaced = replace_terminals(parse("CC(=O)Nc1ccc(C#N)cc1.[Na+].CC"))
    labels = [
        atom.GetProp("_displayLabel") for atom in replaced.GetAtoms() if atom.GetAtomicNum() == 54
    ]
    assert labels == ["R1", "R1", "R1"]  # not =O, #N, nor an atom on its own
    assert (picture_of("[NH4+]") == draw(layout(replace_terminals(parse("[NH4+]"))))).all()


@pytest.mark.parametrize(
    "smiles",
    [
        "[Na+].[Cl-]",
        "C[N+](C)(C)C.[I-]",
        "[CH3]",
        "C[O]",
        "[O-][n+]1ccccc1",
        "Cl[Pt](Cl)(N)N",
        "C1=CC=C[CH-]1.C1=CC=C[CH-]1.[Fe+2]",
        "*c1ccccc1",
        "[Xe]",
        "[U]",
        "[2H]C",
        "[H][H]",
        "F[P-](F)(F)(F)(F)F",
        "CC(=O)O[Hg]c1ccccc1",
        "[13CH4]",
    ],
)
def test_salts_radicals_metals_and_rarities_are_drawn(smiles):
    off = np.abs(to_rgb(picture_of(smiles)).astype(int) - rdkit_picture(smiles))
    assert (picture_of(smiles) > 0).sum() > 10 and off.mean() <= 0.2


def test_every_element_has_rdkits_hue():
    for number in (0, *range(1, 119)):
        symbol = f"[#{number}]" if number else "*"
        ours, theirs = to_rgb(picture_of(symbol)).astype(int), rdkit_picture(symbol).astype(int)
        assert np.abs(ours - theirs)[theirs.min(-1) < 128].mean() < 6, f"element {number}"


def test_indexed_colour_is_rdkits_picture():
    off = np.array(
        [
            np.abs(to_rgb(picture_of(smiles)).astype(int) - rdkit_picture(smiles))
            for smiles in small_molecules(30)
        ]
    )
    assert off.mean() <= 0.15 and (off.max(-1) > 16).mean() <= 0.001


def test_every_atom_colour_survives():
    for number, colour in ATOM_COLOURS.items():
        symbol = Chem.GetPeriodicTable().GetElementSymbol(number)
        ink = to_rgb(picture_of(f"C{symbol}"))
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
    desk.run(
        ["python", "render.py", road / "molecules.smi", "-o", "one", "--workers", "3", "--resume"]
    )
    assert whole == (desk / "one" / "shard-00000.npz").read_bytes()
    assert len((desk / "one" / "rejected.csv").read_text().splitlines()) == 2


def test_parts_lie_side_by_side_and_make_the_same_shards(desk, monkeypatch):
    monkeypatch.setattr(render, "SHARD", 8)
    desk.write("a.smi", small_molecules(20) + ["C1CC"] + small_molecules(9))
    monkeypatch.chdir(desk.folder)
    invoke(render.main, "a.smi", "-o", "whole", "--workers", 1)
    invoke(render.main, "a.smi", "-o", "cut", "--workers", 1, "--part", "2/2")
    with pytest.raises(click.ClickException, match="--part 1/2 --resume"):
        read_manifest("cut")
    invoke(render.main, "a.smi", "-o", "cut", "--workers", 1, "--part", "1/2")
    assert "already holds" in mistake(render.main, "a.smi", "-o", "cut", "--part", "1/2")
    assert "parts 2, not 3" in mistake(render.main, "a.smi", "-o", "cut", "--part", "3/3")
    names = [f"shard-{i:05d}.npz" for i in range(4)]
    assert all(
        (desk / "cut" / name).read_bytes() == (desk / "whole" / name).read_bytes() for name in names
    )
    whole, cut = read_manifest("whole"), read_manifest("cut")
    assert (
        [cut[key] for key in ("rows", "drawn", "rejected")]
        == [whole[key] for key in ("rows", "drawn", "rejected")]
        == [30, 29, 1]
    )
    assert (
        "20,21,C1CC" in (desk / "cut" / "rejected-1-of-2.csv").read_text()
        and "C1CC" not in (desk / "cut" / "rejected-2-of-2.csv").read_text()
    )
    for words in (
        ["a.smi", "--part", "0/2"],
        ["a.smi", "--part", "3/2"],
        ["a.smi", "--part", "2"],
        ["-", "--part", "1/2"],
        ["-", "--resume"],
    ):
        mistake(render.main, *words, code=2)


def test_a_killed_run_resumes_to_the_same_bytes(desk):
    desk.write("a.smi", small_molecules(1200) * 3)
    command = [sys.executable, "render.py", "a.smi", "-o", "cut", "--views", "1"]
    with subprocess.Popen(command, cwd=desk.folder, stderr=subprocess.DEVNULL) as process:
        while not (desk / "cut" / "shard-00000.npz").exists():
            time.sleep(0.01)
        process.kill()
    before = sorted(path.name for path in (desk / "cut").glob("shard-*.npz"))
    assert (
        1 <= len(before) < 4
        and not json.loads((desk / "cut" / "manifest.json").read_text())["complete"]
    )
    desk.run(["python", *command[1:], "--resume"])
    desk.run(["python", "render.py", "a.smi", "-o", "whole", "--views", "1"])
    names = sorted(path.name for path in (desk / "whole").glob("shard-*.npz"))
    assert len(names) == 4 and all(
        (desk / "cut" / name).read_bytes() == (desk / "whole" / name).read_bytes() for name in names
    )


def test_ctrl_c_leaves_no_process_and_no_noise(desk):
    desk.write("a.smi", small_molecules(1200) * 3)
    heed = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a shell that runs the tests in the background has it ignored
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
    assert (
        process.returncode != 0 and "Traceback" not in said and not list((desk / "out").glob(".*"))
    )
    workers = [
        path
        for path in Path("/proc").glob("[0-9]*")
        if str(ROOT).encode() in cmdline(path) and b"molecules.serve" in cmdline(path)
    ]
    assert not workers


def cmdline(path):
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def test_no_more_is_read_than_the_workers_need():
    taken = []

    def endless():
        for row in itertools.count():
            taken.append(row)
            yield Molecule(row, row + 1, "CCO")

    results = draw_all(endless(), 2)
    for _ in range(100):
        next(results)
    results.close()
    assert len(taken) <= 100 + 2 * 3 * 32 + 32


def test_preview(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke(render.main, "new_molecules.txt", "--views", 3, "--preview", "grid.png", "--workers", 1)
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert grid.shape == (12 * 252, 3 * 232 + 8, 3) and not (tmp_path / "shards").exists()
    aspirin = to_rgb(picture_of("CC(=O)Oc1ccccc1C(=O)O"))
    assert (grid[24:248, 8:232] == aspirin).all()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    (tmp_path / "a.smi").write_text("CCO\n")
    assert "can't be written (No space left on device)" in mistake(
        render.main, tmp_path / "a.smi", "-o", tmp_path / "out"
    )
    assert not list((tmp_path / "out").glob("*.npz")) and not list((tmp_path / "out").glob(".*"))


def test_a_large_molecule_costs_its_row(tmp_path):
    (tmp_path / "a.smi").write_text("C" * 151 + "\n" + "C" * 150 + "\n")
    first, second = [result for _, result in draw_all(read_molecules(str(tmp_path / "a.smi")), 1)]
    assert first == "151 heavy atoms, more than --max-atoms 150" and isinstance(second, list)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.smi", b"CCO ethyl alcohol\r\n\r\nc1ccccc1\tbenzene\r\n"),
        ("b.smi", b"\xef\xbb\xbfCCO ethyl alcohol\n\nc1ccccc1 benzene"),
        ("c.txt.gz", gzip.compress(b"CCO ethyl alcohol\n\nc1ccccc1 benzene\n")),
    ],
)
def test_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles, m.name) for m in found] == [
        (0, 1, "CCO", "ethyl alcohol"),
        (1, 2, "", ""),
        (2, 3, "c1ccccc1", "benzene"),
    ]
    assert found[1].problem == "empty line"


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", b'id,SMILES,note\r\n1,CCO,"a, b"\r\n\r\n2,,x\r\n3,c1ccccc1,"two\r\nlines"\r\n'),
        ("b.tsv", b"\xef\xbb\xbfid\tSMILES\tnote\n1\tCCO\ta, b\n\n2\t\tx\n3\tc1ccccc1\ttwo\n"),
        ("c.csv.gz", gzip.compress(b"id;SMILES;note\n1;CCO;a, b\n\n2;;x\n3;c1ccccc1;two\n")),
    ],
)
def test_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles) for m in found] == [
        (0, 2, "CCO"),
        (1, 4, ""),
        (2, 5, "c1ccccc1"),
    ]
    assert found[0].fields["note"] == "a, b" and "no SMILES" in found[1].problem


def test_a_header_may_span_lines_and_a_stray_quote_may_not_swallow_rows(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('smiles,"IC50\n(nM)"\nCCO,1\nCCN,2\n')
    assert [(m.row, m.line, m.smiles) for m in read_molecules(str(tmp_path / "a.csv"))] == [
        (0, 3, "CCO"),
        (1, 4, "CCN"),
    ]
    for text in ('name,smiles\n"3-methyl,CCO\nb,CCN\n', 'smiles,name\nCCO,"a\nCCN",b\n'):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(click.ClickException):
            list(read_molecules(str(tmp_path / "b.csv")))
    (tmp_path / "c.csv").write_text(
        'name,smiles\n"two\nlines",CCC\n'
    )  # may be meant so, may be not: it is said
    assert next(read_molecules(str(tmp_path / "c.csv"))).fields["name"] == "two\nlines"
    assert "lines 2 to 3 are one record" in capsys.readouterr().err


def test_a_field_too_many_is_rejected_not_shifted(tmp_path):
    (tmp_path / "a.csv").write_text("name,smiles\nethanol,CCO\n2,3-butanediol,CC(O)C(C)O\n")
    found = list(read_molecules(str(tmp_path / "a.csv")))
    assert not found[0].problem and "3 fields where the header has 2" in found[1].problem


def test_a_crash_or_a_stall_costs_one_row(monkeypatch):
    items = [Molecule(row, row + 1, smiles) for row, smiles in enumerate(small_molecules(10))]
    items[3], items[6] = Molecule(3, 4, "die"), Molecule(6, 7, "sleep")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    results = [result for _, result in parallel("faulty:draw", items, 2, group=4, limit=3)]
    assert "crashed" in results[3] and "longer than 3 s" in results[6]
    assert all(result == "drawn" for row, result in enumerate(results) if row not in (3, 6))


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("empty.smi", "", "is empty"),
        ("none.csv", "name,value\na,1\n", "no SMILES column"),
        ("broken.smi", "C1CC\nnonsense\n", "none of its 2 rows could be drawn"),
        ("kind.sdf", "CCO\n", "unknown kind of file"),
        ("twice.csv", "smiles,x,x\nCCO,1,2\n", "two columns are named 'x'"),
    ],
)
def test_mistakes(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    line = mistake(render.main, tmp_path / name, "-o", tmp_path / "out")
    assert says in line and name in line
    assert not list(tmp_path.glob("out/shard-*.npz")) or "rejected.csv" in line


@pytest.mark.parametrize("smiles", [b"[#119]", b"C\xe9C", b"CC>>CC", b"c1ccccc1" * 40])
def test_odd_smiles_cost_their_own_row(tmp_path, smiles):
    (tmp_path / "a.smi").write_bytes(b"CCO\n" + smiles + b"\nCCN\n")
    results = [result for _, result in draw_all(read_molecules(str(tmp_path / "a.smi")), 1)]
    assert (
        isinstance(results[1], str)
        and "crashed" not in results[1]
        and isinstance(results[0], list)
        and isinstance(results[2], list)
    )


def test_a_missing_font_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "FONTS", [*FONTS, "NoSuchFont.ttf"])
    assert "NoSuchFont.ttf not found" in mistake(
        render.main, "new_molecules.txt", "-o", tmp_path / "out"
    )


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
    assert os.path.samefile(find_input("dhbd.csv"), ROOT / "data" / "dhbd.csv")
    assert "taking" in capsys.readouterr().err
    with pytest.raises(click.ClickException, match="no such file"):
        find_input("nowhere.csv")
