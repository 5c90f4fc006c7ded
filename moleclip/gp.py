"""A Gaussian process on embeddings and fingerprints: a Matern and a MinMax kernel, summed.

Rasmussen, Williams, Gaussian Processes for Machine Learning, MIT Press 2006: Matern 3/2 (4.17) on
standardised embeddings; weights, lengthscale and noise by marginal likelihood (2.30);
mean and variance (2.25, 2.26). MinMax, the sum of minima over that of maxima, on ECFP counts
(Ralaivola, Swamidass, Saigo, Baldi, Neural Networks 2005, 18, 1093). All in double precision.
With proteins beside the molecules that sum is multiplied by a Matern 3/2 of the proteins' features.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from moleclip.calibration import platt_each
from moleclip.posterior import left_out, whiten
from moleclip.table import LabelScale, patterns_of

CAP = 8  # a fragment that occurs more often counts so many times
CUT = 8.0  # standard deviations at which an embedding is cut off
SUBSET = 1000  # rows, at most, whose marginal likelihood decides
WHITENED = 1500  # rows, at most, that the spread knows; all of them tell the mean
COST = 1e12  # sum of rows cubed over patterns of known labels, above which there is no process
JITTER = 1e-8  # beside the noise, against rounding
WEIGHTED = ("embedding", "ecfp")  # kernels that are summed
SIGNS = {"embedding": "picture", "ecfp": "bits", "protein": "protein"}  # buffers of each
START = {"embedding": math.log(0.5), "ecfp": math.log(0.5), "scale": 0.0, "noise": math.log(0.1)}
BOUNDS = {"embedding": (-7, 4), "ecfp": (-7, 4), "scale": (-4, 4), "noise": (math.log(1e-4), 2)}
START["protein"], BOUNDS["protein"] = 0.0, (-4, 4)  # a lengthscale, in thetas of pairs alone


class GaussianProcess(torch.nn.Module):
    """Mean and spread of molecules by the training rows' embeddings, counts or both.

    tensors: {name: buffer}. Of the embedding, whatever it is of: picture_mean, picture_scale
    (width,), picture, float16 (rows, width), and of proteins protein_mean and so on; of counts:
    columns, levels (bits,), bits uint8 (rows, bits / 8), totals (rows,). theta: float64 (4,), of
    START, or (5,) with proteins; alpha (rows, targets); whitening, float32 (patterns, m, m), of the
    rows `known` (patterns, m); pattern, center, unit, slope, offset (targets,).
    """

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.uses = [kind for kind in SIGNS if hasattr(self, SIGNS[kind])]
        self.classes = "slope" in tensors

    def forward(self, embedding, counts, protein=None):
        """Return (mean, spread), float32 (n, targets): labels, or probabilities of the positive.

        embedding, protein: float32 (n, width); counts: uint8 (n, 2048); what it doesn't use may be
        None. spread: the predictive standard deviation, noise and all.
        """
        base = {"embedding": embedding, "ecfp": counts, "protein": protein}
        found = {kind: getattr(self, kind + "_to")(base[kind]) for kind in self.uses}
        kernel = combine(self.theta, found)
        mean = kernel @ self.alpha * self.unit + self.center
        white = kernel[:, self.known].permute(1, 0, 2) @ self.whitening.double().mT
        noise = self.theta[3].exp()
        free = prior(self.theta, self.uses) + noise - (white * white).sum(2)
        spread = free.clamp(min=noise).sqrt()[self.pattern].T * self.unit
        if self.classes:
            mean = torch.sigmoid(mean * self.slope + self.offset)
            spread = spread * self.slope * mean * (1 - mean)
        return mean.float(), spread.float()

    def embedding_to(self, embedding):
        """Return the squared distances of embeddings (n, width) to the rows', float64 (n, rows)."""
        scaled = (embedding.double() - self.picture_mean) / self.picture_scale
        return distances(scaled.clamp(-CUT, CUT), self.picture, self.median)

    def protein_to(self, protein):
        """Return the squared distances of proteins' features, as `embedding_to`."""
        scaled = (protein.double() - self.protein_mean) / self.protein_scale
        return distances(scaled.clamp(-CUT, CUT), self.protein, self.protein_median)

    def ecfp_to(self, counts):
        """Return the MinMax likeness of counts (n, 2048) to the rows', float64 (n, rows).

        A sum of minima is that of bits "at least 1", "at least 2", and so on: a matrix product.
        """
        counts = counts.float().clamp(max=CAP)
        return self.likeness((counts[:, self.columns] >= self.levels).float(), counts.sum(1))

    def likeness(self, bits, totals):
        """Return the likeness of unpacked bits, float32 (n, bits), with these sums of counts."""
        common = (bits @ unpack(self.bits).T).double()
        return common / (totals.double()[:, None] + self.totals - common)

    def to_itself(self):
        """Return {kind: what `combine` takes, float64 (rows, rows)} of the training rows."""
        found = {}
        if "embedding" in self.uses:
            found["embedding"] = distances(self.picture.double(), self.picture, self.median)
        if "ecfp" in self.uses:
            found["ecfp"] = self.likeness(unpack(self.bits), self.totals)
        if "protein" in self.uses:
            own = self.protein.double()
            found["protein"] = distances(own, self.protein, self.protein_median)
        return found


def distances(scaled, rows, median):
    """Return squared distances of standardised vectors to rows, in units of their median."""
    rows = rows.double()
    apart = (scaled**2).sum(1, keepdim=True) + (rows**2).sum(1) - 2 * scaled @ rows.T
    return apart.clamp(min=0) / median


def combine(theta, found):
    """Return the kernel: a Matern 3/2 of squared distances, MinMax as it is, each with its weight.

    theta: logarithms of the two weights, of the inverse lengthscale squared, and of the noise; with
    proteins also of theirs, whose Matern 3/2 the sum is multiplied by.
    """
    kernel = 0.0
    if "embedding" in found:
        apart = (3 * theta[2].exp() * found["embedding"] + 1e-12).sqrt()
        kernel = kernel + theta[0].exp() * (1 + apart) * (-apart).exp()
    if "ecfp" in found:
        kernel = kernel + theta[1].exp() * found["ecfp"]
    if "protein" in found:
        apart = (3 * theta[4].exp() * found["protein"] + 1e-12).sqrt()
        kernel = kernel * (1 + apart) * (-apart).exp()
    return kernel


def prior(theta, uses):
    """Return the kernel of a molecule with itself."""
    return sum(theta[i].exp() for i, kind in enumerate(WEIGHTED) if kind in uses)


def unpack(packed):
    """Return packed bits, uint8 (n, width), as float32 (n, 8 width); ONNX has no such operation."""
    powers = 2.0 ** torch.arange(8)
    return (torch.floor(packed.float().unsqueeze(-1) / powers) % 2).flatten(1)


def describe_vectors(vectors, name, median, repeated):
    """Return the tensors of vectors, float32 (rows, width), under a name, and their median.

    repeated: rows repeat few vectors, whose own distances count.
    """
    mean, scale = vectors.double().mean(0), vectors.double().std(0, correction=0)
    scale = scale.clamp(min=1e-3 * scale.median().item() + 1e-12)
    scaled = ((vectors.double() - mean) / scale).clamp(-CUT, CUT).half()
    some = (torch.unique(scaled, dim=0) if repeated else scaled)[:SUBSET].double()
    apart = torch.pdist(some) ** 2
    middle = apart.median().clamp(min=1e-12) if len(apart) else torch.ones(())
    return {f"{name}_mean": mean, f"{name}_scale": scale, name: scaled, median: middle}


def describe_rows(embedding, counts, protein=None):
    """Return the tensors of training rows that a GaussianProcess keeps of each; None: without."""
    tensors, pairs = {}, protein is not None
    if embedding is not None:
        tensors |= describe_vectors(embedding, "picture", "median", pairs)
    if pairs:
        tensors |= describe_vectors(protein, "protein", "protein_median", pairs)
    if counts is not None:
        counts = counts.clamp(max=CAP)
        pairs = [(counts >= level).any(0).nonzero()[:, 0] for level in range(1, CAP + 1)]
        columns = torch.cat(pairs)
        levels = torch.cat([torch.full((len(p),), float(i)) for i, p in enumerate(pairs, 1)])
        spare = -len(columns) % 8  # bits that are never set
        columns = torch.cat([columns, torch.zeros(spare, dtype=torch.int64)])
        levels = torch.cat([levels, torch.full((spare,), CAP + 1.0)])
        bits = (counts[:, columns] >= levels).numpy()
        tensors |= {"columns": columns, "levels": levels, "totals": counts.double().sum(1)}
        tensors["bits"] = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little"))
    return tensors


class Rows(NamedTuple):
    """Training rows as kernels see them: tensors of `describe_rows`, matrices of `to_itself`."""

    tensors: dict
    matrices: dict

    @classmethod
    def of(cls, embedding, counts, protein=None):
        """Return the Rows of embeddings, counts or both, beside proteins if there are."""
        tensors = describe_rows(embedding, counts, protein)
        return cls(tensors, GaussianProcess(tensors).to_itself())

    def only(self, features):
        """Return those of some features alone, such as ("embedding",)."""
        names = {"embedding": ("picture", "picture_mean", "picture_scale", "median")}
        names["ecfp"] = ("columns", "levels", "bits", "totals")
        names["protein"] = ("protein", "protein_mean", "protein_scale", "protein_median")
        wanted = [name for kind in features for name in names[kind]]
        tensors = {name: self.tensors[name] for name in wanted}
        return Rows(tensors, {kind: self.matrices[kind] for kind in features})


def too_costly(labels):
    """Tell whether labels (n, targets) are more than a Gaussian process can learn exactly."""
    return sum(float(len(rows)) ** 3 for rows, _ in patterns_of(labels)) > COST


def log_likelihood(kernel, patterns, values):
    """Return (log marginal likelihood, its gradient by the kernel, float64 (n, n)).

    kernel: with the noise; values: (n, targets), of (rows, targets) of patterns. Rasmussen,
    Williams, eq. 5.9: the gradient is less work than automatic differentiation's.
    """
    total, gradient = 0.0, torch.zeros_like(kernel)
    for rows, targets in patterns:
        here = np.ix_(rows, rows)
        lower = torch.linalg.cholesky(kernel[here])
        inverse, wanted = torch.cholesky_inverse(lower), values[np.ix_(rows, targets)]
        alpha = inverse @ wanted
        halves = 0.5 * (wanted * alpha).sum() + len(targets) * lower.diagonal().log().sum()
        total = total - halves.item()
        gradient[here] += 0.5 * (alpha @ alpha.T - len(targets) * inverse)
    return total, gradient


def fit_theta(matrices, labels):
    """Return theta of the highest marginal likelihood on standardised labels, float64 (4 or 5,).

    Of SUBSET rows at most, fewer where targets are known on many different rows.
    """
    count = max(1, len(patterns_of(labels)))
    most = int(SUBSET / min(count, 8) ** (1 / 3))
    some = np.random.default_rng(0).permutation(len(labels))[:most]
    patterns = patterns_of(labels[some])[:8]
    patterns = [(rows, targets) for rows, targets in patterns if len(rows)]
    matrices = {kind: matrix[some][:, some] for kind, matrix in matrices.items()}
    values = torch.from_numpy(labels[some])
    free = [i for i, name in enumerate(START) if name in (*matrices, "noise")]
    free += [2] * ("embedding" in matrices)
    theta = [*START.values()][: 4 + ("protein" in matrices)]
    theta = torch.tensor(theta, dtype=torch.float64)

    def loss(at):
        leaf = torch.from_numpy(at).requires_grad_()
        whole = theta.index_put((torch.tensor(free),), leaf)
        noise = (whole[3].exp() + JITTER) * torch.eye(len(values)).double()
        kernel = combine(whole, matrices) + noise
        value, gradient = log_likelihood(kernel.detach(), patterns, values)
        kernel.backward(-gradient)
        return -value, leaf.grad.numpy()

    bounds = [list(BOUNDS.values())[i] for i in free]
    how = {"jac": True, "method": "L-BFGS-B", "bounds": bounds, "options": {"maxiter": 60}}
    found = minimize(loss, theta[free].numpy().copy(), **how)
    theta[free] = torch.from_numpy(found.x)
    return theta


def fit_gp(rows, labels, folds, task):
    """Return (GaussianProcess, scores, spreads) that learned labels (n, targets), NaN: unknown.

    rows: Rows; folds: the fold of each row, (n,). scores and spreads, float64 (n, targets): those
    of each row by a process without its fold's labels, in closed form; of a classification before
    they are made probabilities (a process on -1 and 1).
    """
    scale = LabelScale.of(labels)
    if task == "classification":
        labels = 2 * labels - 1
        scale = LabelScale(np.nanmean(labels, 0), np.ones(labels.shape[1]))
    values = scale.standardise(labels)
    theta = fit_theta(rows.matrices, values)
    kernel, patterns = combine(theta, rows.matrices), patterns_of(labels)
    most = min(len(labels), int(WHITENED / math.sqrt(len(patterns))))
    found = empty_tensors(labels.shape, len(patterns), most) | {"theta": theta}
    found |= {"center": torch.from_numpy(scale.mean), "unit": torch.from_numpy(scale.std)}
    scores, spreads = np.full(labels.shape, np.nan), np.full(labels.shape, np.nan)
    for p, (places, targets) in enumerate(patterns):
        block, here = kernel[places][:, places], np.ix_(places, targets)
        block.diagonal().add_(theta[3].exp() + JITTER)
        wanted = torch.from_numpy(values[here])
        alpha, told, spread = left_out(block, wanted, folds[places])
        some = np.random.default_rng(0).permutation(len(places))[:most]
        white, alone = whiten(block, some)
        spread = spread if len(some) == len(places) else alone
        found["alpha"][here] = alpha
        found["known"][p, : len(some)] = torch.from_numpy(places[some])
        found["whitening"][p, : len(some), : len(some)] = white
        found["pattern"][targets] = p
        scores[here] = told.numpy() * scale.std[targets] + scale.mean[targets]
        spreads[here] = spread.numpy()[:, None] * scale.std[targets]
    if task == "classification":
        slope, offset = platt_each(scores, (labels + 1) / 2)
        found |= {"slope": torch.from_numpy(slope), "offset": torch.from_numpy(offset)}
    return GaussianProcess(rows.tensors | found), scores, spreads


def empty_tensors(shape, patterns, most):
    """Return what a GaussianProcess of labels of this shape has for its patterns, all 0."""
    return {
        "alpha": torch.zeros(shape, dtype=torch.float64),
        "known": torch.zeros(patterns, most, dtype=torch.int64),
        "whitening": torch.zeros(patterns, most, most),
        "pattern": torch.zeros(shape[1], dtype=torch.int64),
    }
