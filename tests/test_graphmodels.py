"""Graph encoders for tables of labels: from finetune.py --features graph to predict.py."""

import json

import numpy as np
import onnx
import pytest
import torch
from conftest import Desk, first_lines, invoke, mistake, rows_of, small_molecules
from PIL import Image

import export
import finetune
import predict
from moleclip.aligned import Aligned
from moleclip.encoders import GraphEmbedder, load_graph_encoder
from moleclip.features import featurize
from moleclip.graphs import graph_of
from moleclip.onnxmodel import OnnxModel
from moleclip.weights import load_checkpoint, save_checkpoint

NAME = "log_solubility"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A desk with a table of 60 molecules, row 4 unreadable, and a small aligned.pt."""
    desk = Desk(tmp_path_factory.mktemp("graphs"))
    lines = first_lines("esol.csv", 61)
    lines[5] = lines[5].replace(lines[5].split(",")[1], "C1CC")
    desk.table = desk.write("t.csv", lines)
    torch.manual_seed(0)
    graph = {"width": 16, "layers": 2, "out": 32}
    arch = {"modality": "ei", "contrast": "infonce", "graph": graph, "shifts": False}
    weights = Aligned(arch).state_dict()
    for name, value in weights.items():  # batch statistics as if it had been trained
        if name.endswith("running_mean"):
            value += 0.1
    save_checkpoint(desk / "aligned.pt", arch=arch, model=weights, config={})
    return desk


def finetuned(desk, out, *words, **parts):
    """Run finetune.py on the table with the encoder of graphs, into the folder `out`."""
    words = ["--data", desk.table, "--graph", desk / "aligned.pt", *words, "-o", desk / out]
    context = finetune.main.make_context("finetune.py", [str(word) for word in words])
    finetune.run(context, with_baselines=False, **parts)
    return desk / out


@pytest.fixture(scope="module")
def process(desk):
    """A run of a Gaussian process on graphs and fingerprints; its model.onnx lies beside it."""
    run = finetuned(desk, "process", "--features", "graph+ecfp", "--head", "gp")
    invoke(export.main, run, "-o", desk / "process.onnx")
    return run


def predicted(desk, model, source, *words):
    """Run predict.py and return its lines."""
    out = desk / "p.csv"
    invoke(predict.main, desk / model, source, "-o", out, *words)
    return rows_of(out)


def numbers(lines, name):
    return [float(line[name]) for line in lines]


def test_an_embedding_is_that_of_the_molecule_alone(desk):
    encoder = load_graph_encoder(desk / "aligned.pt").train()
    graphs = [graph_of(0, text) for text in ("C", "CC(=O)Nc1ccc(O)cc1", "[Na+].[Cl-]")]
    embedder = GraphEmbedder(encoder, CPU)
    told = embedder.embed_batch(embedder.batch(graphs), None)
    assert told.shape == (3, encoder.width) and encoder.width == 32 + 2 * 16
    for graph, each in zip(graphs, told):
        alone = embedder.embed(embedder.batch([graph]), None)[0]
        assert torch.allclose(alone, each, atol=1e-5)
    sums = told[:, -16:] * 20 / torch.tensor([1, 11, 2])[:, None]  # gin.MANY
    assert torch.allclose(sums, told[:, -32:-16], atol=1e-5)
    one, same, other = (load_graph_encoder("none", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_ends_are_dummy_atoms_as_they_are_drawn():
    plain = featurize(0, "CCO", drawn=False, graph=True)
    ends = featurize(0, "CCO", drawn=False, graph=True, r_groups=True)
    assert plain.streams == [b""] and sorted(plain.graph.atoms[:, 0]) == [6, 6, 8]
    assert sorted(ends.graph.atoms[:, 0]) == [0, 0, 6]


def test_the_file_gives_what_the_run_gave(desk, process):
    known = [each for each in rows_of(process / "predictions.csv")[:12] if not each["error"]]
    smiles = [line["smiles"] for line in known] + ["C1CC", "C" * 151, "[H][H]", "[U+2]"]
    source = desk.write("a.smi", smiles)
    lines = predicted(desk, "process.onnx", source, "--workers", "1")
    for ours, theirs in zip(
        ("predicted", "spread", "low", "high"), ("", "_spread", "_low", "_high")
    ):
        wanted = numbers(known, f"{ours}_{NAME}")
        assert numbers(lines[: len(known)], f"{NAME}{theirs}") == pytest.approx(wanted, abs=1e-4)
    errors = [line["error"] for line in lines[len(known) :]]
    assert "not a valid SMILES" in errors[0] and "151 heavy atoms" in errors[1]
    assert errors[2:] == ["", ""] and [int(line["row"]) for line in lines] == list(
        range(len(smiles))
    )
    table = OnnxModel(desk / "process.onnx", "cpu").predict(smiles)
    assert list(table) == [column for column in lines[0] if column != "name"]
    good = [not line["error"] for line in lines]
    told = [float(line[NAME]) for line in lines if not line["error"]]
    assert table[NAME][good] == pytest.approx(told, abs=1e-5)
    assert list(table["error"]) == [line["error"] for line in lines]


def test_what_the_run_looked_at_is_told(desk, process):
    config, facts = (json.loads((process / f"{n}.json").read_text()) for n in ("config", "metrics"))
    assert config["features"] == "graph+ecfp" and config["init"] == "none"
    assert config["graph"].endswith("aligned.pt") and len(config["graph_sha256"]) == 64
    assert facts["runs"][0]["head"]["chosen"] == "Gaussian process on graph+ecfp"
    assert facts["runs"][0]["features"] == "graph"
    model = OnnxModel(desk / "process.onnx", "cpu")
    assert model.inputs == ["atoms", "bonds", "kinds", "owner", "counts", "fingerprint"]
    assert model.facts["encoder"] == {"graph": {"width": 16, "layers": 2, "out": 32}}
    assert model.facts["runs"][0]["training"]["features"] == "graph+ecfp"
    assert model.width == 64 and "prediction_picture" not in model.outputs


def test_neither_batch_nor_workers_matter(desk, process):
    lines = small_molecules(300)
    lines[7], lines[256] = "C1CC broken", ""
    source = desk.write("many.smi", lines)
    told = []
    for words in (["--workers", 1], ["--workers", 2], ["--workers", 1, "--batch", 7]):
        predicted(desk, "process.onnx", source, *words, "--embeddings", desk / "e.npy")
        told.append(((desk / "p.csv").read_bytes(), np.load(desk / "e.npy")))
    assert told[0][0] == told[1][0] and np.array_equal(told[0][1], told[1][1], equal_nan=True)
    assert told[0][1] == pytest.approx(told[2][1], abs=1e-4, nan_ok=True)
    texts = [each.decode().splitlines() for each, _ in told]
    assert len(texts[0]) == len(texts[2]) == 301
    broken = [i for i, row in enumerate(told[0][1]) if np.isnan(row).any()]
    assert broken == [7, 256]


def test_pictures_have_no_graph(desk, process):
    Image.new("RGB", (300, 300), "white").save(desk / "figure.png")
    words = desk / "process.onnx", desk / "figure.png", "-o", desk / "x.csv"
    assert "looks at graphs, which pictures don't have" in mistake(predict.main, *words)
    words = desk / "process.onnx", desk.write("b.smi", ["CCO"]), "-o", desk / "x.csv"
    assert "has no drawings to vary" in mistake(predict.main, *words, "--views", 2)
    assert not (desk / "x.csv").exists()


def test_encoder_and_head_learn_together(desk):
    """In two seeds, that make an ensemble; such a run starts another one."""
    how = ("--features", "graph", "--head", "mlp", "--epochs", 2, "--lr-encoder", "1e-2")
    run = finetuned(desk, "tuned", *how, "--seeds", "1,2", head_first=False)
    seeds = [rows_of(run / f"seed-{seed}" / "predictions.csv") for seed in (1, 2)]
    before = load_graph_encoder(desk / "aligned.pt").gin.state_dict()
    after = load_graph_encoder(run / "model.pt").gin.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "layers.0.mlp.0.weight" in changed and "atoms.0.weight" in changed
    assert not [name for name in changed if "running" in name]
    folders = [run / f"seed-{seed}" for seed in (1, 2)]
    invoke(export.main, *folders, "-o", desk / "both.onnx")
    source = desk.write("a.smi", [line["smiles"] for line in seeds[0][10:40]])
    lines = predicted(desk, "both.onnx", source, "--workers", "1")
    told = np.array([numbers(each[10:40], f"predicted_{NAME}") for each in seeds])
    assert numbers(lines, NAME) == pytest.approx(told.mean(0), abs=1e-4)
    assert numbers(lines, f"{NAME}_spread") == pytest.approx(told.std(0), abs=1e-4)
    facts = json.loads((run / "metrics.json").read_text())
    assert facts["runs"][0]["features"] == "graph"
    words = ["--data", desk.table, "--graph", run / "model.pt", "--features", "graph"]
    more = "-o", desk / "again", "--head", "forest", "--seeds", 3
    says = mistake(finetune.main, *words, *more)
    assert "was trained on molecules of this table" in says
    said = mistake(export.main, run, "-o", desk / "x.onnx", "--precision", "int8")
    assert "is for encoders of pictures" in said
    out = desk / "alone.onnx"
    invoke(export.main, run, "--encoder-only", "-o", out)
    assert [each.name for each in onnx.load(out).graph.output] == ["embedding"]


def test_pictures_and_graphs_side_by_side(desk, process):
    how = ("--features", "picture+graph", "--init", "scratch:nano", "--head", "gp")
    run = finetuned(desk, "two", *how)
    checkpoint = load_checkpoint(run / "model.pt")
    assert {"encoder", "arch", "graph"} <= set(checkpoint) and len(checkpoint["heads"]) == 1
    said = invoke(export.main, run, "-o", desk / "two.onnx")
    assert "embeddings by a cosine" in said
    model = OnnxModel(desk / "two.onnx", "cpu")
    assert model.inputs == ["images", "atoms", "bonds", "kinds", "owner", "counts"]
    assert model.width == 512 + 64 and model.patch == 16
    known = rows_of(run / "predictions.csv")[10:20]
    source = desk.write("a.smi", [line["smiles"] for line in known])
    lines = predicted(desk, "two.onnx", source, "--workers", "1")
    assert numbers(lines, NAME) == pytest.approx(numbers(known, f"predicted_{NAME}"), abs=1e-3)
    other = rows_of(process / "predictions.csv")[10:20]
    invoke(export.main, process, run, "-o", desk / "mixed.onnx")
    lines = predicted(desk, "mixed.onnx", source, "--workers", "1")
    both = np.mean([numbers(each, f"predicted_{NAME}") for each in (known, other)], 0)
    assert numbers(lines, NAME) == pytest.approx(both, abs=1e-3)
    words = desk / "two.onnx", desk / "figure.png", "-o", desk / "x.csv"
    Image.new("RGB", (300, 300), "white").save(desk / "figure.png")
    assert "looks at graphs" in mistake(predict.main, *words)


def test_what_contradicts(desk):
    words = ["--data", desk.table, "-o", desk / "never"]
    for more, says in (
        (["--features", "picture+graph"], "add --freeze"),
        (["--features", "picture", "--graph", "none"], "has no graph: leave it out"),
        (["--features", "graph", "--init", "bundled"], "has no picture: leave it out"),
        (["--features", "ecfp", "--graph", "none"], "need no encoder"),
        (["--init", "none"], "take --features ecfp"),
        (["--features", "graph", "--augment", "none"], "is of pictures"),
    ):
        assert says in mistake(finetune.main, *words, *more, code=2)
    torch.save({"head": 1}, desk / "odd.pt")
    entry = load_checkpoint(desk / "aligned.pt")
    arch = entry["arch"] | {"graph": entry["arch"]["graph"] | {"width": 8}}
    torch.save(entry | {"arch": arch}, desk / "other.pt")
    for path, says in (
        ("nowhere.pt", "make one with align.py"),
        ("odd.pt", "holds no graph encoder"),
        ("other.pt", "its graph encoder is damaged"),
    ):
        assert says in mistake(finetune.main, *words, "--graph", desk / path)
    assert not (desk / "never").exists()
