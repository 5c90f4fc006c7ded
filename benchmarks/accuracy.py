"""How good the models are on the paper's sets and splits: a column of a table for each encoder.

    python benchmarks/accuracy.py frozen --init dinov2-small.safetensors --name DINOv2-S
    python benchmarks/accuracy.py finetuned --init bundled --name bundled --sets esol,freesolv
    python benchmarks/accuracy.py frozen --init bundled --name bundled --study r-groups
    python benchmarks/accuracy.py frozen --init bundled --name bundled --study fractions
    python benchmarks/accuracy.py heads --init bundled --name bundled
    python benchmarks/accuracy.py fingerprints --name ECFP
    python benchmarks/accuracy.py graph --init aligned.pt --name "graph by 13C"
    python benchmarks/accuracy.py graph --init aligned.pt --name "graph by texts" --study momu

Minutes to an hour each on 2 cores. frozen is the MLP on pictures; heads what held-out folds choose
for the frozen encoder, fingerprints the same without pictures: its rival. graph is the MLP on a
frozen encoder of graphs (--init none: an untrained one), graph-finetuned both. r-groups: original
pictures and R-groups; fractions: 10 and 30% of ESOL's training part; momu: four of MoMu's
sets. The transfer from Kraken's buried volumes to the yields: --name "bundled then Kraken" --init
benchmarks/runs/kraken-finetuned-bundled-*/model.pt --sets phosphines_yield. Each cell is one
command of finetune.py, which stands in the table beside its figures: settings are chosen on
validation, every number is the test part's, mean and 95% t-interval over seeds. A cell is skipped
if the table has the very one: by the same command (seeds and settings stand in it), from the same
encoder, of the same data; made otherwise it is another row. Rows from before that was written down
stay. The fingerprint baselines, the same for every encoder, are taken along with the first column
`frozen` of the study `sets`. Runs lie in benchmarks/runs/.
"""

import csv
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from record import RESULTS, ROOT, RUNS, read_csv, surroundings
from tables import interval

from moleclip.files import save_json, save_table
from moleclip.splits import make_split
from moleclip.table import Data
from moleclip.weights import init_digest

SETS = {
    "esol": ("scaffold", "RMSE"),
    "freesolv": ("scaffold", "RMSE"),
    "bace": ("scaffold", "ROC-AUC"),
    "bbbp": ("scaffold", "ROC-AUC"),
    "dhbd": ("random", "MAE"),
    "nhcs": ("random", "MAE"),
    "phosphines_yield": ("random", "MAE"),
    "kraken": ("random", "MAE"),
}
MOMU = dict.fromkeys(("bace", "bbbp", "sider", "clintox"), ("scaffold", "ROC-AUC"))
SPLITS = SETS | MOMU
WAYS = {
    "frozen": "--freeze --epochs 200 --patience 40 --lr-head 1e-3,4e-4,1e-4",
    "finetuned": "--head mlp --batch 32 --lr-head 1e-4",
    "heads": "--freeze",
    "fingerprints": "--features ecfp",  # the rival: without an encoder
    "graph": "--features graph --freeze --epochs 200 --patience 40 --lr-head 1e-3,4e-4,1e-4",
    "graph-finetuned": "--features graph --head mlp --lr-head 1e-3 --patience 20",
}
# Of `finetuned`, what hours of 2 cores allow; on a part of ESOL's training part more.
EPOCHS = {"esol": 8, "freesolv": 8, "nhcs": 25, "phosphines_yield": 25, "kraken": 6}
PART_EPOCHS = {"10%": 20, "30%": 10}
STUDIES = {  # name of the results, sets, variants of each
    "sets": ("accuracy", list(SETS), [""]),
    "r-groups": ("r_groups", ["esol", "freesolv"], ["original", "R-groups"]),
    "fractions": ("fractions", ["esol"], ["10%", "30%"]),
    "momu": ("momu", list(MOMU), [""]),  # MoMu's protocol, for encoders of graphs
}
# Fingerprints take longer than a head.
WITHOUT_BASELINES = """
import sys, finetune
finetune.run(finetune.main.make_context("finetune.py", sys.argv[1:]), with_baselines=False)
"""
FACTS = ("set", "split", "model", "variant")
FIGURES = ("metric", "mean", "sd", "ci95", "seeds")
MADE_OF = ("command", "init", "data")  # what makes a cell; of files the beginning of the SHA-256
MAKING = ("versions", "machine", "commit", *MADE_OF)
FIELDS = FACTS + FIGURES + MAKING
DIGITS = 16  # of a SHA-256 that is shown
BESIDE = (
    "MAE",
    "Spearman",
    "PR-AUC",
    "coverage",
    "width",
    "Brier",
)  # metrics that are kept beside the set's own


class Cell(NamedTuple):
    """What one cell of a table is made of. baselines: whether fingerprints are taken along."""

    study: str
    set: str
    variant: str
    way: str
    init: str
    name: str
    seeds: str
    lr_encoder: str
    baselines: bool

    @property
    def model(self):
        """What the table calls the column."""
        return f"{self.name}, {self.way}"

    def made_of(self):
        """Return {"command", "init", "data"}: all that makes the cell what it is."""
        words = command_words(self, split_of(self))
        init = Path(self.init)
        shown = os.path.relpath(init, ROOT) if init.is_relative_to(ROOT) else init.name
        data = (ROOT / "data" / f"{self.set}.csv").read_bytes()
        return {
            "command": shlex.join(["python", "finetune.py", *words, *self.start(shown)]),
            "init": init_digest(self.init)[:DIGITS],
            "data": hashlib.sha256(data).hexdigest()[:DIGITS],
        }

    def start(self, init):
        """Return the words of --init; fingerprints have no encoder to start from."""
        option = "--graph" if self.way.startswith("graph") else "--init"
        return [] if self.way == "fingerprints" else [option, init]

    @property
    def folder(self):
        """Where the cell's run lies: another one for what is made otherwise."""
        words = f"{self.set} {self.way} {self.name} {self.variant}".strip()
        key = json.dumps([self.made_of(), self.baselines]).encode()
        digest = hashlib.sha256(key).hexdigest()[:8]
        return RUNS / f"{words} {digest}".replace(" ", "-").replace("%", "")


def metric_of(study, name):
    """Return the metric that counts for a set."""
    return "MAE" if study == "r-groups" else SPLITS[name][1]


def results_path(study):
    """Return the table of a study."""
    return RESULTS / f"{STUDIES[study][0]}.csv"


def split_of(cell):
    """Return --split's value: as the paper has it (random for R-groups), or a part's file."""
    if cell.study == "fractions":
        return write_fraction(cell.set, cell.variant.rstrip("%"), cell.seeds.split(","))
    return "random" if cell.study == "r-groups" else SPLITS[cell.set][0]


def write_fraction(name, percent, seeds):
    """Write a splits file whose training part is a fraction of the paper's, and return its path.

    The parts are nested: the 10% are among the 30%.
    """
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    usable = [i for i, problem in enumerate(data.problems) if not problem]
    columns = []
    for seed in map(int, seeds):
        parts = make_split(data, usable, SPLITS[name][0], seed, warn=False)
        order = np.random.default_rng(seed).permutation(parts["train"])
        parts["train"] = order[: round(len(order) * float(percent) / 100)]
        columns.append({int(i): part for part, rows in parts.items() for i in rows})
    path = RUNS / f"{name}-{percent}.csv"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["row", *(f"seed_{seed}" for seed in seeds)])
        table.writerows([i, *(c.get(i, "") for c in columns)] for i in range(len(data)))
    return str(path.relative_to(ROOT))


def command_words(cell, split):
    """Return the words of finetune.py's command that say what is learned, without --init and -o."""
    words = ["--data", f"data/{cell.set}.csv", "--split", split, "--seeds", cell.seeds]
    words += WAYS[cell.way].split()
    if cell.variant == "R-groups":
        words.append("--r-groups")
    if cell.way == "finetuned":
        epochs = PART_EPOCHS.get(cell.variant, EPOCHS.get(cell.set))
        words += ["--epochs", str(epochs), "--lr-encoder", cell.lr_encoder]
    return words


def run_cell(cell):
    """Finetune on one set, unless the very run is there already, and return its table rows."""
    made, metrics = finetuned(cell), (metric_of(cell.study, cell.set), *BESIDE)
    rows = []
    for line in read_csv(cell.folder / "scores.csv"):
        ours = line["method"] == "this model"
        if line["target"] or line["metric"] not in metrics or not (ours or cell.baselines):
            continue
        model = cell.model if ours else line["method"]
        row = dict(zip(FACTS, (cell.set, Path(split_of(cell)).stem, model, cell.variant)))
        row |= {key: line[key] for key in FIGURES}
        row |= {key: made[key] for key in MAKING}
        rows.append(row if ours else row | {"init": ""})
    return rows


def finetuned(cell):
    """Run finetune.py, unless the very run is there, and return the facts of its made_by.json.

    Among them are the seconds that it took, where it was not made of what another run had begun.
    """
    out, made_by, took = cell.folder, cell.folder / "made_by.json", {}
    if not (out / "metrics.json").exists():
        start = ["finetune.py"] if cell.baselines else ["-c", WITHOUT_BASELINES]
        words = [*command_words(cell, split_of(cell)), *cell.start(cell.init), "-o", str(out)]
        fresh, began = not out.exists(), time.perf_counter()
        subprocess.run([sys.executable, *start, *words], cwd=ROOT, check=True)
        took = {"seconds": round(time.perf_counter() - began, 1)} if fresh else {}
    if not made_by.exists():
        made = cell.made_of() | surroundings(("torch", "rdkit", "scikit-learn")) | took
        save_json(made_by, made)
    return json.loads(made_by.read_text())


@contextmanager
def alone():
    """Let one process at a time change the tables: columns may be run side by side."""
    RUNS.mkdir(exist_ok=True)
    with open(RUNS / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def save(study, rows):
    """Write the table, the sets in their order; of rows made of the same the last counts."""
    rows = [dict.fromkeys(FIELDS, "") | row for row in rows]
    cells = {tuple(row[key] for key in (*FACTS, "metric", *MADE_OF)): row for row in rows}

    def place(row):
        beside = row["metric"] != SPLITS[row["set"]][1]
        return list(SPLITS).index(row["set"]), beside, row["metric"]

    order = sorted(cells.values(), key=place)
    save_table(results_path(study), FIELDS, [[row[key] for key in FIELDS] for row in order])


def show(study):
    """Print the study's figures so far."""
    for row in read_csv(results_path(study)):
        if row["metric"] == metric_of(study, row["set"]):
            title = f"{row['set']:18s}{row['split']:10s}{row['model']:28s}{row['variant']:10s}"
            several = "" if int(row["seeds"]) > 1 else " (one seed)"
            print(f"{title}{row['metric']:>8s} {interval(row)}{several}")


def is_there(rows, cell):
    """Tell whether rows of a table have the very cell."""
    wanted = {"model": cell.model, "variant": cell.variant} | cell.made_of()
    return any(all(row.get(key) == wanted[key] for key in wanted) for row in rows)


def compared(rows, cell):
    """Tell whether rows of a table have the baselines of a cell's seeds and data."""
    made, beginning = cell.made_of(), cell.made_of()["command"].partition(" --init ")[0]
    return any(
        row["model"] == "ECFP + MLP"
        and row.get("data") == made["data"]
        and row["command"].startswith(f"{beginning} --init ")
        for row in rows
    )


def chosen_sets(way, study, sets):
    """Return the names of the sets to run. Raises click.BadParameter."""
    if not sets:
        return [name for name in STUDIES[study][1] if way != "finetuned" or name in EPOCHS]
    names = sets.split(",")
    if way == "finetuned" and not set(names) <= set(EPOCHS):
        known = ", ".join(EPOCHS)
        raise click.BadParameter(
            f"finetuned there are {known}; add the epochs of others to EPOCHS", param_hint="--sets"
        )
    return names


@click.command()
@click.argument("way", type=click.Choice(list(WAYS)))
@click.option("--init", default="none", help="Encoder to start from; fingerprints have none.")
@click.option("--name", required=True, help="What the table calls it.")
@click.option(
    "--study",
    default="sets",
    show_default=True,
    type=click.Choice(list(STUDIES)),
    help="What is compared.",
)
@click.option("--sets", default=None, help="Data sets.  [default: all of the study]")
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds of split and training.")
@click.option(
    "--lr-encoder",
    default=None,
    help="Learning rate of the encoder that is finetuned.  [default: 1e-5]",
)
def main(way, init, name, study, sets, seeds, lr_encoder):
    """Add a column to a table of accuracy: the encoder --init, frozen or finetuned."""
    if not way.startswith("graph") and (init == "none") != (way == "fingerprints"):
        raise click.BadParameter(f"{way} with {init}", param_hint="--init")
    if way != "finetuned" and lr_encoder:
        raise click.BadParameter("a frozen encoder doesn't learn", param_hint="--lr-encoder")
    init = str(Path(init).resolve()) if Path(init).exists() else init
    for one in chosen_sets(way, study, sets):
        for variant in STUDIES[study][2]:
            rows = read_csv(results_path(study))
            facts = (study, one, variant, way, init, name, seeds, lr_encoder or "1e-5")
            cell = Cell(*facts, baselines=False)
            if is_there(rows, cell):
                print(f"{one} {variant}: done")
                continue
            baselines = study == "sets" and way == "frozen" and not compared(rows, cell)
            rows = run_cell(cell._replace(baselines=baselines))
            with alone():
                save(study, read_csv(results_path(study)) + rows)
    show(study)


if __name__ == "__main__":
    main()
