"""TODO"""

import math

import click
import numpy as np

from moleclip.formats import find_smiles_column, input_kind
from moleclip.molecules import read_molecules

INDEX_NAMES = {"num", "index", "indices", "id", "idx", "row", "no", "nr", "number", ""}
BLANKS = {"", "nan", "na", "null", "none"}


class Data:
    """What a CSV holds: one entry for every row, unreadable ones included.

    smiles: list of str; problems: list of str, "" where the row can be used; targets: names;
    labels: float64 (rows, targets), NaN where missing; task: "regression" or "classification".
    """

    def __init__(self, path, targets=(), task="auto", smiles_column=None, split_column=None):
        self.path, self.split_column = path, split_column
        if input_kind(path, smiles_column) != "table" or path == "-":
            raise click.ClickException(f"{path}: labels need a .csv or .tsv file with a header")
        self.molecules = list(read_molecules(path, smiles_column))
        header = list(self.molecules[0].fields)
        self.smiles_column = find_smiles_column(path, header, smiles_column)
        self.smiles, self.problems = (
            [m.smiles for m in self.molecules],
            [m.problem for m in self.molecules],
        )
        columns = self.pick_columns(header, targets)
        parsed = [self.parse_column(name) for name in columns]
        self.labels = np.concatenate(parsed, 1)
        self.targets = [
            name if values.shape[1] == 1 else f"{name}_{i + 1}"
            for name, values in zip(columns, parsed)
            for i in range(values.shape[1])
        ]
        for name in self.targets:
            if self.targets.count(name) > 1:
                raise click.ClickException(
                    f"{path}: two targets would be called {name!r}; rename a column, or name each --target once"
                )
        known = self.labels[~np.isnan(self.labels)]
        if not len(known):
            raise click.ClickException(f"{path}: every label in {', '.join(columns)} is blank")
        binary = bool(np.isin(known, (0, 1)).all())
        self.task = {"auto": "classification" if binary else "regression"}.get(task, task)
        if self.task == "classification" and not binary:
            raise click.ClickException(
                f"{path}: --task classification needs labels 0 and 1 only; there is {known[~np.isin(known, (0, 1))][0]:g}"
            )

    def __len__(self):
        return len(self.molecules)

    def column(self, name):
        return [m.fields.get(name, "").strip() for m in self.molecules]

    def pick_columns(self, header, wanted):
        """Return the label columns: those asked for, or every column of numbers that is no index."""
        for option, name in [("--target", name) for name in wanted] + [
            ("--split-column", self.split_column)
        ] * (self.split_column is not None):
            if name not in header:
                raise click.ClickException(
                    f"{self.path}: no column {name!r} for {option}; it has {', '.join(map(repr, header))}"
                )
        found = list(wanted) or [
            name
            for name in header
            if name not in (self.smiles_column, self.split_column) and self.looks_like_labels(name)
        ]
        if not found:
            others = [name for name in header if name != self.smiles_column]
            hint = (
                f"; columns beside the SMILES: {', '.join(others)}"
                if others
                else ", it has the SMILES column alone"
            )
            raise click.ClickException(
                f"{self.path}: no column of numbers to learn from{hint}. Name one with --target"
            )
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
        counts = (
            len(single) == len(cells) > 2
            and float(single[0]).is_integer()
            and (np.diff(single) == 1).all()
        )
        return not counts

    def parse_column(self, name):
        """Return a column as float64 (rows, width): several blank-separated labels may share one column (MoleCLIP)."""
        values = []
        for molecule, cell in zip(self.molecules, self.column(name)):
            numbers = [] if cell.lower() in BLANKS else numbers_in(cell)
            if numbers is None and not molecule.problem:
                raise click.ClickException(
                    f"{self.path}: row {molecule.row} (line {molecule.line}): {name} is {cell!r}, not a number; "
                    "write a number, or leave the cell blank if it was not measured"
                )
            values.append(numbers or [])
        width = max(map(len, values), default=0) or 1
        for molecule, numbers in zip(self.molecules, values):
            if numbers and len(numbers) != width and not molecule.problem:
                raise click.ClickException(
                    f"{self.path}: row {molecule.row} (line {molecule.line}): {name} has {len(numbers)} labels where others have {width}"
                )
        return np.array(
            [numbers if len(numbers) == width else [math.nan] * width for numbers in values]
        )


def numbers_in(cell):
    """Return the finite numbers of a blank-separated cell as floats, or None if it holds anything else."""
    try:
        numbers = [float(word) if word.lower() not in BLANKS else math.nan for word in cell.split()]
    except ValueError:
        return None
    return numbers if numbers and all(abs(x) < 1e30 or x != x for x in numbers) else None


def check_targets(data, split, warn=True):
    """Warn of targets that can't be learned or scored, and stop if there is no other."""
    known = {part: ~np.isnan(data.labels[rows]) for part, rows in split.items()}
    if not known["val"].any():
        raise click.ClickException(
            f"{data.path}: no label stands in the validation part; take another --split or more molecules"
        )
    few = {
        "no label in training, it is not scored": ~known["train"].any(0),
        "no label in test, it is not scored": known["train"].any(0) & ~known["test"].any(0),
    }
    if (
        few["no label in training, it is not scored"] | few["no label in test, it is not scored"]
    ).all():
        raise click.ClickException(
            f"{data.path}: no target has labels both in training and in test; take another --split or more molecules"
        )
    single = {
        part: np.array([len(set(column[~np.isnan(column)])) == 1 for column in data.labels[rows].T])
        for part, rows in split.items()
    }
    few |= {
        "one value only in training": single["train"],
        "one value only in test, "
        + ("no AUC" if data.task == "classification" else "no R2 or Spearman"): single["test"],
    }
    for what, which in few.items():
        if which.any() and warn:
            names = [data.targets[t] for t in np.flatnonzero(which)]
            click.echo(
                f"warning: {len(names)} of {len(data.targets)} targets: {what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}",
                err=True,
            )


def label_scaling(labels, task):
    """Return (center, spread), float64 (targets,): mean and standard deviation of the known training labels."""
    center, spread = np.zeros(labels.shape[1]), np.ones(labels.shape[1])
    for t, column in enumerate(labels.T if task == "regression" else ()):
        known = column[~np.isnan(column)]
        if len(known):
            center[t], deviation, largest = known.mean(), known.std(), np.abs(known).max()
            spread[t] = (
                deviation if deviation > 1e-12 * largest else largest or 1.0
            )  # a constant: nothing to divide by
    return center, spread


def positive_weights(labels, wanted):
    """Return the weight of each target's positives, float64 (targets,): a number, or by "auto" negatives / positives."""
    if wanted != "auto":
        return np.full(labels.shape[1], wanted)
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)
