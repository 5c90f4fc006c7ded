"""Is the right molecule found by its text, and the right text by the molecule?

    python benchmarks/text.py floors data/texts.csv.gz --split column
    python benchmarks/text.py model aligned.pt data/texts.csv.gz
    python benchmarks/text.py model one.pt two.pt data/texts.csv.gz      # the mean of their scores

By whole texts, and by one random sentence of each; among the test part, and among all molecules (or
texts) of the table. Of a table that the model was not trained on all rows are asked for: zero-shot.
Rank of the right one (of equal scores the last), and, MoMu's measures, the first hit in batches of
64 and the right one among 20. The floors: canonical correlation of TF-IDF, alone or with stored
vectors of the encoder of texts, with counted fragments. Adds to benchmarks/results/text.csv.
"""

from pathlib import Path

import click
import numpy as np
import torch
from record import RESULTS, read_csv, record

from align import MINILM, load_pairs
from moleclip.aligned import load_aligned
from moleclip.alignscores import embed
from moleclip.correlation import correlate
from moleclip.counted import JOINT
from moleclip.graphs import fragment_counts
from moleclip.molecules import input_facts
from moleclip.pairtable import named_parts, split_pairs
from moleclip.textpairs import TextReader
from moleclip.texts import Vocabulary
from moleclip.tokens import TextTokens
from moleclip.transformer import load_bert

BATCH, BLOCK = 64, 64  # of MoMu's measure; texts embedded at once
PLAIN = {"modality": "text", "column": None, "smiles_column": None, "leave_out": None}
PLAIN |= {"shifts_from": None, "max_atoms": 10**6, "beside": ["cca"], "mask_names": False}


def passages(pairs, seed=0):
    """Return {how it is asked: a text of each pair}: all of it, and a random sentence."""
    random = np.random.default_rng(seed)
    whole = [" ".join(sentences) for sentences in pairs.given]
    one = [sentences[random.integers(len(sentences))] for sentences in pairs.given]
    return {"whole text": whole, "one sentence": one}


@torch.no_grad()
def text_places(model, facts, texts):
    """Return the places of texts, (n, dim), by a model and its checkpoint's facts of texts."""
    tokens = TextTokens(text=facts["tokenizer"], longest=model.query.arch["positions"])
    vocabulary = Vocabulary.from_json(facts["vocabulary"])
    reader = TextReader(tokens, vocabulary, bool(model.arch["beside"]), 1)
    given, found = [[text] for text in texts], torch.zeros(len(texts), model.dim)
    order = np.argsort([len(text) for text in texts], kind="stable")
    for part in np.array_split(order, -(-len(order) // BLOCK)):
        features = reader.features(model.query, given, part, "cpu")
        found[torch.from_numpy(part)] = model.placed_query(features)
    return found.numpy()


def ranks_of(scores, own):
    """Return the rank of each row's own column, from 1; of equal scores the last."""
    right = scores[np.arange(len(own)), own]
    return (scores >= right[:, None]).sum(1)


def measures(scores, own):
    """Return the numbers of one search: scores (n, gallery); own: each query's column."""
    ranks = ranks_of(scores, own)
    order = np.random.default_rng(0).permutation(len(own))
    batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    first = [ranks_of(scores[np.ix_(part, own[part])], np.arange(BATCH)) == 1 for part in batches]
    return {
        "queries": len(own),
        "size": scores.shape[1],
        "mrr": float((1 / ranks).mean()),
        "hits1": float((ranks <= 1).mean()),
        "hits10": float((ranks <= 10).mean()),
        "rec20": float((ranks <= 20).mean()),
        "mean_rank": float(ranks.mean()),
        "top1_of_64": float(np.mean(first)) if first else "",
    }


def rows_of(name, how, molecules, by_texts, test):
    """Yield the rows of a model: molecules (n, d) and {how it is asked: texts (n, d)} of pairs."""
    galleries = {"test": test, "all": np.arange(len(molecules))}
    if len(test) == len(molecules):
        galleries.pop("test")
    for asked, texts in by_texts.items():
        for gallery, members in galleries.items():
            own = np.flatnonzero(np.isin(members, test))
            ways = {
                "text to molecule": texts[test] @ molecules[members].T,
                "molecule to text": molecules[test] @ texts[members].T,
            }
            for way, scores in ways.items():
                facts = {"model": name, "how": how, "asked by": asked, "way": way}
                yield facts | {"gallery": gallery} | measures(scores, own)


def keep(name, rows):
    """Write rows to text.csv, in place of a model's rows of before."""
    before = [row for row in read_csv(RESULTS / "text.csv") if row["model"] not in name]
    record("text", [*before, *rows], ["torch", "rdkit", "numpy", "tokenizers"])


@click.group()
def main():
    """Texts and molecules, both ways."""


@main.command("model")
@click.argument("aligned", nargs=-1, required=True)
@click.argument("table")
def of_models(aligned, table):
    """Rank by one aligned.pt, or by the mean of several's scores."""
    both, by_texts = [], {}
    for path in aligned:
        model, checkpoint = load_aligned(path)
        config, facts = checkpoint["config"], checkpoint["texts"]
        own = input_facts(table)["sha256"] == config["input_sha256"]
        config |= {"leave_out": None} | ({} if own else {"column": None, "smiles_column": None})
        pairs, _ = load_pairs(table, "cpu", None, config)
        rows = checkpoint["parts"]["test"] if own else pairs.rows
        test = np.flatnonzero(np.isin(pairs.rows, rows))
        both.append(embed(model, pairs.graphs, "cpu")[0].numpy())
        for asked, texts in passages(pairs).items():
            by_texts.setdefault(asked, []).append(text_places(model, facts, texts))
    name, how = "+".join(Path(path).stem for path in aligned), "trained" if own else "zero-shot"
    by_texts = {asked: np.hstack(each) for asked, each in by_texts.items()}
    keep([name], list(rows_of(name, how, np.hstack(both), by_texts, test)))


@main.command()
@click.argument("table")
@click.option("--split", default="column", help="As align.py's.")
@click.option("--encoder", default=str(MINILM), help="Folder of the BERT whose vectors are stored.")
def floors(table, split, encoder):
    """Rank without a network that learns."""
    pairs, _ = load_pairs(table, "cpu", None, PLAIN)
    parts = named_parts(table, None, pairs) if split == "column" else split_pairs(pairs, split, 0)
    learned, test = np.concatenate([parts["train"], parts["val"]]), parts["test"]
    fragments = np.log1p(fragment_counts(pairs.graphs).astype(np.float32))
    fragments = units(fragments - fragments[learned].mean(0))
    asked = passages(pairs)
    vocabulary = Vocabulary.of([asked["whole text"][i] for i in learned], 10**6)
    words = {how: vocabulary.vectors(texts) for how, texts in asked.items()}
    bert, tokens = load_bert(encoder), TextTokens(encoder)
    stored = {how: vectors(bert, tokens, texts) for how, texts in asked.items()}
    middle = stored["whole text"][learned].mean(0)
    beside = {how: np.hstack([words[how], units(stored[how] - middle)]) for how in asked}
    names, rows = ["TF-IDF", "TF-IDF and stored vectors"], []
    for name, sides in zip(names, (words, beside)):
        for_molecules, for_texts = correlate(
            fragments[learned], sides["whole text"][learned], JOINT
        )
        by_texts = {how: units(side @ for_texts) for how, side in sides.items()}
        rows += rows_of(name, "floor", units(fragments @ for_molecules), by_texts, test)
    keep(names, rows)


def units(rows):
    """Return rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@torch.no_grad()
def vectors(encoder, tokens, texts):
    """Return what an encoder of texts makes of them as it is, (n, width)."""
    reader, found = (
        TextReader(tokens, None, False, 1),
        np.zeros((len(texts), encoder.arch["width"])),
    )
    order = np.argsort([len(text) for text in texts], kind="stable")
    for part in np.array_split(order, -(-len(order) // BLOCK)):
        found[part] = reader.embed(encoder, [texts[i] for i in part], "cpu").numpy()
    return found.astype(np.float32)


if __name__ == "__main__":
    main()
