"""The table that finetuning learns from: its label columns, checked, and how labels are scaled."""

import hashlib
import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from moleclip.files import open_text
from moleclip.formats import SAMPLED, find_mark, find_smiles_column, input_kind, suffix_of
from moleclip.labels import differs_beside, read_cell, read_column
from moleclip.molecules import read_molecules
from moleclip.proteintable import Pairs


class Data:
    """What a table holds: one entry for every row, unreadable ones included.

    smiles: list of str; problems: list of str, "" where the row can be used; targets: names;
    labels: float64 (rows, targets), NaN where missing; task: "regression" or "classification".
    Of each target: columns, that it comes from; classes, the words of 0 and 1, () where it has
    none; units; qualified, {row: text}. left_out: {column: why it is not learned}. pairs: Pairs,
    proteins: their names, None without --proteins.
    """

    def __init__(
        self, path, targets=(), task="auto", smiles_column=None, split_column=None, proteins=None
    ):
        self.path, self.split_column, self.wanted_task = path, split_column, task
        if input_kind(path, smiles_column) != "table" or path == "-":
            raise click.ClickException(f"{path}: labels need a .csv or .tsv file with a header")
        self.molecules = list(read_molecules(path, smiles_column))
        if len(self.molecules) == 1:
            raise click.ClickException(f"{path}: has one row; a model needs more to learn from")
        self.header = list(self.molecules[0].fields)
        self.smiles_column = find_smiles_column(path, self.header, smiles_column)
        self.smiles = [molecule.smiles for molecule in self.molecules]
        self.problems = [molecule.problem for molecule in self.molecules]
        self.pairs = Pairs(proteins, path, self.molecules, self.problems) if proteins else None
        self.proteins = self.pairs and self.pairs.names
        self.counts = "pair" if proteins else "molecule"  # what a row is
        self.comma, self.left_out = has_semicolons(path, smiles_column), {}
        self.comma = self.comma and self.has_decimal_commas()
        found = self.named_columns(targets) if targets else self.pick_columns()
        self.task = self.one_task(found)
        for name, column in found.items():
            self.refuse_wrong(name, column)
        widths = {name: column.values.shape[1] for name, column in found.items()}
        self.columns = [name for name in found for _ in range(widths[name])]
        self.targets = self.name_targets(widths)
        self.labels = np.concatenate([column.values for column in found.values()], 1)
        self.classes = [found[name].classes for name in self.columns]
        self.units = [found[name].unit for name in self.columns]
        self.qualified = [found[name].qualified for name in self.columns]

    def __len__(self):
        return len(self.molecules)

    def column(self, name):
        """Return the cells of a column, stripped."""
        return [m.fields.get(name, "").strip() for m in self.molecules]

    def has_decimal_commas(self):
        """Tell whether a cell of the table begins with a number with a decimal comma."""
        number = re.compile(r"[<>~≤≥=\s]*[+−–-]?\d*,\d+(?![\d,-])")
        return any(number.match(cell) for m in self.molecules for cell in m.fields.values())

    def read(self, name, positive=None):
        """Return the Column of this name, by its rows that can be used."""
        cells = ["" if m.problem else m.fields.get(name, "").strip() for m in self.molecules]
        return read_column(name, cells, self.comma, positive, self.wanted_task)

    def check_name(self, option, name):
        """Refuse a column that is not there."""
        if name not in self.header:
            raise click.ClickException(
                f"{self.path}: no column {name!r} for {option}; "
                f"it has {', '.join(map(repr, self.header))}"
            )

    def named_columns(self, wanted):
        """Return {name: Column} of those asked for: NAME, or NAME=WORD for the class that is 1."""
        found = {}
        for text in wanted:
            name, equals, word = text.rpartition("=")
            if text in self.header or not equals:
                name, word = text, None
            self.check_name("--target", name)
            if name in found:
                raise click.ClickException(
                    f"{self.path}: two targets would be called {name!r}; name each --target once"
                )
            found[name] = self.read(name, word)
            if found[name].reason == "every cell is blank":
                raise click.ClickException(f"{self.path}: every label in {name} is blank")
            if not found[name].kind:
                raise click.ClickException(f"{self.path}: {name}: {found[name].reason}")
        return found

    def pick_columns(self):
        """Return {name: Column} of all columns of numbers or classes that measure something."""
        if self.split_column is not None:
            self.check_name("--split-column", self.split_column)
        known = [self.smiles_column, self.split_column, self.pairs and self.pairs.proteins.column]
        others = [name for name in self.header if name not in known]
        read = {name: self.read(name) for name in others}
        found = {name: column for name, column in read.items() if not column.reason}
        self.left_out = {name: each.reason for name, each in read.items() if each.reason}
        doubtful = [name for name, column in read.items() if column.asked]
        if doubtful:
            name = doubtful[0]
            choice = [each for each in (name, *found) if read[each].kind]
            choice = ", ".join(f"--target {shlex.quote(each)}" for each in choice)
            raise click.ClickException(
                f"{self.path}: {name} looks like labels, but {read[name].reason}"
                + f"; say what to learn, such as {choice}" * bool(choice)
            )
        if not found:
            reasons = ", ".join(f"{name} ({why})" for name, why in self.left_out.items())
            hint = f"; columns beside the SMILES: {reasons}"
            hint = hint if reasons else ", it has the SMILES column alone"
            raise click.ClickException(
                f"{self.path}: no column of numbers to learn from{hint}. Name one with --target"
            )
        return found

    def one_task(self, found):
        """Return "regression" or "classification"; a run has one of them."""
        kinds = {
            kind: [n for n in found if found[n].kind == kind] for kind in ("numbers", "classes")
        }
        numbers, classes = kinds["numbers"], kinds["classes"]
        if numbers and self.wanted_task == "classification":
            raise click.ClickException(
                f"{self.path}: --task classification needs two classes, such as 0 and 1; "
                f"{numbers[0]} has more"
            )
        if classes and self.wanted_task == "regression":
            worded = [name for name in classes if found[name].classes]
            if worded:
                raise click.ClickException(
                    f"{self.path}: --task regression needs numbers; {worded[0]} has classes"
                )
            return "regression"
        if numbers and classes:
            flags = (" ".join(f"--target '{n}'" for n in names) for names in (numbers, classes))
            lead = f"finetune.py --data {shlex.quote(self.path)}"
            both = f"has numbers ({', '.join(numbers)}) and classes ({', '.join(classes)})"
            ways = " or ".join(f"{lead} {each}" for each in flags)
            raise click.ClickException(f"{self.path}: {both}, and a run learns one kind: {ways}")
        return "classification" if classes else "regression"

    def refuse_wrong(self, name, column):
        """Refuse a column of numbers in which some cells can't be read."""
        if column.wrong:
            row, text = column.wrong
            width, count = column.values.shape[1], len(text.split())
            says = f"is {text!r}, not a number; "
            says += "write a number, or leave the cell blank if it was not measured"
            if read_cell(text, self.comma):
                says = f"has {count} labels where others have {width}"
            raise click.ClickException(f"{self.place(self.molecules[row])}: {name} {says}")

    def place(self, molecule):
        """Return where a molecule stands, for messages."""
        return f"{self.path}: row {molecule.row} (line {molecule.line})"

    def name_targets(self, widths):
        """Return a name for each target: its column's, with a number where several share one."""
        names = []
        for name, width in widths.items():
            names += [name] if width == 1 else [f"{name}_{i + 1}" for i in range(width)]
        for name in names:
            if names.count(name) > 1:
                raise click.ClickException(
                    f"{self.path}: two targets would be called {name!r}; "
                    "rename a column, or name each --target once"
                )
        return names

    def keep(self, which):
        """Keep these targets alone, by their places."""
        self.labels = self.labels[:, which]
        for name in ("columns", "targets", "classes", "units", "qualified"):
            setattr(self, name, [getattr(self, name)[t] for t in which])

    def notes(self):
        """Return lines that say what of the table is learned, what isn't, and why."""
        lines = []
        if self.left_out:
            names = [f"{name.strip() or 'no name'} ({why})" for name, why in self.left_out.items()]
            more = f", and {len(names) - 12} more" if len(names) > 12 else ""
            lines.append(
                f"not learned: {', '.join(names[:12])}{more}; --target names what to learn"
            )
        beside = (differs_beside(n, self.column(n)) for n in self.header if n not in self.columns)
        lines += [f"warning: {line}" for line in beside if line]
        for name, words in dict(zip(self.columns, self.classes)).items():
            if words:
                turn = f"--target '{name}={words[0]}' turns it"
                lines.append(f"{name}: {words[1]} is the positive class, {words[0]} is 0; {turn}")
        for name, unit, found in zip(self.columns, self.units, self.qualified):
            if unit:
                lines.append(f"{name}: in {unit}")
            if found:
                first = next(iter(found.values()))
                says = f"{len(found)} values are not exact (such as {first})"
                lines.append(f"{name}: {says} and are left out of training and test")
        return lines

    def parts_digest(self, split):
        """Return the SHA-256 of the splits.csv or of the column that says the parts, else None."""
        if self.split_column:
            text = "\n".join(self.column(self.split_column)).encode("utf-8", "surrogateescape")
        else:
            text = Path(split).read_bytes() if Path(split).is_file() else None
        return text and hashlib.sha256(text).hexdigest()

    def one_column(self):
        """Tell whether all targets come from one column, and so have one unit."""
        return len(set(self.columns)) == 1

    def why_unlabelled(self, row):
        """Return why a row has no label to learn from, "" if it has one."""
        if not np.isnan(self.labels[row]).all():
            return ""
        texts = [f"{n} is {q[row]}" for n, q in zip(self.targets, self.qualified) if row in q]
        return f"no exact label ({', '.join(texts)})" if texts else "no label"


def has_semicolons(path, smiles_column):
    """Tell whether semicolons separate a table's columns, so that 1,5 may be a number."""
    if suffix_of(path) not in (".csv", ".tsv"):
        return False
    with open_text(path) as stream:
        sample = list(itertools.islice(stream, SAMPLED))
    told = re.match(r'"?sep=(.)', sample[0])
    return (told[1] if told else find_mark(path, sample, smiles_column)) == ";"


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


def patterns_of(labels):
    """Return [(rows, targets)], arrays of places, of targets that are known on the same rows."""
    found = {}
    for t, known in enumerate(~np.isnan(labels).T):
        found.setdefault(known.tobytes(), (np.flatnonzero(known), []))[1].append(t)
    return list(found.values())


def positive_weights(labels, wanted):
    """Return the weight of each target's positives, float64 (targets,).

    wanted: a number, or "auto" for negatives / positives.
    """
    if wanted != "auto":
        return np.full(labels.shape[1], wanted)
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    return np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)
