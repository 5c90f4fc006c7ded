"""Pictures from elsewhere become what our own drawing of the molecule is."""

import io
import tracemalloc

import fuzz_pictures
import numpy as np
import pytest
from conftest import first_lines, invoke, rows_of, small_molecules
from drawn import DRUG, figure, picture_of
from PIL import Image, ImageDraw, ImageOps

import predict
from moleclip.molecules import Rejected
from moleclip.onnxmodel import OnnxModel
from moleclip.pictures import COLOURLESS, FRAMED, black_on_white, pictures_in, to_drawing
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
    fitted, note = to_drawing(path)
    assert note == (COLOURLESS if kind == "gray16" else "")
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
    assert line["note"] == note and ("1 have a caveat, see the column note" in said) == bool(note)


def test_a_drawing_of_this_size_stays_as_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(figure("white", size=(224, 224)))
    fitted = to_rgb(to_drawing(tmp_path / "a.png")[0]).astype(int)
    assert np.abs(fitted - to_rgb(picture_of(DRUG))).mean() < 0.2


ESOL = [line.split(",")[1] for line in first_lines("esol.csv", 60, 1)]
HYDROCARBONS = ["c1ccccc1", "CC(C)CC=C", "C1=CC=C1", "C1CCC1", "C#CCCC", "c1ccc2ccccc2c1"]


def read(content, folder):
    """What becomes of a picture, given as bytes or an image: (drawing, note)."""
    path = folder / "read.png"
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return to_drawing(path)


def test_black_and_white_is_told_from_colour_and_from_hydrocarbons(tmp_path):
    for i, smiles in enumerate(ESOL + HYDROCARBONS):
        letters = set(smiles) - set("Cc123456789()=#")
        black = letters and letters != {"I"}  # which is a stroke, as bonds are
        for size in ((300, 300),) if i % 4 else ((224, 224), (900, 600)):
            assert read(figure("white", smiles, size), tmp_path)[1] == ""
            note = read(figure("black", smiles, size), tmp_path)[1]
            assert note == (COLOURLESS if black else ""), (smiles, size)


def framed(content, border, line, colour="black"):
    """A picture with more paper and a frame in it, at the rim if there is no border."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = ImageOps.expand(image, border, image.getpixel((0, 0)))
    low, high = border // 2, [side - 1 - border // 2 for side in image.size]
    ImageDraw.Draw(image).rectangle([low, low, *high], outline=colour, width=line)
    return image


@pytest.mark.parametrize("smiles", [DRUG, "C1=CC=C1", "C1CCC1", "OCc1ccccc1.Cl"])
def test_a_frame_is_left_out(smiles, tmp_path):
    for kind, border, line, colour in (
        ("white", 20, 2, "black"),
        ("white", 0, 1, "black"),
        ("white", 0, 6, "gray"),
        ("dark", 16, 3, "white"),
        ("black", 30, 2, "black"),
    ):
        content = figure(kind, smiles)
        wanted, note = read(content, tmp_path)
        assert FRAMED not in note
        drawn, said = read(framed(content, border, line, colour), tmp_path)
        if smiles.startswith("C1"):  # it has bonds alone, as a square may that is a molecule
            assert said in ("", FRAMED)
            continue
        assert (drawn == wanted).all() and said == "; ".join(filter(None, [FRAMED, note]))


def test_a_huge_picture_takes_little_memory(tmp_path):
    pixels = np.full((3000, 3000, 3), 255, np.uint8)
    pixels[1000:2000, 1490:1510] = 0
    tracemalloc.start()
    small = black_on_white(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes  # as floats it takes four times as much, and is copied
    assert small.shape == (750, 750, 3) and (small[250:500, 373:377] == 0).all()
    dark = black_on_white(255 - pixels)
    assert (dark == small).all()


def test_exif_that_cannot_be_read_is_ignored(tmp_path):
    image = Image.open(io.BytesIO(figure("white"))).convert("RGB")
    image.save(tmp_path / "a.jpg")
    wanted = to_drawing(tmp_path / "a.jpg")[0]
    for exif in (b"MM\0*\0\0\0\x08\0\x05", b"II*\0\xff\xff\xff\xff", b"garbage"):
        image.save(tmp_path / "b.jpg", exif=b"Exif\0\0" + exif)
        assert (to_drawing(tmp_path / "b.jpg")[0] == wanted).all()


@pytest.mark.parametrize("size", [(3000, 1), (1500, 2)])
def test_a_strip_is_as_good_as_empty_or_ink(size, tmp_path):
    path = tmp_path / "strip.png"
    Image.new("L", size, 255).save(path)
    with pytest.raises(Rejected, match="nothing is drawn"):
        to_drawing(path)
    strip = Image.new("L", size, 255)
    strip.paste(0, (size[0] // 3, 0, size[0] // 2 + 1, size[1]))
    strip.save(path)
    assert to_drawing(path)[0].any()


def test_hostile_files_are_told_and_shift_no_row(road, tmp_path):
    model = road / "model.onnx"
    found, tally = fuzz_pictures.check(model, tmp_path, 60, 1, "log_solubility")
    assert not found and 20 <= tally["read"] < 60, (found, tally)


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    names = ["2.png", "10.png", "1.png", "fig 3b.gif", "fig 3a.JPG", "fig 12.tif", "a.txt"]
    for name in names:
        (tmp_path / name).touch()
    wanted = ["1.png", "2.png", "10.png", "fig 3a.JPG", "fig 3b.gif", "fig 12.tif"]
    assert [path.name for path in pictures_in(tmp_path)] == wanted


def test_what_is_no_picture_says_why(tmp_path):
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "a.gif")
    (tmp_path / "folder.png").mkdir()
    for name, says in (
        ("dangling.png", "a link to a file that is not there"),
        ("a.gif", "not a PNG or JPEG picture"),
        ("folder.png", "is no file"),
        ("nowhere.png", "no such file"),
    ):
        with pytest.raises(Rejected, match=says):
            to_drawing(tmp_path / name)
