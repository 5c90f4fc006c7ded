"""Pairs of molecule and protein: from finetune.py to predict.py, by sequences and by embeddings."""

import csv
import gzip
import itertools
import json

import numpy as np
import onnx
import pytest
import torch
from click import ClickException
from conftest import ROOT, Desk, invoke, mistake, rows_of
from PIL import Image

import export
import finetune
import predict
from moleclip import choice
from moleclip.affinity import concordance, held_out_groups
from moleclip.choice import Candidate, candidates
from moleclip.forest import fit_forest
from moleclip.gp import combine
from moleclip.molecules import Rejected, scaffold
from moleclip.onnxmodel import OnnxModel
from moleclip.proteins import LETTERS, sequence_features
from moleclip.proteintable import read_proteins
from moleclip.table import Data

UNKNOWN, ODD = 5, 20  # rows whose protein is not in the file, or has a digit in its sequence


def gunzipped(name):
    with gzip.open(ROOT / "data" / name, "rt", newline="") as stream:
        return list(csv.DictReader(stream))


def finetuned(folder, *words):
    """Run finetune.py into folder/run, without baselines."""
    line = [*map(str, words), "-o", str(folder / "run")]
    finetune.run(finetune.main.make_context("finetune.py", line), with_baselines=False)
    return folder / "run"


def numbers(lines, name):
    return [float(line[name] or "nan") for line in lines]


def brute(truth, predicted):
    """The concordance index, pair by pair."""
    won, pairs = 0.0, 0
    for (one, first), (other, second) in itertools.combinations(zip(truth, predicted), 2):
        if one != other:
            pairs += 1
            won += 0.5 if first == second else (one > other) == (first > second)
    return won / pairs


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """A desk with 156 pairs of 12 inhibitors and 13 kinases in t.csv, and sequences in p.csv."""
    desk = Desk(tmp_path_factory.mktemp("davis"))
    lines = gunzipped("davis.csv.gz")
    molecules = sorted({line["smiles"] for line in lines})[:12]
    names = sorted({line["protein"] for line in lines})[:13]
    lines = [each for each in lines if each["smiles"] in molecules and each["protein"] in names]
    lines[UNKNOWN]["protein"] = "NOPE1"
    lines[ODD]["protein"] = "ODD1"
    desk.write("t.csv", [",".join(lines[0]), *(",".join(line.values()) for line in lines)])
    known = {line["protein"]: line["sequence"] for line in gunzipped("davis_proteins.csv.gz")}
    desk.sequences = {name: known[name] for name in names} | {"ODD1": "MKV7LA"}
    table = [f"{name},{text}" for name, text in desk.sequences.items()]
    desk.write("p.csv", ["protein,sequence", *table])
    return desk


@pytest.fixture(scope="module")
def process(davis, tmp_path_factory):
    """A desk with a Gaussian process on pictures, fingerprints and k-mers, and its model.onnx."""
    desk, read = Desk(tmp_path_factory.mktemp("process")), finetune.read_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            finetune, "read_rows", lambda *words: desk.read.extend(read(*words)) or desk.read
        )
        desk.read = []
        words = ["--data", davis / "t.csv", "--proteins", davis / "p.csv", "--split", "column"]
        words += ["--init", "scratch:nano", "--features", "picture+ecfp", "--head", "gp"]
        finetuned(desk.folder, *words)
    invoke(export.main, desk / "run", "-o", desk / "m.onnx")
    return desk


@pytest.fixture(scope="module")
def embedded(davis, tmp_path_factory):
    """A desk with an MLP on fingerprints and embeddings by name, e.npz, and its model.onnx."""
    desk = Desk(tmp_path_factory.mktemp("embedded"))
    names = [*davis.sequences, "spare"]
    vectors = np.random.default_rng(0).standard_normal((len(names), 6)).astype(np.float16)
    vectors[names.index("ODD1"), 2] = np.nan
    np.savez(desk / "e.npz", names=np.array(names), embeddings=vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "EPOCHS", 4)
        words = ["--data", davis / "t.csv", "--proteins", desk / "e.npz", "--target", "affinity"]
        words += ["--split", "random-scaffold", "--features", "ecfp", "--head", "mlp"]
        finetuned(desk.folder, *words)
    invoke(export.main, desk / "run", "-o", desk / "m.onnx")
    return desk


def test_the_concordance_index_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    for n, kinds in ((2, 9), (7, 3), (64, 5), (129, 40)):
        truth, told = random.integers(0, kinds, n) * 0.5, random.integers(0, kinds, n) / 3
        truth[:2] = 0, 1
        assert concordance(truth, told) == pytest.approx(brute(truth, told), abs=1e-12)
    truth = random.standard_normal(40)
    assert concordance(truth, truth**3) == 1 and concordance(truth, -truth) == 0
    assert concordance(truth, np.zeros(40)) == 0.5 and np.isnan(concordance(np.ones(3), truth[:3]))


def test_a_sequence_becomes_counts():
    found = np.expm1(sequence_features(" acx\nAC ")).round().astype(int)
    assert found[0] == 5 and found.dtype.kind == "i" and len(found) == 764
    assert dict(zip(LETTERS, found[1:21])) == dict.fromkeys(LETTERS, 0) | {"A": 2, "C": 2}
    a, c = LETTERS.index("A"), LETTERS.index("C")
    assert np.flatnonzero(found[21:421]).tolist() == [a + 20 * c] and found[21 + a + 20 * c] == 2
    assert not found[421:].any()
    triples = np.flatnonzero(sequence_features("GRD")[421:])  # classes 0, 4, 5
    assert triples.tolist() == [0 + 7 * 4 + 49 * 5]
    assert len(sequence_features("M")) == 764
    for text, says in (("", "empty"), ("XX*", "no amino acid"), ("MK1L", "'1' at place 3")):
        with pytest.raises(Rejected, match=says):
            sequence_features(text)


def test_files_of_proteins_say_what_is_wrong(tmp_path):
    """In one line each."""
    desk = Desk(tmp_path)
    np.savez(desk / "lacks.npz", names=np.array(["a"]))
    np.savez(desk / "objects.npz", names=np.array(["a", None]), embeddings=np.ones((2, 2)))
    np.savez(desk / "long.npz", names=np.array(["a"]), embeddings=np.ones((2, 2)))
    np.savez(desk / "twice.npz", names=np.array(["a", "a"]), embeddings=np.eye(2))
    (desk / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    desk.write("other.csv", ["gene,sequence", "a,MK"])
    desk.write("both.csv", ["protein,y,sequence", "a,1,MK"])
    desk.write("none.csv", ["protein,text", "a,MK"])
    desk.write("two.csv", ["protein,sequence", "a,MK", "a, mk", "b,MA", "a,MV"])
    desk.write("p.txt", ["a MK"])
    header, rows = ["smiles", "protein", "y"], [{"protein": "a"}, {"protein": "q"}]
    for name, says in {
        "lacks.npz": "lacks the arrays",
        "objects.npz": "no .npz of 'names'",
        "long.npz": "not one a name",
        "twice.npz": "'a' has two embeddings",
        "torn.npz": "no .npz of 'names'",
        "other.csv": "share no column.* gene, sequence.* smiles, protein, y",
        "both.csv": r"share several columns \(protein, y\)",
        "none.csv": "no column of sequences",
        "two.csv": r"'a' has two sequences \(lines 2 and 5\)",
        "p.txt": "give a .csv",
    }.items():
        with pytest.raises(ClickException, match=says):
            read_proteins(str(desk / name), "t.csv", header, rows)
    np.savez(desk / "far.npz", names=np.array(["z"]), embeddings=np.ones((1, 2)))
    with pytest.raises(ClickException, match="no column has names"):
        read_proteins(str(desk / "far.npz"), "t.csv", header, rows)


def test_options_of_finetuning_are_refused(davis, tmp_path):
    words = ["--data", davis / "t.csv", "--proteins", davis / "p.csv", "-o", tmp_path / "run"]
    for more in (["--lr-encoder", "1e-5"], ["--epochs", "3"], ["--raw-labels"]):
        line = mistake(finetune.main, *words, *more, code=2)
        assert "heads on a frozen encoder alone" in line and more[0] in line


def test_each_molecule_is_read_once(process):
    given, problems = process.read
    assert (
        len(given["picture"]) == 154 and len({id(each) for each in given["picture"].values()}) == 12
    )
    assert "protein 'NOPE1' is not in" in problems[UNKNOWN] and "'7' at place 4" in problems[ODD]


def test_the_run_has_metrics_of_affinities(process, davis):
    lines = rows_of(process / "run" / "predictions.csv")
    assert [line["protein"] for line in lines] == [
        each["protein"] for each in rows_of(davis / "t.csv")
    ]
    assert "NOPE1" in lines[UNKNOWN]["error"] and not lines[ODD]["predicted_affinity"]
    test = [line for line in lines if line["split"] == "test"]
    truth, told = numbers(test, "true_affinity"), numbers(test, "predicted_affinity")
    pooled = json.loads((process / "run" / "metrics.json").read_text())["test"]["this model"][
        "pooled"
    ]
    assert pooled["MSE"]["mean"] == pytest.approx(np.mean(np.subtract(truth, told) ** 2), rel=1e-4)
    assert pooled["concordance"]["mean"] == pytest.approx(brute(truth, told), abs=1e-3)
    head = json.loads((process / "run" / "seed-1" / "metrics.json").read_text())["head"]
    assert head["chosen"] == "Gaussian process on picture+ecfp+protein"
    assert head["loss"] == "MSE in variances of the label"


def test_the_file_gives_what_the_run_gave(process, davis):
    """For pairs by name; a protein that isn't known is its row's error."""
    known = rows_of(process / "run" / "predictions.csv")
    words = process / "m.onnx", davis / "t.csv", "-o", process / "p.csv", "--workers", 1
    said = invoke(predict.main, *words, "--proteins", davis / "p.csv")
    lines = rows_of(process / "p.csv")
    assert "2 rows could not be" in said
    assert [each["protein"] for each in lines] == [each["protein"] for each in known]
    for ours, theirs in (("affinity", "predicted_affinity"), ("affinity_high", "high_affinity")):
        wanted = pytest.approx(numbers(known, theirs), abs=2e-4, nan_ok=True)
        assert numbers(lines, ours) == wanted
    assert "NOPE1" in lines[UNKNOWN]["error"] and "no amino acid" in lines[ODD]["error"]
    facts = json.loads(onnx.load(process / "m.onnx").metadata_props[0].value)["protein"]
    assert facts["kind"] == "kmers" and facts["width"] == 764 and facts["column"] == "protein"


def test_a_table_may_have_the_sequences_itself(process, davis):
    known = rows_of(process / "run" / "predictions.csv")[:3]
    texts = [davis.sequences[line["protein"]] for line in known]
    rows = [f"{line['smiles']},{text.lower()}" for line, text in zip(known, texts)]
    davis.write("s.csv", ["smiles,sequence", *rows, f"{known[0]['smiles']},"])
    out = process / "s.csv"
    words = process / "m.onnx", davis / "s.csv", "-o", out, "--workers", 1, "--explain"
    invoke(predict.main, *words)
    lines, wanted = rows_of(out), numbers(known, "predicted_affinity")
    assert numbers(lines[:3], "affinity") == pytest.approx(wanted, abs=2e-4)
    assert lines[3]["error"] == "no protein in column 'sequence'"
    model = OnnxModel(str(process / "m.onnx"), "cpu")
    for line in lines[:3]:
        parts = sum(map(float, line["affinity_atoms"].split()))
        assert parts == pytest.approx(float(line["affinity"]) - model.means[0], abs=0.02)
    smiles = [line["smiles"] for line in known]
    assert model.predict(smiles, proteins=texts)["affinity"] == pytest.approx(wanted, abs=2e-4)
    with pytest.raises(ClickException, match="a sequence for each SMILES"):
        model.predict(smiles)


def test_embeddings_by_name(embedded, davis):
    """Folds are whole scaffolds, as the test part is; the file wants the vectors again."""
    known = rows_of(embedded / "run" / "predictions.csv")
    words = embedded / "m.onnx", davis / "t.csv", "-o", embedded / "p.csv", "--workers", 1
    invoke(predict.main, *words, "--proteins", embedded / "e.npz")
    lines = rows_of(embedded / "p.csv")
    wanted = pytest.approx(numbers(known, "predicted_affinity"), abs=2e-4, nan_ok=True)
    assert numbers(lines, "affinity") == wanted
    assert lines[ODD]["error"] == "protein 'ODD1': its embedding is not a number"
    assert "and --proteins, an .npz" in mistake(predict.main, *words)
    line = mistake(predict.main, *words, "--proteins", davis / "p.csv")
    assert "gives kmers of 764 numbers" in line and "embeddings of 6" in line
    line = mistake(predict.main, embedded / "m.onnx", "new_molecules.txt", "-o", embedded / "x.csv")
    assert "give a table with SMILES and protein" in line
    Image.new("RGB", (300, 300), "white").save(embedded / "figure.png")
    words = embedded / "m.onnx", embedded / "figure.png", "-o", embedded / "x.csv"
    assert "looks at proteins" in mistake(predict.main, *words, "--proteins", embedded / "e.npz")


def test_models_of_other_proteins_share_no_file(process, embedded):
    words = process / "run", embedded / "run", "-o", process / "x.onnx"
    assert "different features of proteins" in mistake(export.main, *words)


def test_folds_hold_out_what_the_test_part_does(davis):
    data = Data(str(davis / "t.csv"), split_column="split", proteins=str(davis / "p.csv"))
    assert data.targets == ["affinity"]  # the proteins' names are no labels
    rows = [row for row in range(len(data)) if not data.problems[row]]
    molecule, protein = data.smiles[rows[-1]], data.proteins[rows[-1]]
    for key, count in (
        (lambda row: scaffold(data.smiles[row]) == scaffold(molecule), None),
        (lambda row: data.proteins[row] == protein, 13),
        (lambda row: row % 2, len(rows)),
    ):
        split = {"train": [r for r in rows if not key(r)], "test": [r for r in rows if key(r)]}
        groups = held_out_groups(data, rows, split)
        assert sorted(sum(groups, [])) == rows
        scaffolds = len({scaffold(data.smiles[row]) for row in rows})
        assert len(groups) == (count or scaffolds)


def test_heads_look_at_proteins():
    """The process by a product of kernels; the forest by the vector behind the others."""
    paired = candidates("auto", "auto", ("graph",), 100, False, True)
    assert Candidate("gp", ("graph", "protein")) in paired
    assert all(each.uses[-1] == "protein" and each.inputs[-1] == "protein" for each in paired)
    random = torch.Generator().manual_seed(0)
    likeness = torch.rand(4, 4, generator=random).double()
    theta = torch.zeros(5).double()
    apart = (3 * torch.ones(4, 4).double() + 1e-12).sqrt()
    wanted = likeness * (1 + apart) * (-apart).exp()
    assert torch.equal(
        combine(theta, {"ecfp": likeness, "protein": torch.ones(4, 4).double()}), wanted
    )
    protein = torch.randn(60, 5, generator=random)
    labels, counts = protein[:, :1].double().numpy(), torch.zeros(60, 2048, dtype=torch.uint8)
    head, *_ = fit_forest(None, counts, labels, np.arange(60) % 5, "regression", 1, protein)
    assert head.uses == ["ecfp", "protein"]
    with torch.no_grad():
        told = head(None, counts, protein)[0].numpy()
    assert np.corrcoef(told[:, 0], labels[:, 0])[0, 1] > 0.9
