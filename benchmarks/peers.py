"""What a user would pick instead, on the splits of our tables: chemprop, and RDKit's descriptors.

    python benchmarks/peers.py                          # all sets; chemprop on dhbd one seed only
    python benchmarks/peers.py --sets nhcs --seeds 1    # minutes on 2 cores
    python benchmarks/peers.py --peers descriptors

chemprop 2.3.1 with its defaults, on the CPU: it learns from the training part, its validation part
chooses the epoch. It has an environment of its own, benchmarks/runs/peers/venv, which this makes
(pip install, some GB). descriptors: a random forest of 300 trees on RDKit's descriptors (those that
are no number are 0), of training and validation rows, as heads have that need no validation part.
Splits, rows, labels and metrics are those of finetune.py with the splits of accuracy.py. Writes
benchmarks/results/peers.csv: test values over the seeds, and the mean seconds of a seed from the
table to the test predictions, so let nothing else run (load: the machine's before the cell, 0 if
idle). Each set, peer and seed is a cell in benchmarks/runs/peers/, and skipped if it is there.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

import click
import numpy as np
from accuracy import SETS
from rdkit.Chem.Descriptors import CalcMolDescriptors
from record import RESULTS, ROOT, RUNS, command_line, read_csv, surroundings
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from moleclip.files import save_json, save_table
from moleclip.metrics import score_all, summarise
from moleclip.molecules import Rejected, parse
from moleclip.splits import make_splits
from moleclip.table import Data, LabelScale

CHEMPROP = "chemprop==2.3.1"
FOLDER = RUNS / "peers"
TREES = 300
ONE_SEED = ("dhbd",)  # sets on which chemprop takes hours
KEPT = ("MAE", "RMSE", "ROC-AUC", "PR-AUC")
FIELDS = ("set", "split", "peer", "metric", "mean", "sd", "ci95", "seeds", "seconds", "load")
MAKING = ("versions", "machine", "commit", "command", "data")


class Task(NamedTuple):
    """A set's table and one seed's split of it."""

    name: str
    data: Data
    split: dict
    seed: int

    def labels(self, *parts):
        """Return (rows, labels (n, targets)) of some parts."""
        rows = [row for part in parts for row in self.split[part]]
        return rows, self.data.labels[rows]


def task_of(name, seed):
    """Return the Task of a set, as finetune.py splits it."""
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    drawable = [i for i, molecule in enumerate(data.molecules) if readable(molecule)]

    def usable():
        return [i for i in drawable if not data.problems[i] and not data.why_unlabelled(i)]

    return Task(name, data, make_splits(data, usable, SETS[name][0], [seed], False)[seed], seed)


def readable(molecule):
    """Tell whether a molecule can be drawn."""
    try:
        return bool(parse(molecule.smiles))
    except Rejected:
        return False


def chemprop(task, folder):
    """Return chemprop's predictions of the test part, (n, targets)."""
    data, binary = task.data, environment() / "chemprop"
    rows = [(row, part) for part, rows in task.split.items() for row in rows]
    targets = [f"y{t}" for t in range(len(data.targets))]
    lines = [
        [data.smiles[row], *("" if np.isnan(y) else f"{y:.10g}" for y in data.labels[row]), part]
        for row, part in rows
    ]
    save_table(folder / "table.csv", ["smiles", *targets, "split"], lines)
    words = ["train", "--data-path", folder / "table.csv", "--output-dir", folder / "run"]
    words += ["--smiles-columns", "smiles", "--target-columns", *targets]
    words += ["--splits-column", "split", "--task-type", data.task]
    words += ["--accelerator", "cpu", "--data-seed", task.seed, "--pytorch-seed", task.seed]
    with open(folder / "log.txt", "w") as log:
        subprocess.run([binary, *map(str, words)], stdout=log, stderr=log, check=True)
    told = read_csv(folder / "run" / "model_0" / "test_predictions.csv")
    wanted = [data.smiles[row] for row in task.split["test"]]
    assert [line["smiles"] for line in told] == wanted, "chemprop's rows are others"
    return np.array([[float(line[name]) for name in targets] for line in told])


def environment():
    """Return the programs' folder of chemprop's own environment, made if it isn't there."""
    venv, ready = FOLDER / "venv", FOLDER / "venv" / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "--quiet", CHEMPROP], check=True)
        ready.touch()
    return venv / "bin"


def descriptors(task, folder):
    """Return the predictions of the test part by a random forest on RDKit's descriptors."""
    learn, labels = task.labels("train", "val")
    test, told = task.split["test"], []
    inputs = {row: described(task.data.smiles[row]) for row in (*learn, *test)}
    known, asked = (np.stack([inputs[row] for row in rows]) for rows in (learn, test))
    forest = RandomForestClassifier
    if task.data.task == "regression":
        forest = RandomForestRegressor
    for column in labels.T:
        there = ~np.isnan(column)
        model = forest(TREES, random_state=task.seed, n_jobs=-1).fit(known[there], column[there])
        if task.data.task == "regression":
            told.append(model.predict(asked))
        else:
            told.append(model.predict_proba(asked)[:, list(model.classes_).index(1)])
    return np.stack(told, 1)


def described(smiles):
    """Return RDKit's descriptors of a molecule, float32, 0 where one is no number."""
    values = np.array([*CalcMolDescriptors(parse(smiles)).values()])
    limit = np.finfo(np.float32).max
    return np.clip(np.nan_to_num(values, nan=0.0), -limit, limit).astype(np.float32)


PEERS = {"chemprop": chemprop, "descriptors": descriptors}
NAMES = {"chemprop": "chemprop", "descriptors": "RDKit descriptors + random forest"}


def versions(peer):
    """Return the versions of what a peer stands on."""
    if peer == "descriptors":
        return surroundings(("rdkit", "scikit-learn"))["versions"]
    names = ("chemprop", "torch", "rdkit")
    ask = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {names}))"
    words = [environment() / "python", "-c", ask]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def cell(name, peer, seed):
    """Return the facts of one set, peer and seed: made now, or read."""
    data = hashlib.sha256((ROOT / "data" / f"{name}.csv").read_bytes()).hexdigest()[:16]
    folder = FOLDER / f"{name}-{peer}-{seed}-{data[:8]}"
    if not (folder / "cell.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = {"versions": versions(peer), "load": round(os.getloadavg()[0], 2), "data": data}
        made |= {key: value for key, value in surroundings(()).items() if key != "versions"}
        task, began = task_of(name, seed), time.perf_counter()
        told = PEERS[peer](task, folder)
        seconds = time.perf_counter() - began
        truth, known = (task.labels(part)[1] for part in ("test", "train"))
        unit = 1.0 if task.data.one_column() else LabelScale.of(known).std
        scores = score_all(truth, told, task.data.targets, task.data.task, unit)["pooled"]
        save_json(folder / "cell.json", made | {"seconds": seconds, "scores": scores})
    return json.loads((folder / "cell.json").read_text())


def rows_of(name, peer, cells):
    """Return the table's rows of the cells of several seeds."""
    rows, first = [], cells[0]
    for metric in (metric for metric in KEPT if metric in first["scores"]):
        found = summarise([each["scores"][metric] for each in cells])
        row = {"set": name, "split": SETS[name][0], "peer": NAMES[peer], "metric": metric}
        row |= {key: "" if found[key] is None else f"{found[key]:.6g}" for key in FIELDS[4:7]}
        row |= {"seeds": found["seeds"]}
        row["seconds"] = f"{np.mean([each['seconds'] for each in cells]):.1f}"
        row["load"] = max(each["load"] for each in cells)
        rows.append(row | {key: first.get(key, "") for key in MAKING} | {"command": command_line()})
    return rows


def save(rows):
    """Write rows into the table, in the place of those of the same set, peer and metric."""
    path = RESULTS / "peers.csv"
    key = lambda row: (row["set"], row["peer"], row["metric"])
    table = {key(row): row for row in [*read_csv(path), *rows]}
    order = sorted(table.values(), key=lambda row: list(SETS).index(row["set"]))
    header = [*FIELDS, *MAKING]
    save_table(path, header, [[row[name] for name in header] for row in order])


@click.command(help=__doc__)
@click.option("--sets", default=",".join(SETS), help="Data sets.  [default: all]")
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Who is measured.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds of split and training.")
def main(sets, peers, seeds):
    for name in sets.split(","):
        for peer in peers.split(","):
            own = seeds.split(",")[: 1 if name in ONE_SEED and peer == "chemprop" else None]
            rows = rows_of(name, peer, [cell(name, peer, int(seed)) for seed in own])
            save(rows)
            for row in rows:
                figures = f"{row['metric']:>8s} {row['mean']} ± {row['ci95'] or '?'}"
                print(f"{name:18s}{row['peer']:36s}{figures}, {row['seconds']} s a seed")


if __name__ == "__main__":
    main()
