"""A random forest on embeddings and fingerprints, as tensors that PyTorch and ONNX walk alike."""

import numpy as np
import torch
from sklearn.ensemble import RandomForestRegressor

from moleclip.calibration import platt_each
from moleclip.table import LabelScale, patterns_of

TREES, FOLD_TREES = 200, 60  # of a forest, and of one that is fitted to be compared only
SHARE, SMALL = 0.1, 300  # of the features a branching may choose from; all of them below 300 rows
LARGEST = 3e7  # bytes of all trees; there are fewer where they would be more
KINDS = ("embedding", "ecfp", "protein")  # what a head may look at
FLOOR = 0.1  # of the left-out error: the least spread, where all trees say the same


class Forest(torch.nn.Module):
    """Mean and spread over trees of (n, width) embeddings, (n, 2048) counts, proteins or several.

    tensors: {name: buffer}. Of each node of all trees: feature, int16; threshold, float32, its
    children left, right, int32 (a leaf is its own), value, float32 (nodes, columns). roots
    (patterns, trees); pattern, column (targets,): which trees tell a target, and in which column of
    their values; center, unit, floor, float32 (targets,); slope, offset of classes. uses: the
    features among KINDS, by the places of 1 in `inputs`, uint8 (2,), or (3,) with proteins.
    """

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.uses = [k for k, used in zip(KINDS, self.inputs.tolist()) if used]
        self.classes, self.depth = "slope" in tensors, int(self.deepest)

    def forward(self, embedding, counts, protein=None):
        """Return (mean, spread), float32 (n, targets): labels, or probabilities of the positive."""
        given = zip(KINDS, (embedding, counts, protein))
        inputs = joined(*(x if k in self.uses else None for k, x in given))
        node = self.roots.flatten().repeat(inputs.shape[0], 1)
        for _ in range(self.depth):
            under = inputs.gather(1, self.feature[node].long()) <= self.threshold[node]
            node = torch.where(under, self.left[node], self.right[node]).long()
        told = self.value[node].unflatten(1, self.roots.shape).mT  # (n, patterns, columns, trees)
        told = told[:, self.pattern, self.column]
        mean = told.mean(2) * self.unit + self.center
        apart = told - told.mean(2, keepdim=True)
        spread = ((apart * apart).mean(2) + self.floor**2).sqrt() * self.unit
        if self.classes:
            mean = torch.sigmoid(mean * self.slope + self.offset)
            spread = spread * self.slope * mean * (1 - mean)
        return mean, spread


def joined(*parts):
    """Return features as one matrix, float32 (n, all their widths); None: left out."""
    return torch.cat([part.float() for part in parts if part is not None], 1)


def fit_forest(embedding, counts, labels, folds, task, seed, protein=None):
    """Return (Forest, scores, spreads) that learned labels (n, targets), NaN: unknown.

    embedding, counts, protein: of the rows; each may be None. folds: the fold of each row, (n,).
    scores and spreads, float64 (n, targets): those of each row by a forest without its fold; of a
    classification before they are made probabilities.
    """
    inputs, scale = joined(embedding, counts, protein).numpy(), LabelScale.of(labels)
    used = [each is not None for each in (embedding, counts, protein)]
    values, patterns = scale.standardise(labels), patterns_of(labels)
    rows = sum(len(places) for places, _ in patterns)
    width = max(len(targets) for _, targets in patterns)
    count = int(np.clip(LARGEST / max(1, 1.3 * rows * (14 + 4 * width)), 10, TREES))
    trees, roots, scores = [], [], np.full(labels.shape, np.nan)
    errors = np.full(labels.shape, np.nan)
    which = np.zeros((2, labels.shape[1]), np.int64)
    for p, (places, targets) in enumerate(patterns):
        known, wanted = inputs[places], values[np.ix_(places, targets)]
        here = np.ix_(places, targets)
        scores[here], errors[here] = held_out(known, wanted, folds[places], count, seed)
        grown = grow(known, wanted, count, seed)
        which[:, targets] = [[p] * len(targets), range(len(targets))]
        roots.append(range(len(trees), len(trees) + len(grown)))
        trees += [tree.tree_ for tree in grown]
    floor = FLOOR * np.sqrt(np.nanmean((scores - values) ** 2, 0))
    found = flatten(trees, np.array(roots), width) | {
        "inputs": torch.tensor(used[: 2 + used[2]], dtype=torch.uint8),
        "pattern": torch.from_numpy(which[0]),
        "column": torch.from_numpy(which[1]),
        "floor": torch.from_numpy(floor).float(),
        "center": torch.from_numpy(scale.mean).float(),
        "unit": torch.from_numpy(scale.std).float(),
    }
    spreads = np.sqrt(errors**2 + floor**2) * scale.std
    scores = scores * scale.std + scale.mean
    if task == "classification":
        slope, offset = (torch.from_numpy(x).float() for x in platt_each(scores, labels))
        found |= {"slope": slope, "offset": offset}
    return Forest(found), scores, spreads


def held_out(inputs, wanted, folds, count, seed):
    """Return (means, standard deviations over trees), (n, targets), by forests without a fold."""
    means, apart = np.zeros_like(wanted), np.zeros_like(wanted)
    for fold in np.unique(folds):
        away = folds != fold
        few = grow(inputs[away], wanted[away], min(count, FOLD_TREES), seed)
        told = [tree.predict(inputs[~away]).reshape(-1, wanted.shape[1]) for tree in few]
        means[~away], apart[~away] = np.mean(told, 0), np.std(told, 0)
    return means, apart


def grow(inputs, wanted, count, seed):
    """Return scikit-learn's trees of a forest; the mean of labels where there are no rows."""
    if not len(inputs):
        inputs, wanted = np.zeros((1, inputs.shape[1]), np.float32), np.zeros((1, wanted.shape[1]))
    options = {"random_state": seed, "n_jobs": -1, "max_features": 1.0}
    if len(inputs) >= SMALL:
        options["max_features"] = SHARE
    wanted = wanted[:, 0] if wanted.shape[1] == 1 else wanted
    return RandomForestRegressor(count, **options).fit(inputs, wanted).estimators_


def flatten(trees, roots, width):
    """Return the nodes of all trees as tensors. roots: places among the trees."""
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])
    columns = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
    for tree, start in zip(trees, starts):
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        columns["feature"].append(np.where(leaf, 0, tree.feature))
        columns["threshold"].append(rounded_down(tree.threshold))
        columns["left"].append(np.where(leaf, own, tree.children_left) + start)
        columns["right"].append(np.where(leaf, own, tree.children_right) + start)
        value = np.zeros((len(own), width))
        value[:, : tree.value.shape[1]] = tree.value[:, :, 0]
        columns["value"].append(value)
    kinds = {"feature": np.int16, "left": np.int32, "right": np.int32}
    found = {
        name: torch.from_numpy(np.concatenate(parts).astype(kinds.get(name, np.float32)))
        for name, parts in columns.items()
    }
    deepest = torch.tensor(max(tree.max_depth for tree in trees))
    return found | {"roots": torch.from_numpy(starts[roots]), "deepest": deepest}


def rounded_down(thresholds):
    """Return float64 thresholds in float32, never above: a float32 is under both or under none."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
