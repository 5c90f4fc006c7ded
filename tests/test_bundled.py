"""The models that come with the repository: whole, safe to read, where stations start from."""

import csv
import gzip
import hashlib
import json

import bundle
import pytest
import torch
from conftest import ROOT, invoke, rows_of, small_molecules
from views import index_pictures

import search
from moleclip.embedder import Embedder
from moleclip.losses import contrastive_loss
from moleclip.seen import molecule_hashes, seen_by
from moleclip.weights import default_init, load_encoder

WEIGHTS = ROOT / "weights" / "moleclip-small.pt"


def test_the_file_is_the_one_that_was_released():
    digest, name = WEIGHTS.with_suffix(".pt.sha256").read_text().split()
    assert name == WEIGHTS.name and hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == digest
    assert WEIGHTS.stat().st_size <= 48e6 and digest in (WEIGHTS.parent / "README.md").read_text()


def test_it_is_a_half_precision_encoder_with_its_history():
    checkpoint = torch.load(WEIGHTS, weights_only=True)
    facts = json.loads(WEIGHTS.with_suffix(".json").read_text())
    log = [json.loads(line) for line in WEIGHTS.with_suffix(".log.jsonl").read_text().splitlines()]
    assert {value.dtype for value in checkpoint["encoder"].values()} == {torch.float16}
    assert json.loads(json.dumps(checkpoint["arch"])) == facts["arch"]
    assert facts["arch"]["tokens"] == "inked" and checkpoint["config"] == facts["config"]
    assert log[-1]["step"] == checkpoint["step"]
    assert WEIGHTS.with_suffix(".curves.png").stat().st_size > 5000


def test_it_tells_molecules_apart_and_knows_them_in_other_styles():
    embedder = Embedder(load_encoder("bundled").eval(), torch.device("cpu"), None)
    with torch.no_grad():
        plain, styled = (embedder.embed_batch(view, None) for view in index_pictures(48))
    assert torch.isfinite(plain).all() and contrastive_loss(plain, styled, 15)[1] > 0.8


def test_no_molecule_that_is_evaluated_was_seen():
    canonical = lambda name: set(bundle.canonical_molecules(ROOT / "data" / name))
    evaluated = set().union(*(canonical(f"{name}.csv") for name in bundle.EVALUATED)) - {""}
    with gzip.open(ROOT / "data" / "druglike_100000.smi.gz", "rt") as stream:
        seen = set(stream.read().split())  # canonical as they stand
    assert len(seen) == 100_000 and len(evaluated) > 10_000 and not seen & evaluated
    # nor is ESOL in the demo's drawings
    assert not canonical("esol.csv") & canonical("chembl_3000.smi")


def test_its_list_holds_the_molecules_that_it_drew():
    with gzip.open(ROOT / "data" / "druglike_100000.smi.gz", "rt") as stream:
        drew = [next(stream).strip() for _ in range(50)]
    seen = seen_by("bundled")
    known = set(seen.molecules.tolist())
    assert not seen.labelled and set(molecule_hashes(drew).tolist()) <= known
    assert not known & set(molecule_hashes(["CCO", "c1ccccc1"]).tolist())


@pytest.mark.parametrize("own, init", [(False, "bundled"), (True, "encoder.pt")])
def test_finetuning_starts_from_it_unless_there_is_an_encoder(desk, monkeypatch, own, init):
    monkeypatch.chdir(desk.folder)
    if own:
        (desk / "encoder.pt").touch()
    assert default_init() == init


# ----------------------------------------------------------------------------------------------
# The model of 13C spectra, search.py's own


def test_the_model_of_spectra_is_the_one_that_was_released():
    path = ROOT / "weights" / "aligned-nmr13c.onnx"
    digest, name = path.with_suffix(".onnx.sha256").read_text().split()
    assert name == path.name and hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.stat().st_size <= 10e6 and digest in (path.parent / "README.md").read_text()


def test_molecules_of_its_test_part_are_found_by_their_peaks(tmp_path):
    with gzip.open(ROOT / "data" / "nmr13c.csv.gz", "rt") as stream:
        pairs = list(csv.DictReader(stream))
    tested = json.loads((ROOT / "weights" / "aligned-nmr13c.json").read_text())["test"]
    library = [pairs[row]["smiles"] for row in tested[:250]] + small_molecules(250)
    (tmp_path / "library.smi").write_text("\n".join(library) + "\n")
    found = []
    for row in tested[:12]:
        words = ["--peaks", pairs[row]["peaks"], "--index", tmp_path / "index", "--top", 3]
        invoke(search.main, tmp_path / "library.smi", *words, "-o", tmp_path / "hits.csv")
        hits = [line["smiles"] for line in rows_of(tmp_path / "hits.csv")]
        found.append(pairs[row]["smiles"] in hits)
    assert sum(found) >= 10  # of 12 spectra that it never saw, among 500 molecules


# ----------------------------------------------------------------------------------------------
# The model of texts, search.py's own for --text


def test_the_model_of_texts_is_the_one_that_was_released():
    path = ROOT / "weights" / "aligned-text.onnx"
    digest, name = path.with_suffix(".onnx.sha256").read_text().split()
    assert name == path.name and hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.stat().st_size <= 50e6 and digest in (path.parent / "README.md").read_text()


def test_molecules_of_its_test_part_are_found_by_their_texts(tmp_path):
    with gzip.open(ROOT / "data" / "texts.csv.gz", "rt") as stream:
        pairs = [pair for pair in csv.DictReader(stream) if pair["split"] == "test"]
    library = [pair["smiles"] for pair in pairs[:100]]
    (tmp_path / "library.smi").write_text("\n".join(library) + "\n")
    found = []
    for pair in pairs[:5]:
        words = ["--text", pair["text"], "--index", tmp_path / "index", "--top", 3]
        invoke(search.main, tmp_path / "library.smi", *words, "-o", tmp_path / "hits.csv")
        hits = [line["smiles"] for line in rows_of(tmp_path / "hits.csv")]
        found.append(pair["smiles"] in hits)
    assert sum(found) >= 4  # of 5 molecules and texts that it never saw, among 100
