"""How good the models are: one column of results/accuracy.csv for each way of training, on the paper's data sets and splits.

    python benchmarks/accuracy.py frozen --init dinov2-small.safetensors --name DINOv2-S         # minutes to an hour on 2 cores
    python benchmarks/accuracy.py finetuned --init weights/moleclip-small.pt --name bundled --sets esol,freesolv

Each cell is one command of finetune.py, which stands in the table beside its figures: settings are chosen on validation, every
number is the test part's, mean and 95% t-interval over seeds. Cells that are in the table already are skipped; the fingerprint
baselines are taken along with the column `frozen`. Runs lie in benchmarks/runs/.
"""

import csv
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path

import click
from record import ROOT, commit, machine

SETS = {"esol": ("scaffold", "RMSE"), "freesolv": ("scaffold", "RMSE"), "bace": ("scaffold", "ROC-AUC"), "bbbp": ("scaffold", "ROC-AUC"),
        "dhbd": ("random", "MAE"), "nhcs": ("random", "MAE"), "phosphines_yield": ("random", "MAE"), "kraken": ("random", "MAE")}
WAYS = {"frozen": "--freeze --epochs 200 --patience 40 --lr-head 1e-3,4e-4,1e-4",
        "finetuned": "--epochs 40 --patience 10 --lr-encoder 5e-5 --lr-head 4e-4 --augment none,default"}
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.csv"
FIELDS = ("set", "split", "model", "metric", "mean", "sd", "ci95", "seeds", "versions", "machine", "commit", "command")


def read_results():
    return list(csv.DictReader(open(RESULTS, newline=""))) if RESULTS.exists() else []


def run_cell(name, way, model, init, seeds):
    """Finetune on one set and return its rows of the table."""
    split, metric = SETS[name]
    out = ROOT / "benchmarks" / "runs" / f"{name} {way} {model}".replace(" ", "-")
    words = [sys.executable, "finetune.py", "--data", f"data/{name}.csv", "--split", split, "--seeds", seeds, *WAYS[way].split(), "--init", init, "-o", str(out)]
    if not (out / "metrics.json").exists():
        subprocess.run(words, cwd=ROOT, check=True)
    command = shlex.join(["python", *words[1:-4], "--init", Path(init).name])
    facts = {"versions": " ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "rdkit", "scikit-learn")), "machine": machine(), "commit": commit(), "command": command}
    rows = []
    for line in csv.DictReader(open(out / "scores.csv", newline="")):
        title = f"{model}, {way}" if line["method"] == "this model" else line["method"]
        if line["target"] == "" and line["metric"] in (metric, "MAE", "Spearman", "PR-AUC") and (way == "frozen" or title != line["method"]):
            rows.append({"set": name, "split": split, "model": title} | {key: line[key] for key in ("metric", "mean", "sd", "ci95", "seeds")} | facts)
    return rows


def save(rows):
    """Write the table, the sets in their order, and the newest figure of each cell."""
    cells = {(row["set"], row["model"], row["metric"]): row for row in rows}
    order = sorted(cells.values(), key=lambda row: (list(SETS).index(row["set"]), row["metric"] != SETS[row["set"]][1], row["metric"]))
    with open(RESULTS, "w", newline="") as stream:
        table = csv.DictWriter(stream, FIELDS)
        table.writeheader()
        table.writerows(order)


@click.command()
@click.argument("way", type=click.Choice(list(WAYS)))
@click.option("--init", required=True, help="Encoder to start from.")
@click.option("--name", required=True, help="What the table calls it.")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Data sets.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds of split and training.")
def main(way, init, name, sets, seeds):
    init = str(Path(init).resolve()) if Path(init).exists() else init
    for one in sets.split(","):
        if any(row["set"] == one and row["model"] == f"{name}, {way}" for row in read_results()):
            print(f"{one}: done")
            continue
        save(read_results() + run_cell(one, way, name, init, seeds))
    for row in read_results():
        if row["metric"] == SETS[row["set"]][1]:
            print(f"{row['set']:18s}{row['split']:10s}{row['model']:28s}{row['metric']:>8s} {float(row['mean']):.4g} ± {float(row['ci95']):.2g}")


if __name__ == "__main__":
    main()
