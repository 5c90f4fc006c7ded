"""TODO"""

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from moleclip.features import fingerprints
from moleclip.metrics import best_epoch
from moleclip.model import mlp
from moleclip.training import FeatureSource, adam, train


def train_head(head, embeddings, labels, split, loss, rate, **run):
    """Train the head alone on a frozen encoder's embeddings, fp32 (rows, 512), and return the history.

    It learns on embeddings that are standardised on the training part; the scaling is then folded into its first layer.
    """
    known = embeddings[split["train"]]
    mean, deviation = known.mean(0), known.std(0)
    deviation = deviation.clamp(min=1e-3 * deviation.median().item() + 1e-12)
    history = train(
        FeatureSource(head, (embeddings - mean) / deviation),
        labels,
        split,
        loss,
        [adam(head, rate)],
        **run,
    )
    with torch.no_grad():
        head[0].bias -= head[0].weight @ (mean / deviation)
        head[0].weight /= deviation
    return history


def baselines(data, labels, label_mean, label_std, split, loss, rates, **run):
    """Return {name: predictions of split["test"], float32 (n, targets)} of ECFP + MLP, ECFP + random forest and the mean.

    The MLP gets the same learning rates to choose from as the model's head, by validation.
    """
    rows = sum(split.values(), [])
    bits = np.zeros((len(data), 2048), np.float32)
    bits[rows] = fingerprints([data.smiles[i] for i in rows])
    found = []
    for rate in rates:
        torch.manual_seed(run["seed"])
        source = FeatureSource(mlp(2048, labels.shape[1]), torch.from_numpy(bits))
        history = train(
            source, labels, split, loss, [adam(source.model, rate)], name="ECFP + MLP", **run
        )
        found.append((best_epoch(history)["val_loss"], source))
    outputs = min(found, key=lambda pair: pair[0])[1].outputs(split["test"]).numpy()
    mlp_values = (
        1 / (1 + np.exp(-outputs))
        if data.task == "classification"
        else outputs * label_std + label_mean
    )
    weights = [1.0] * labels.shape[1] if loss.weight is None else loss.weight.tolist()
    forests = [
        forest(bits, data.labels[:, t], split, data.task, run["seed"], weight)
        for t, weight in enumerate(weights)
    ]
    known = data.labels[split["train"]]
    mean = np.array(
        [np.nanmean(column) if (~np.isnan(column)).any() else 0.0 for column in known.T]
    )
    return {
        "ECFP + MLP": mlp_values,
        "ECFP + random forest": np.stack(forests, 1),
        "mean of training": np.tile(mean, (len(split["test"]), 1)),
    }


def forest(bits, labels, split, task, seed, weight):
    """Return a random forest's predictions of one target for the test part."""
    rows = [i for i in split["train"] if not np.isnan(labels[i])]
    if not rows or (task == "classification" and len(set(labels[rows])) < 2):
        return np.full(len(split["test"]), labels[rows[0]] if rows else 0.0)
    options = {"random_state": seed, "n_jobs": -1}
    model = (
        RandomForestClassifier(300, class_weight={0: 1.0, 1: weight}, **options)
        if task == "classification"
        else RandomForestRegressor(300, **options)
    )
    model.fit(bits[rows], labels[rows]).set_params(
        n_jobs=1
    )  # threads would add up the trees in any order
    test = bits[split["test"]]
    return (
        model.predict_proba(test)[:, list(model.classes_).index(1)]
        if task == "classification"
        else model.predict(test)
    )
