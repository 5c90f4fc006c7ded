"""Targets of pretraining: labels.npz, as it is read."""

import json
import re
from pathlib import Path

import click
import numpy as np

from moleclip.files import read_arrays

UNKNOWN = 65535  # number of an environment that is not in the vocabulary
IGNORED = -100  # what cross entropy leaves out
MAX_SD = 5  # a target is cut off there: one strange molecule must not outweigh a batch of others
VOCABULARIES = ("vocabulary_r1", "vocabulary_r2")
ATOMS = ("atom_offsets", "atom_r1", "atom_r2", "atom_numbers", *VOCABULARIES)
CHARGES = ("atom_charge", "atom_charge_h")
# What each task of --loss is told from, beside the label sets, and the option of cluster.py that
# saves it.
NEEDS = {
    "descriptors": (("descriptors", "maccs"), "--descriptors"),
    "atoms": (ATOMS, "--atoms"),
    "fingerprint": (ATOMS, "--atoms"),
    "electronic": (("atom_offsets", "electronic", *CHARGES), "--atoms --electronic"),
}
MAPPED = ("atom_r1", "atom_r2", "atom_numbers", *CHARGES)  # large ones
NUMBERS = 10  # of an atom: ATOM_NUMBERS of features.py
SHAPES = {  # type and shape of each array; None: any
    "descriptors": ("f2", "rows", None),
    "maccs": ("u1", "rows", None),
    "atom_r1": ("u2", "atoms"),
    "atom_r2": ("u2", "atoms"),
    "atom_numbers": ("f2", "atoms", NUMBERS),
    "electronic": ("f4", "rows", 4),
    "atom_charge": ("f2", "atoms"),
    "atom_charge_h": ("f2", "atoms"),
}


class Labels:
    """What is to be told of each row and of its atoms: label sets, and what tasks of --loss ask.

    clusters: int32 (rows, label sets), coarsest first, -1 where there is none. arrays: all that is
    used of the file, by name. outputs, atom_outputs: {head: width} of what a picture, and an atom
    in it, has to tell. Raises click.ClickException if the file is none of cluster.py's, made from
    another input than the shards, or lacks what a task needs.
    """

    def __init__(self, path, folder, manifest, tasks=()):
        if not Path(path).is_file():
            command = f"python cluster.py {manifest['input']} -o {path}"
            raise click.ClickException(f"{path}: no such file; make it first: {command}")
        found = read_arrays(path, ("meta",), MAPPED)
        names = [name for name in found if re.fullmatch("k[0-9]{1,9}", name)]
        self.sets = {name: found[name] for name in sorted(names, key=lambda name: int(name[1:]))}
        self.tasks = {task: names for task, (names, _) in NEEDS.items() if task in tasks}
        facts = read_facts(path, found["meta"])
        check_same_input(path, facts, folder, manifest)
        self.arrays = self.sets | needed(path, found, self.tasks)
        if not sets_fit(self.sets, facts["rows"]) or not fit(self.arrays, facts["rows"]):
            raise damaged(path)
        self.clusters = np.stack(list(self.sets.values()), 1)
        self.outputs = {name: int(labels.max()) + 1 for name, labels in self.sets.items()}
        self.atom_outputs = {}
        self.prepare()

    def prepare(self):
        """Note the width of each head, and the scales of electronic targets."""
        arrays = self.arrays
        if "descriptors" in self.tasks:
            widths = [arrays[name].shape[1] for name in ("descriptors", "maccs")]
            self.outputs["descriptors"] = widths[0] + 8 * widths[1]
        if "atoms" in self.tasks or "fingerprint" in self.tasks:
            self.widths = [len(arrays[name]) for name in VOCABULARIES]
        if "fingerprint" in self.tasks:
            self.outputs["fingerprint"] = sum(self.widths)
        if "atoms" in self.tasks:
            self.atom_outputs = {**dict(zip(("r1", "r2"), self.widths)), "numbers": NUMBERS}
        if "electronic" in self.tasks:
            self.outputs["electronic"] = arrays["electronic"].shape[1]
            self.atom_outputs["charges"] = len(CHARGES)
            self.electronic = standardised(arrays["electronic"])
            self.spreads = [spread(arrays[name]) for name in CHARGES]

    def targets(self, rows):
        """Return {name: array} of n rows: each label set's clusters ("k300"), int32 (n,).

        With the task "descriptors" also "descriptors", standardised, float32 (n, d), and "maccs",
        the bits of the keys as cluster.py packs them, float32 (n, 168); with "fingerprint" log(1 +
        count) of each environment of both vocabularies in the molecule, float32 (n, r1 + r2); with
        "electronic" the standardised HOMO, LUMO, gap and dipole, float32 (n, 4), NaN where they
        are not known.
        """
        targets = {name: labels[rows] for name, labels in self.sets.items()}
        if "descriptors" in self.tasks:
            targets["descriptors"] = self.arrays["descriptors"][rows].astype(np.float32)
            bits = np.unpackbits(self.arrays["maccs"][rows], axis=1)
            targets["maccs"] = bits.astype(np.float32)
        if "fingerprint" in self.tasks:
            targets["fingerprint"] = self.fingerprint(rows)
        if "electronic" in self.tasks:
            targets["electronic"] = self.electronic[rows]
        return targets

    def atoms(self, rows):
        """Return {name: array} of the m atoms of n rows, in the order of the rows and of `parse`.

        "counts", int64 (n,), are the atoms of each row. With the task "atoms": "r1" and "r2", the
        number of its environment of radius 1 and 2, int64 (m,), IGNORED where that is in no
        vocabulary, and "numbers", ATOM_NUMBERS of features.py, float32 (m, 10), NaN where one isn't
        defined; with "electronic" "charges", its Mulliken charge and its hydrogens', scaled to
        unit variance, float32 (m, 2), NaN where they are not known. Without either task: {}.
        """
        if not self.atom_outputs:
            return {}
        counts, place = self.places(rows)
        atoms = {"counts": counts}
        if "atoms" in self.tasks:
            for name in ("r1", "r2"):
                numbers = self.arrays[f"atom_{name}"][place].astype(np.int64)
                atoms[name] = np.where(numbers == UNKNOWN, IGNORED, numbers)
            numbers = self.arrays["atom_numbers"][place].astype(np.float32)
            atoms["numbers"] = numbers.clip(-MAX_SD, MAX_SD)  # NaN stays
        if "electronic" in self.tasks:
            columns = [self.arrays[name][place].astype(np.float32) for name in CHARGES]
            atoms["charges"] = cut(np.stack(columns, 1) / np.array(self.spreads, np.float32))
        return atoms

    def places(self, rows):
        """Return (atoms of each row, int64 (n,), where they stand in the arrays, int64 (m,))."""
        offsets = self.arrays["atom_offsets"]
        first, counts = offsets[rows], offsets[np.add(rows, 1)] - offsets[rows]
        gaps = np.repeat(first - (np.cumsum(counts) - counts), counts)
        return counts, gaps + np.arange(len(gaps))

    def fingerprint(self, rows):
        """Return the log counts of both vocabularies' environments: see `targets`."""
        counts, place = self.places(rows)
        owner, first = np.repeat(np.arange(len(counts)), counts), 0
        told = np.zeros((len(counts), sum(self.widths)), np.float32)
        for name, width in zip(("atom_r1", "atom_r2"), self.widths):
            numbers = self.arrays[name][place]
            known = numbers != UNKNOWN
            cells = owner[known] * told.shape[1] + first + numbers[known]
            cells, found = np.unique(cells, return_counts=True)  # few of them: all others stay 0
            told.flat[cells] = np.log1p(found)
            first += width
        return told


def read_facts(path, meta):
    """Return what the labels were made from. Raises click.ClickException if that isn't told."""
    try:
        meta = json.loads(str(meta))
        return {key: meta[key] for key in ("input", "sha256", "rows", "smiles_column")}
    except (ValueError, KeyError, TypeError):
        raise damaged(path) from None


def damaged(path):
    """Return the exception for a labels.npz that doesn't fit together."""
    return click.ClickException(
        f"{path}: damaged or of another kind; make it again with cluster.py"
    )


def needed(path, found, tasks):
    """Return those arrays that tasks, {task: names}, need. Raises click.ClickException."""
    for task, names in tasks.items():
        if any(name not in found for name in names):
            what = "electronic targets" if task == "electronic" else NEEDS[task][1].strip("-")
            raise click.ClickException(
                f"{path}: has no {what}, which --loss {task}=... needs; "
                f"make it again with cluster.py {NEEDS[task][1]}"
            )
    return {name: found[name] for names in tasks.values() for name in names}


def sets_fit(sets, rows):
    """Tell whether there are label sets, of so many rows and of the clusters of their name."""
    return len(sets) > 0 and all(
        labels.shape == (rows,)
        and labels.dtype == np.int32
        and labels.max(initial=-1) < int(name[1:])
        for name, labels in sets.items()
    )


def fit(arrays, rows):
    """Tell whether all arrays of the tasks have their shapes and types, and numbers in range."""
    atoms = 0
    if "atom_offsets" in arrays:
        offsets = arrays["atom_offsets"]
        if offsets.shape != (rows + 1,) or offsets.dtype != np.int64 or offsets[0]:
            return False
        if (np.diff(offsets) < 0).any():
            return False
        atoms = int(offsets[-1])
    sizes = {"rows": rows, "atoms": atoms}
    for name in SHAPES.keys() & arrays.keys():
        (kind, *shape), array = SHAPES[name], arrays[name]
        wanted = [sizes.get(size, size) for size in shape]
        found = [None if size is None else length for size, length in zip(wanted, array.shape)]
        if array.dtype != kind or array.ndim != len(wanted) or found != wanted:
            return False
    return all(
        is_vocabulary(arrays[name])
        and numbered(arrays[name.replace("vocabulary", "atom")], arrays[name])
        for name in VOCABULARIES
        if name in arrays
    )


def is_vocabulary(ids):
    """Tell whether an array holds Morgan ids, each once, as many as can be numbered."""
    whole = ids.dtype == np.uint32 and ids.ndim == 1 and 0 < len(ids) < UNKNOWN
    return whole and len(np.unique(ids)) == len(ids)


def numbered(numbers, vocabulary):
    """Tell whether all numbers of environments are those of a vocabulary, or UNKNOWN."""
    return not ((numbers >= len(vocabulary)) & (numbers != UNKNOWN)).any()


def standardised(table):
    """Return a table, float32 (n, d), with each column's known values at mean 0, variance 1."""
    scaled = np.full(table.shape, np.nan, np.float32)
    for column, out in zip(table.T.astype(np.float64), scaled.T):
        known = np.isfinite(column)
        if known.any():
            out[known] = (column[known] - column[known].mean()) / (column[known].std() + 1e-9)
    return cut(scaled)


def spread(column):
    """Return the standard deviation of a column's finite values; 1 if there are none."""
    column = column[np.isfinite(column)].astype(np.float64)
    return float(column.std()) or 1.0 if len(column) else 1.0


def cut(values):
    """Return values cut off at MAX_SD either way, NaN where they are not finite."""
    return np.where(np.isfinite(values), values.clip(-MAX_SD, MAX_SD), np.float32(np.nan))


def check_same_input(path, facts, folder, manifest):
    """Refuse labels at `path` of another input than what was drawn into `folder`."""
    compared = ["rows"]
    if manifest["sha256"]:  # there is none of what was drawn from standard input
        compared += ["smiles_column", "sha256"]
    if any(facts[key] != manifest[key] for key in compared):
        raise click.ClickException(
            f"{path}: made from {facts['input']} ({facts['rows']} rows), but {folder}/ from "
            f"another file, {manifest['input']} ({manifest['rows']} rows), or another column; "
            "run cluster.py on what was drawn"
        )


def read_vocabularies(path):
    """Return the two vocabularies of a labels.npz, uint32 (n,). Raises click.ClickException."""
    arrays = read_arrays(path, ("meta",), ATOMS)
    found = [arrays[name] for name in VOCABULARIES if name in arrays]
    if len(found) < len(VOCABULARIES):
        raise click.ClickException(
            f"{path}: has no atoms, so --assign can't take their vocabularies from it; "
            "make it again with cluster.py --atoms, or leave --atoms out"
        )
    for each in found:
        if not is_vocabulary(each):
            raise click.ClickException(f"{path}: its vocabularies are damaged; make it again")
    return found
