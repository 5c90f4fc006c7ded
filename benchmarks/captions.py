"""Captions of the test molecules: composed ones, copies of the nearest text, and any text.

    python benchmarks/captions.py text.onnx data/texts.csv.gz
    python benchmarks/captions.py text.onnx data/texts.csv.gz --part val     # to choose settings by

Texts of the training part (and for the test part of validation's) are what is copied. All rows are
scored by the same words, numbers and signs: BLEU-2 and BLEU-4 of the corpus, ROUGE-1, 2 and L and
METEOR (stems, without WordNet's synonyms), means. Adds to benchmarks/results/captions.csv.
Needs: pip install nltk rouge-score
"""

import csv
import tempfile
from pathlib import Path

import click
import numpy as np
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.meteor_score import meteor_score
from record import RESULTS, read_csv, record
from rouge_score import rouge_scorer

from moleclip.alignedmodel import AlignedModel
from moleclip.captions import compose, tokens_of
from moleclip.describe import Told
from moleclip.graphs import graph_of
from moleclip.molecules import parse, read_molecules

ROUGE = ("rouge1", "rouge2", "rougeL")
ANY_SIZE = 10**6  # atoms: all molecules are scored
NEAR = 20  # texts that a caption is composed of, at most


class NoWordNet:
    """Stands in for WordNet: no word has a synonym."""

    def synsets(self, word):
        return []


class Words:
    """Tokens for rouge-score: those of all other scores."""

    def tokenize(self, text):
        return tokens_of(text)


def scores(captions, truths):
    """Return the scores of captions, lists of str of the same length, as a dict."""
    made, right = [*map(tokens_of, captions)], [[tokens_of(text)] for text in truths]
    found = {f"BLEU-{n}": corpus_bleu(right, made, (1 / n,) * n) for n in (2, 4)}
    scorer = rouge_scorer.RougeScorer(ROUGE, tokenizer=Words())
    each = [scorer.score(text, caption) for text, caption in zip(truths, captions)]
    found |= {kind: float(np.mean([one[kind].fmeasure for one in each])) for kind in ROUGE}
    meteor = [meteor_score(ref, hyp, wordnet=NoWordNet()) for ref, hyp in zip(right, made)]
    return found | {"METEOR": float(np.mean(meteor))}


def captions_of(told, molecules):
    """Return {how: captions} of molecules, and their texts' truth, both lists of str."""
    made, random = {}, np.random.default_rng(0)
    for molecule in molecules:
        graph = graph_of(0, molecule.smiles, ANY_SIZE, fragments=True)
        place = told.model.embed_molecules([graph])[0][0]
        by_both = told.nearest(graph, place, NEAR)
        by_fragments = told.nearest(graph, np.zeros_like(place), NEAR)
        kinds = {"any text": told.texts[random.integers(len(told.texts))]}
        for name, near in (("fragments", by_fragments), ("fragments and model", by_both)):
            texts = [(score, told.texts[i]) for score, i in near]
            kinds[f"nearest by {name}"] = texts[0][1]
            kinds[f"composed by {name}"] = compose(parse(molecule.smiles, ANY_SIZE), texts)
        for how, caption in kinds.items():
            made.setdefault(how, []).append(caption)
    return made


@click.command()
@click.argument("model")
@click.argument("table")
@click.option("--part", default="test", type=click.Choice(["val", "test"]), help="What is told.")
@click.option("--most", type=int, help="Molecules that are described.  [default: all]")
def main(model, table, part, most):
    """Describe a part of TABLE, by its column `split`, with MODEL's and the other parts' texts."""
    rows, name = [*read_molecules(table)], Path(model).stem
    asked = [row for row in rows if row.fields["split"] == part][:most]
    known = ("train",) if part == "val" else ("train", "val")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "texts.csv"
        with open(library, "w", newline="") as stream:
            lines = csv.DictWriter(stream, list(rows[0].fields))
            lines.writeheader()
            lines.writerows(row.fields for row in rows if row.fields["split"] in known)
        aligned = AlignedModel(model)
        aligned.max_atoms = ANY_SIZE
        made = captions_of(Told(folder, aligned, str(library)), asked)
    truths = [row.fields["text"] for row in asked]
    facts = {"model": name, "part": part, "texts": len(truths)}
    found = [facts | {"caption": how} | scores(texts, truths) for how, texts in made.items()]
    before = read_csv(RESULTS / "captions.csv")
    before = [row for row in before if (row["model"], row["part"]) != (name, part)]
    record("captions", [*before, *found], ["nltk", "rouge-score", "rdkit", "numpy"])


if __name__ == "__main__":
    main()
