"""How well an alignment finds its pairs: places, ranks, and how scores are to be read."""

import click
import numpy as np
import torch

from moleclip.aligned import DIM, load_aligned
from moleclip.dense import losses_of, weight_of
from moleclip.spectra import FAR, NMR, peak_distance

BLOCK = 256  # molecules embedded at once
BETA = {"nmr13c": 3.0, "nmr1h": 0.3}  # ppm: below it a shift's error counts as its square
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of what is counted, tried out
WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8)  # of peaks, tried out


@torch.no_grad()
def embed(model, graphs, device):
    """Return (places (n, dim), predicted shifts, a list of arrays) of Graphs; None of neither."""
    found, shifts, kind = [], [], model.arch["modality"]
    for start in range(0, len(graphs), BLOCK):
        part = graphs[start : start + BLOCK]
        molecules, told = model.molecules(*model.batch(part, device))
        found += [molecules.float().cpu()] if molecules is not None else []
        if told is not None:
            told = told[:, list(NMR).index(kind)].cpu().numpy()
            starts = np.cumsum([0, *(len(graph.atoms) for graph in part)])
            shifts += [told[graph.alike(kind) + at] for graph, at in zip(part, starts)]
    return torch.cat(found) if found else None, shifts or None


def predict_shifts(path, members, kind, device):
    """Return the shifts that an aligned.pt predicts of (molecule, Graph) pairs, a list of arrays.

    Raises click.ClickException if it has not learned any of that kind.
    """
    model, _ = load_aligned(path)
    if model.shifts is None or model.arch["modality"] != kind:
        raise click.ClickException(
            f"--shifts-from {path}: has not learned shifts of {kind}; align.py --loss shifts=0.3"
        )
    return embed(model.to(device), [graph for _, graph in members], device)[1]


def blocks(places):
    """Return places in parts that are embedded at once."""
    return [places[start : start + BLOCK] for start in range(0, len(places), BLOCK)]


@torch.no_grad()
def embed_asked(state, places):
    """Return the places of what some pairs are asked by, (n, dim)."""
    asked = [state.model.placed_query(state.asked(part)) for part in blocks(places)]
    return torch.cat(asked).float().cpu()


def ranks_of(scores, own):
    """Return the rank of each query's own molecule, from 1, int64 (n,); of equals the last.

    scores: (n, gallery); own: places in the gallery (n,).
    """
    right = scores[torch.arange(len(own)), own][:, None]
    return (scores >= right).sum(1)


def evaluate(state, pairs, parts):
    """Return how well validation's pairs are found among themselves, and what else was learned.

    Without a contrast "val_loss" is what the rest comes to, by the weights of --loss.
    """
    state.model.eval()
    places, found, weights = parts["val"], {}, state.config["loss"]
    molecules, shifts = embed(state.model, [pairs.graphs[i] for i in places], state.device)
    if molecules is not None:
        own = torch.arange(len(places))
        ranks = ranks_of(embed_asked(state, places) @ molecules.T, own).float()
        found = {"mrr": (1 / ranks).mean().item(), "top1": (ranks == 1).float().mean().item()}
    if state.targets:
        found |= evaluate_dense(state, pairs, places)
    loss = sum(weight_of(name, weights) * value for name, value in found.items())
    if shifts:
        kind = state.modality
        away = [peak_distance(s, state.given[i].places, kind) for s, i in zip(shifts, places)]
        found["shifts_ppm"] = float(np.mean(away))
        loss += weights["shifts"] * found["shifts_ppm"] / BETA[kind]
    if molecules is None:
        found["loss"] = loss
    return {f"val_{name}": value for name, value in found.items()}


@torch.no_grad()
def evaluate_dense(state, pairs, places):
    """Return {name: mean} of what dense targets of some pairs were told, losses and accuracies."""
    sums = {}
    for start in range(0, len(places), BLOCK):
        part = places[start : start + BLOCK]
        told = state.model.dense(*state.model.gin(*state.graphs(pairs, part)[:5]))
        for name, values in losses_of(told, state.truth(pairs, part)).items():
            known = values[values.isfinite()].double().cpu()
            total, count = sums.get(name, (0.0, 0))
            sums[name] = total + known.sum().item(), count + len(known)
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}


def calibrate(state, pairs, parts):
    """Return how scores are to be read, by validation's pairs among those and training's.

    match_weight: of the distance of peaks, see spectra.py, subtracted from the inner product;
    true_scores: quantiles of the right molecules' scores, a list. Where words and fragments have
    places of their own, the model's share of them is set, too.
    """
    kind, places = state.modality, parts["val"]
    gallery = np.concatenate([places, parts["train"]])
    molecules, shifts = embed(state.model, [pairs.graphs[i] for i in gallery], state.device)
    asked, own = embed_asked(state, places), torch.arange(len(places))
    if state.model.dim > DIM:
        asked, molecules = share_out(state.model, asked, molecules)
    scores = asked @ molecules.T
    weight = 0.0
    if shifts:
        distances = torch.full_like(scores, FAR[kind][0])
        near = torch.cat([scores.topk(min(200, len(gallery)), 1)[1], own[:, None]], 1)
        for i, j in ((i, j) for i, row in enumerate(near.tolist()) for j in row):
            measured = state.given[places[i]].places
            distances[i, j] = peak_distance(shifts[j], measured, kind)
        tried = {w: (1 / ranks_of(scores - w * distances, own).float()).mean() for w in WEIGHTS}
        weight = max(tried, key=tried.get)
        scores = scores - weight * distances
    true = scores[own, own].sort()[0].numpy()
    known = np.quantile(true, np.linspace(0, 1, 101)).tolist()
    return {"match_weight": weight, "true_scores": [round(score, 4) for score in known]}


def share_out(model, asked, molecules):
    """Set a model's share of what is counted to what finds validation's pairs best.

    asked: places (n, dim); molecules: of a gallery, theirs first. Return both as they are then.
    """
    before, own = model.share.item(), torch.arange(len(asked))
    net = asked[:, :DIM] @ molecules[:, :DIM].T / (1 - before)
    counted = asked[:, DIM:] @ molecules[:, DIM:].T / before
    ranks = {share: ranks_of((1 - share) * net + share * counted, own) for share in SHARES}
    after = max(SHARES, key=lambda share: (1 / ranks[share].float()).mean())
    model.share.fill_(after)
    factors = torch.ones(model.dim)
    factors[:DIM] *= ((1 - after) / (1 - before)) ** 0.5
    factors[DIM:] *= (after / before) ** 0.5
    return asked * factors, molecules * factors
