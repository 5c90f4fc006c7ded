"""Heads for a frozen encoder: fitted, compared on held-out folds of training, and chosen."""

import time
from typing import NamedTuple

import click
import numpy as np
import torch

from moleclip.calibration import conformal_scores
from moleclip.files import say_once
from moleclip.folds import FOLDS, tenths_of
from moleclip.forest import KINDS, fit_forest
from moleclip.gp import Rows, fit_gp, too_costly
from moleclip.mlpfit import fit_mlp
from moleclip.model import FrozenModel
from moleclip.table import LabelScale
from moleclip.training import Plan

MLP_FROM = 2000  # rows from which auto tries the MLP; below, its validation part is too small
EPOCHS, PATIENCE = 200, 40  # of an MLP that is compared
NAMES = {"gp": "Gaussian process", "forest": "random forest", "mlp": "MLP"}
LEARNED = "train and val"  # what a head that needs no validation part has learned from


class Candidate(NamedTuple):
    """A kind of head, "gp", "forest" or "mlp", and the features that it looks at."""

    kind: str
    uses: tuple  # what the encoder looks at, all of it or nothing, "ecfp", and "protein"

    @property
    def inputs(self):
        """Which of KINDS the head looks at."""
        known = {each if each in KINDS else "embedding" for each in self.uses}
        return tuple(each for each in KINDS if each in known)

    @property
    def name(self):
        """What tables call it, such as "Gaussian process on picture+ecfp"."""
        return f"{NAMES[self.kind]} on {'+'.join(self.uses)}"


class Fitted(NamedTuple):
    """A head, and what it said of rows that it had not learned from, float64 (rows, targets).

    scores: as the head has them before they are made probabilities; chances: probabilities or
    labels; spreads likewise; NaN where a row was not held out, or its label is not known.
    """

    head: torch.nn.Module
    chances: np.ndarray
    spreads: np.ndarray


class Study:
    """The heads of one seed's split, each fitted once to training and validation rows together.

    embedding: float32 (all rows, width), or None without an encoder; counts: uint8 (all rows,
    2048); rates: of the MLP's learning; encoded: what the encoder looks at; protein: float32 (all
    rows, width), or None without.
    """

    def __init__(self, data, split, seed, kind, embedding, counts, rates, encoded, protein=None):
        self.data, self.split, self.seed, self.kind = data, split, seed, kind
        self.task, self.encoded = data.task, encoded
        self.rows = sorted(split["train"] + split["val"])
        self.embedding, self.counts, self.rates = embedding, counts, rates
        self.protein, self.paired = protein, protein is not None
        self.labels = data.labels[self.rows]
        self.tenths = tenths_of(data, self.rows, kind, seed, split if self.paired else None)
        self.folds = self.tenths // 2
        self.fits, self.kernels = {}, None

    def of(self, inputs, rows):
        """Return (embedding, counts, protein) of some rows, None for those that aren't used."""
        known = zip(KINDS, (self.embedding, self.counts, self.protein))
        return tuple(part[rows] if kind in inputs else None for kind, part in known)

    def fit(self, candidate):
        """Return the Fitted of a Candidate, fitted once."""
        if candidate not in self.fits:
            began = time.time()
            fitters = {"gp": self.fit_gp, "forest": self.fit_forest, "mlp": self.fit_mlp}
            self.fits[candidate] = fitters[candidate.kind](candidate.inputs)
            click.echo(f"{candidate.name}: {time.time() - began:.1f} s", err=True)
        return self.fits[candidate]

    def fit_gp(self, inputs):
        """Return the Fitted of a Gaussian process."""
        if too_costly(self.labels):
            raise click.ClickException(
                f"{self.data.path}: {len(self.rows)} rows are too many for a Gaussian process; "
                "take --head forest, or --head mlp"
            )
        if self.kernels is None:
            everything = ("embedding",) * (self.embedding is not None) + ("ecfp",)
            everything += ("protein",) * self.paired
            self.kernels = Rows.of(*self.of(everything, self.rows))
        found = fit_gp(self.kernels.only(inputs), self.labels, self.folds, self.task)
        return self.calibrated(*found)

    def fit_forest(self, inputs):
        """Return the Fitted of a random forest."""
        *given, protein = self.of(inputs, self.rows)
        found = fit_forest(*given, self.labels, self.folds, self.task, self.seed, protein)
        return self.calibrated(*found)

    def calibrated(self, head, scores, spreads):
        """Return the Fitted of a head whose scores of classes have become probabilities."""
        if self.task == "classification":
            slope, offset = head.slope.numpy(), head.offset.numpy()
            scores = 1 / (1 + np.exp(-(scores * slope + offset)))
            spreads = spreads * slope * scores * (1 - scores)
        return Fitted(head, scores, spreads)

    def fit_mlp(self, uses):
        """Return the Fitted of the MLP: it learns from the training part, epochs by validation.

        Held out are, for the comparison, the rows of tenth 0, by an MLP that learned from tenths 2
        to 9, its epochs chosen by tenth 1. Without 2,000 rows to compare on: the validation part.
        """
        places = {row: i for i, row in enumerate(self.rows)}
        chances, spreads = (np.full(self.labels.shape, np.nan) for _ in range(2))
        head = own = self.train_mlp(uses, self.split["train"], self.split["val"])
        held = [places[row] for row in self.split["val"]]
        if len(self.rows) >= MLP_FROM:
            parts = [np.flatnonzero(where) for where in (self.tenths > 1, self.tenths == 1)]
            parts = [[self.rows[i] for i in part] for part in parts]
            held = np.flatnonzero(self.tenths == 0)
            own = self.train_mlp(uses, *parts)
        with torch.no_grad():
            given = self.of(uses, [self.rows[i] for i in held])
            chances[held], spreads[held] = (x.numpy() for x in own(*given))
        return Fitted(head, chances, spreads)

    def train_mlp(self, uses, rows, stop):
        """Return the FeatureMlp of rows; its epochs and its rate are chosen by the rows `stop`."""
        parts = self.embedding, self.counts, self.protein
        how = self.task, self.rates, Plan(EPOCHS, 64, self.seed, "MLP", PATIENCE)
        return fit_mlp(uses, parts, self.data.labels, rows, stop, *how)


def candidates(head, features, encoded, rows, costly, paired=False):
    """Return the Candidates that --head and --features stand for, for so many rows to learn from.

    features: "auto", or names joined by +; encoded: what the encoder looks at; costly: a Gaussian
    process can't be fitted; paired: all look at proteins, too.
    """
    uses = [tuple(features.split("+"))]
    uses = [(*encoded, "ecfp"), ("ecfp",), encoded] if features == "auto" else uses
    kinds = [head] if head != "auto" else ["gp", "forest", "mlp"]
    found = [Candidate(kind, each) for kind in kinds for each in uses]
    if head == "auto":
        found = [each for each in found if each.kind != "mlp" or rows >= MLP_FROM]
        found = [each for each in found if each.kind != "gp" or not costly]
        if features == "auto":  # what is on the encoder alone can only be the process
            found = [each for each in found if each.kind == "gp" or each.uses != encoded]
    return [each._replace(uses=(*each.uses, "protein")) if paired else each for each in found]


def losses_of(study, named):
    """Return {Candidate: loss} on the same held-out rows for all.

    Loss: mean absolute error in standard deviations of each label, or cross entropy; of pairs the
    mean squared error in variances. Of all rows; where an MLP is among them, of the tenth that it
    was not fitted to.
    """
    fits = {each: study.fit(each) for each in named}
    unit, truth = LabelScale.of(study.labels).std, study.labels
    known = ~np.isnan(truth)
    for fitted in fits.values():
        known &= ~np.isnan(fitted.chances)
    found = {}
    for each, fitted in fits.items():
        apart = np.abs(truth - fitted.chances)
        if study.task == "classification":
            loss = -np.log(np.clip(1 - apart, 1e-7, 1))
        else:
            loss = (apart / unit) ** (2 if study.paired else 1)
        found[each] = float(loss[known].mean())
    return found


def best_of(study, head, features):
    """Return ({Candidate: loss}, the Candidate of the lowest)."""
    costly = head == "auto" and too_costly(study.labels)
    if costly:
        say_once(f"{len(study.rows)} rows are too many for a Gaussian process: it is left out")
    named = candidates(head, features, study.encoded, len(study.rows), costly, study.paired)
    losses = losses_of(study, named)
    return losses, min(losses, key=losses.get)


class Chosen(NamedTuple):
    """What cross-validation chose for a seed, and what stands beside it."""

    model: FrozenModel
    best: Candidate
    facts: dict  # of metrics.json
    intervals: dict  # conformal scores: of model.pt
    held: np.ndarray  # predictions of the study's rows by heads without them, (rows, targets)
    compared: dict  # {name: predictions of the test part} of fingerprints


def choose_head(study, encoder, head, features, with_baselines):
    """Return the Chosen of --head and --features. encoder: None with fingerprints alone."""
    losses, best = best_of(study, head, features)
    fitted, intervals = study.fit(best), {}
    alone = None
    bare = study.encoded == ("picture",) and not study.paired
    if "ecfp" in best.uses and bare:  # for those without SMILES
        keeps_rows = head != "mlp" and not too_costly(study.labels)  # an MLP keeps none, as asked
        alone = Candidate("gp" if keeps_rows else "mlp", ("picture",))
    heads = [study.fit(each) for each in (best, alone) if each]
    if study.task == "regression":
        names = ("scores", "picture")
        found = [conformal_scores(study.labels, each.chances, each.spreads) for each in heads]
        intervals = dict(zip(names, found)) | {"normalised": True}
    kinds = [each.kind for each in (best, alone) if each]
    modules = [each.head for each in heads]
    std = LabelScale.of(study.labels).std
    model = FrozenModel(encoder, kinds, *[*modules, None][:2], std).eval()
    facts = {"chosen": best.name, "among": {each.name: loss for each, loss in losses.items()}}
    facts["loss"] = "MSE in variances of the label" if study.paired else "MAE in SD of the label"
    if study.task == "classification":
        facts["loss"] = "cross entropy"
    facts |= {"held_out": f"{FOLDS} folds", "learned_from": LEARNED, "rows": len(study.rows)}
    if any(each.kind == "mlp" for each in losses):
        facts["held_out"] = "a tenth" if len(study.rows) >= MLP_FROM else "val"
    if best.kind == "mlp":
        facts["learned_from"] = "train, its epochs chosen by val"
    compared = {}
    if with_baselines:
        compared = baselines_of(study)
        facts["rival"] = best_of(study, "auto", "ecfp")[1].name
    return Chosen(model, best, facts, intervals, fitted.chances, compared)


def baselines_of(study):
    """Return {name: predictions of the test part, (n, targets)} of heads on fingerprints alone."""
    kinds = ["mlp", "forest", "gp"][: 2 if too_costly(study.labels) else 3]
    found, test, beside = {}, study.split["test"], ("protein",) * study.paired
    for kind in kinds:
        candidate = Candidate(kind, ("ecfp", *beside))
        given, name = study.of(candidate.inputs, test), " + ".join(("ECFP", *beside, NAMES[kind]))
        found[name] = predict_with(study.fit(candidate).head, *given)[0]
    means = [np.nanmean(column) for column in study.labels.T]
    return found | {"mean of training": np.tile(means, (len(test), 1))}


def predict_with(head, embedding, counts, protein=None, size=256):
    """Return (mean, spread), float32 arrays (n, targets), of a head, some molecules at a time."""
    given = embedding, counts, protein
    count, told = max(len(each) for each in given if each is not None), []
    with torch.no_grad():
        for start in range(0, count, size):
            here = slice(start, start + size)
            told.append(head(*(None if each is None else each[here] for each in given)))
    return tuple(torch.cat(parts).numpy() for parts in zip(*told))
