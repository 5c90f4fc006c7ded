"""How good the models are, on the paper's data sets and splits: one column of a table for each encoder and way of training.

    python benchmarks/accuracy.py frozen --init dinov2-small.safetensors --name DINOv2-S         # minutes to an hour on 2 cores
    python benchmarks/accuracy.py finetuned --init bundled --name bundled --sets esol,freesolv   # half an hour on 2 cores
    python benchmarks/accuracy.py frozen --init bundled --name bundled --study r-groups          # original and R pictures
    python benchmarks/accuracy.py frozen --init bundled --name bundled --study fractions         # 10 and 30% of ESOL's training part

The transfer from Kraken's buried volumes to the yields: --init benchmarks/runs/kraken-finetuned-bundled/model.pt --name
"bundled then Kraken" --sets phosphines_yield. Each cell is one command of finetune.py, which stands in the table beside its
figures: settings are chosen on validation, every number is the test part's, mean and 95% t-interval over seeds. Cells that are in
the table already are skipped; the fingerprint baselines, the same for every encoder, are taken along with the first column `frozen`
of the study `sets`. Runs lie in benchmarks/runs/.
"""

import csv
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from record import ROOT, surroundings  # which puts the project's own scripts before these

from moleclip.files import save_json, save_table
from moleclip.splits import make_split
from moleclip.table import Data

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
WAYS = {
    "frozen": "--freeze --epochs 200 --patience 40 --lr-head 1e-3,4e-4,1e-4",
    "finetuned": "--batch 32 --lr-head 1e-4",
}
EPOCHS = {
    "esol": 8,
    "freesolv": 8,
    "nhcs": 25,
    "phosphines_yield": 25,
    "kraken": 6,
}  # of `finetuned`: what hours of 2 cores allow
PART_EPOCHS = {"10%": 20, "30%": 10}  # of `finetuned` on a part of ESOL's training part
STUDIES = {
    "sets": ("accuracy", list(SETS), [""]),
    "r-groups": ("r_groups", ["esol", "freesolv"], ["original", "R-groups"]),
    "fractions": ("fractions", ["esol"], ["10%", "30%"]),
}  # results file, sets, variants of each
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "runs"
ALONE = "import finetune; baselines = lambda *_, **__: {}; finetune.main()"  # without fingerprints, which take longer than a head
FIELDS = (
    "set",
    "split",
    "model",
    "variant",
    "metric",
    "mean",
    "sd",
    "ci95",
    "seeds",
    "versions",
    "machine",
    "commit",
    "command",
)


def read_results(study):
    path = RESULTS / f"{STUDIES[study][0]}.csv"
    return list(csv.DictReader(open(path, newline=""))) if path.exists() else []


def split_of(name, study, variant, seeds):
    """Return --split's value: as the paper has it (random for R-groups), or a file with a part of the training molecules."""
    if study != "fractions":
        return "random" if study == "r-groups" else SETS[name][0]
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    usable = [i for i, problem in enumerate(data.problems) if not problem]
    path, columns = RUNS / f"{name}-{variant.rstrip('%')}.csv", {}
    for seed in seeds.split(","):
        parts = make_split(data, usable, SETS[name][0], int(seed), warn=False)
        order = np.random.default_rng(int(seed)).permutation(
            parts["train"]
        )  # nested: the 10% are among the 30%
        parts["train"] = order[: round(len(order) * float(variant.rstrip("%")) / 100)]
        columns[seed] = {int(i): part for part, rows in parts.items() for i in rows}
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ["row", *(f"seed_{seed}" for seed in columns)],
                *([i, *(c.get(i, "") for c in columns.values())] for i in range(len(data))),
            ]
        )
    return str(path.relative_to(ROOT))


def run_cell(name, way, model, init, seeds, study, variant, lr_encoder, baselines):
    """Finetune on one set, unless the very run is there already, and return its rows of the table."""
    split, metric = (
        split_of(name, study, variant, seeds),
        "MAE" if study == "r-groups" else SETS[name][1],
    )
    words = [
        "--data",
        f"data/{name}.csv",
        "--split",
        split,
        "--seeds",
        seeds,
        *WAYS[way].split(),
        *(["--r-groups"] if variant == "R-groups" else []),
    ]
    words += (
        ["--epochs", str(PART_EPOCHS.get(variant, EPOCHS.get(name))), "--lr-encoder", lr_encoder]
        if way == "finetuned"
        else []
    )
    out = RUNS / f"{name} {way} {model} {variant}".strip().replace(" ", "-").replace("%", "")
    made = finetuned(out, words, init, baselines)
    rows = []
    for line in csv.DictReader(open(out / "scores.csv", newline="")):
        title = f"{model}, {way}" if line["method"] == "this model" else line["method"]
        if (
            line["target"] == ""
            and line["metric"] in (metric, "MAE", "Spearman", "PR-AUC")
            and (baselines or title != line["method"])
        ):
            rows.append(
                {"set": name, "split": Path(split).stem, "model": title, "variant": variant}
                | {key: line[key] for key in FIELDS if key in line}
                | {key: made[key] for key in FIELDS if key in made}
            )
    return rows


def finetuned(out, words, init, baselines):
    """Run finetune.py into a folder, unless the very run is there already, and return what made it, as in the folder's made_by.json."""
    command = shlex.join(
        [
            "python",
            "finetune.py",
            *words,
            "--init",
            os.path.relpath(init, ROOT) if Path(init).is_relative_to(ROOT) else Path(init).name,
        ]
    )
    wanted = {
        "command": command,
        "init": hashlib.sha256(Path(init).read_bytes()).hexdigest()
        if Path(init).exists()
        else init,
        "baselines": baselines,
    }
    if (out / "metrics.json").exists():
        made = (
            json.loads((out / "made_by.json").read_text())
            if (out / "made_by.json").exists()
            else {}
        )
        if wanted != {key: made.get(key) for key in wanted}:
            raise click.ClickException(
                f"{out}: a run by another command, or from another encoder; delete it to run the cell again"
            )
        return made
    subprocess.run(
        [
            sys.executable,
            *(["finetune.py"] if baselines else ["-c", ALONE]),
            *words,
            "--init",
            init,
            "-o",
            str(out),
        ],
        cwd=ROOT,
        check=True,
    )
    made = wanted | surroundings(("torch", "rdkit", "scikit-learn"))
    save_json(out / "made_by.json", made)
    return made


@contextmanager
def alone():
    """Let one process at a time change the tables: columns may be run side by side."""
    with open(RUNS / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def save(study, rows):
    """Write the table, the sets in their order; of rows for one cell the last counts."""
    cells = {(row["set"], row["model"], row["variant"], row["metric"]): row for row in rows}
    order = sorted(
        cells.values(),
        key=lambda row: (
            list(SETS).index(row["set"]),
            row["metric"] != SETS[row["set"]][1],
            row["metric"],
        ),
    )
    save_table(
        RESULTS / f"{STUDIES[study][0]}.csv",
        FIELDS,
        [[row[key] for key in FIELDS] for row in order],
    )


@click.command()
@click.argument("way", type=click.Choice(list(WAYS)))
@click.option("--init", required=True, help="Encoder to start from.")
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
    sets = (
        sets.split(",")
        if sets
        else [one for one in STUDIES[study][1] if way == "frozen" or one in EPOCHS]
    )
    if way == "finetuned" and not set(sets) <= set(EPOCHS):
        raise click.BadParameter(
            f"finetuned there are {', '.join(EPOCHS)}; add the epochs of others to EPOCHS",
            param_hint="--sets",
        )
    if way == "frozen" and lr_encoder:
        raise click.BadParameter("a frozen encoder doesn't learn", param_hint="--lr-encoder")
    init = str(Path(init).resolve()) if Path(init).exists() else init
    for one in sets:
        for variant in STUDIES[study][2]:
            if any(
                (row["set"], row["model"], row["variant"]) == (one, f"{name}, {way}", variant)
                for row in read_results(study)
            ):
                print(f"{one} {variant}: done")
                continue
            baselines = (
                study == "sets"
                and way == "frozen"
                and not any(
                    (row["set"], row["model"]) == (one, "ECFP + MLP") for row in read_results(study)
                )
            )
            rows = run_cell(
                one, way, name, init, seeds, study, variant, lr_encoder or "1e-5", baselines
            )
            with alone():
                save(study, read_results(study) + rows)
    for row in read_results(study):
        if row["metric"] == ("MAE" if study == "r-groups" else SETS[row["set"]][1]):
            print(
                f"{row['set']:18s}{row['split']:10s}{row['model']:28s}{row['variant']:10s}{row['metric']:>8s} {float(row['mean']):.4g} ± {float(row['ci95'] or 0):.2g}"
            )


if __name__ == "__main__":
    main()
