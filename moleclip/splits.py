"""Which rows are trained on, validated on and tested on: the paper's splits, or the user's own."""

import csv
from pathlib import Path

import click
import numpy as np

from moleclip.files import say_once
from moleclip.labels import has_one_value, unlearnable
from moleclip.molecules import canonical, scaffold

LEAST = 10  # molecules of a table, for three parts
TINY = 20  # molecules of a part below which its numbers say little
TINY_PARTS = {
    "val": "an epoch that they choose is much of chance",
    "test": "the test values say little, whatever their interval",
}
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


def by_molecule(usable, data):
    """Return the rows of each molecule, or pair, stereochemistry counted, by their first rows."""
    proteins, groups = data.proteins or dict.fromkeys(usable), {}
    for i in usable:
        groups.setdefault((canonical(data.smiles[i]), proteins[i]), []).append(i)
    return list(groups.values())


def random_split(groups, seed):
    """Return (train, val, test) of 80/10/10 % of the groups of rows.

    Where each row is a group, the paper's own index sets for a seed.
    """
    order = list(groups)
    np.random.RandomState(seed).shuffle(order)
    tenth = int(0.1 * len(order))
    parts = order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth]
    return tuple(sum(part, []) for part in parts)


def stratified_split(groups, labels, seed):
    """Return (train, val, test) of 80/10/10 % of the groups of rows, of each class alike.

    The groups are shuffled, ordered by the rarest class that their rows have, rarest first, and
    dealt: one to test, one to val, eight to train. labels: (rows, targets) of 0, 1 and NaN.
    """
    order = list(groups)
    np.random.RandomState(seed).shuffle(order)
    rows = sum(order, [])
    counts = {(t, c): (labels[rows, t] == c).sum() for t in range(labels.shape[1]) for c in (0, 1)}

    def rarest(group):
        own = [key for key in counts for i in group if labels[i, key[0]] == key[1]]
        return min((counts[key], key) for key in own)

    order.sort(key=rarest)
    dealt = [sum(order[start::10], []) for start in range(10)]
    return sum(dealt[2:], []), dealt[1], dealt[0]


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
            says = "write train, val or test, or leave the cell blank to leave the row out"
            raise click.ClickException(f"{where}: row {i} is {words[i]!r}; {says}")
        if word:
            parts[SUBSET_ALIASES[word]].append(i)
    return tuple(parts.values())


def read_splits(path, seed, smiles):
    """Return {row: part} of a splits.csv, by the seed's column or else the column `split`.

    Raises click.ClickException if it isn't one, or was made from a table of other SMILES.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.DictReader(stream))
        name = f"seed_{seed}" if lines and f"seed_{seed}" in lines[0] else "split"
        found = {int(line["row"]): line[name] or "" for line in lines}
        written = {int(line["row"]): line.get("smiles") for line in lines}  # None in old files
    except (OSError, UnicodeError, csv.Error, KeyError, TypeError, ValueError):
        raise click.ClickException(
            f"{path}: not a splits.csv, which has the columns row and split"
        ) from None
    if len(found) < len(lines):
        raise click.ClickException(f"{path}: names a row twice; each is in one part")
    other = "it was made from another table"
    for row, text in written.items():
        if not 0 <= row < len(smiles):
            says = f"has row {row}, but the table ends at row {len(smiles) - 1}"
            raise click.ClickException(f"{path}: {says}; {other}")
        if text not in (None, smiles[row]):
            says = f"row {row} is {text[:60]}, in the table {smiles[row][:60]}"
            raise click.ClickException(f"{path}: {says}; {other}")
    return found


def own_split(data, usable, kind, seed):
    """Return the (train, val, test) of the table's split column, or of a splits.csv."""
    if kind == "column":
        words = dict(enumerate(data.column(data.split_column)))
        return named_split(usable, words, f"{data.path}: column {data.split_column!r}")
    return named_split(usable, read_splits(kind, seed, data.smiles), kind)


def drawn_split(data, usable, seed, warn):
    """Return the (train, val, test) of --split random.

    Rows of one molecule stay together where such are more than 1%; else the paper's lists count.
    """
    groups = by_molecule(usable, data)
    replicates = len(usable) - len(groups)
    if replicates <= 0.01 * len(usable):
        groups = [[i] for i in usable]
    elif warn:
        say_once(
            f"{data.path}: {replicates} of {len(usable)} rows repeat a {data.counts}; "
            "all rows of one go into one part"
        )
    if data.task == "classification":
        return stratified_split(groups, data.labels, seed)
    return random_split(groups, seed)


def make_split(data, usable, kind, seed, warn=True):
    """Return {"train": [...], "val": [...], "test": [...]} of row numbers.

    kind: one of SPLIT_KINDS, or the path of a splits.csv. warn: print what a user should know.
    Raises click.ClickException if a part would be empty.
    """
    remedy = "each needs rows that say train, val and test"
    if kind == "random":
        parts, remedy = drawn_split(data, usable, seed, warn), "more are needed"
    elif kind == "scaffold":
        parts = scaffold_split(usable, data.smiles)
        remedy = "its scaffolds are too few or too large, take --split random"
    elif kind == "random-scaffold":
        parts = random_scaffold_split(usable, data.smiles, seed)
        remedy = "its scaffolds are too large, take --split random"
    else:
        parts = own_split(data, usable, kind, seed)
    name = Path(kind).name
    if min(map(len, parts)) == 0:
        raise click.ClickException(
            f"{data.path}: {len(usable)} usable molecules leave a part of "
            f"the {name} split empty; {remedy}"
        )
    split = dict(zip(SUBSETS, parts))
    if warn:
        print_split(data, split, name, seed, len(usable) - sum(map(len, parts)))
    return split


def make_splits(data, usable, kind, seeds, warn=True):
    """Return {seed: split}; drop the targets from `data` that one of them can't teach.

    usable: a function that returns the rows with a picture and a label, fewer without a target.
    Raises click.ClickException if nothing is left to learn, or to choose an epoch by, or to test.
    """
    require_molecules(data, usable())
    while True:
        splits = {seed: make_split(data, usable(), kind, seed, warn=False) for seed in seeds}
        if min(len(by_molecule(split["train"], data)) for split in splits.values()) < 2:
            says = f"the training part of the {Path(kind).name} split is one {data.counts}"
            raise click.ClickException(f"{data.path}: {says}; take another --split")
        lost = unlearnable(data.labels, splits.values())
        if not any(lost):
            break
        for name, why in zip(data.targets, lost):
            if why and warn:
                click.echo(f"warning: {name} is not learned: {why}", err=True)
        if all(lost):
            raise click.ClickException(
                f"{data.path}: nothing to learn: {data.targets[0]}: {lost[0]}"
            )
        data.keep([t for t, why in enumerate(lost) if not why])
    for seed in seeds:
        split = make_split(data, usable(), kind, seed, warn)
        check_parts(data, split, warn)
    return splits


def require_molecules(data, usable):
    """Refuse a table of too few molecules for three parts."""
    molecules = len(by_molecule(usable, data))
    if molecules < LEAST:
        repeated = f"; these {len(usable)} rows repeat them" if molecules < len(usable) else ""
        says = f"at least {LEAST} are needed for three parts{repeated}"
        raise click.ClickException(f"{data.path}: {molecules} {data.counts}s with labels; {says}")


def check_parts(data, split, warn=True):
    """Warn of targets that can't be scored and of tiny parts, and stop if nothing can be."""
    known = {part: ~np.isnan(data.labels[rows]) for part, rows in split.items()}
    for part, name in (("val", "validation"), ("test", "test")):
        if not known[part].any():
            raise click.ClickException(
                f"{data.path}: no label stands in the {name} part; "
                "take another --split or more molecules"
            )
    classes = data.task == "classification"
    lost = "no AUC" if classes else "no R2 or Spearman"
    found = {
        "no label in test, it is not scored": ~known["test"].any(0),
        f"one value only in test, {lost}": has_one_value(data.labels[split["test"]]),
    }
    if classes:
        says = "one class only in validation, which chooses the epoch badly"
        found[says] = has_one_value(data.labels[split["val"]])
    for what, which in found.items():
        names = [data.targets[t] for t in np.flatnonzero(which)]
        if names and warn:
            shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            said = f"{len(names)} of {len(data.targets)} targets: {what}: {shown}"
            click.echo(f"warning: {said}", err=True)
    for part, says in TINY_PARTS.items():
        size = len(by_molecule(split[part], data))
        if warn and size < TINY:
            say_once(f"warning: only {size} {data.counts}s in {part}: {says}")


def print_split(data, split, kind, seed, left=0):
    """Print sizes, the share of known scaffolds, `left` rows; warn of molecules on both sides."""
    train = {scaffold(data.smiles[i]) for i in split["train"]}
    shared = np.mean([scaffold(data.smiles[i]) in train for i in split["test"]])
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in split.items())
    sizes += f", {left} rows in no part" * (left > 0)
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
