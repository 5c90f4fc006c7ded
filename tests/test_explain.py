"""Which atoms a prediction comes from: of models whose answer is known, and as the table has it."""

import json
import re
from pathlib import Path

import explain as benchmark
import numpy as np
import pytest
from conftest import invoke, mistake, rows_of
from rdkit import Chem
from rdkit.Chem import Crippen

import predict
from moleclip.explain import contributions, erased, explained, fewer_counts, places_in, without_atom
from moleclip.features import count_fingerprint
from moleclip.graphs import graph_of
from moleclip.molecules import parse
from moleclip.onnxmodel import OnnxModel
from moleclip.pixels import inflate

DRUG = "OC(=O)c1ccc(N)cc1Cl"
SPELLED = ("OC(=O)c1ccc(N)cc1Cl", "Nc1ccc(C(=O)O)c(Cl)c1", "c1(Cl)cc(N)ccc1C(O)=O")


class Known:
    """A model that knows a molecule by one of the things that Features hold."""

    means = np.array([0.5])

    def __init__(self, tell):
        self.tell = tell

    def run_on(self, given):
        return {"prediction": np.array([[self.tell(each)] for each in given], np.float32)}


def values_of(cell):
    return [float(word) for word in cell.split()]


def told(model, smiles, **how):
    """Contributions, and the prediction."""
    given = explained(0, smiles, max_atoms=150, **how)
    whole = model.run_on([given])["prediction"][0].astype(float)
    return contributions(model, given, whole, 4)[0], whole[0]


def test_nitrogens_are_found_in_the_order_of_the_smiles():
    model = Known(lambda given: (given.graph.atoms[:, 0] == 7).sum())
    for smiles in SPELLED:
        values, whole = told(model, smiles, drawn=False, graph=True)
        letters = [letter for letter in smiles if letter.isalpha() and letter != "l"]
        assert letters[values.argmax()] == "N" and values.sum() == pytest.approx(whole - 0.5)
        others = np.delete(values, values.argmax())
        assert others == pytest.approx(others[0]) and values.max() - others[0] == pytest.approx(1)


def test_ink_belongs_to_the_nearest_atom():
    model = Known(lambda given: (inflate(given.streams[0]) > 0).sum())
    values, whole = told(model, DRUG)
    assert values.sum() == pytest.approx(whole - 0.5) and values.min() > 20
    pictures, whole = erased(parse(DRUG)), inflate(explained(0, DRUG, max_atoms=9**9).streams[0])
    lost = (whole > 0) & (pictures == 0)
    assert (lost.sum(0) == (whole > 0)).all()  # each pixel with one atom
    assert ((pictures == whole) | (pictures == 0)).all()


def test_environments_fall_away_with_their_atoms():
    molecule = parse(DRUG)
    fewer, whole = fewer_counts(molecule), count_fingerprint(molecule)
    assert fewer.shape == (11, 2048) and (fewer <= whole).all() and (fewer < whole).any(1).all()
    chlorine = next(a.GetIdx() for a in molecule.GetAtoms() if a.GetSymbol() == "Cl")
    lone = count_fingerprint(parse("Cl" + "C" * 9))  # only what the chlorine itself is
    assert (fewer[chlorine] < whole)[lone.nonzero()].any()


def test_a_graph_without_an_atom_is_that_of_the_rest():
    graph = graph_of(0, "CCN")
    rest = without_atom(graph, 2)
    assert len(rest.atoms) == 2 and rest.bonds.tolist() == [[0, 1], [1, 0]]
    middle = without_atom(graph, 1)
    assert len(middle.bonds) == len(middle.kinds) == 0
    assert len(without_atom(graph_of(0, "C"), 0).atoms) == 1


def kind(atom):
    return atom.GetSymbol(), atom.GetDegree(), atom.GetTotalNumHs(), atom.GetIsAromatic()


@pytest.mark.parametrize("smiles", [*SPELLED, "[H]OC", "[CH3:7][OH:2]", "C.CO", "OCC(N)=O"])
def test_places_of_a_spelling(smiles):
    """Each atom as written is that of the canonical molecule; so are its neighbours."""
    written, canonical, places = Chem.MolFromSmiles(smiles), parse(smiles), places_in(smiles)
    assert sorted(places) == list(range(canonical.GetNumAtoms()))
    for atom, place in zip(written.GetAtoms(), places):
        there = canonical.GetAtomWithIdx(int(place))
        assert kind(there) == kind(atom)
        near = {int(places[other.GetIdx()]) for other in atom.GetNeighbors()}
        assert near == {other.GetIdx() for other in there.GetNeighbors()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("smiles,num_atoms\nCCO,3\nbroken,0\nc1ccccc1O,7\nCCO,3\n")


def test_the_table_has_what_adds_up(road, here):
    words = road / "model.onnx", "a.csv", "--explain", "--html", "a.html", "--workers", 1
    invoke(predict.main, *words, "--keep-columns")
    rows = rows_of("predictions.csv")
    model = OnnxModel(road / "model.onnx")
    target = model.targets[0]
    assert [row["error"] == "" for row in rows] == [True, False, True, True]
    assert rows[1][f"{target}_atoms"] == "" and rows[0][f"{target}_atoms"].count(" ") == 2
    for row in rows[::2]:
        values = values_of(row[f"{target}_atoms"])
        predicted = float(row[next(c for c in row if c.startswith(target))])
        assert sum(values) == pytest.approx(predicted - model.means[0], abs=2e-3)
    assert rows[0][f"{target}_atoms"] == rows[3][f"{target}_atoms"]
    data = json.loads(re.search(r'json">(.*?)</script>', open("a.html").read())[1])
    assert [*data["scales"]] == [f"{target}_atoms"]  # not the table's own num_atoms
    assert [len(images) for images in data["images"]] == [1, 0, 1, 1]
    invoke(predict.main, *words[:3], "-o", "b.csv", "--workers", 1, "--batch", 2)
    again = [values_of(row[f"{target}_atoms"]) for row in rows_of("b.csv")]
    assert again[2] == pytest.approx(
        [float(w) for w in rows[2][f"{target}_atoms"].split()], abs=1e-4
    )


def test_what_cant_be_explained_is_said_in_a_line(road, here):
    words = road / "model.onnx", "a.csv", "--explain"
    assert "leave out --views" in mistake(predict.main, *words, "--views", 2)


@pytest.mark.parametrize("smiles", ["CCO", "c1ccncc1C(=O)N", "[NH4+]", "C[C@H](N)C(=O)O"])
def test_the_benchmarks_known_parts_add_up_to_its_label(smiles):
    whole = Crippen.MolLogP(Chem.MolFromSmiles(smiles))
    parts = benchmark.known(smiles)["crippen_logp"]
    assert len(parts) == Chem.MolFromSmiles(smiles).GetNumAtoms()
    assert parts.sum() == pytest.approx(whole, abs=1e-9)
