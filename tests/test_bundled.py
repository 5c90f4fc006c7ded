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
# The models of 13C spectra and of texts, search.py's own


@pytest.mark.parametrize(("kind", "most"), [("nmr13c", 10e6), ("text", 50e6)])
def test_the_aligned_models_are_those_that_were_released(kind, most):
    path = ROOT / "weights" / f"aligned-{kind}.onnx"
    digest, name = path.with_suffix(".onnx.sha256").read_text().split()
    assert name == path.name and hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.stat().st_size <= most and digest in (path.parent / "README.md").read_text()


def pairs_of_test_part(name, kind):
    """Return the rows of a table in data/ that a bundled model has as its test part."""
    with gzip.open(ROOT / "data" / name, "rt") as stream:
        pairs = list(csv.DictReader(stream))
    tested = json.loads((ROOT / "weights" / f"aligned-{kind}.json").read_text())["test"]
    return [pairs[row] for row in tested]


def count_found(folder, library, asked, option, column):
    """Return how many of some pairs have their molecule among the first three of a library."""
    (folder / "library.smi").write_text("\n".join(library) + "\n")
    found = []
    for pair in asked:
        words = [option, pair[column], "--index", folder / "index", "--top", 3]
        invoke(search.main, folder / "library.smi", *words, "-o", folder / "hits.csv")
        hits = [line["smiles"] for line in rows_of(folder / "hits.csv")]
        found.append(pair["smiles"] in hits)
    return sum(found)


def test_molecules_of_its_test_part_are_found_by_their_peaks(tmp_path):
    pairs = pairs_of_test_part("nmr13c.csv.gz", "nmr13c")
    library = [pair["smiles"] for pair in pairs[:250]] + small_molecules(250)
    found = count_found(tmp_path, library, pairs[:12], "--peaks", "peaks")
    assert found >= 10  # of 12 spectra that it never saw, among 500 molecules


def test_molecules_of_its_test_part_are_found_by_their_texts(tmp_path):
    pairs = pairs_of_test_part("texts.csv.gz", "text")
    library = [pair["smiles"] for pair in pairs[:100]]
    found = count_found(tmp_path, library, pairs[:5], "--text", "text")
    assert found >= 4  # of 5 molecules and texts that it never saw, among 100
