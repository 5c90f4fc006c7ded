"""Is a picture a drawing of a molecule at all? Photographs and text are told from drawings."""

import json

import click
import numpy as np
import onnx
import pictures
import pytest
import torch
from conftest import ROOT, invoke, rows_of, small_molecules
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem
from rdkit.Chem import Draw
from sklearn.datasets import load_sample_images

import export
import predict
from moleclip.deploy import Deployed
from moleclip.familiar import Familiar, away_from, flat_of
from moleclip.features import Features
from moleclip.pictures import to_drawing
from moleclip.pixels import palette
from moleclip.trained import embedded
from moleclip.weights import load_encoder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("bundled").eval()


@pytest.fixture(scope="module")
def known(encoder):
    """The flat of 150 drawings in the bundled encoder's eyes."""
    deployed = Deployed([encoder]).eval()
    return Familiar("model.onnx", flat_of(embedded(deployed, small_molecules(150), {}, "")))


def seen(encoder, paths):
    """The embeddings of picture files."""
    drawings = np.stack([to_drawing(path)[0] for path in paths])
    colours = np.ascontiguousarray(palette()[drawings])
    with torch.no_grad():
        return encoder.embed({"images": torch.from_numpy(colours)}).numpy()


def photographs(folder):
    """Pieces of two photographs, as files."""
    random, paths = np.random.default_rng(0), []
    for i in range(8):
        whole = load_sample_images().images[i % 2]
        top, left = (random.integers(side - 250) for side in whole.shape[:2])
        paths.append(folder / f"photograph {i}.png")
        Image.fromarray(whole[top : top + 250, left : left + 250]).save(paths[-1])
    return paths


def pages(folder):
    """Pieces of a text, as files."""
    words, paths = (ROOT / "docs" / "method.md").read_text().split(), []
    for i in range(8):
        picture = Image.new("RGB", (400, 300), "white")
        lines = [" ".join(words[50 * i + 6 * k : 50 * i + 6 * k + 6]) for k in range(6)]
        font = ImageFont.load_default(size=18 + 2 * i)
        ImageDraw.Draw(picture).text((8, 8), "\n".join(lines), fill="black", font=font)
        paths.append(folder / f"text {i}.png")
        picture.save(paths[-1])
    return paths


def test_photographs_and_text_are_no_drawings(encoder, known, tmp_path):
    smiles, drawings = small_molecules(166)[150:], []
    for i, text in enumerate(smiles):
        drawings.append(tmp_path / f"{i}.png")
        Draw.MolToFile(Chem.MolFromSmiles(text), str(drawings[-1]), size=(500, 400))
    judged = {}
    for what, paths in (
        ("drawing", drawings),
        ("photograph", photographs(tmp_path)),
        ("text", pages(tmp_path)),
    ):
        found = [known.judge(Features([], [], None), e) for e in seen(encoder, paths)]
        judged[what] = np.mean(["unlike a drawing" in each.note for each in found])
        assert all(0 <= each.like <= 1 for each in found)
    assert judged["drawing"] <= 0.07 and judged["photograph"] == 1 and judged["text"] >= 0.85


def test_what_lies_off_the_flat_is_told_by_its_share():
    random = np.random.default_rng(0)
    flat = np.linalg.qr(random.normal(size=(64, 12)))[0].T
    near = random.normal(size=(200, 12)) @ flat + 0.01 * random.normal(size=(200, 64))
    known = Familiar("a.onnx", flat_of(near.astype(np.float32)))
    assert known.axes.shape == (16, 64) and 0 < known.bound < 0.2
    middle, axes = known.middle.astype(float), known.axes.astype(float)
    off = random.normal(size=64)
    off -= off @ axes.T @ axes
    away = away_from(np.stack([middle + axes[0], middle + off, middle + axes[0]]), middle, axes)
    np.testing.assert_allclose(away, [0, 1, 0], atol=2e-3)
    again = known.judge(Features([], [], None, note="framed"), (middle + off).astype(np.float32))
    assert again.note.startswith("framed; unlike a drawing of a molecule: picture_like 0.00")
    same = known.judge(Features([], [], None), (middle + axes[0]).astype(np.float32))
    assert same.note == "" and same.like > 0.99


def test_the_column_stands_beside_pictures_alone(road, tmp_path):
    out = tmp_path / "a.csv"
    Draw.MolToFile(Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"), str(tmp_path / "a.png"))
    invoke(predict.main, road / "model.onnx", tmp_path / "a.png", "-o", out)
    (line,) = rows_of(out)
    assert 0 < float(line["picture_like"]) <= 1 and line["nearest_training"] == ""
    (tmp_path / "a.smi").write_text("CCO\n")
    invoke(predict.main, road / "model.onnx", tmp_path / "a.smi", "-o", tmp_path / "b.csv")
    assert "picture_like" not in rows_of(tmp_path / "b.csv")[0]
    older = onnx.load(road / "model.onnx")  # as of before, without what is known of drawings
    kept = [each for each in older.metadata_props if each.key != "moleclip_drawings"]
    del older.metadata_props[:]
    older.metadata_props.extend(kept)
    onnx.save(older, tmp_path / "older.onnx")
    invoke(predict.main, tmp_path / "older.onnx", tmp_path / "a.png", "-o", tmp_path / "c.csv")
    (before,) = rows_of(tmp_path / "c.csv")
    same = [name for name in line if name != "picture_like"]
    assert [before[name] for name in before] == [line[name] for name in same]


def test_a_damaged_text_is_said():
    text = json.loads(flat_of(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)))
    for damage in ({"data": "?"}, {"width": 10**6}, {"bound": "far"}):
        with pytest.raises(click.ClickException, match="m.onnx: its drawings are damaged"):
            Familiar("m.onnx", json.dumps(text | damage))
    assert export.known_drawings(Deployed([]).eval()) is None


# ----------------------------------------------------------------------------------------------
# benchmarks/pictures.py: what it draws, and how it counts


def test_the_benchmark_draws_in_three_styles_and_what_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PIECES", 4)
    coloured = []
    for i, how in enumerate(pictures.OURS):
        pictures.draw_by_rdkit(tmp_path / f"{i}.png", "OC(=O)c1ccccc1Cl", how)
        pixels = np.asarray(Image.open(tmp_path / f"{i}.png").convert("RGB")).astype(int)
        coloured.append(bool((np.ptp(pixels, axis=2) > 50).any()))
        assert (pixels < 128).any()
    assert coloured == [True, False, False]
    pictures.write_others(tmp_path)
    for name in pictures.NONE:
        assert len(list((tmp_path / name).glob("*.png"))) == 4


def test_the_benchmark_counts_what_is_off_noted_and_left_out(monkeypatch):
    monkeypatch.setattr(pictures, "encoder", lambda: "an encoder")
    plain = np.array([[1.0, 2.0, 3.0], [0, 0, 0]])
    theirs = np.array([[1.5, np.nan, 3.1], [1, np.nan, 0]])
    seeds = [({"SMILES": plain, "Indigo": theirs, "text": plain + 1}, np.array([1.0, 2.0, 4.0]))]
    row = pictures.row_of("Indigo", seeds * 2)
    told = [row[key] for key in ("MAE", "from SMILES, median", "unlike", "left out", "seeds")]
    assert told == ["0.7", "0.3", "0.5", 1, 2]
    none = pictures.row_of("text", seeds)
    assert (none["MAE"], none["unlike"]) == ("", "1") and none["pictures"] == 3
