"""Pictures from elsewhere become what our own drawing of the molecule is."""

import io

import numpy as np
import pytest
from conftest import first_lines, invoke, rows_of, small_molecules
from drawn import DRUG, figure, picture_of
from PIL import Image

import predict
from moleclip.onnxmodel import OnnxModel
from moleclip.pictures import to_drawing
from moleclip.pixels import deflate, to_rgb


@pytest.fixture(scope="module")
def learned(road):
    """A model that sees molecules, where one of random weights sees pixels.

    It is the bundled encoder with a head for 320 of ESOL.
    """
    road.write("more.csv", first_lines("esol.csv", 321))
    frozen = "--init bundled --freeze --epochs 60 --lr-head 1e-3"
    road.run(f"python finetune.py --data more.csv {frozen} -o learned")
    road.run("python export.py learned -o learned.onnx")
    return road / "learned.onnx"


def save_as(kind, folder):
    """Write the figure of DRUG as a file of this kind and return its path."""
    png, jpg = folder / "figure.png", folder / "figure.jpg"
    image = Image.open(io.BytesIO(figure(kind)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    if kind == "jpeg":
        image.convert("RGB").save(jpg, quality=80)
    elif kind == "turned":
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(jpg, exif=exif)
    elif kind == "palette":
        image.quantize(16).save(png)
    elif kind == "gray16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(png)
    else:
        image.save(png)
    return jpg if jpg.exists() else png


KINDS = ["white", "transparent", "dark", "jpeg", "palette", "gray16", "turned"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_predicted_like_its_molecule(learned, tmp_path, kind):
    path, drawn = save_as(kind, tmp_path), picture_of(DRUG)
    fitted = to_drawing(path)
    gap = np.abs(to_rgb(fitted).astype(int) - to_rgb(drawn)).mean()
    assert gap < (8 if kind == "gray16" else 5)
    ends = [[(part.min(), part.max()) for part in np.nonzero(index)] for index in (drawn, fitted)]
    assert np.abs(np.subtract(*ends)).max() <= 3  # in the same place, and as large
    said = invoke(predict.main, learned, path, "-o", tmp_path / "a.csv")
    (line,) = rows_of(tmp_path / "a.csv")
    model, others = OnnxModel(str(learned), "cpu"), map(picture_of, small_molecules(20))
    wanted = model.run([deflate(drawn)])["prediction"].item()
    spread = model.run([deflate(index) for index in others])["prediction"].std()
    assert abs(float(line["log_solubility"]) - wanted) < max(0.5 * spread, 0.01)
    assert (line["smiles"], line["name"]) == ("", path.name)
    assert line["nearest_training"] == line["error"] == "" and "1 molecules" in said


def test_a_drawing_of_this_size_stays_as_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(figure("white", size=(224, 224)))
    fitted = to_rgb(to_drawing(tmp_path / "a.png")).astype(int)
    assert np.abs(fitted - to_rgb(picture_of(DRUG))).mean() < 0.2
