"""Targets of pretraining: labels.npz, as it is read."""

import json
from pathlib import Path

import click
import numpy as np

from moleclip.files import read_arrays


class Labels:
    """What is to be told of each row: its cluster in every label set, its descriptors if asked.

    clusters: int32 (rows, label sets), coarsest first, -1 where there is none. outputs: {head:
    width}. Raises click.ClickException if the file is none of cluster.py's, made from another
    input than the shards, or lacks what is asked.
    """

    def __init__(self, path, folder, manifest, describe=False):
        if not Path(path).is_file():
            command = f"python cluster.py {manifest['input']} -o {path}"
            raise click.ClickException(f"{path}: no such file; make it first: {command}")
        arrays = read_arrays(path, ("meta",))
        names = [name for name in arrays if name[:1] == "k" and name[1:].isdigit()]
        self.sets = {name: arrays[name] for name in sorted(names, key=lambda name: int(name[1:]))}
        self.descriptors = arrays.get("descriptors") if describe else None
        self.maccs = arrays.get("maccs") if describe else None
        facts = self.read_facts(path, arrays["meta"])
        check_same_input(path, facts, folder, manifest)
        if describe and self.maccs is None:
            raise click.ClickException(
                f"{path}: has no descriptors, which --loss descriptors=... needs; "
                "make it again with cluster.py --descriptors"
            )
        self.clusters = np.stack(list(self.sets.values()), 1)
        self.outputs = {name: int(labels.max()) + 1 for name, labels in self.sets.items()}
        if describe:
            self.outputs["descriptors"] = self.descriptors.shape[1] + 8 * self.maccs.shape[1]

    def read_facts(self, path, meta):
        """Return what the labels were made from, once everything fits together."""
        try:
            meta = json.loads(str(meta))
            facts = {key: meta[key] for key in ("input", "sha256", "rows", "smiles_column")}
            if self.fits(facts["rows"]):
                return facts
        except (ValueError, KeyError, TypeError):
            pass
        raise click.ClickException(
            f"{path}: damaged or of another kind; make it again with cluster.py"
        )

    def fits(self, rows):
        """Tell whether all arrays have so many rows, and label sets the clusters of their name."""
        for name, labels in self.sets.items():
            if labels.shape != (rows,) or labels.dtype != np.int32:
                return False
            if labels.max() >= int(name[1:]):
                return False
        described = self.maccs is None or len(self.descriptors) == len(self.maccs) == rows
        return len(self.sets) > 0 and described

    def targets(self, rows):
        """Return {name: array} of n rows: each label set's clusters ("k300"), int32 (n,).

        With describe=True also "descriptors", standardised, float32 (n, d), and "maccs", the
        bits of the keys as cluster.py packs them, float32 (n, 168).
        """
        targets = {name: labels[rows] for name, labels in self.sets.items()}
        if self.maccs is not None:
            targets["descriptors"] = self.descriptors[rows].astype(np.float32)
            targets["maccs"] = np.unpackbits(self.maccs[rows], axis=1).astype(np.float32)
        return targets


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
