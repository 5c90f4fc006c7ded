"""Heads that learn alone, on embeddings or fingerprints, and the baselines beside every model."""

import copy
import time

import click
import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from moleclip.device import ALONE
from moleclip.encoders import embedder_of, parts_of
from moleclip.features import fingerprints
from moleclip.metrics import best_epoch
from moleclip.model import mlp
from moleclip.movement import N_UNIFORMS
from moleclip.training import EncoderSource, FeatureSource, Plan, adam, copied, rank0_bar, train

# Of the head alone, before encoder and head are trained together.
HEAD_EPOCHS, HEAD_PATIENCE = 200, 40


def train_head(head, embeddings, objective, rate, plan):
    """Train the head alone on a frozen encoder's embeddings; return the history.

    embeddings: fp32 (rows, width). It learns on them standardised on the training part; the scaling
    is then folded into its first layer.
    """
    known = embeddings[objective.split["train"]]
    mean, deviation = known.mean(0), known.std(0)
    deviation = deviation.clamp(min=1e-3 * deviation.median().item() + 1e-12)
    source = FeatureSource(head, (embeddings - mean) / deviation)
    history = train(source, objective, [adam(head, rate)], plan)
    with torch.no_grad():
        head[0].bias -= head[0].weight @ (mean / deviation)
        head[0].weight /= deviation
    return history


class FrozenEncoder:
    """A frozen encoder's embeddings of all molecules, and the heads that learned on them.

    given: {what an encoder looks at: {row: zlib stream or Graph}}. Each is made once; with random
    weights the encoder is another one for each seed. first: of each row of pairs the first one of
    the same molecule, which alone is embedded, int64 (rows,), or None.
    """

    def __init__(self, given, rows, random, device, world, first=None):
        self.given, self.rows, self.random, self.first = given, rows, random, first
        self.device, self.world = device, world
        self.found, self.heads = {}, {}

    def embeddings(self, encoder, seed):
        """Return embeddings, fp32 (rows, width), on the CPU; 0 where a row can't be read."""
        key = seed if self.random else 0
        if key not in self.found:
            parts = [self.embedded(part.to(self.device)) for part in parts_of(encoder)]
            self.found[key] = torch.cat(parts, 1)
        return self.found[key]

    def embedded(self, encoder):
        """Return the embeddings of an encoder of one kind, as `embeddings`."""
        given = self.given[encoder.names[0]]
        rows = sorted(given if self.first is None else {*self.first[[*given]].tolist()})
        source = EncoderSource(None, given, embedder_of(encoder, self.device), self.world)
        with rank0_bar("embedding", "molecules", len(rows), self.world) as bar:
            features = source.features(rows, bar).cpu()
        found = torch.zeros(self.rows, features.shape[1])
        found[rows] = features
        return found if self.first is None else found[self.first]

    def probe_head(self, model, rate, objective, plan):
        """Train a model's head alone, put it into the model, and return its line of the history.

        The line is that of epoch 0 of training both.
        """
        seed = plan.seed
        if (seed, rate) not in self.heads:
            head, name = copy.deepcopy(model.head).cpu(), f"seed {seed}, head"
            plan = Plan(HEAD_EPOCHS, plan.batch, seed, name, HEAD_PATIENCE)
            embeddings = self.embeddings(model.encoder, seed)
            history = train_head(head, embeddings, objective, rate, plan)
            seconds = round(sum(line["seconds"] for line in history), 3)
            line = best_epoch(history) | {"epoch": 0, "seconds": seconds}
            self.heads[seed, rate] = copied(head), line
        weights, line = self.heads[seed, rate]
        model.head.load_state_dict(weights)
        for parameter in model.head.parameters():  # the same on machines that round differently
            parameter.data = self.world.mean(parameter.data)
        return line


def baselines(data, scale, objective, rates, plan):
    """Return {name: predictions of the test part, (n, targets)} of what a model has to beat.

    ECFP + MLP, ECFP + random forest, and the mean of training.
    """
    split, test = objective.split, objective.split["test"]
    rows = sum(split.values(), [])
    bits = np.zeros((len(data), 2048), np.float32)
    bits[rows] = fingerprints([data.smiles[i] for i in rows])
    source = best_mlp(torch.from_numpy(bits), objective, rates, plan)
    weights = objective.loss.weight
    weights = [1.0] * len(data.targets) if weights is None else weights.tolist()
    forests = [
        forest(bits, data.labels[:, t], split, data.task, plan.seed, weight)
        for t, weight in enumerate(weights)
    ]
    columns = data.labels[split["train"]].T
    means = [0.0 if np.isnan(column).all() else np.nanmean(column) for column in columns]
    return {
        "ECFP + MLP": scale.unscale(source.predict(test).numpy(), data.task),
        "ECFP + random forest": np.stack(forests, 1),
        "mean of training": np.tile(means, (len(test), 1)),
    }


def best_mlp(features, objective, rates, plan):
    """Return the trained FeatureSource of the learning rate that is best on validation."""
    found = []
    for rate in rates:
        torch.manual_seed(plan.seed)
        head = mlp(features.shape[1], objective.labels.shape[1])
        source = FeatureSource(head, features)
        history = train(source, objective, [adam(head, rate)], plan)
        found.append((best_epoch(history)["val_loss"], source))
    return min(found, key=lambda pair: pair[0])[1]


def forest(bits, labels, split, task, seed, weight):
    """Return a random forest's predictions of one target for the test part.

    bits: float32 (rows, 2048); labels: (rows,), NaN where missing; weight: of the positives.
    """
    rows = [i for i in split["train"] if not np.isnan(labels[i])]
    if not rows or (task == "classification" and len(set(labels[rows])) < 2):
        return np.full(len(split["test"]), labels[rows[0]] if rows else 0.0)
    options = {"random_state": seed, "n_jobs": -1}
    if task == "classification":
        model = RandomForestClassifier(300, class_weight={0: 1.0, 1: weight}, **options)
    else:
        model = RandomForestRegressor(300, **options)
    model.fit(bits[rows], labels[rows])
    model.set_params(n_jobs=1)  # threads would add up the trees in any order
    test = bits[split["test"]]
    if task == "classification":
        return model.predict_proba(test)[:, list(model.classes_).index(1)]
    return model.predict(test)


def print_estimate(source, split, epochs, batch, trials=0):
    """Print how long training will take, and how much of it --freeze would.

    Measured on one slice, without learning from it. trials: how many trainings are ahead, where
    frozen heads have learned already.
    """
    alone = EncoderSource(source.model, source.given, source.embedder, ALONE)
    frozen = EncoderSource(source.model, source.given, source.embedder.plain(), ALONE)
    rows = list(split["train"][: min(batch, 16)])
    random = np.random.default_rng(0).random((len(rows), N_UNIFORMS))

    def learn():
        for _, outputs in alone.micro_batches(rows, random):
            outputs.sum().backward()

    def measure(work):
        began = time.perf_counter()
        work()
        if source.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / len(rows) / source.world.size

    for _ in range(2):  # the first time pays for what is set up once
        learning, embedding = measure(learn), measure(lambda: frozen.features(rows))
    source.model.zero_grad()
    everything = embedding * sum(map(len, split.values()))
    epoch = learning * len(split["train"]) + embedding * len(split["val"])
    if trials:
        several = f", {trials} times {format_seconds(trials * epochs * epoch)}" * (trials > 1)
        said = f"an epoch takes {format_seconds(epoch)}, {epochs} epochs"
        click.echo(f"finetuning: {said} {format_seconds(epochs * epoch)}{several}")
        return
    click.echo(
        f"embedding all molecules takes about {format_seconds(everything)} here, the head then "
        "learns in seconds, and that is all with --freeze; an epoch of both takes "
        f"{format_seconds(epoch)}, {epochs} epochs {format_seconds(epochs * epoch)}"
    )


def format_seconds(seconds):
    """Return a duration in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
