"""The index of a library, and the model that makes it."""

import csv
import json
import shutil

import click
import numpy as np
import pytest
from conftest import Desk, rows_of
from rdkit.Chem import Descriptors, MolFromSmiles, rdMolDescriptors
from standin import DIM, spectrum_of, told_by

from moleclip import index as module
from moleclip.alignedmodel import AlignedModel
from moleclip.graphs import graph_of
from moleclip.index import Index, library_facts
from moleclip.molecules import Part
from moleclip.spectra import peak_distance


@pytest.fixture(scope="module")
def model(aligned):
    return AlignedModel(aligned / "aligned.onnx", "cpu")


@pytest.fixture
def small(monkeypatch):
    """Blocks of 64 rows, so that a library of 300 has five."""
    monkeypatch.setattr(module, "ROWS", 64)


@pytest.fixture
def built(small, tmp_path, aligned, model):
    index = Index(tmp_path / "index", model, str(aligned / "library.smi"))
    index.build(workers=1)
    return index


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_model_embeds_as_its_parts_do(aligned, model):
    graphs = [graph_of(0, text) for text in [*aligned.known, "C", "[Na+].[Cl-]", "O"]]
    embeddings, shifts = model.embed_molecules(graphs)
    assert embeddings.shape == (len(graphs), DIM) and embeddings.dtype == np.float32
    for text, found, told in zip([*aligned.known, "C"], embeddings, shifts):
        wanted = told_by(aligned.net, text)
        assert np.allclose(found, wanted[0], atol=1e-5) and np.allclose(told, wanted[1], atol=1e-3)
    assert len(shifts[-3]) == 1 and not len(shifts[-2]) and not len(shifts[-1])  # no carbon
    query = model.embed_query(spectrum_of(aligned.net, aligned.known[3]))
    assert query @ embeddings[3] > 0.999
    alone, _ = model.embed_molecules(graphs[-3:-2])  # no bond in the whole batch
    assert np.allclose(alone[0], embeddings[-3], atol=1e-5)
    none, shifts = model.embed_molecules([])
    assert none.shape == (0, DIM) and shifts == []


def test_its_final_scores_take_the_peaks_in(aligned, model):
    spectrum = spectrum_of(aligned.net, aligned.known[0])
    far = spectrum.places + 4.0
    scores = model.final_scores([0.9, 0.9], [spectrum.places, far], spectrum)
    away = peak_distance(far, spectrum.places, "nmr13c")
    assert scores.tolist() == pytest.approx([0.9, 0.9 - 0.05 * away])
    assert model.final_scores([0.9], None, None).tolist() == [0.9]
    assert model.least_likely() == pytest.approx(0.525)


def test_what_is_no_aligned_model_is_refused_in_a_line(aligned, road, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    for path, says in [
        (tmp_path / "none.onnx", "no such file; make it with: python export.py"),
        (text, "truncated, or not an ONNX file"),
        (road / "model.onnx", "is a model.onnx, made for predict.py"),
        (aligned / "graphs.onnx", "is no aligned.onnx"),
    ]:
        with pytest.raises(click.ClickException, match=says) as error:
            AlignedModel(path, "cpu")
        assert "\n" not in error.value.message


@pytest.mark.parametrize(
    "facts, says",
    [
        ({"format": 2}, "newer moleclip"),
        ({"modality": "ir"}, "damaged"),
        ({"dim": "24"}, "damaged"),
        ({"match_weight": "x"}, "damaged"),
        ({"true_scores": 5}, "damaged"),
        ({"modality": "nmr1h", "dim": 25}, "other widths"),
        ({"modality": "picture"}, "lacks images"),
    ],
)
def test_facts_that_can_not_be_are_refused(aligned, tmp_path, facts, says):
    import onnx

    proto = onnx.load(aligned / "aligned.onnx")
    [entry] = proto.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | facts)
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises(click.ClickException, match=says) as error:
        AlignedModel(tmp_path / "bad.onnx", "cpu")
    assert "\n" not in error.value.message


def test_an_index_holds_what_the_model_says(aligned, built, model):
    assert len(list(built.blocks())) == 5 and not built.missing()
    rows = np.concatenate([block["row"] for block in built.blocks()])
    assert rows.tolist() == [row for row in range(300) if row not in (7, 299)]
    details = built.details(np.array([250, 21, 64]))
    for row, mass, formula, shifts in zip((250, 21, 64), *details):
        molecule = MolFromSmiles(aligned.smiles[row])
        assert mass == Descriptors.ExactMolWt(molecule)
        assert formula == rdMolDescriptors.CalcMolFormula(molecule)
        assert np.allclose(shifts, told_by(aligned.net, aligned.smiles[row])[1], atol=0.07)
    rejected = rows_of(built.folder / "rejected.csv")
    assert [(each["row"], each["smiles"]) for each in rejected] == [("7", "C1CC"), ("299", "?")]
    assert all(each["reason"].startswith("not a valid SMILES") for each in rejected)


def test_a_search_is_exact(aligned, built, model):
    every = np.concatenate([block["embedding"] for block in built.blocks()]).astype(np.float32)
    rows = np.concatenate([block["row"] for block in built.blocks()])
    queries = np.random.default_rng(0).normal(size=(70, DIM)).astype(np.float32)  # two passes
    for query, found in zip(queries, built.search(queries, 12)):
        products = every @ query
        order = np.lexsort([rows, -products])[:12]
        assert found.rows.tolist() == rows[order].tolist()
        assert np.allclose(found.products, products[order], atol=1e-5)
    own = model.embed_molecules([graph_of(0, aligned.smiles[row]) for row in (0, 150, 298)])[0]
    assert [found.rows[0] for found in built.search(own, 5)] == [0, 150, 298]


def test_a_restricted_search_looks_at_nothing_else(built):
    def heavy(block):
        return block["mass"] > 300

    [found] = built.search(np.ones((1, DIM), np.float32), 1000, heavy)
    masses = built.details(found.rows).masses
    assert len(masses) and (masses > 300).all()
    assert len(masses) == sum(heavy(block).sum() for block in built.blocks())
    assert not len(built.search(np.ones((1, DIM), np.float32), 5, lambda b: b["mass"] < 0)[0].rows)
    assert built.nearest_mass(1e5) == max(block["mass"].max() for block in built.blocks())


def test_interrupted_and_made_in_parts_it_is_the_same_to_the_byte(
    aligned, built, model, tmp_path, monkeypatch
):
    whole, library = contents(built.folder), str(aligned / "library.smi")
    write, stopped = Index.write, tmp_path / "stopped"

    def stop_at_the_third(self, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *rest)

    monkeypatch.setattr(Index, "write", stop_at_the_third)
    with pytest.raises(click.ClickException, match="interrupted; whole blocks are kept") as error:
        Index(stopped, model, library).build(workers=1)
    assert error.value.exit_code == 130
    monkeypatch.setattr(Index, "write", write)
    assert sorted(contents(stopped)) == ["index-00000.npz", "index-00001.npz"]
    again = Index(stopped, model, library)
    assert again.missing() == [2, 3, 4]
    again.build(workers=2)
    assert contents(stopped) == whole
    parts = tmp_path / "parts"
    for part in (2, 1):
        Index(parts, model, library).build(Part(part, 2), workers=1)
    assert contents(parts) == whole


def test_an_index_of_another_model_or_library_is_refused(aligned, built, model, tmp_path):
    folder = str(built.folder)
    other, library = AlignedModel(aligned / "other.onnx", "cpu"), str(aligned / "library.smi")
    with pytest.raises(click.ClickException, match="by another model; give another folder") as no:
        Index(built.folder, other, library)
    assert no.value.message.startswith(folder)
    changed = tmp_path / "library.smi"
    changed.write_text((aligned / "library.smi").read_text() + "CCO\n")
    with pytest.raises(click.ClickException, match="another library, or one that has changed"):
        Index(built.folder, model, str(changed))
    moved = tmp_path / "moved.smi"
    shutil.copy(library, moved)
    assert not Index(built.folder, model, str(moved)).missing()


@pytest.mark.parametrize("damage", ["cut", "rows", "facts", "width"])
def test_a_damaged_block_is_named(aligned, built, model, damage):
    path = built.path(1)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        arrays = dict(np.load(path))
        if damage == "rows":
            arrays["row"] = arrays["row"][::-1]
        elif damage == "facts":
            arrays["facts"] = arrays["facts"][:-3]
        else:
            arrays["embedding"] = arrays["embedding"][:, :-1]
        np.savez(path, **arrays)
    with pytest.raises(click.ClickException, match="index-00001.npz: ") as error:
        Index(built.folder, model, str(aligned / "library.smi"))
    assert "\n" not in error.value.message and "again" in error.value.message


def test_the_smiles_column_is_one_of_the_facts(tmp_path):
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([["a", "smiles", "smi2"], ["x", "CCO", "C"]])
    found = library_facts(str(path))
    assert found["SMILES column"] == "smiles" and found == library_facts(str(path), "smiles")
    assert library_facts(str(path), "smi2")["SMILES column"] == "smi2"


def test_a_place_that_can_not_be_written_is_said_before_work(aligned, model, tmp_path):
    (tmp_path / "file").write_text("")
    index = Index(tmp_path / "file" / "index", model, str(aligned / "library.smi"))
    with pytest.raises(click.ClickException, match="can't be written"):
        index.build(workers=1)


def test_molecules_without_numbers_are_gaps(aligned, model, small, tmp_path, monkeypatch):
    embed = AlignedModel.embed_molecules

    def spoiled(self, graphs):
        found, shifts = embed(self, graphs)
        found[0] = np.nan
        return found, shifts

    monkeypatch.setattr(AlignedModel, "embed_molecules", spoiled)
    desk = Desk(tmp_path)
    index = Index(tmp_path / "index", model, desk.write("l.smi", ["CCO", "CCC"]))
    index.build(workers=1)
    [block] = index.blocks()
    assert block["row"].tolist() == [1]
    assert rows_of(tmp_path / "index" / "rejected.csv")[0]["reason"].startswith(
        "the model gives no"
    )
