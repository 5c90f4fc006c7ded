"""Texts: what is read of them, BERT as its files have it, and a run, its file and its answers."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bert import LAYERS, WIDTH, weights_of, write_bert, write_texts
from conftest import ROOT, invoke, mistake, rows_of
from torch.nn import functional as F

import align
import export
import search
from moleclip import alignscores, textpairs
from moleclip.aligned import hinge_loss, load_aligned
from moleclip.alignedfile import HUGE, in_bytes, round_weights, shrunk
from moleclip.alignedmodel import AlignedModel
from moleclip.device import Leaving, Notice
from moleclip.graphs import fragment_counts, graph_of
from moleclip.textpairs import TextReader, same_text
from moleclip.texts import Vocabulary
from moleclip.tokens import TextTokens
from moleclip.transformer import load_bert
from moleclip.weights import load_checkpoint

SMALL = ["--width", "16", "--layers", "2", "--batch", "16", "--epochs", "2", "--workers", "1"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with a tiny BERT and a table of 60 molecules; rows 4 to 6 are of no use."""
    folder = tmp_path_factory.mktemp("texts")
    write_bert(folder / "bert")
    rows = write_texts(folder / "texts.csv", 60)
    lines = (folder / "texts.csv").read_text().splitlines()
    lines[5] = "m4,C1CC,It has a ring."
    lines[6] = f'm5,{rows[5][1]},""'
    lines[7] = 'm6,,"A text without a molecule."'
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def learned(texts):
    """The aligned.pt that align.py makes of them, and its ONNX file beside it."""
    how = "--modality", "text", "--text-encoder", texts / "bert", "--text-layers", 1, *SMALL
    said = invoke(align.main, texts / "texts.csv", *how, "-o", texts / "text.pt")
    assert "57 pairs (11 test, 5 val, 41 train); 3 rows are left out, the first row 4" in said
    invoke(export.main, texts / "text.pt", "-o", texts / "text.onnx")
    return texts


def test_bert_is_what_its_files_say(texts):
    """The reference is BERT's own arithmetic, by numpy, from the weights that were written."""
    words = json.loads((texts / "bert" / "config.json").read_text())["vocab_size"]
    weights = weights_of(words, 64, 48).items()
    weights = {name.removeprefix("bert."): array.astype(float) for name, array in weights}
    encoder, tokens = load_bert(texts / "bert"), TextTokens(texts / "bert")
    assert encoder.arch["vocabulary"] == len(weights["embeddings.word_embeddings.weight"])
    numbers = tokens("The molecule has an Amide.")
    assert numbers[0] == 2 and numbers[-1] == 3 and 1 not in numbers

    def linear(x, at):
        return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]

    def norm(x, at):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return x * weights[f"{at}.weight"] + weights[f"{at}.bias"]

    at = "embeddings."
    x = weights[f"{at}word_embeddings.weight"][numbers]
    x = x + weights[f"{at}position_embeddings.weight"][: len(numbers)]
    x = norm(x + weights[f"{at}token_type_embeddings.weight"][0], f"{at}LayerNorm")
    for i in range(LAYERS):
        at, heads = f"encoder.layer.{i}.", []
        for part in np.split(np.arange(WIDTH), 2):
            q, k, v = (
                linear(x, f"{at}attention.self.{n}")[:, part] for n in ("query", "key", "value")
            )
            shares = np.exp(q @ k.T / np.sqrt(len(part)))
            heads.append(shares / shares.sum(1, keepdims=True) @ v)
        x = norm(
            x + linear(np.hstack(heads), f"{at}attention.output.dense"),
            f"{at}attention.output.LayerNorm",
        )
        up = F.gelu(torch.tensor(linear(x, f"{at}intermediate.dense"))).numpy()
        x = norm(x + linear(up, f"{at}output.dense"), f"{at}output.LayerNorm")
    with torch.no_grad():
        # filled up, as in a batch with a longer text
        found = encoder(torch.tensor([[*numbers, 0, 0]]))[0]
    assert found.numpy() == pytest.approx(x.mean(0), abs=2e-5)
    assert tokens("amide " * 400) == [2] + tokens("amide")[1:2] * 254 + [3]


def test_molecules_of_one_text_are_one_group():
    """0 and 1 are of one molecule, 1 and 3 of one text, 3 and 4 of one molecule again."""
    given = [["a"], ["b", "c"], ["d"], ["B", "c"], ["e"]]
    groups = same_text(np.array([0, 0, 1, 2, 2]), given)
    assert groups.tolist() == [0, 0, 1, 0, 0]


def test_the_hinge_takes_the_worst_other():
    asked = F.normalize(torch.tensor([[1.0, 0.1], [0.9, 0.2], [0.0, 1.0]]), dim=1)
    scores = (asked @ asked.T).numpy()

    def wanted(*worst):
        return 2 * np.mean([max(0, 0.2 + scores[i, j] - 1) for i, j in enumerate(worst)])

    alone, together = torch.arange(3), torch.tensor([0, 0, 1])
    assert hinge_loss(asked, asked, alone).item() == pytest.approx(wanted(1, 0, 1), rel=1e-4)
    assert hinge_loss(asked, asked, together).item() == pytest.approx(wanted(2, 2, 1), rel=1e-4)
    assert wanted(1, 0, 1) > wanted(2, 2, 1)


def test_fragments_are_counted(texts):
    graphs = [graph_of(0, text, fragments=True) for text in ("CCO", "OCC", "C[C@H](N)O", "CO")]
    counts = fragment_counts(graphs)
    assert np.array_equal(counts[0], counts[1]) and counts.sum(1).tolist()[3] > 0
    other = fragment_counts([graph_of(0, "C[C@@H](N)O", fragments=True)])
    assert (counts[2] != other[0]).any() and graph_of(0, "CCO").fragments is None


def test_the_share_that_validation_set_is_kept(texts, monkeypatch):
    """As kept, the model scores validation's pairs as its calibration says, by its own share."""
    monkeypatch.setattr(alignscores, "SHARES", (0.8,))
    monkeypatch.setattr(textpairs, "pick_precision", lambda *_: (None, "to compare"))
    how = "--modality", "text", "--text-encoder", texts / "bert", "--text-layers", 0, *SMALL
    invoke(align.main, texts / "texts.csv", *how, "-o", texts / "shared.pt")
    model, checkpoint = load_aligned(texts / "shared.pt")
    assert model.share.item() == pytest.approx(0.8)
    pairs, _ = align.load_pairs(str(texts / "texts.csv"), "cpu", 1, checkpoint["config"])
    facts = checkpoint["texts"]
    reader = TextReader(TextTokens(text=facts["tokenizer"]), None, True, 1)
    reader.vocabulary = Vocabulary.from_json(facts["vocabulary"])
    places = np.flatnonzero(np.isin(pairs.rows, checkpoint["parts"]["val"]))
    with torch.no_grad():
        asked = model.placed_query(reader.features(model.query, pairs.given, places, "cpu"))
        molecules = alignscores.embed(model, [pairs.graphs[i] for i in places], "cpu")[0]
    right = np.quantile((asked * molecules).sum(1), np.linspace(0, 1, 101))
    assert right == pytest.approx(checkpoint["calibration"]["true_scores"], abs=2e-3)
    # what both encoders have learned stands beside what is counted
    known = [side.cca.weight[:, side.map.in_features :] for side in (model.fragments, model.words)]
    assert all(weights.abs().max() > 1e-3 for weights in known)


def test_only_the_last_layer_has_learned(learned):
    before, (model, _) = load_bert(learned / "bert"), load_aligned(learned / "text.pt")
    after = model.query.state_dict()
    moved = {name for name, w in before.state_dict().items() if not torch.equal(w, after[name])}
    assert moved and all(name.startswith("layers.1.") for name in moved)


class LeavesInStep3(Notice):
    """A notice that comes before the third step: in the second epoch."""

    steps = 0

    def check(self):
        self.steps += 1
        if self.steps == 3:
            raise Leaving


def test_a_run_in_two_parts_is_the_same(learned, tmp_path, monkeypatch):
    how = ["--modality", "text", "--text-encoder", learned / "bert", "--text-layers", 1, *SMALL]
    how += ["-o", tmp_path / "text.pt"]
    with monkeypatch.context() as patch:
        patch.setattr(align, "Notice", LeavesInStep3)
        said = invoke(align.main, learned / "texts.csv", *how)
    assert "has epoch 1; --resume goes on" in said
    invoke(align.main, learned / "texts.csv", *how, "--resume")
    state, again = (load_checkpoint(path / "text.pt") for path in (learned, tmp_path))
    for name, weights in state["model"].items():
        assert torch.equal(weights, again["model"][name]), name
    assert state["texts"] == again["texts"] and state["calibration"] == again["calibration"]


def test_the_file_finds_by_texts_what_pytorch_finds(learned, tmp_path):
    file, (model, _) = (
        AlignedModel(learned / "text.onnx", "cpu"),
        load_aligned(learned / "text.pt"),
    )
    assert file.dim == model.dim == 512 and file.vocabulary.terms
    round_weights(model)  # as the file's are: a random BERT says nearly the same of all texts
    asked = ["The molecule has an amide.", "It is a halogen of 3 rings. It has an ether."]
    places = file.embed_texts(asked)
    words = torch.from_numpy(10 * file.vocabulary.vectors(asked))
    for text, row, place in zip(asked, words, places):
        with torch.no_grad():
            wanted = model.queries(torch.tensor([file.tokens(text)]), row[None])[0]
        assert place == pytest.approx(wanted.numpy(), abs=1e-4)
    out = tmp_path / "hits.csv"
    words = learned / "text.onnx", learned / "texts.csv", "--index", learned / "index", "-o", out
    words = [*words, "--workers", 1, "--top", 4, "--text"]
    said = invoke(
        search.main, *words, "It has <i>one</i> amide\x07.", "--html", tmp_path / "h.html"
    )
    assert [hit["rank"] for hit in rows_of(out)] == list("1234") and "best" in said
    page = (tmp_path / "h.html").read_text()
    assert "&lt;i&gt;one&lt;/i&gt; amide" in page and "<i>" not in page
    assert "is long; of 1002 tokens the encoder reads 64" in invoke(
        search.main, *words, "amide " * 5000
    )
    assert "is it of another language" in invoke(
        search.main, *words, "Ein Stoff, der nach Rosen riecht"
    )
    assert "--text: no text" in mistake(search.main, *words, "\x00 ")
    words[-1] = "--peaks"
    assert "takes texts; give --text" in mistake(search.main, *words, "10 20", code=2)


def test_another_models_index_is_refused(learned, aligned, tmp_path):
    words = "--index", tmp_path / "index", "-o", tmp_path / "hits.csv", "--workers", 1
    invoke(search.main, learned / "text.onnx", learned / "texts.csv", *words)
    says = mistake(
        search.main, aligned / "aligned.onnx", learned / "texts.csv", *words, "--peaks", "20 30"
    )
    assert "its index was made by another model" in says


def test_molecules_are_described(learned, aligned, tmp_path):
    table, asked, out = tmp_path / "texts.csv", tmp_path / "asked.smi", tmp_path / "out.csv"
    lines = (learned / "texts.csv").read_text().splitlines()
    table.write_text("\n".join(lines) + "\n")
    smiles, text = lines[1].split(",", 2)[1:]
    asked.write_text(f"{smiles} known\nC1CC broken\nCCOC(=O)CCl new\n")
    words = "--index", tmp_path / "index", "-o", out, "--workers", 1, "--top", 2
    words = table, "--describe", asked, *words
    said = invoke(search.main, learned / "text.onnx", *words)
    assert "57 texts; 3 rows without a molecule or a text are left out" in said
    assert "3 molecules described by 57 texts, 1 can't be read" in said
    found = rows_of(out)
    assert [line["row"] + line["rank"] for line in found] == [
        "00",
        "01",
        "02",
        "1",
        "20",
        "21",
        "22",
    ]
    assert found[1]["library_row"] == "0" and found[0]["name"] == "known"
    assert found[0]["text"] == found[1]["text"] == text.strip('"') and found[3]["error"]
    assert invoke(search.main, learned / "text.onnx", *words).count("texts") == 1  # they are there
    table.write_text("\n".join(lines[:-1]) + "\n")
    assert "or of other texts" in mistake(search.main, learned / "text.onnx", *words)
    words = [*words, "--text", "an acid"]
    says = mistake(search.main, learned / "text.onnx", *words, code=2)
    assert "--describe and --text don't go together" in says
    assert "give one of texts" in mistake(search.main, aligned / "aligned.onnx", *words, code=2)


@pytest.mark.parametrize("beside", ["none", "maps"])
def test_what_stands_beside_and_stored_vectors(beside, learned, tmp_path):
    """No layer learns: texts are embedded once; from another alignment all that fits is taken."""
    out = tmp_path / "a.pt"
    how = "--modality", "text", "--text-encoder", learned / "bert", "--text-layers", 0, *SMALL
    how = *how, "--beside", beside, "--epochs", 1, "-o", out
    graph = ("--graph", learned / "text.pt") if beside == "maps" else ("--contrast", "hinge")
    said = invoke(align.main, learned / "texts.csv", *how, *graph)
    assert ("taken over from" in said) == (beside == "maps")
    model, _ = load_aligned(out)
    assert model.dim == 256 and (model.words is None) == (beside == "none")
    before = load_bert(learned / "bert").state_dict()
    if beside == "none":
        assert all(torch.equal(w, before[name]) for name, w in model.query.state_dict().items())
    invoke(export.main, out, "-o", tmp_path / "a.onnx")
    assert AlignedModel(tmp_path / "a.onnx", "cpu").embed_texts(["An acid."]).shape == (1, 256)


def test_parts_by_a_column_and_masked_names(learned, tmp_path):
    rows = [line.split(",", 2) for line in (learned / "texts.csv").read_text().splitlines()[8:48]]
    table = tmp_path / "t.csv"
    parts = ["test"] * 10 + ["val"] * 4 + ["train"] * 25 + [""]
    lines = [
        f'{name},{smiles},"{name} is {text[1:]},{part}'
        for (name, smiles, text), part in zip(rows, parts)
    ]
    table.write_text("\n".join(["name,smiles,text,split", *lines]) + "\n")
    out, how = tmp_path / "a.pt", ["--modality", "text", "--text-encoder", learned / "bert"]
    how += [*SMALL, "--epochs", 1, "--split", "column", "--mask-names", "-o", out]
    invoke(align.main, table, *how)
    checkpoint = load_checkpoint(out)
    assert (
        checkpoint["parts"]["test"] == list(range(10)) and len(checkpoint["parts"]["train"]) == 25
    )
    terms = json.loads(checkpoint["texts"]["vocabulary"])["terms"]
    assert "carbon atoms" in terms and not any(term.startswith("m ") for term in terms)


def test_mistakes(learned, tmp_path, monkeypatch):
    out, bert = tmp_path / "x.pt", str(learned / "bert")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "tokenizer.json").symlink_to(learned / "bert" / "tokenizer.json")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "roberta"}')
    for words, says in (
        (f"--text-encoder {bert} --column words", "no column 'words'"),
        (f"--text-encoder {bert} --unfreeze", "--text-layers says"),
        (f"--text-encoder {bert} --contrast acml", "add --beside maps"),
        (f"--text-encoder {bert} --split column", "it has no column 'split'"),
        (f"--text-encoder {tmp_path}/nowhere", "no such folder"),
        (
            f"--text-encoder {tmp_path}/bert {' '.join(SMALL)}",
            "its model_type is roberta, not bert",
        ),
    ):
        words = ["--modality", "text", "--workers", 1, *words.split(), "-o", out]
        assert says in mistake(align.main, learned / "texts.csv", *words), words
    plain = tmp_path / "plain.smi"
    plain.write_text("CCO\nCCN\n")
    words = "--modality", "text", "--text-encoder", bert, "-o", out
    assert "no column of texts" in mistake(align.main, plain, *words, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        says = mistake(align.main, learned / "texts.csv", *words)
        assert "pip install tokenizers" in says
        says = mistake(search.main, learned / "text.onnx", plain, "--text", "an acid")
        assert "pip install tokenizers" in says
    beside = mistake(align.main, plain, *words, "--beside", "tfidf", code=2)
    assert "'tfidf' is not maps, cca" in beside and (ROOT / "data" / "texts.csv.gz").is_file()


def test_a_table_of_words_is_kept_in_bytes_and_comes_out_as_it_was_rounded():
    random, rows = np.random.default_rng(0), HUGE // 64
    weights = random.standard_normal((rows, 64)).astype(np.float32)
    weights *= random.random((rows, 1)).astype(np.float32)
    weights[3] = 0  # a word that was never seen
    model = torch.nn.Embedding(rows, 64)
    model.weight.data.copy_(torch.from_numpy(weights))
    round_weights(model)
    rounded = model.weight.detach().numpy().copy()
    gaps = np.abs(rounded - weights).max(1)
    steps = np.maximum(np.abs(weights).max(1) / 127, 2**-14)
    assert (gaps <= 0.51 * steps).all() and not rounded[3].any()
    round_weights(model)
    assert np.array_equal(model.weight.detach().numpy(), rounded)
    assert np.array_equal(np.multiply(*in_bytes(rounded)), rounded)

    words = onnx.helper.make_tensor_value_info("words", onnx.TensorProto.INT64, ["n"])
    found = onnx.helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, ["n", 64])
    gather = onnx.helper.make_node("Gather", ["table", "words"], ["found"])
    table = onnx.numpy_helper.from_array(rounded, "table")
    graph = onnx.helper.make_graph([gather], "words", [words], [found], [table])
    opsets = [onnx.helper.make_opsetid("", 18)]
    proto = shrunk(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert proto.ByteSize() < 1.1 * rounded.nbytes / 4
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    asked = np.array([0, 3, rows - 1])
    assert np.array_equal(session.run(None, {"words": asked})[0], rounded[asked])
