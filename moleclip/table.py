"""The table that finetuning learns from: its label columns, checked, and how labels are scaled."""

import math
from typing import NamedTuple

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
        self.smiles = [molecule.smiles for molecule in self.molecules]
        self.problems = [molecule.problem for molecule in self.molecules]
        columns = self.pick_columns(header, targets)
        parsed = [self.parse_column(name) for name in columns]
        self.labels = np.concatenate(parsed, 1)
        self.targets = self.name_targets(columns, [values.shape[1] for values in parsed])
        known = self.labels[~np.isnan(self.labels)]
        if not len(known):
            raise click.ClickException(f"{path}: every label in {', '.join(columns)} is blank")
        self.task = self.pick_task(task, known)

    def __len__(self):
        return len(self.molecules)

    def column(self, name):
        """Return the cells of a column, stripped."""
        return [m.fields.get(name, "").strip() for m in self.molecules]

    def pick_columns(self, header, wanted):
        """Return the label columns: those asked for, or all columns of numbers but an index."""
        asked = [("--target", name) for name in wanted]
        if self.split_column is not None:
            asked.append(("--split-column", self.split_column))
        for option, name in asked:
            if name not in header:
                raise click.ClickException(
                    f"{self.path}: no column {name!r} for {option}; "
                    f"it has {', '.join(map(repr, header))}"
                )
        others = [name for name in header if name != self.smiles_column]
        free = [name for name in others if name != self.split_column]
        found = list(wanted) or [name for name in free if self.looks_like_labels(name)]
        if not found:
            hint = f"; columns beside the SMILES: {', '.join(others)}"
            hint = hint if others else ", it has the SMILES column alone"
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
        if not len(single) == len(cells) > 2:
            return True
        return not (float(single[0]).is_integer() and (np.diff(single) == 1).all())

    def parse_column(self, name):
        """Return a column as float64 (rows, width).

        Several blank-separated labels may share one column (MoleCLIP).
        """
        values = []
        for molecule, cell in zip(self.molecules, self.column(name)):
            numbers = [] if cell.lower() in BLANKS else numbers_in(cell)
            if numbers is None and not molecule.problem:
                raise click.ClickException(
                    f"{self.place(molecule)}: {name} is {cell!r}, not a number; "
                    "write a number, or leave the cell blank if it was not measured"
                )
            values.append(numbers or [])
        width = max(map(len, values), default=0) or 1
        for molecule, numbers in zip(self.molecules, values):
            if numbers and len(numbers) != width and not molecule.problem:
                raise click.ClickException(
                    f"{self.place(molecule)}: {name} has {len(numbers)} labels "
                    f"where others have {width}"
                )
        missing = [math.nan] * width
        return np.array([numbers if len(numbers) == width else missing for numbers in values])

    def place(self, molecule):
        """Return where a molecule stands, for messages."""
        return f"{self.path}: row {molecule.row} (line {molecule.line})"

    def name_targets(self, columns, widths):
        """Return a name for each target: its column's, with a number where several share one."""
        names = []
        for name, width in zip(columns, widths):
            names += [name] if width == 1 else [f"{name}_{i + 1}" for i in range(width)]
        for name in names:
            if names.count(name) > 1:
                raise click.ClickException(
                    f"{self.path}: two targets would be called {name!r}; "
                    "rename a column, or name each --target once"
                )
        return names

    def pick_task(self, wanted, known):
        """Return "regression" or "classification", by the known labels if `wanted` is auto."""
        other = known[~np.isin(known, (0, 1))]
        if wanted == "classification" and len(other):
            raise click.ClickException(
                f"{self.path}: --task classification needs labels 0 and 1 only; "
                f"there is {other[0]:g}"
            )
        return {"auto": "regression" if len(other) else "classification"}.get(wanted, wanted)


def numbers_in(cell):
    """Return the finite numbers of a blank-separated cell as floats, or None for anything else."""
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
            f"{data.path}: no label stands in the validation part; "
            "take another --split or more molecules"
        )
    unlearned = ~known["train"].any(0)
    untested = ~unlearned & ~known["test"].any(0)
    if (unlearned | untested).all():
        raise click.ClickException(
            f"{data.path}: no target has labels both in training and in test; "
            "take another --split or more molecules"
        )
    lost = "no AUC" if data.task == "classification" else "no R2 or Spearman"
    found = {
        "no label in training, it is not scored": unlearned,
        "no label in test, it is not scored": untested,
        "one value only in training": has_one_value(data.labels[split["train"]]),
        f"one value only in test, {lost}": has_one_value(data.labels[split["test"]]),
    }
    for what, which in found.items():
        names = [data.targets[t] for t in np.flatnonzero(which)]
        if names and warn:
            shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            count = f"{len(names)} of {len(data.targets)} targets"
            click.echo(f"warning: {count}: {what}: {shown}", err=True)


def has_one_value(labels):
    """Tell of each target whether its known labels are all the same, bool (targets,)."""
    return np.array([len(set(column[~np.isnan(column)])) == 1 for column in labels.T])


class LabelScale(NamedTuple):
    """Mean and standard deviation of each target's labels, (targets,): their zero and their unit.

    Both are NumPy arrays or both tensors, as is what they scale.
    """

    mean: object
    std: object

    @classmethod
    def of(cls, labels):
        """Return the scale of the known among labels (n, targets), float64."""
        scale = cls.identity(labels.shape[1])
        for t, column in enumerate(labels.T):
            known = column[~np.isnan(column)]
            if len(known):
                deviation, largest = known.std(), np.abs(known).max()
                constant = deviation <= 1e-12 * largest  # nothing to divide by
                scale.mean[t] = known.mean()
                scale.std[t] = (largest or 1.0) if constant else deviation
        return scale

    @classmethod
    def identity(cls, targets):
        """Return the scale that leaves labels as they are."""
        return cls(np.zeros(targets), np.ones(targets))

    def standardise(self, labels):
        """Return labels as a model learns them."""
        return (labels - self.mean) / self.std

    def unscale(self, outputs, task):
        """Return a model's outputs (n, targets) in the label's own unit, or as probabilities."""
        if task != "classification":
            return outputs * self.std + self.mean
        return 1 / (1 + np.exp(-outputs)) if isinstance(outputs, np.ndarray) else outputs.sigmoid()


def positive_weights(labels, wanted):
    """Return the weight of each target's positives, float64 (targets,).

    wanted: a number, or "auto" for negatives / positives.
    """
    if wanted != "auto":
        return np.full(labels.shape[1], wanted)
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)
