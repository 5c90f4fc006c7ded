"""Canonical correlation: where words of texts and fragments of molecules say the same.

Hotelling, Biometrika 1936, 28, 321; with ridges, and by whichever of rows and columns is less, as
in Hardoon et al., Neural Computation 2004, 16, 2639.
"""

import numpy as np

RIDGE = 1.0  # of rows that have the length 1


def correlate(one, other, count):
    """Return (weights (p, d), weights (q, d)) that make n rows of two kinds alike; d <= count.

    one, other: float32 (n, p) and (n, q), rows of length 1. Each column is scaled by its
    correlation.
    """
    first, second = whitened(one), whitened(other)
    shared = (one @ first).T @ (other @ second)
    # eigenvectors of the smaller side: a whole singular value decomposition takes far longer
    turned = shared.shape[0] > shared.shape[1]
    shared = shared.T if turned else shared
    values, left = np.linalg.eigh(shared @ shared.T)
    strong = np.argsort(-values)[:count]
    strong = strong[values[strong] > 1e-6]
    strength = np.sqrt(values[strong])
    left = left[:, strong]
    right = shared.T @ left / strength
    left, right = (right, left) if turned else (left, right)
    return (first @ left) * strength, (second @ right) * strength


def whitened(rows):
    """Return the matrix (p, r) that makes the rows' columns uncorrelated, but for the ridge."""
    few = len(rows) <= rows.shape[1]
    values, vectors = np.linalg.eigh(rows @ rows.T if few else rows.T @ rows)
    kept = values > values.max() * 1e-6
    values, vectors = values[kept], vectors[:, kept]
    axes = rows.T @ (vectors / np.sqrt(values)) if few else vectors
    return axes / np.sqrt(values + RIDGE)
