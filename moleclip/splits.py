"""TODO"""

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
    """Return 80/10/10 %, the paper's own index sets for the same rows and seed."""
    order = list(range(len(usable)))
    np.random.RandomState(seed).shuffle(order)
    tenth = int(0.1 * len(order))
    pick = lambda part: [usable[i] for i in part]
    return pick(order[2 * tenth :]), pick(order[tenth : 2 * tenth]), pick(order[:tenth])


def by_scaffold(usable, smiles):
    """Return the rows of each Bemis-Murcko scaffold, in the order in which the scaffolds first occur."""
    groups = {}
    for i in usable:
        groups.setdefault(scaffold(smiles[i]), []).append(i)
    return list(groups.values())


def scaffold_split(usable, smiles):
    """Return whole scaffolds, the most frequent in train: the paper's own index sets (DeepChem's order)."""
    train_until, val_until = (1 - 0.1 - 0.1) * len(usable), (1 - 0.1) * len(usable)
    train, val, test = [], [], []
    for group in sorted(
        by_scaffold(usable, smiles), key=lambda group: (len(group), group[0]), reverse=True
    ):
        if len(train) + len(group) <= train_until:
            train += group
        elif len(train) + len(val) + len(group) <= val_until:
            val += group
        else:
            test += group
    return train, val, test


def random_scaffold_split(usable, smiles, seed):
    """Return whole scaffolds, shuffled: val and test take what fits into their tenth, train the rest."""
    groups, tenth = by_scaffold(usable, smiles), int(0.1 * len(usable))
    train, val, test = [], [], []
    for i in np.random.RandomState(seed).permutation(len(groups)):
        part = next((part for part in (val, test) if len(part) + len(groups[i]) <= tenth), train)
        part += groups[i]
    return train, val, test


def named_split(usable, words, where):
    """Return the parts that a column names; words: {row: "train", "val" or "test"}; what has no word stays out."""
    parts = {part: [] for part in SUBSETS}
    for i in usable:
        word = words.get(i, "").strip().lower()
        if word and word not in SUBSET_ALIASES:
            raise click.ClickException(
                f"{where}: row {i} is {words[i]!r}; write train, val or test, or leave the cell blank to leave the row out"
            )
        if word:
            parts[SUBSET_ALIASES[word]].append(i)
    return tuple(parts.values())


def read_splits(path, seed):
    """Return {row: part} of a splits.csv: its column of this seed if it has one, else the column `split`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.DictReader(stream))
        name = f"seed_{seed}" if lines and f"seed_{seed}" in lines[0] else "split"
        return {int(line["row"]): line[name] or "" for line in lines}
    except (OSError, UnicodeError, csv.Error, KeyError, TypeError, ValueError):
        raise click.ClickException(
            f"{path}: not a splits.csv, which has the columns row and split"
        ) from None


def make_split(data, usable, kind, seed, warn=True):
    """Return {"train": [...], "val": [...], "test": [...]} of row numbers, and print what a user should know of it.

    kind: one of SPLITS, or the path of a splits.csv. Raises click.ClickException if a part would be empty.
    """
    if kind == "random":
        parts, remedy = random_split(usable, seed), "more are needed"
    elif kind == "scaffold":
        parts, remedy = (
            scaffold_split(usable, data.smiles),
            "its scaffolds are too few or too large, take --split random",
        )
    elif kind == "random-scaffold":
        parts, remedy = (
            random_scaffold_split(usable, data.smiles, seed),
            "its scaffolds are too large, take --split random",
        )
    else:
        words = (
            dict(enumerate(data.column(data.split_column)))
            if kind == "column"
            else read_splits(kind, seed)
        )
        source = f"{data.path}: column {data.split_column!r}" if kind == "column" else kind
        if kind != "column" and max(words, default=0) >= len(data):
            raise click.ClickException(
                f"{kind}: has row {max(words)}, but {data.path} ends at row {len(data) - 1}; it was made from another table"
            )
        parts, remedy = (
            named_split(usable, words, source),
            "each needs rows that say train, val and test",
        )
    if min(map(len, parts)) == 0:
        raise click.ClickException(
            f"{data.path}: {len(usable)} usable molecules leave a part of the {Path(kind).name} split empty; {remedy}"
        )
    split = dict(zip(SUBSETS, parts))
    if warn:
        print_split(data, split, Path(kind).name, seed)
    return split


def print_split(data, split, kind, seed):
    """Print sizes, the scaffolds that test shares with training, and a warning for molecules that stand in both."""
    train = {scaffold(data.smiles[i]) for i in split["train"]}
    shared = np.mean([scaffold(data.smiles[i]) in train for i in split["test"]])
    click.echo(
        f"{kind} split, seed {seed}: {', '.join(f'{len(rows)} {part}' for part, rows in split.items())}; "
        f"{100 * shared:.0f}% of the test molecules share a scaffold with training"
    )
    spelled = {i: canonical(data.smiles[i]) for rows in split.values() for i in rows}
    known = {spelled[i] for i in split["train"]}
    twins = sum(spelled[i] in known for part in ("val", "test") for i in split[part])
    if twins:
        click.echo(
            f"warning: {twins} rows of val and test hold molecules that stand in the training part as well",
            err=True,
        )
