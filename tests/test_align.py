"""Alignment: the losses, a run in two parts, on one and two processes, and its ONNX file."""

import gzip
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, Desk, invoke, mistake, rows_of, small_molecules
from torch.nn import functional as F

import align
import export
import search
from moleclip.aligned import acml_loss, load_aligned, shift_loss
from moleclip.alignedmodel import AlignedModel
from moleclip.alignscores import ranks_of
from moleclip.dense import DenseHeads, DenseTargets, dense_parts, weight_of
from moleclip.device import ALONE, Leaving, Notice
from moleclip.drawing import draw, layout
from moleclip.encoders import load_graph_encoder
from moleclip.graphs import graph_of, join
from moleclip.losses import contrastive_loss
from moleclip.molecules import input_facts, parse
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


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A desk with 60 molecules, row 7 unreadable, and their labels.npz, which leaves out row 5."""
    desk = Desk(tmp_path_factory.mktemp("labelled"))
    lines = small_molecules(60)
    lines[7], lines[5] = "C1CC broken", "C" * 30
    desk.write("m.smi", lines)
    desk.write("left.smi", lines[5:6])
    how = "--k 4 --descriptors --atoms --leave-out left.smi --workers 1"
    desk.run(f"python cluster.py m.smi {how}")
    return desk


def test_dense_targets_are_those_of_their_rows(labelled):
    path = str(labelled / "m.smi")
    facts, tasks = input_facts(path), ["descriptors", "atoms"]
    targets = DenseTargets(labelled / "labels.npz", path, facts, tasks)
    members, _ = read_graphs(path, workers=1)
    pairs = as_pairs([(member, None) for member in members])
    counts = np.array([len(graph.atoms) for graph in pairs.graphs])
    told = targets.of(pairs.rows, counts)
    with np.load(labelled / "labels.npz") as file:
        wanted = file["descriptors"][pairs.rows].astype(np.float32)
        keys = np.unpackbits(file["maccs"][pairs.rows], axis=1)
        offsets, r1 = file["atom_offsets"], file["atom_r1"].astype(int)
    good = pairs.rows != 5
    assert torch.isnan(told["descriptors"][~good]).all() and torch.isnan(told["maccs"][~good]).all()
    assert (told["descriptors"].numpy()[good] == wanted[good]).all()
    assert (told["maccs"].numpy()[good] == keys[good]).all()
    starts = np.cumsum(counts) - counts
    for i, row in enumerate(pairs.rows):
        mine = told["atom_r1"][starts[i] : starts[i] + counts[i]].numpy()
        known = r1[offsets[row] : offsets[row + 1]]
        if row == 5:
            assert (mine == -100).all()
        else:
            assert (np.where(known == 65535, -100, known) == mine).all()
    hydrogens = told["atom_numbers"][:, 5].numpy()  # of ATOM_NUMBERS; as the graph has them
    graph = np.concatenate([each.atoms[:, 2] for each in pairs.graphs])
    assert (hydrogens[~np.isnan(hydrogens)] == graph[~np.isnan(hydrogens)]).all()
    said = targets.known(pairs.rows, counts)
    assert f"descriptors {len(pairs) - 1} of {len(pairs)}" in said


def test_what_is_not_known_leaves_no_gradient():
    torch.manual_seed(1)
    arch = {"molecules": {"descriptors": 2 + 168}, "atoms": {"r1": 3, "numbers": 10}}
    heads = DenseHeads(arch, 8, 4)
    features, atoms = torch.randn(3, 8, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    truth = {"descriptors": torch.randn(3, 2), "maccs": torch.ones(3, 168)}
    truth |= {"atom_r1": torch.tensor([0, 2, -100, 1, 0]), "atom_numbers": torch.randn(5, 10)}
    for name in ("descriptors", "maccs"):
        truth[name][1] = torch.nan
    truth["atom_numbers"][2] = torch.nan
    told = heads(features, atoms)
    parts = dense_parts(told, truth, ALONE)
    odds = -torch.log_softmax(told["atom_r1"], 1)[[0, 1, 3, 4], [0, 2, 1, 0]].mean()
    assert parts["atom_r1"].item() == pytest.approx(odds.item(), rel=1e-5)
    bits = F.softplus(-told["maccs"][[0, 2]]).mean()
    assert parts["maccs"].item() == pytest.approx(bits.item(), rel=1e-5)
    weights = {"descriptors": 1, "atoms": 2}
    assert [weight_of(name, weights) for name in ("maccs", "atom_numbers")] == [1, 6]
    assert weight_of("atom_r1_accuracy", weights) == 0
    sum(weight_of(name, weights) * value for name, value in parts.items()).backward()
    assert not features.grad[1].any() and not atoms.grad[2].any()
    assert features.grad.isfinite().all() and atoms.grad.isfinite().all() and features.grad.any()


def test_dense_targets_alone(labelled, monkeypatch):
    """Without a modality, in two parts as in one; finetune.py takes what comes of it."""
    loss = "contrast=0,descriptors=1,atoms=1"
    how = ["--loss", loss, "--labels", labelled / "labels.npz", *SMALL]
    whole, parts = labelled / "whole.pt", labelled / "parts.pt"
    said = invoke(align.main, labelled / "m.smi", *how, "-o", whole)
    assert "descriptors 58 of 59" in said and "is the best by validation (val_loss" in said
    with monkeypatch.context() as patch:
        patch.setattr(align, "Notice", LeavesInStep4)
        invoke(align.main, labelled / "m.smi", *how, "-o", parts)
    invoke(align.main, labelled / "m.smi", *how, "-o", parts, "--resume")
    one, other = load_checkpoint(whole), load_checkpoint(parts)
    for name, value in one["current"].items():
        assert torch.equal(value, other["current"][name]), name
    log = [json.loads(line) for line in open(labelled / "whole.log.jsonl")]
    assert {"val_descriptors", "val_maccs", "val_atom_r1", "val_atom_numbers"} <= set(log[0])
    assert log[-1]["val_loss"] < log[0]["val_loss"] and "val_mrr" not in log[0]
    wanted = log[0]["val_descriptors"] + log[0]["val_maccs"] + log[0]["val_atom_r1"]
    wanted += 0.5 * log[0]["val_atom_r2"] + 3 * log[0]["val_atom_numbers"]
    assert log[0]["val_loss"] == pytest.approx(wanted)
    assert "finds nothing" in mistake(export.main, whole, "-o", labelled / "x.onnx")
    assert load_graph_encoder(whole).arch["width"] == 16


def test_dense_targets_beside_the_alignment(labelled):
    how = ["--modality", "smiles", "--loss", "atoms=1", "--labels", labelled / "labels.npz", *SMALL]
    out = labelled / "beside.pt"
    invoke(align.main, labelled / "m.smi", *how, "-o", out)
    best = load_checkpoint(out)["best"]
    assert 0 < best["val_mrr"] <= 1 and best["val_atom_r1"] > 0 and "val_loss" not in best
    invoke(export.main, out, "-o", out.with_suffix(".onnx"))


def test_labels_that_do_not_fit(labelled, spectra):
    source, labels = labelled / "m.smi", ("--labels", labelled / "labels.npz")
    other = labelled.write("other.smi", small_molecules(30))
    for file, more, says in (
        (source, ["--loss", "contrast=0,atoms=1"], "needs --labels labels.npz"),
        (source, ["--loss", "contrast=0,electronic=1", *labels], "has no electronic targets"),
        (other, ["--loss", "contrast=0,atoms=1", *labels], "from another file"),
        (source, ["--modality", "smiles", *labels], "no task of --loss learns from it"),
        (source, ["--modality", "smiles", "--loss", "contrast=0,atoms=1", *labels], "leave it out"),
    ):
        line = mistake(align.main, file, *more, *SMALL, "-o", labelled / "never.pt")
        assert says in line, line
    line = mistake(align.main, source, "-o", labelled / "never.pt", code=2)
    assert "Missing option '--modality'" in line and not (labelled / "never.pt").exists()
