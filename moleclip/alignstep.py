"""One step of an alignment: what is learned of a batch of pairs."""

import click
import torch
from torch.nn import functional as F

from moleclip.aligned import COLDEST, DIM, acml_loss, hinge_loss, shift_loss
from moleclip.alignscores import BETA
from moleclip.dense import dense_parts, weight_of
from moleclip.losses import contrastive_loss
from moleclip.spectra import NMR

PASSAGES = 2  # of a text, that are told from other molecules' in a step (MoMu)


def learn(state, pairs, places, random, rate):
    """Take one step on a batch, places of its pairs; return {part of the loss: value}."""
    model, world, config = state.model, state.world, state.config
    mine, parts, reader = world.share(places), {}, state.reader
    if model.query is not None:
        with torch.set_grad_enabled(config["unfreeze"] or bool(reader and reader.layers)):
            views = [state.asked(mine, random) for _ in range(PASSAGES if reader else 1)]
        views = [model.placed_query(features) for features in views]
    batch = state.graphs(pairs, mine)
    features, atoms = model.gin(*batch[:5])
    if model.query is not None:
        molecules = model.placed_molecules(features, *batch[5:])
        parts["contrast"] = contrast_part(state, pairs, places, views, molecules)
    if model.shifts is not None:
        told = model.shifts(atoms)
        parts["shifts"] = shift_part(state, pairs, mine, batch[4], told)
    if model.dense is not None:
        parts |= dense_parts(model.dense(features, atoms), state.truth(pairs, mine), world)
    loss = sum(weight_of(name, config["loss"]) * value for name, value in parts.items())
    if not torch.isfinite(loss):
        raise click.ClickException("the loss is not a number any more; lower --lr")
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    state.optimizer.zero_grad()
    loss.backward()
    world.average_gradients(model.parameters())
    state.optimizer.step()
    return {name: value.item() for name, value in parts.items()} | {"loss": loss.item()}


def contrast_part(state, pairs, places, views, molecules):
    """Return the mean contrast of this process's places with those of all processes.

    places: of the whole batch among the pairs; views: what each is asked by, a list of (n, dim);
    molecules: (n, dim). What the network learns counts alone, not what is counted beside it.
    """
    molecules = state.world.gather(molecules)[:, :DIM]
    groups = torch.from_numpy(pairs.groups[places]).to(molecules.device)
    losses = [
        contrast_of(state.model, state.world.gather(asked)[:, :DIM], molecules, groups)
        for asked in views
    ]
    return sum(losses) / len(losses)


def contrast_of(model, asked, molecules, groups):
    """Return the contrast of n pairs, (n, DIM) each, of groups, int64 (n,)."""
    if model.arch["contrast"] == "acml":
        return acml_loss(asked, molecules)
    if model.arch["contrast"] == "hinge":
        asked, molecules = (F.normalize(side, dim=1) for side in (asked, molecules))
        return hinge_loss(asked, molecules, groups)
    scale = model.log_scale.exp().clamp(max=COLDEST)
    return contrastive_loss(asked, molecules, scale, groups)[0]


def shift_part(state, pairs, mine, counts, told):
    """Return the loss of predicted shifts of some pairs.

    counts: atoms of each, a tensor; told: (atoms, nuclei) of theirs.
    """
    kind, starts = state.modality, (counts.cumsum(0) - counts).tolist()
    classes = [pairs.graphs[i].alike(kind) + start for i, start in zip(mine, starts)]
    predicted = [told[torch.from_numpy(places), list(NMR).index(kind)] for places in classes]
    spectra = [torch.from_numpy(state.given[i].places).float() for i in mine]
    return shift_loss(predicted, [each.to(told.device) for each in spectra], BETA[kind])
