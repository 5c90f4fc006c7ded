"""What a Gaussian process says of its own training rows: without a fold, or without each."""

import numpy as np
import torch


def left_out(block, wanted, folds):
    """Return (alpha, means, spreads) of rows by a process without the labels of their fold.

    block: kernel and noise, float64 (n, n); wanted: (n, targets); folds: (n,). Rasmussen, Williams,
    section 5.4.2, for more rows than one.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(block))
    alpha = inverse @ wanted
    means, spreads = torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.float64)
    for fold in np.unique(folds):
        here = np.flatnonzero(folds == fold)
        apart = torch.linalg.inv(inverse[here][:, here])
        means[here] = wanted[here] - apart @ alpha[here]
        spreads[here] = apart.diagonal().sqrt()
    return alpha, means, spreads


def whiten(block, some):
    """Return (whitening, float32 (m, m), spreads (n,)) of a process that knows `some` rows only.

    The spread of a row among them is that without it.
    """
    lower = torch.linalg.cholesky(block[some][:, some])
    white = torch.linalg.solve_triangular(lower, torch.eye(len(some)).double(), upper=False)
    free = block.diagonal() - ((white @ block[some]) ** 2).sum(0)
    free[some] = 1 / (white**2).sum(0)  # of the diagonal of the inverse
    return white.float(), free.clamp(min=1e-12).sqrt()
