"""A chemist's table of molecules and labels, and how it is split; finetune.py takes these, the file has no command of its own."""

import csv
import math
from functools import cache
from pathlib import Path

import click
import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

import render

INDEX_NAMES = {"num", "index", "indices", "id", "idx", "row", "no", "nr", "number", ""}
BLANKS = {"", "nan", "na", "null", "none"}
PARTS = ("train", "val", "test")
WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
SPLITS = ("random", "scaffold", "random-scaffold", "column")


class Data:
    """What a CSV holds: one entry for every row, unreadable ones included.

    smiles: list of str; problems: list of str, "" where the row can be used; targets: names;
    labels: float64 (rows, targets), NaN where missing; task: "regression" or "classification".
    """

    def __init__(self, path, targets=(), task="auto", smiles_column=None, split_column=None):
        self.path, self.split_column = path, split_column
        if render.input_kind(path, smiles_column) != "table" or path == "-":
            raise click.ClickException(f"{path}: labels need a .csv or .tsv file with a header")
        self.molecules = list(render.read_molecules(path, smiles_column))
        header = list(self.molecules[0].fields)
        self.smiles_column = render.find_smiles_column(path, header, smiles_column)
        self.smiles, self.problems = [m.smiles for m in self.molecules], [m.problem for m in self.molecules]
        columns = self.pick_columns(header, targets)
        parsed = [self.parse_column(name) for name in columns]
        self.labels = np.concatenate(parsed, 1)
        self.targets = [name if values.shape[1] == 1 else f"{name}_{i + 1}"
                        for name, values in zip(columns, parsed) for i in range(values.shape[1])]
        for name in self.targets:
            if self.targets.count(name) > 1:
                raise click.ClickException(f"{path}: two targets would be called {name!r}; rename a column, or name each --target once")
        known = self.labels[~np.isnan(self.labels)]
        if not len(known):
            raise click.ClickException(f"{path}: every label in {', '.join(columns)} is blank")
        binary = bool(np.isin(known, (0, 1)).all())
        self.task = {"auto": "classification" if binary else "regression"}.get(task, task)
        if self.task == "classification" and not binary:
            raise click.ClickException(f"{path}: --task classification needs labels 0 and 1 only; there is {known[~np.isin(known, (0, 1))][0]:g}")

    def __len__(self):
        return len(self.molecules)

    def column(self, name):
        return [m.fields.get(name, "").strip() for m in self.molecules]

    def pick_columns(self, header, wanted):
        """Return the label columns: those asked for, or every column of numbers that is no index."""
        for option, name in [("--target", name) for name in wanted] + [("--split-column", self.split_column)] * (self.split_column is not None):
            if name not in header:
                raise click.ClickException(f"{self.path}: no column {name!r} for {option}; it has {', '.join(map(repr, header))}")
        found = list(wanted) or [name for name in header if name not in (self.smiles_column, self.split_column) and self.looks_like_labels(name)]
        if not found:
            others = [name for name in header if name != self.smiles_column]
            hint = f"; columns beside the SMILES: {', '.join(others)}" if others else ", it has the SMILES column alone"
            raise click.ClickException(f"{self.path}: no column of numbers to learn from{hint}. Name one with --target")
        return found

    def looks_like_labels(self, name):
        """Tell whether most cells of a column are numbers and it doesn't just count the rows.

        Not all cells: a stray `>100` in a label column has to be reported, not to hide the column.
        """
        cells = [cell for cell in self.column(name) if cell.lower() not in BLANKS]
        numbers = [numbers_in(cell) for cell in cells]
        good = [values for values in numbers if values is not None]
        if name.strip().lower() in INDEX_NAMES or not good or 2 * len(good) <= len(cells):
            return False
        single = [values[0] for values in good if len(values) == 1]
        counts = len(single) == len(cells) > 2 and float(single[0]).is_integer() and (np.diff(single) == 1).all()
        return not counts

    def parse_column(self, name):
        """Return a column as float64 (rows, width): several blank-separated labels may share one column (MoleCLIP)."""
        values = []
        for molecule, cell in zip(self.molecules, self.column(name)):
            numbers = [] if cell.lower() in BLANKS else numbers_in(cell)
            if numbers is None and not molecule.problem:
                raise click.ClickException(f"{self.path}: row {molecule.row} (line {molecule.line}): {name} is {cell!r}, not a number; "
                                           "write a number, or leave the cell blank if it was not measured")
            values.append(numbers or [])
        width = max(map(len, values), default=0) or 1
        for molecule, numbers in zip(self.molecules, values):
            if numbers and len(numbers) != width and not molecule.problem:
                raise click.ClickException(f"{self.path}: row {molecule.row} (line {molecule.line}): {name} has {len(numbers)} labels where others have {width}")
        return np.array([numbers if len(numbers) == width else [math.nan] * width for numbers in values])


def numbers_in(cell):
    """Return the finite numbers of a blank-separated cell as floats, or None if it holds anything else."""
    try:
        numbers = [float(word) if word.lower() not in BLANKS else math.nan for word in cell.split()]
    except ValueError:
        return None
    return numbers if numbers and all(abs(x) < 1e30 or x != x for x in numbers) else None


# ---------------------------------------------------------------------------------------------------------------------
# Splits: each returns (train, val, test), lists of row numbers


def random_split(usable, seed):
    """Return 80/10/10 %, the paper's own index sets for the same rows and seed."""
    order = list(range(len(usable)))
    np.random.RandomState(seed).shuffle(order)
    tenth = int(0.1 * len(order))
    pick = lambda part: [usable[i] for i in part]
    return pick(order[2 * tenth:]), pick(order[tenth:2 * tenth]), pick(order[:tenth])


@cache
def scaffold(smiles):
    return MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(smiles), includeChirality=True)


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
    for group in sorted(by_scaffold(usable, smiles), key=lambda group: (len(group), group[0]), reverse=True):
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
    parts = {part: [] for part in PARTS}
    for i in usable:
        word = words.get(i, "").strip().lower()
        if word and word not in WORDS:
            raise click.ClickException(f"{where}: row {i} is {words[i]!r}; write train, val or test, or leave the cell blank to leave the row out")
        if word:
            parts[WORDS[word]].append(i)
    return tuple(parts.values())


def read_splits(path, seed):
    """Return {row: part} of a splits.csv: its column of this seed if it has one, else the column `split`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.DictReader(stream))
        name = f"seed_{seed}" if lines and f"seed_{seed}" in lines[0] else "split"
        return {int(line["row"]): line[name] or "" for line in lines}
    except (OSError, UnicodeError, csv.Error, KeyError, TypeError, ValueError):
        raise click.ClickException(f"{path}: not a splits.csv, which has the columns row and split") from None


def make_split(data, usable, kind, seed, warn=True):
    """Return {"train": [...], "val": [...], "test": [...]} of row numbers, and print what a user should know of it.

    kind: one of SPLITS, or the path of a splits.csv. Raises click.ClickException if a part would be empty.
    """
    if kind == "random":
        parts, remedy = random_split(usable, seed), "more are needed"
    elif kind == "scaffold":
        parts, remedy = scaffold_split(usable, data.smiles), "its scaffolds are too few or too large, take --split random"
    elif kind == "random-scaffold":
        parts, remedy = random_scaffold_split(usable, data.smiles, seed), "its scaffolds are too large, take --split random"
    else:
        words = dict(enumerate(data.column(data.split_column))) if kind == "column" else read_splits(kind, seed)
        source = f"{data.path}: column {data.split_column!r}" if kind == "column" else kind
        if kind != "column" and max(words, default=0) >= len(data):
            raise click.ClickException(f"{kind}: has row {max(words)}, but {data.path} ends at row {len(data) - 1}; it was made from another table")
        parts, remedy = named_split(usable, words, source), "each needs rows that say train, val and test"
    if min(map(len, parts)) == 0:
        raise click.ClickException(f"{data.path}: {len(usable)} usable molecules leave a part of the {Path(kind).name} split empty; {remedy}")
    split = dict(zip(PARTS, parts))
    if warn:
        describe(data, split, Path(kind).name, seed)
    return split


def describe(data, split, kind, seed):
    """Print sizes, the scaffolds that test shares with training, and a warning for molecules that stand in both."""
    train = {scaffold(data.smiles[i]) for i in split["train"]}
    shared = np.mean([scaffold(data.smiles[i]) in train for i in split["test"]])
    click.echo(f"{kind} split, seed {seed}: {', '.join(f'{len(rows)} {part}' for part, rows in split.items())}; "
               f"{100 * shared:.0f}% of the test molecules share a scaffold with training")
    spelled = {i: canonical(data.smiles[i]) for rows in split.values() for i in rows}
    known = {spelled[i] for i in split["train"]}
    twins = sum(spelled[i] in known for part in ("val", "test") for i in split[part])
    if twins:
        click.echo(f"warning: {twins} rows of val and test hold molecules that stand in the training part as well", err=True)


@cache
def canonical(smiles):
    return Chem.CanonSmiles(smiles)


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def check_targets(data, split, warn=True):
    """Warn of targets that can't be learned or scored, and stop if there is no other."""
    known = {part: ~np.isnan(data.labels[rows]) for part, rows in split.items()}
    if not known["val"].any():
        raise click.ClickException(f"{data.path}: no label stands in the validation part; take another --split or more molecules")
    few = {"no label in training, it is not scored": ~known["train"].any(0), "no label in test, it is not scored": known["train"].any(0) & ~known["test"].any(0)}
    if (few["no label in training, it is not scored"] | few["no label in test, it is not scored"]).all():
        raise click.ClickException(f"{data.path}: no target has labels both in training and in test; take another --split or more molecules")
    single = {part: np.array([len(set(column[~np.isnan(column)])) == 1 for column in data.labels[rows].T]) for part, rows in split.items()}
    few |= {"one value only in training": single["train"], "one value only in test, " + ("no AUC" if data.task == "classification" else "no R2 or Spearman"): single["test"]}
    for what, which in few.items():
        if which.any() and warn:
            names = [data.targets[t] for t in np.flatnonzero(which)]
            click.echo(f"warning: {len(names)} of {len(data.targets)} targets: {what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}", err=True)


def label_scaling(labels, task):
    """Return (center, spread), float64 (targets,): mean and standard deviation of the known training labels."""
    center, spread = np.zeros(labels.shape[1]), np.ones(labels.shape[1])
    for t, column in enumerate(labels.T if task == "regression" else ()):
        known = column[~np.isnan(column)]
        if len(known):
            center[t], deviation, largest = known.mean(), known.std(), np.abs(known).max()
            spread[t] = deviation if deviation > 1e-12 * largest else largest or 1.0         # a constant: nothing to divide by
    return center, spread


def positive_weights(labels, wanted):
    """Return the weight of each target's positives, float64 (targets,): a number, or by "auto" negatives / positives."""
    if wanted != "auto":
        return np.full(labels.shape[1], wanted)
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints


def fingerprints(smiles):
    """Return ECFP4, 2048-bit Morgan fingerprints of radius 2, float32 (n, 2048)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles]).astype(np.float32)


def forest(bits, labels, split, task, seed, weight):
    """Return a random forest's predictions of one target for the test part."""
    rows = [i for i in split["train"] if not np.isnan(labels[i])]
    if not rows or (task == "classification" and len(set(labels[rows])) < 2):
        return np.full(len(split["test"]), labels[rows[0]] if rows else 0.0)
    options = {"random_state": seed, "n_jobs": -1}
    model = RandomForestClassifier(300, class_weight={0: 1.0, 1: weight}, **options) if task == "classification" else RandomForestRegressor(300, **options)
    model.fit(bits[rows], labels[rows]).set_params(n_jobs=1)             # threads would add up the trees in any order
    test = bits[split["test"]]
    return model.predict_proba(test)[:, list(model.classes_).index(1)] if task == "classification" else model.predict(test)
