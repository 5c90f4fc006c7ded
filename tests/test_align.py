"""Alignment: the losses, a run in two parts, on one and two processes, and its ONNX file."""

import gzip
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, invoke, mistake, rows_of, small_molecules
from torch.nn import functional as F

import align
import export
import search
from moleclip.aligned import acml_loss, load_aligned, shift_loss
from moleclip.alignedmodel import AlignedModel
from moleclip.alignscores import ranks_of
from moleclip.device import Leaving, Notice
from moleclip.drawing import draw, layout
from moleclip.graphs import graph_of, join
from moleclip.losses import contrastive_loss
from moleclip.molecules import parse
from moleclip.pairtable import (
    as_pairs,
    folder_facts,
    read_graphs,
    split_pairs,
    with_measured,
    with_spectra,
)
from moleclip.pixels import to_rgb
from moleclip.spectra import read_peaks
from moleclip.tokens import smiles_tokens
from moleclip.weights import load_checkpoint

SHAPES = {"picture": (1, 224, 224, 3), "smiles": (1, -1)}
SMALL = ["--width", "16", "--layers", "2", "--batch", "16", "--epochs", "3", "--workers", "1"]


@pytest.fixture(scope="module")
def spectra(tmp_path_factory):
    """A table of 60 small molecules with 13C shifts; row 4 can't be read, row 7 has no peaks."""
    path = tmp_path_factory.mktemp("spectra") / "carbon.csv"
    with gzip.open(ROOT / "data" / "nmr13c.csv.gz", "rt") as stream:
        lines = [line for line in stream.read().splitlines() if len(line) < 90][:61]
    lines[5] = lines[5].replace(lines[5].split(",")[1], "C1CC")
    lines[8] = ",".join([*lines[8].split(",")[:2], "no peaks"])
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def aligned(spectra):
    """What align.py learns of them."""
    out = spectra.with_name("aligned.pt")
    how = "--modality", "nmr13c", "--loss", "contrast=1,shifts=0.3", "--unfreeze"
    said = invoke(align.main, spectra, *how, *SMALL, "-o", out)
    assert "58 pairs (12 test, 3 val, 43 train); 2 rows are left out, the first row 4" in said
    return out


def test_acmls_loss_is_that_of_its_code():
    torch.manual_seed(1)
    asked, molecules = torch.randn(5, 7), torch.randn(5, 7)
    logits = (asked @ molecules.T).numpy().astype(float)
    alike = ((asked @ asked.T + molecules @ molecules.T) / 2).numpy().astype(float)
    soft = np.exp(alike - alike.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    columns = logits.T - np.log(np.exp(logits.T).sum(1, keepdims=True))
    wanted = (-(soft * rows).sum(1) - (soft.T * columns).sum(1)).mean() / 2
    assert acml_loss(asked, molecules).item() == pytest.approx(wanted, rel=1e-5)


def test_two_spectra_of_a_molecule_are_not_each_others_negatives():
    torch.manual_seed(1)
    asked, molecules = (F.normalize(torch.randn(3, 4), dim=1) for _ in range(2))
    logits = (2 * asked @ molecules.T).numpy().astype(float)
    logits[0, 1] = logits[1, 0] = -np.inf
    wanted = 0.0
    for way in (logits, logits.T):
        wanted += (np.log(np.exp(way).sum(1)) - np.diag(way)).mean() / 2
    loss, _ = contrastive_loss(asked, molecules, 2, torch.tensor([5, 5, 6]))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_shifts_need_no_assignment():
    predicted = [torch.tensor([30.0, 10.0]), torch.tensor([50.0]), torch.tensor([])]
    measured = [torch.tensor([10.0, 36.0]), torch.tensor([44.0, 50.0]), torch.tensor([1.0])]
    # In order: 0 and 6 ppm off, Huber's 0 and 1.5 of 3; to the nearest: 0, 6, 0.
    loss = shift_loss(predicted, measured, 3.0)
    assert loss.item() == pytest.approx((0.75 + 0.5) / 2)
    assert shift_loss(predicted[2:], measured[2:], 3.0).item() == 0


def test_a_rank_is_the_worst_of_equals():
    scores = torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
    assert ranks_of(scores, torch.tensor([1, 0])).tolist() == [2, 1]


def test_a_folder_of_spectra_is_read_as_a_table_is(tmp_path):
    table, folder = tmp_path / "m.csv", tmp_path / "spectra"
    table.write_text("smiles,peaks\nCCO,29.0:5 45.03:100\nCCN,30.03:7 44.05:20\nC1CC,30:1\n")
    folder.mkdir()
    record = "BEGIN IONS\nTITLE={}\nSMILES={}\n{}\nEND IONS\n"
    (folder / "a.mgf").write_text(
        record.format("one", "CCO", "29.0 5\n45.03 100") + record.format("two", "CCO", "x y")
    )
    (folder / "b.mgf").write_text(
        record.format("three", "CCN", "30.03 7\n44.05 20") + record.format("four", "", "30 1")
    )
    members, _ = read_graphs(str(table), workers=1)
    wanted, reasons = with_spectra(str(table), members, "msms")
    found, left = with_measured(folder, "msms", workers=1)
    assert [pair[0][0].row for pair in found] == [0, 2] and sorted(left) == [1, 3]
    assert "a.mgf: two" in left[1] and "b.mgf: four has no SMILES" in left[3]
    for one, other in zip(found, wanted):
        assert np.array_equal(one[1].places, other[1].places)
        assert one[1].precursor == pytest.approx(other[1].precursor)
    before = folder_facts(folder)
    (folder / "b.mgf").write_text("")
    assert folder_facts(folder)["sha256"] != before["sha256"]
    says = mistake(align.main, folder, "--modality", "picture", "-o", tmp_path / "x.pt")
    assert "is a folder; files of spectra are read from one" in says


def test_rows_of_a_molecule_stay_together(tmp_path):
    path = tmp_path / "t.csv"
    smiles = ["C[C@H](N)O", "C[C@@H](N)O", "OC(C)N", *["C" * n + "O" for n in range(1, 18)]]
    path.write_text("\n".join(["smiles,peaks", *(f"{s},10 20" for s in smiles * 2)]))
    members, _ = read_graphs(str(path), workers=1)
    pairs = as_pairs(with_spectra(str(path), members, "nmr13c")[0])
    for kind, together in (("random", 1), ("skeleton", 3)):
        parts = split_pairs(pairs, kind, 0)
        assert sorted(np.concatenate([*parts.values()])) == list(range(40))
        of = {int(i): part for part, places in parts.items() for i in places}
        assert all(of[i] == of[i + 20] for i in range(20))
        assert len({of[i] for i in range(together)}) == 1


def test_a_graph_says_what_its_smiles_says():
    graph = graph_of(0, "C[C@H](N)C(=O)[O-]")
    other = graph_of(0, "[O-]C(=O)[C@@H](N)C")
    assert np.array_equal(graph.atoms, other.atoms) and graph.formula == "C3H6NO2-"
    mirrored = graph_of(0, "C[C@@H](N)C(=O)[O-]")
    assert (graph.atoms != mirrored.atoms).sum() == 1
    benzene = graph_of(0, "c1ccccc1")
    assert len(benzene.alike("nmr13c")) == len(benzene.alike("nmr1h")) == 1
    both = join([benzene, graph])
    assert both.starts.tolist() == [0, 6] and both.bonds.min(0).tolist() == [0, 0]
    assert both.owner.tolist() == [0] * 6 + [1] * 6 and both.bonds.max() == 11


class LeavesInStep4(Notice):
    """A notice that comes before the fourth step: in the second epoch."""

    steps = 0

    def check(self):
        self.steps += 1
        if self.steps == 4:
            raise Leaving


def test_a_run_in_two_parts_is_the_same(aligned, spectra, monkeypatch):
    out = spectra.with_name("parts.pt")
    how = ["--modality", "nmr13c", "--loss", "contrast=1,shifts=0.3", "--unfreeze", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(align, "Notice", LeavesInStep4)
        said = invoke(align.main, spectra, *how, "-o", out)
    assert "has epoch 1; --resume goes on" in said and load_checkpoint(out)["epoch"] == 1
    assert "has not ended" in mistake(export.main, out, "-o", out.with_suffix(".onnx"))
    other = mistake(align.main, spectra, *how, "-o", out, "--resume", "--lr", 0.1)
    assert "was made with lr 0.001, not 0.1" in other
    said = invoke(align.main, spectra, *how, "-o", out, "--resume")
    assert "autoencoder" not in said  # nothing is pretrained for weights that are there
    state, again = load_checkpoint(aligned), load_checkpoint(out)
    for name, weights in state["model"].items():
        assert torch.equal(weights, again["model"][name]), name
    assert state["parts"] == again["parts"] and state["calibration"] == again["calibration"]
    logs = [path.with_suffix(".log.jsonl").read_text() for path in (aligned, out)]
    assert logs[0] == logs[1]


def test_the_file_says_what_pytorch_says(aligned, spectra):
    out = spectra.with_name("aligned.onnx")
    said = invoke(export.main, aligned, "-o", out)
    assert "finds molecules by nmr13c" in said
    file, (model, checkpoint) = AlignedModel(out, "cpu"), load_aligned(aligned)
    assert file.match_weight == checkpoint["calibration"]["match_weight"]
    graphs = [graph_of(0, text) for text in ("CCO", "c1ccccc1C(=O)O", "[Na+].[Cl-]")]
    places, shifts = file.embed_molecules(graphs)
    with torch.no_grad():
        wanted, told = model.molecules(*map(torch.from_numpy, join(graphs)))
    # its weights are rounded to half precision
    assert places == pytest.approx(wanted.numpy(), abs=1e-3)
    assert shifts[0] == pytest.approx(told[graphs[0].alike("nmr13c"), 0].numpy(), abs=0.2)
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    query = file.embed_query(read_peaks("18.1 57.8", "nmr13c"))
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    log = [json.loads(line) for line in aligned.with_suffix(".log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["picture", "smiles"])
def test_pictures_and_smiles_are_asked_by_too(kind, tmp_path):
    table, out = tmp_path / "m.smi", tmp_path / "m.pt"
    table.write_text("\n".join(small_molecules(40)) + "\n")
    words = [*SMALL, "--epochs", 2, "--init", "scratch:nano", "--lr", 3e-3, "-o", out]
    words += ["--unfreeze"] * (kind == "smiles")
    invoke(align.main, table, "--modality", kind, *words)
    invoke(export.main, out, "-o", tmp_path / "m.onnx")
    if kind == "smiles":
        words = tmp_path / "m.onnx", table, "--index", tmp_path / "index", "-o", tmp_path / "h.csv"
        invoke(search.main, *words, "--smiles", "CCO", "--top", 3, "--workers", 1)
        assert [hit["rank"] for hit in rows_of(tmp_path / "h.csv")] == ["1", "2", "3"]
        assert "takes SMILES; give --smiles" in mistake(search.main, *words, "--peaks", 1, code=2)
    file, (model, _) = AlignedModel(tmp_path / "m.onnx", "cpu"), load_aligned(out)
    texts = ["CCO", "CC(=O)Oc1ccccc1C(=O)O"]
    given = smiles_tokens, texts
    if kind == "picture":
        given = to_rgb, [draw(layout(parse(text)))[None] for text in texts]
    for text, each in zip(texts, given[1]):
        asked = given[0](each)
        told = file.embed_query(text if kind == "smiles" else asked[0])
        with torch.no_grad():
            wanted = model.queries(torch.tensor(np.array(asked)).reshape(SHAPES[kind]))[0]
        assert told == pytest.approx(wanted.numpy(), abs=2e-3)


def test_the_start_of_another_modality_spares_no_pretraining(aligned, spectra, tmp_path):
    """Its graph encoder is taken over; what the own modality needs is learned all the same."""
    words = [*SMALL, "--epochs", 1, "--graph", aligned, "-o"]
    says = invoke(align.main, spectra, "--modality", "nmr13c", *words, tmp_path / "same.pt")
    assert "query" in says and "autoencoder" not in says
    said = invoke(align.main, spectra, "--modality", "smiles", *words, tmp_path / "other.pt")
    assert "of hidden tokens" in said and "taken over from" in said
    other, _ = load_aligned(tmp_path / "other.pt")
    assert (other.spread != 1).all() and other.middle.any()


def test_mistakes(spectra, aligned, tmp_path):
    out = tmp_path / "x.pt"
    for words, says in (
        ("--modality msms --loss contrast=1,shifts=1", "only NMR spectra have any"),
        ("--modality nmr13c --column peak", "no column 'peak'"),
        ("--modality picture --unfreeze", "--unfreeze: the encoder of pictures stays"),
        ("--modality nmr13c --batch 64 --workers 1", "less than --batch 64"),
        ("--modality nmr1h", "is this a 13C spectrum?"),
    ):
        assert says in mistake(align.main, spectra, *words.split(), "-o", out)
    words = "--modality", "nmr13c", "-o"
    assert "exists already" in mistake(align.main, spectra, *words, aligned)
    plain = tmp_path / "plain.smi"
    plain.write_text("CCO\nCCN\n")
    assert "needs a table" in mistake(align.main, plain, *words, out, "--workers", 1)
