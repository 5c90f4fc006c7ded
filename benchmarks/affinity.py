"""Drug-target affinity on Davis: how well pKd of 68 kinase inhibitors and 442 kinases is told.

    python benchmarks/affinity.py                                   # all, hours on 2 cores
    python benchmarks/affinity.py --folds scaffold --features ecfp
    python benchmarks/affinity.py --rows 400 --head forest          # a try: nothing is recorded

Kinases by k-mers, inhibitors by pictures (the bundled encoder, frozen), by ECFP counts, or both.
Two folds: DeepDTA's published test fold, of random pairs (three trainings), where all inhibitors
and kinases stand in training; and five folds that hold out inhibitors by Bemis-Murcko scaffold, the
next fold for validation, the figures their mean. Beside them two plain answers: the mean of
training, and that plus what inhibitor and kinase are above or below it. MSE and concordance index
(CI) of test pairs, mean and 95% t-interval. Writes benchmarks/results/affinity.csv.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from accuracy import WITHOUT_BASELINES
from record import RESULTS, ROOT, read_csv, record

from moleclip.affinity import concordance
from moleclip.files import open_text, save_table
from moleclip.formats import csv_rows
from moleclip.metrics import summarise
from moleclip.molecules import scaffold

FOLDS = {"published": "1,2,3", "scaffold": "1,2,3,4,5"}  # and seeds: of training, of folds
FEATURES = ("picture", "ecfp", "picture+ecfp")
METRICS = {"CI": "concordance", "MSE": "MSE", "MAE": "MAE"}
PLAIN = ("mean of training", "means of inhibitor and kinase")


def read_davis(count):
    """Return Davis's pairs as dicts; of them so many by chance if asked."""
    path = str(ROOT / "data" / "davis.csv.gz")
    with open_text(path) as stream:
        header, *lines = [cells for _, cells, _ in csv_rows(path, stream)]
    if count:
        lines = [
            lines[i] for i in np.sort(np.random.default_rng(0).permutation(len(lines))[:count])
        ]
    return [dict(zip(header, cells)) for cells in lines]


def by_scaffold(pairs):
    """Return the fold, 0 to 4, of each pair: whole scaffolds, the largest first to the least."""
    groups, sizes, fold_of = {}, np.zeros(5), {}
    for smiles in dict.fromkeys(pair["smiles"] for pair in pairs):
        groups.setdefault(scaffold(smiles), []).append(smiles)
    for smiles in sorted(groups.values(), key=len, reverse=True):
        least = int(np.argmin(sizes))
        sizes[least] += len(smiles)
        fold_of |= dict.fromkeys(smiles, least)
    return [fold_of[pair["smiles"]] for pair in pairs]


def write_scaffolds(path, pairs):
    """Write a splits.csv with five columns: the test fold is each in turn."""
    folds, parts = by_scaffold(pairs), {0: "test", 1: "val"}
    names = [f"seed_{seed}" for seed in range(1, 6)]
    lines = [
        [i, *(parts.get((fold - k) % 5, "train") for k in range(5))] for i, fold in enumerate(folds)
    ]
    save_table(path, ["row", *names], lines)


def run(folder, table, fold, features, head, seeds):
    """Finetune on one fold and return its folder."""
    out = folder / f"{fold} {features} {head}".replace(" ", "-")
    split = "column" if fold == "published" else str(folder / "scaffold.csv")
    words = ["--data", str(table), "--proteins", "davis_proteins.csv", "--split", split]
    words += ["--seeds", seeds, "--head", head, "--features", features, "-o", str(out)]
    words += ["--init", "bundled"] if "picture" in features else []
    subprocess.run([sys.executable, "-c", WITHOUT_BASELINES, *words], cwd=ROOT, check=True)
    return out


def told_plainly(lines):
    """Return {of PLAIN: {metric: value}} of a seed's predictions.csv, by its training part."""
    parts = {part: [row for row in lines if row["split"] == part] for part in ("train", "test")}
    mean = np.mean([float(row["true_affinity"]) for row in parts["train"]])
    above = {key: {} for key in ("smiles", "protein")}
    for row in parts["train"]:
        for key, found in above.items():
            found.setdefault(row[key], []).append(float(row["true_affinity"]) - mean)
    truth = np.array([float(row["true_affinity"]) for row in parts["test"]])
    both = [sum(np.mean(f.get(row[key], 0)) for key, f in above.items()) for row in parts["test"]]
    told = dict(zip(PLAIN, (np.full(len(truth), mean), mean + np.array(both))))
    return {
        name: {
            "CI": concordance(truth, each),
            "MSE": float(np.mean((truth - each) ** 2)),
            "MAE": float(np.mean(np.abs(truth - each))),
        }
        for name, each in told.items()
    }


def figures(out, seeds, features, head):
    """Return [{"inhibitor", "head", "metric", ...}] of a run and of the plain answers there."""
    found = {}
    for seed in seeds.split(","):
        seed_folder = out / f"seed-{seed}"
        test = json.loads((seed_folder / "metrics.json").read_text())["test"]["this model"][
            "pooled"
        ]
        told = {(features, head): {name: test[key] for name, key in METRICS.items()}}
        told |= {
            (name, ""): each
            for name, each in told_plainly(read_csv(seed_folder / "predictions.csv")).items()
        }
        for key, values in told.items():
            found.setdefault(key, []).append(values)
    rows = []
    for (inhibitor, kind), values in found.items():
        for metric in METRICS:
            summary = summarise([each[metric] for each in values])
            facts = {"inhibitor": inhibitor, "head": kind, "metric": metric}
            rows.append(facts | {key: summary[key] for key in ("mean", "sd", "ci95", "seeds")})
    return rows


@click.command()
@click.option("--folds", default=",".join(FOLDS), show_default=True, help="published, scaffold.")
@click.option("--features", default="picture,ecfp", show_default=True, help="Of the inhibitors.")
@click.option("--head", default="mlp", show_default=True, help="mlp, forest, gp or auto.")
@click.option("--seeds", default=None, help="Of training, or of the folds by scaffold.")
@click.option("--rows", default=None, type=int, help="Take so many pairs; nothing is recorded.")
def main(folds, features, head, seeds, rows):
    """Measure how well affinities of Davis are told."""
    pairs, found = read_davis(rows), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        table = folder / "davis.csv"
        save_table(table, list(pairs[0]), [list(pair.values()) for pair in pairs])
        write_scaffolds(folder / "scaffold.csv", pairs)
        for fold in folds.split(","):
            for each in features.split(","):
                chosen = seeds or FOLDS[fold]
                out = run(folder, table, fold, each, head, chosen)
                found += [{"fold": fold} | row for row in figures(out, chosen, each, head)]
                save(found, rows)


def save(found, rows):
    """Record what was found beside what stands there of other cells; a try is printed alone."""
    if rows:
        for row in found:
            print(*row.values())
        return
    cell = lambda row: tuple(row[key] for key in ("fold", "inhibitor", "head", "metric"))
    kept = {cell(row): row for row in read_csv(RESULTS / "affinity.csv")}
    kept |= {cell(row): row for row in found}
    record("affinity", sorted(kept.values(), key=cell), ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main()
