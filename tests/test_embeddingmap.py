"""Where molecules lie in a model's eyes: axes, places, and the page, in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import invoke
from PIL import Image

import predict
from moleclip.embeddingmap import EmbeddingMap, principal_axes
from moleclip.onnxmodel import OnnxModel

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LINES = ["CCO first", "C1CC broken", "c1ccccc1O", "CCCCCCCC <b>fat</b>", "CC(=O)OC"]
MOVE = """<script>
const spot = spots[3], pointer = kind => new PointerEvent(kind, { clientX: 0, clientY: 0 });
const moved = pointer("pointermove");
Object.defineProperty(moved, "offsetX", { value: spot[0] });
Object.defineProperty(moved, "offsetY", { value: spot[1] });
canvas.dispatchEvent(moved);
const seen = [document.title, spots.length, card.hidden, card.children[2].textContent];
document.body.insertAdjacentHTML("beforeend", "<pre id='seen'></pre>");
document.getElementById("seen").textContent = seen.join("|");
</script></html>"""


def test_axes_are_those_of_the_variance():
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(300, 6)) * [5, 0.1, 3, 0.1, 0.1, 0.1] + 2
    lying = EmbeddingMap("m.onnx", principal_axes(embeddings.astype(np.float32)))
    assert np.abs(lying.axes[0]).argmax() == 0 and np.abs(lying.axes[1]).argmax() == 2
    assert lying.places.shape == (300, 2) and sum(lying.told) > 0.98
    wanted = lying.locate(embeddings)
    assert np.abs(wanted - lying.places).max() < 0.02  # float16
    assert lying.axes[0, 0] > 0 and lying.axes[1, 2] > 0
    flat = EmbeddingMap("m.onnx", principal_axes(np.ones((4, 6), np.float32)))
    assert np.isfinite(flat.places).all()


def test_a_damaged_map_is_said_in_a_line():
    with pytest.raises(click.ClickException, match="its map is damaged"):
        EmbeddingMap("m.onnx", '{"width": 6, "data": "AAAA"}')


@pytest.fixture
def mapped(road, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.smi").write_text("\n".join(LINES) + "\n")
    words = road / "model.onnx", "a.smi", "--workers", 1
    return words


def test_a_map_has_every_molecule_that_is_read_and_training_grey(road, mapped):
    invoke(predict.main, *mapped, "--map", "map.html")
    text = open("map.html", encoding="utf-8").read()
    data = json.loads(re.search(r'application/json">(.*?)</script>', text)[1])
    lying = EmbeddingMap("", OnnxModel(road / "model.onnx").map)
    assert len(data["training"]) == len(lying.places) > 3
    assert [molecule[5] for molecule in data["molecules"]] == [0, 2, 3, 4]
    found = lying.locate(np.load("map.npy"))[[0, 2, 3, 4]]
    assert np.abs(found - [m[:2] for m in data["molecules"]]).max() < 1e-3
    assert all(data["images"]) and "<b>fat" not in text
    invoke(predict.main, *mapped, "-o", "b.csv", "--map", "map.png")
    with Image.open("map.png") as picture:
        grey = [
            n for n, (r, g, b) in picture.getcolors(10**6) if max(abs(r - 196), abs(b - 208)) < 4
        ]
        assert picture.size == (900, 900) and sum(grey) > 100 and len(picture.getcolors(10**6)) > 20


def test_neighbours_can_be_kept_instead(mapped):
    invoke(predict.main, *mapped, "--map", "map.html", "--map-by", "tsne")
    data = json.loads(re.search(r'json">(.*?)</script>', open("map.html").read())[1])
    assert len(data["molecules"]) == 4 and data["training"] == []
    assert len({tuple(molecule[:2]) for molecule in data["molecules"]}) == 4


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_map_shows_a_molecule_under_the_pointer(mapped, tmp_path):
    invoke(predict.main, *mapped, "--map", tmp_path / "map.html")
    page = tmp_path / "map.html"
    page.write_text(page.read_text().replace("</html>", MOVE))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'browser'}", f"file://{page}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    title, count, hidden, said = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1].split("|")
    assert title.endswith("of a.smi, by likeness") and (count, hidden) == ("4", "false")
    assert said == "row 4" or said.endswith("row 4")
