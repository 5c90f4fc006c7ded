"""How the error grows as test molecules get less like those of training: nearest_training's worth.

    python benchmarks/likeness.py                     # an hour on 2 cores
    python benchmarks/likeness.py --sets esol,bace

The bundled encoder, frozen, on the eight sets, by the runs of benchmarks/accuracy.py (made where
they are not there yet). Test molecules are sorted into bins by `nearest_training`, the Tanimoto
similarity of ECFP4 to the closest training molecule, which predict.py writes beside each number.
Of each bin: MAE, and what it is of the MAE of the training mean on the same rows; of classes
accuracy, Brier score, and what that is of the Brier score of the training share. Means over the
targets. Writes benchmarks/results/likeness.csv, set by set; a run that was cut goes on with the
seeds that are missing. What another encoder was measured by is left out of the table.
"""

import csv

import accuracy
import click
import numpy as np
from record import RESULTS, ROOT, read_csv, record

from moleclip.features import fingerprints
from moleclip.table import Data
from moleclip.weights import init_digest

INIT = "bundled"
BINS = {"below 0.3": 0.3, "0.3 to 0.5": 0.5, "0.5 to 0.7": 0.7, "0.7 and above": 2}
SEEDS = "1,2,3"  # as the tables have them; a scaffold split is the same for all


def nearest(smiles, training):
    """Return the Tanimoto similarity of each SMILES to the closest of `training`, float (n,)."""
    ours, known = fingerprints(smiles), fingerprints(training)
    shared = ours @ known.T
    return (shared / (ours.sum(1)[:, None] + known.sum(1) - shared)).max(1)


def tested(folder, data, seed):
    """Return a seed's test part: {"rows", "nearest", "known", "said", "mean"}.

    known, said, mean: labels, predictions and the training mean, float64 (n, targets).
    """
    with open(folder / f"seed-{seed}" / "predictions.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    rows, training = (
        [i for i, line in enumerate(lines) if line["split"] == part] for part in ("test", "train")
    )
    smiles = [[data.smiles[i] for i in part] for part in (rows, training)]
    names = [f"predicted_{name}" for name in data.targets]
    return {
        "rows": np.array(rows),
        "nearest": nearest(*smiles),
        "known": data.labels[rows],
        "said": np.array([[float(lines[i][name]) for name in names] for i in rows]),
        "mean": np.broadcast_to(np.nanmean(data.labels[training], 0), data.labels[rows].shape),
    }


def figures(found, task):
    """Return the figures of tested rows, as text by their names."""
    known, said, mean = (found[key] for key in ("known", "said", "mean"))
    power = 2 if task == "classification" else 1
    ours, theirs = (np.nanmean(np.abs(each - known) ** power, 0) for each in (said, mean))
    facts = {"molecules": len(np.unique(found["rows"])), "MAE": "", "accuracy": "", "Brier": ""}
    if task == "classification":
        facts["accuracy"] = f"{np.nanmean((said > 0.5) == (known > 0.5)):.6g}"
    facts["Brier" if power == 2 else "MAE"] = f"{ours.mean():.6g}"
    return facts | {"of the training mean's": f"{ours.mean() / theirs.mean():.6g}"}


def encoder():
    """Return the beginning of the SHA-256 of the encoder's weights, as accuracy.csv has it."""
    return init_digest(INIT)[: accuracy.DIGITS]


def measure(name):
    """Return the rows of one set: one for each bin that has molecules, and one for all."""
    split = accuracy.SETS[name][0]
    seeds = "1" if name == "dhbd" else SEEDS  # its test part is large enough
    cell = accuracy.Cell("sets", name, "", "frozen", INIT, INIT, seeds, "1e-5", False)
    beside = cell._replace(baselines=True)  # the same run, with fingerprints
    if (beside.folder / "metrics.json").exists():
        cell = beside
    accuracy.finetuned(cell)
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    each = [tested(cell.folder, data, seed) for seed in seeds.split(",")]
    found = {key: np.concatenate([one[key] for one in each]) for key in each[0]}
    below, rows = 0, []
    for title, limit in (BINS | {"all": 2}).items():
        below = 0 if title == "all" else below
        chosen = (found["nearest"] >= below) & (found["nearest"] < limit)
        below = limit
        if chosen.any():
            part = {key: values[chosen] for key, values in found.items()}
            facts = {"set": name, "split": split, "nearest_training": title, "seeds": len(each)}
            rows.append(facts | figures(part, data.task) | {"init": encoder()})
    return rows


@click.command()
@click.option("--sets", default=",".join(accuracy.SETS), help="Data sets.  [default: all]")
def main(sets):
    """Measure the error by the likeness to training on these sets; others stay as they are."""
    for name in sets.split(","):
        found = measure(name)
        with accuracy.alone():
            before = [row for row in read_csv(RESULTS / "likeness.csv") if row["set"] != name]
            before = [row for row in before if row["init"] == encoder()]
            record("likeness", sorted(before + found, key=place), ("torch", "rdkit"))


def place(row):
    """Return a row's place: the sets in their order."""
    return list(accuracy.SETS).index(row["set"])


if __name__ == "__main__":
    main()
