"""What cluster.py groups molecules by: MACCS keys, other fingerprints, descriptors; as bytes."""

import json
from functools import cache
from typing import NamedTuple

import click
import numpy as np
from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

from moleclip.features import RADIUS, descriptors
from moleclip.files import read_arrays
from moleclip.molecules import MAX_ATOMS, parse
from moleclip.targets import MAX_SD


class Kind(NamedTuple):
    """One kind of keys: what they are called, and of how many numbers a molecule's are."""

    title: str
    width: int


# MoleCLIP's own choices, its widths of fingerprints too. Bits are packed: 1.9 million molecules'
# MACCS keys are 40 MB, 1.3 GB as floats; bit 0 of these is never set.
KINDS = {
    "maccs": Kind("MACCS keys", 167),
    "ecfp": Kind("ECFP4 fingerprints", 1024),
    "rdkit": Kind("path fingerprints", 2048),
    "descriptors": Kind("sets of descriptors", 64),
}
SCALE = "scale_of_keys"  # in labels.npz: what descriptors are scaled by


@cache
def generator(kind):
    """Return RDKit's generator of ECFP4, or of paths of 1 to 7 bonds."""
    size = {"fpSize": KINDS[kind].width}
    if kind == "ecfp":
        return rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, **size)
    return rdFingerprintGenerator.GetRDKitFPGenerator(minPath=1, maxPath=7, **size)


def packed_keys(row, smiles, max_atoms=MAX_ATOMS, kind="maccs"):
    """Return a molecule's keys as bytes: packed bits, or descriptors in float32, not yet scaled.

    A task of `parallel`. Raises Rejected.
    """
    if kind == "descriptors":
        return descriptors(row, smiles, max_atoms)
    molecule, bits = parse(smiles, max_atoms), np.zeros(KINDS[kind].width, np.uint8)
    make = MACCSkeys.GenMACCSKeys if kind == "maccs" else generator(kind).GetFingerprint
    bits[list(make(molecule).GetOnBits())] = 1
    return np.packbits(bits).tobytes()


def unpack_keys(packed, kind="maccs"):
    """Return packed keys, uint8 (n, bytes), as float32 (n, width): bits, or scaled descriptors."""
    if kind == "descriptors":
        return packed.view(np.float16).astype(np.float32)
    return np.unpackbits(packed, axis=1, count=KINDS[kind].width).astype(np.float32)


def distinct_keys(packed):
    """Return the distinct rows, sorted, of packed keys, uint8 (n, bytes)."""
    # As byte strings, which numpy sorts many times faster; of one length, they differ as rows do.
    size = packed.shape[1]
    strings = np.ascontiguousarray(packed).view(f"S{size}")
    return np.unique(strings).view(np.uint8).reshape(-1, size)


def scale_keys(packed, kind, members, scale=None):
    """Return (packed keys as K-means takes them, what labels.npz holds of their scale).

    Bits stay as they are, without a scale. Descriptors are standardised, by `scale`, or else by the
    rows in members, bool (n,).
    """
    if kind != "descriptors":
        return packed, {}
    values = packed.view(np.float32)
    scale = scale_of(values[members]) if scale is None else scale
    return scaled(values, scale).view(np.uint8), {SCALE: scale}


def scale_of(values):
    """Return mean and standard deviation of the columns of values (n, d), float64 (2, d).

    What is not finite doesn't count.
    """
    columns = (column.astype(np.float64) for column in values.T)
    columns = (np.where(np.isfinite(column), column, np.nan) for column in columns)
    return np.array([(np.nanmean(column), np.nanstd(column)) for column in columns]).T


def scaled(values, scale):
    """Return values (n, d), standardised and cut off at 5 standard deviations, float16.

    0, the mean, where one is not finite. scale: see `scale_of`.
    """
    table = np.zeros(values.shape, np.float16)
    for i, (column, mean, deviation) in enumerate(zip(values.T, *scale)):
        column = column.astype(np.float64)
        column = (np.where(np.isfinite(column), column, np.nan) - mean) / (deviation + 1e-9)
        table[:, i] = np.nan_to_num(column.clip(-MAX_SD, MAX_SD))
    return table


def read_centroids(path):
    """Return what a labels.npz tells of its clusters, for --assign.

    That is {k: centroids float32 (k, width)}, the kind of its keys, their scale or None, and where
    it comes from, {"input", "sha256", "seed", "rdkit"}. Raises click.ClickException if it is none.
    """
    arrays = read_arrays(path, ("meta",))
    try:
        meta = json.loads(str(arrays["meta"]))
        names = [name for name in arrays if name[:1] == "k" and name[1:].isdigit()]
        sets = {int(name[1:]): arrays[f"centroids_{name}"] for name in names}
        kind = meta.get("keys", "maccs")
        width, scale = KINDS[kind].width, arrays[SCALE] if kind == "descriptors" else None
        whole = sets and all(
            c.shape == (k, width) and c.dtype == np.float32 and np.isfinite(c).all()
            for k, c in sets.items()
        )
        whole = whole and (scale is None or scale.shape == (2, width))
        origin = {key: meta[key] for key in ("input", "sha256", "seed", "rdkit")}
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise click.ClickException(
            f"{path}: damaged or of another kind; --assign takes a labels.npz that cluster.py made"
        )
    return sets, kind, scale, origin
