"""Is the right molecule found? Test pairs of an alignment in galleries of growing size.

    python benchmarks/retrieval.py aligned.pt data/nmr13c.csv.gz
    python benchmarks/retrieval.py aligned.pt pairs.csv --gallery data/druglike_100000.smi.gz

For each test pair: the rank of its molecule among the test molecules, those and training's, and
galleries filled up from a file (molecules of the pairs left out); within 5 u of its mass; the other
way, among the test part's spectra; in batches of 128, as ACML's code has it; and among up to 20
isomers. Of equal scores the right one counts as the last. Adds to benchmarks/results/retrieval.csv.
"""

from pathlib import Path

import click
import numpy as np
import torch
from record import RESULTS, read_csv, record

from align import load_pairs
from moleclip.aligned import load_aligned
from moleclip.alignscores import embed
from moleclip.alignstate import embed_pictures
from moleclip.device import ALONE
from moleclip.features import overlap
from moleclip.pairtable import read_graphs, vectors_of
from moleclip.spectra import peak_distance
from moleclip.tokens import padded_tokens
from moleclip.weights import load_encoder
from search import RANKED_AGAIN

TOPS = (1, 5, 10, 20, 100)
NEAR = 5.0  # u
BATCH = 128
MOST_ISOMERS = 20


class Gallery:
    """Molecules to search in: those of the pairs first, then a file's."""

    def __init__(self, model, pairs, others):
        graphs = pairs.graphs + others
        self.places, self.shifts = embed(model, graphs, "cpu")
        self.mass = np.array([graph.mass for graph in graphs])
        self.formula = np.array([graph.formula for graph in graphs])
        self.own = len(pairs)


@torch.no_grad()
def asked(model, pairs, test, init):
    """Return the places of the test pairs' queries, (n, d)."""
    given, kind = [pairs.given[i] for i in test], model.arch["modality"]
    if kind == "picture":
        encoder = load_encoder(init).eval()
        return model.placed_query(embed_pictures(given, encoder, torch.device("cpu"), ALONE))
    if kind == "smiles":
        return model.queries(torch.from_numpy(padded_tokens([views[0] for views in given])))
    return model.queries(torch.from_numpy(vectors_of(given, kind)))


def final_scores(products, candidates, gallery, spectrum, weight, kind):
    """Return one query's scores of candidates, the best of them with the peaks' match in them."""
    scores = products.copy()
    if not weight:
        return scores
    best = np.argsort(-products)[:RANKED_AGAIN]
    away = [peak_distance(gallery.shifts[candidates[i]], spectrum.places, kind) for i in best]
    low = scores.min() - 1e3
    final = np.full(len(scores), low) + 1e-6 * scores
    final[best] = products[best] - weight * np.array(away)
    return final


def rank(scores, right):
    """Return the rank of a place, from 1; of equal scores the last."""
    return int((scores >= scores[right]).sum())


def measures(ranks):
    """Return a row's numbers of ranks, (n,)."""
    ranks = np.array(ranks)
    found = {f"top{k}": float((ranks <= k).mean()) for k in TOPS}
    return {"queries": len(ranks)} | found | {"mrr": float((1 / ranks).mean())}


def search(model, pairs, test, gallery, queries, sizes, weight):
    """Yield (what, gallery's size, ranks) of all searches by the test pairs."""
    kind, products = model.arch["modality"], (queries @ gallery.places.T).numpy()
    filled = [
        size for size in sizes if len(test) < size <= len(gallery.mass) - gallery.own + len(test)
    ]
    others = np.arange(gallery.own, len(gallery.mass))
    galleries = {"test": test, "test and training": np.arange(gallery.own)}
    galleries |= {f"{n:,}": np.concatenate([test, others[: n - len(test)]]) for n in filled}
    for name, members in galleries.items():
        ranks, near = [], []
        for i, own in enumerate(test):
            right = int(np.flatnonzero(members == own)[0])
            spectrum, line = pairs.given[own], products[i, members]
            scores = final_scores(line, members, gallery, spectrum, weight, kind)
            ranks.append(rank(scores, right))
            close = np.abs(gallery.mass[members] - gallery.mass[own]) <= NEAR
            near.append(rank(scores[close], int(close[:right].sum())))
        yield name, len(members), ranks
        yield f"{name}, within 5 u", len(members), near
    back = (products[:, test]).T
    yield "test, molecule to spectrum", len(test), [rank(back[i], i) for i in range(len(test))]


def in_batches(products, seed=4):
    """Return ranks in batches of 128 test pairs, query to molecule: ACML's code (last one left)."""
    order, ranks = np.random.default_rng(seed).permutation(len(products)), []
    for start in range(0, len(order) - BATCH + 1, BATCH):
        part = order[start : start + BATCH]
        block = products[np.ix_(part, part)]
        ranks += [rank(line, i) for i, line in enumerate(block)]
    return ranks


def among_isomers(pairs, test, gallery, products, weight, kind, seed=0):
    """Return the rank of each test molecule among up to 20 others of its formula."""
    random, ranks = np.random.default_rng(seed), []
    for i, own in enumerate(test):
        same = np.flatnonzero(gallery.formula == gallery.formula[own])
        same = same[same != own]
        if len(same):
            first = same[same < gallery.own]  # measured ones come first
            more = random.permutation(same[same >= gallery.own])
            members = np.concatenate([[own], random.permutation(first), more])[: MOST_ISOMERS + 1]
            scores = products[i, members]
            scores = final_scores(scores, members, gallery, pairs.given[own], weight, kind)
            ranks.append(rank(scores, 0))
    return ranks


@click.command()
@click.argument("aligned")
@click.argument("table")
@click.option("--gallery", help="File of molecules that fill the galleries up.")
@click.option("--sizes", default="1000,10000,100000,1000000", help="Of those galleries.")
@click.option("--most", type=int, help="Test pairs that are asked for.  [default: all]")
def main(aligned, table, gallery, sizes, most):
    """Rank the test molecules of ALIGNED, an aligned.pt that was trained on TABLE."""
    model, checkpoint = load_aligned(aligned)
    pairs, _ = load_pairs(table, "cpu", None, checkpoint["config"])
    places = {row: i for i, row in enumerate(pairs.rows.tolist())}
    test = np.array([places[row] for row in checkpoint["parts"]["test"]])[:most]
    others = []
    if gallery:
        skip = set(np.flatnonzero(overlap(gallery, None, [table])).tolist())
        others = [graph for _, graph in read_graphs(gallery, skip=skip)[0]]
    kept = Gallery(model, pairs, others)
    queries = asked(model, pairs, test, checkpoint["config"]["init"])
    weight, kind = checkpoint["calibration"]["match_weight"], model.arch["modality"]
    config = checkpoint["config"]
    facts = {"model": Path(aligned).stem, "modality": kind, "contrast": config["contrast"]}
    facts |= {"split": config["split"], "seed": config["seed"], "match_weight": weight}
    wanted = [int(size) for size in sizes.split(",")]
    found = list(search(model, pairs, test, kept, queries, wanted, weight))
    products = (queries @ kept.places.T).numpy()
    found.append((f"batches of {BATCH}", BATCH, in_batches(products[:, test])))
    isomers = among_isomers(pairs, test, kept, products, weight, kind)
    found.append(("isomers", MOST_ISOMERS + 1, isomers))
    rows = [facts | {"gallery": n, "size": size} | measures(r) for n, size, r in found if len(r)]
    before = read_csv(RESULTS / "retrieval.csv")
    before = [
        row for row in before if (row["model"], row["split"]) != (facts["model"], facts["split"])
    ]
    record("retrieval", [*before, *rows], ["torch", "rdkit", "numpy"])


if __name__ == "__main__":
    main()
