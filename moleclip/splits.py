"""Which rows are trained on, validated on and tested on: the paper's splits, or the user's own."""

import csv
from pathlib import Path

import click
import numpy as np

from moleclip.molecules import canonical, scaffold

SUBSETS = ("train", "val", "test")
SUBSET_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
SPLIT_KINDS = ("random", "scaffold", "random-scaffold", "column")


def random_split(usable, seed):
    """Return (train, val, test) of 80/10/10 %, the paper's own index sets for a seed."""
    order = list(usable)
    np.random.RandomState(seed).shuffle(order)
    tenth = int(0.1 * len(order))
    return order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth]


def by_scaffold(usable, smiles):
    """Return the rows of each Bemis-Murcko scaffold, scaffolds in the order of their first rows."""
    groups = {}
    for i in usable:
        groups.setdefault(scaffold(smiles[i]), []).append(i)
    return list(groups.values())


def scaffold_split(usable, smiles):
    """Return (train, val, test) of whole scaffolds, the most frequent in train.

    The paper's own index sets (DeepChem's order).
    """
    train_until, val_until = (1 - 0.1 - 0.1) * len(usable), (1 - 0.1) * len(usable)
    groups = by_scaffold(usable, smiles)
    groups.sort(key=lambda group: (len(group), group[0]), reverse=True)
    train, val, test = [], [], []
    for group in groups:
        if len(train) + len(group) <= train_until:
            train += group
        elif len(train) + len(val) + len(group) <= val_until:
            val += group
        else:
            test += group
    return train, val, test


def random_scaffold_split(usable, smiles, seed):
    """Return (train, val, test) of whole scaffolds, shuffled.

    val and test take what fits into their tenth, train the rest.
    """
    groups, tenth = by_scaffold(usable, smiles), int(0.1 * len(usable))
    train, val, test = [], [], []
    for i in np.random.RandomState(seed).permutation(len(groups)):
        part = next((part for part in (val, test) if len(part) + len(groups[i]) <= tenth), train)
        part += groups[i]
    return train, val, test


def named_split(usable, words, where):
    """Return the (train, val, test) that a column names; what has no word stays out.

    words: {row: "train", "val" or "test"}; where: the column, for messages.
    """
    parts = {part: [] for part in SUBSETS}
    for i in usable:
        word = words.get(i, "").strip().lower()
        if word and word not in SUBSET_ALIASES:
            raise click.ClickException(
                f"{where}: row {i} is {words[i]!r}; "
                "write train, val or test, or leave the cell blank to leave the row out"
            )
        if word:
            parts[SUBSET_ALIASES[word]].append(i)
    return tuple(parts.values())


def read_splits(path, seed):
    """Return {row: part} of a splits.csv, by the seed's column or else the column `split`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.DictReader(stream))
        name = f"seed_{seed}" if lines and f"seed_{seed}" in lines[0] else "split"
        return {int(line["row"]): line[name] or "" for line in lines}
    except (OSError, UnicodeError, csv.Error, KeyError, TypeError, ValueError):
        raise click.ClickException(
            f"{path}: not a splits.csv, which has the columns row and split"
        ) from None


def own_split(data, usable, kind, seed):
    """Return the (train, val, test) of the table's split column, or of a splits.csv."""
    if kind == "column":
        words = dict(enumerate(data.column(data.split_column)))
        return named_split(usable, words, f"{data.path}: column {data.split_column!r}")
    words = read_splits(kind, seed)
    if max(words, default=0) >= len(data):
        raise click.ClickException(
            f"{kind}: has row {max(words)}, but {data.path} ends at row {len(data) - 1}; "
            "it was made from another table"
        )
    return named_split(usable, words, kind)


def make_split(data, usable, kind, seed, warn=True):
    """Return {"train": [...], "val": [...], "test": [...]} of row numbers.

    kind: one of SPLIT_KINDS, or the path of a splits.csv. warn: print what a user should know.
    Raises click.ClickException if a part would be empty.
    """
    if kind == "random":
        parts, remedy = random_split(usable, seed), "more are needed"
    elif kind == "scaffold":
        parts = scaffold_split(usable, data.smiles)
        remedy = "its scaffolds are too few or too large, take --split random"
    elif kind == "random-scaffold":
        parts = random_scaffold_split(usable, data.smiles, seed)
        remedy = "its scaffolds are too large, take --split random"
    else:
        parts = own_split(data, usable, kind, seed)
        remedy = "each needs rows that say train, val and test"
    if min(map(len, parts)) == 0:
        raise click.ClickException(
            f"{data.path}: {len(usable)} usable molecules leave a part of "
            f"the {Path(kind).name} split empty; {remedy}"
        )
    split = dict(zip(SUBSETS, parts))
    if warn:
        print_split(data, split, Path(kind).name, seed)
    return split


def print_split(data, split, kind, seed):
    """Print sizes and the share of known scaffolds; warn of molecules that stand on both sides."""
    train = {scaffold(data.smiles[i]) for i in split["train"]}
    shared = np.mean([scaffold(data.smiles[i]) in train for i in split["test"]])
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in split.items())
    click.echo(
        f"{kind} split, seed {seed}: {sizes}; "
        f"{100 * shared:.0f}% of the test molecules share a scaffold with training"
    )
    known = {canonical(data.smiles[i]) for i in split["train"]}
    held_out = split["val"] + split["test"]
    twins = sum(canonical(data.smiles[i]) in known for i in held_out)
    if twins:
        click.echo(
            f"warning: {twins} rows of val and test hold molecules "
            "that stand in the training part as well",
            err=True,
        )
