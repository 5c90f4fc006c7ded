"""The Gaussian process: its kernels, its likelihood and its closed forms, against the plain way."""

import numpy as np
import pytest
import torch
from conftest import ROOT

from moleclip.features import count_fingerprints
from moleclip.gp import CAP, Rows, combine, fit_gp, fit_theta, log_likelihood, too_costly, unpack
from moleclip.table import Data, patterns_of


@pytest.fixture(scope="module")
def esol():
    """(embeddings made of descriptors, counts, labels, folds) of 80 molecules."""
    data = Data(str(ROOT / "data" / "esol.csv"))
    counts = torch.from_numpy(count_fingerprints(data.smiles[:80]))
    random = np.random.default_rng(0)
    embedding = counts.float() @ torch.from_numpy(random.standard_normal((2048, 24))).float()
    return embedding, counts, data.labels[:80], random.permutation(80) % 5


def test_minmax_is_the_sum_of_minima_over_that_of_maxima(esol):
    _, counts, _, _ = esol
    found = Rows.of(None, counts).matrices["ecfp"].numpy()
    capped = np.minimum(counts.numpy(), CAP).astype(float)
    for i, j in ((0, 0), (3, 40), (17, 79)):
        low, high = (take(capped[i], capped[j]).sum() for take in (np.minimum, np.maximum))
        assert found[i, j] == pytest.approx(low / high, abs=1e-12)
    bits = np.random.default_rng(0).integers(0, 2, (5, 16), dtype=np.uint8)
    packed = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little"))
    assert (unpack(packed).numpy() == bits).all()


def test_the_likelihood_is_at_its_optimum(esol):
    embedding, counts, labels, _ = esol
    matrices, values = Rows.of(embedding, counts).matrices, (labels - labels.mean()) / labels.std()

    def value(theta):
        kernel = combine(theta, matrices) + theta[3].exp() * torch.eye(80).double()
        return log_likelihood(kernel, patterns_of(values), torch.from_numpy(values))[0]

    theta = fit_theta(matrices, values)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(80).double(), combine(theta, matrices) + theta[3].exp() * torch.eye(80).double()
    )
    constant = 40 * np.log(2 * np.pi)
    wanted = normal.log_prob(torch.from_numpy(values[:, 0])).item() + constant
    assert value(theta) == pytest.approx(wanted, abs=1e-6)
    for i in range(4):
        for step in (-0.3, 0.3):
            other = theta.clone()
            other[i] += step
            assert value(other) < value(theta) + 1e-3


def test_folds_in_closed_form_are_those_of_a_process_without_them(esol):
    """And with labels missing; each target by the rows where it is known."""
    embedding, counts, labels, folds = esol
    both = np.concatenate([labels, labels**2], 1)
    both[10:30, 1] = np.nan
    rows = Rows.of(embedding, counts)
    head, scores, spreads = fit_gp(rows, both, folds, "regression")
    assert np.isnan(scores[10:30, 1]).all() and (head.alpha[10:30, 1] == 0).all()
    kernel = combine(head.theta, rows.matrices).numpy()
    noise = head.theta[3].exp().item()
    for t in (0, 1):
        known = np.flatnonzero(~np.isnan(both[:, t]))
        mean, deviation = both[known, t].mean(), both[known, t].std()
        away = [i for i in known if folds[i] != 2]
        here = [i for i in known if folds[i] == 2]
        block = kernel[np.ix_(away, away)] + (noise + 1e-8) * np.eye(len(away))
        across = kernel[np.ix_(here, away)]
        wanted = across @ np.linalg.solve(block, (both[away, t] - mean) / deviation)
        assert scores[here, t] == pytest.approx(wanted * deviation + mean, abs=1e-6)
        gone = np.einsum("ij,ji->i", across, np.linalg.solve(block, across.T))
        wanted = np.sqrt(kernel[here, here] + noise - gone) * deviation
        assert spreads[here, t] == pytest.approx(wanted, rel=1e-5)


def test_the_head_gives_what_its_formula_says(esol):
    embedding, counts, labels, folds = esol
    few = Rows.of(embedding[:60], counts[:60])
    head, _, _ = fit_gp(few, labels[:60], folds[:60], "regression")
    with torch.no_grad():
        mean, spread = head(embedding[60:], counts[60:])
        alone = head(embedding[70:71], counts[70:71])
    assert alone[0].item() == pytest.approx(mean[10].item(), abs=1e-5)
    assert (
        np.abs(mean.numpy() - labels[60:]).mean() < np.abs(labels[60:] - labels[:60].mean()).mean()
    )
    inside = np.abs(mean.numpy() - labels[60:]) < 1.645 * spread.numpy()
    assert 0.6 < inside.mean() <= 1


def test_one_molecule_with_several_labels_is_noise(esol):
    """Ten molecules, eight times each, with labels that have nothing to do with them."""
    embedding, counts, _, folds = esol
    places = np.arange(80) % 10
    labels = np.random.default_rng(3).standard_normal((80, 1))
    rows = Rows.of(embedding[places], counts[places])
    head, _, _ = fit_gp(rows, labels, places % 5, "regression")
    with torch.no_grad():
        mean, spread = head(embedding[places], counts[places])
    assert head.theta[3].exp().item() > 0.5
    assert np.abs(mean.numpy()).max() < 0.6 and spread.numpy().min() > 0.6


def test_classes_are_probabilities(esol):
    embedding, counts, labels, folds = esol
    classes = (labels > np.median(labels)).astype(float)
    head, scores, _ = fit_gp(Rows.of(embedding, counts), classes, folds, "classification")
    with torch.no_grad():
        chance, spread = head(embedding, counts)
    assert ((chance > 0) & (chance < 1)).all() and (spread > 0).all()
    assert ((chance.numpy() > 0.5) == classes).mean() > 0.8


def test_what_costs_too_much():
    assert too_costly(np.zeros((10_001, 1))) and not too_costly(np.zeros((9_999, 5)))
    labels = np.random.default_rng(0).choice([1.0, np.nan], (6000, 60))
    assert too_costly(labels)
