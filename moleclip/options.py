"""The options of all stations: those that mean the same everywhere, and what reads a value."""

import math
from pathlib import Path

import click

from moleclip.molecules import MAX_ATOMS, Part

SEED = click.IntRange(0, 2**32 - 1)
LOSSES = ("contrastive", "classes", "descriptors", "fingerprint", "atoms", "electronic")
ALIGN_LOSSES = ("contrast", "shifts", "descriptors", "atoms", "electronic")
BESIDE = ("maps", "cca")  # ways in which what is counted stands beside encoders: see counted.py
LEVELS = {level: level for level in ("none", "default", "intense")}


class Positive(click.FloatRange):
    """A finite number above 0."""

    def __init__(self):
        super().__init__(0, 1e6, min_open=True)

    def convert(self, value, parameter, context):
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", parameter, context)
        return number


def parse_loss(context, parameter, value):
    """Return {"contrastive": weight, "classes": weight} of "contrastive=1,classes=1".

    What is not named keeps 1. Further tasks are there if their weights are above 0.
    """
    weights = named_weights(value, LOSSES, LOSSES[:2])
    return {name: weight for name, weight in weights.items() if weight or name in LOSSES[:2]}


def parse_align_loss(context, parameter, value):
    """Return {"contrast": weight, ...} of "contrast=1,shifts=0.3": the tasks above 0."""
    weights = named_weights(value, ALIGN_LOSSES, ALIGN_LOSSES[:1])
    return {name: weight for name, weight in weights.items() if weight}


def parse_beside(context, parameter, value):
    """Return the names that "maps+cca" holds, a sorted list; [] of "none"."""
    names = [] if value == "none" else value.split("+")
    if set(names) - {*BESIDE} or len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r} is not {', '.join(BESIDE)}, both joined by +, or none")
    return sorted(names)


def named_weights(value, tasks, usual):
    """Return {task: weight} of "TASK=WEIGHT,TASK=WEIGHT"; the usual ones keep 1 if not named.

    Raises click.BadParameter.
    """
    weights = dict.fromkeys(usual, 1.0)
    for word in value.split(","):
        name, _, number = word.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in tasks or not 0 <= weight < 1e6:
            raise click.BadParameter(
                f"{word!r} is not TASK=WEIGHT, of 0 or more; tasks are {', '.join(tasks)}"
            )
        weights[name] = weight
    if not any(weights.values()):
        raise click.BadParameter("at least one weight must be above 0")
    return weights


def parse_rates(context, parameter, value):
    """Return the learning rates of the encoder and of the heads, from "5e-5,1e-3".

    Without a second the heads have 0.01, the paper's.
    """
    rates = [Positive().convert(word, parameter, context) for word in value.split(",")]
    if len(rates) > 2:
        raise click.BadParameter(
            f"{value!r} is not a learning rate, or two: that of the encoder and that of the heads, "
            "such as 5e-5,1e-3"
        )
    return (rates + [0.01])[:2]


def comma_list(kind, says):
    """Return a click callback that reads a list such as 1,2,3 and wants each value once."""

    def parse(context, parameter, value):
        if value is None:
            return None
        try:
            values = [kind(word) for word in value.split(",")]
        except (ValueError, KeyError):
            raise click.BadParameter(f"{value!r} is not {says}") from None
        if len(set(values)) < len(values):
            raise click.BadParameter(f"{value!r} has a value twice; each once")
        return values

    return parse


def number_between(low, high, kind=float):
    """Return a function that reads a number, and raises ValueError if it is not between the two."""

    def read(word):
        number = kind(word)
        if not low < number < high:
            raise ValueError(f"{word} is out of range")
        return number

    return read


def positive_weight(context, parameter, value):
    """Return the number of --pos-weight, "auto", or None."""
    try:
        return value if value in (None, "auto") else number_between(0, 1e6)(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither auto nor a number above 0") from None


def parse_part(context, parameter, value):
    """Return the Part of --part I/N; all of the input without it."""
    words = (value or "1/1").split("/")
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(words) != 2 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 2/8")
    return Part(*numbers)


def shown(name, default, does, **more):
    """An option of one station alone, whose default stands in the help."""
    return click.option(name, default=default, show_default=True, help=does, **more)


# Options that several stations have, each declared here once. A station says in `does` what the
# option does there.


def out(default, does, kind=None):
    """--out: where the result goes."""
    return click.option(
        "-o", "--out", default=default, show_default=default is not None, type=kind, help=does
    )


def out_path(default, does):
    """--out, as a Path."""
    return out(default, does, click.Path(path_type=Path))


def seed(does):
    """--seed of everything random."""
    return click.option("--seed", default=0, show_default=True, type=SEED, help=does)


def workers(does="Drawing processes."):
    """--workers: processes beside this one."""
    does = f"{does}  [default: one a core]"
    return click.option("--workers", default=None, type=click.IntRange(1), help=does)


def max_atoms(does="Reject molecules with more heavy atoms."):
    """--max-atoms: the largest molecule that is drawn."""
    kind = click.IntRange(1)
    return click.option("--max-atoms", default=MAX_ATOMS, show_default=True, type=kind, help=does)


def part(does):
    """--part I/N: for a job array."""
    return click.option("--part", default=None, callback=parse_part, metavar="I/N", help=does)


def resume(does):
    """--resume: go on with interrupted work."""
    return click.option("--resume", is_flag=True, help=does)


def smiles_column():
    """--smiles-column of a table."""
    does = "Column of a table that holds the SMILES, or InChI.  [default: found by name]"
    return click.option("--smiles-column", help=does)


def batch(default, least, does):
    """--batch: the global one, over all processes."""
    shown = default is not None
    kind = click.IntRange(least)
    return click.option("--batch", default=default, show_default=shown, type=kind, help=does)


def r_groups(does):
    """--r-groups: draw the ends of molecules as R-groups."""
    return click.option("--r-groups", is_flag=True, help=does)


def proteins(does):
    """--proteins: a table of sequences, or embeddings by name."""
    return click.option("--proteins", metavar="FILE", help=does)


def device():
    """--device of training."""
    kinds = click.Choice(["auto", "cpu", "cuda"])
    return click.option(
        "--device", default="auto", show_default=True, type=kinds, help="Where to compute."
    )


def precision(kinds, default, does):
    """--precision of arithmetic or weights."""
    kinds = click.Choice(kinds)
    return click.option("--precision", default=default, show_default=True, type=kinds, help=does)


def provider():
    """--provider of onnxruntime."""
    kinds = click.Choice(["auto", "cpu", "cuda"])
    return click.option(
        "--provider", default="auto", show_default=True, type=kinds, help="Where the model runs."
    )
