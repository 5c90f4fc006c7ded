"""TODO"""

import csv
import json
import math
import shutil

import click
import numpy as np

from moleclip.files import save_json, save_table, save_whole
from moleclip.metrics import over_seeds, save_scores
from moleclip.plots import plot_report
from moleclip.splits import SUBSETS


def save_predictions(path, data, runs, best=0):
    """Write one line for every row of the input: row, smiles, split, then truth and prediction of each target, and error.

    runs: one dict for each seed, with "split" and "predicted" {row: (targets,)}. Split and prediction are those of run `best`, which
    is the model beside the file; with several runs there follow mean and SD of their predictions, and in how many the row was tested.
    """
    part_of = [{row: part for part, rows in run["split"].items() for row in rows} for run in runs]
    kinds = ("true", "predicted") + (("mean", "sd") if len(runs) > 1 else ())
    header = (
        ["row", "smiles", "split"]
        + [f"{kind}_{name}" for name in data.targets for kind in kinds]
        + ["tested"] * (len(runs) > 1)
        + ["error"]
    )
    lines = []
    for row, smiles in enumerate(data.smiles):
        cells = []
        for t in range(len(data.targets)):
            values = [run["predicted"][row][t] for run in runs if row in run["predicted"]]
            found = [data.labels[row, t], values[best] if values else math.nan]
            if len(runs) > 1:
                found += [np.mean(values), np.std(values, ddof=1)] if values else [math.nan] * 2
            cells += ["" if np.isnan(value) else f"{value:.7g}" for value in found]
        tested = [sum(parts.get(row) == "test" for parts in part_of)] * (len(runs) > 1)
        lines.append([row, smiles, part_of[best].get(row, ""), *cells, *tested, data.problems[row]])
    save_table(path, header, lines)


def finished(folder, config):
    """Tell whether a seed's folder is complete. Raises click.ClickException if it was begun with other settings."""
    there = load_facts(folder / "config.json") if (folder / "config.json").exists() else None
    wanted = json.loads(json.dumps(config))
    other = [key for key in wanted if there is not None and there.get(key) != wanted[key]]
    if other:
        raise click.ClickException(
            f"{folder}: part of an unfinished run with another {other[0]} ({there.get(other[0])}, now {wanted[other[0]]}); "
            "delete the run's folder, or give another one with -o"
        )
    return (folder / "metrics.json").exists()


def load_facts(path):
    """Return the dict of a JSON file of a run folder. Raises click.ClickException."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise click.ClickException(
            f"{path}: damaged; delete its folder {path.parent} and finetune again"
        ) from None


def read_run(folder, data):
    """Return what plots and aggregates take of a seed's folder: seed, split, predicted {row: (targets,)}, history."""
    with open(folder / "predictions.csv", newline="", errors="surrogateescape") as stream:
        lines = list(csv.DictReader(stream))
    with open(folder / "history.csv", newline="") as stream:
        history = [
            {key: float(value) for key, value in line.items()} for line in csv.DictReader(stream)
        ]
    split = {
        part: [int(line["row"]) for line in lines if line["split"] == part] for part in SUBSETS
    }
    names = [f"predicted_{name}" for name in data.targets]
    predicted = {
        int(line["row"]): np.array([float(line[name]) for name in names])
        for line in lines
        if line[names[0]]
    }
    return load_facts(folder / "metrics.json") | {
        "split": split,
        "predicted": predicted,
        "history": history,
    }


def aggregate(out, data, seeds, config, pictures):
    """Write the aggregate over seeds, and a copy of the model that is best on validation; return the table of test scores."""
    runs = [read_run(out / f"seed-{seed}", data) for seed in seeds]
    best = min(range(len(runs)), key=lambda i: runs[i]["val_loss"])
    source, table = out / f"seed-{seeds[best]}" / "model.pt", over_seeds(runs)
    save_whole(out / "model.pt", lambda target: shutil.copyfile(source, target))
    part_of = [{row: part for part, rows in run["split"].items() for row in rows} for run in runs]
    rows = sorted(set().union(*part_of))
    save_table(
        out / "splits.csv",
        ["row", "split"] + [f"seed_{seed}" for seed in seeds],
        [
            [row, part_of[best].get(row, "")] + [parts.get(row, "") for parts in part_of]
            for row in rows
        ],
    )
    save_table(
        out / "history.csv",
        ["seed", *runs[0]["history"][0]],
        [
            [run["seed"], *(f"{value:.10g}" for value in h.values())]
            for run in runs
            for h in run["history"]
        ],
    )
    save_predictions(out / "predictions.csv", data, runs, best)
    save_scores(out / "scores.csv", table)
    plot_report(out / "report.png", data, runs, table, pictures)
    save_json(out / "config.json", config)
    keys = ("seed", "best_epoch", "val_loss", "test", "sizes", "rejected")
    save_json(
        out / "metrics.json",
        {
            "best_seed": seeds[best],
            "test": table,
            "runs": [{key: run[key] for key in keys} for run in runs],
        },
    )
    return table


def trial_folder(out, cell, alone):
    return (
        out
        if alone
        else out
        / "grid"
        / "_".join(
            f"{key.replace('_', '-')}-{value:g}" if key != "augment" else f"{key}-{value}"
            for key, value in cell.items()
        )
    )


def keep_best(out, cells, seeds):
    """Return (mean validation loss of each cell so far, the place of the best), and drop the models of the others."""
    values = [
        [
            load_facts(trial_folder(out, cell, False) / f"seed-{seed}" / "metrics.json")["val_loss"]
            for seed in seeds
        ]
        for cell in cells
    ]
    losses = [float(np.mean(row)) for row in values]
    best = int(np.argmin(losses))
    for i, cell in enumerate(cells):
        for seed in seeds if i != best else ():
            for name in (
                "model.pt",
                "predictions.csv",
                "splits.csv",
                "history.csv",
                "scores.csv",
                "report.png",
            ):
                (trial_folder(out, cell, False) / f"seed-{seed}" / name).unlink(missing_ok=True)
    return losses, best


def finish_grid(out, cells, seeds):
    """Write grid.csv and move the winner's seeds to their place; return the winner."""
    losses, best = keep_best(out, cells, seeds)
    lines = []
    for i, cell in enumerate(cells):
        runs = [
            load_facts(trial_folder(out, cell, False) / f"seed-{seed}" / "metrics.json")
            for seed in seeds
        ]
        test = {name: s["mean"] for name, s in over_seeds(runs)["this model"]["pooled"].items()}
        lines.append(
            [
                *cell.values(),
                f"{losses[i]:.6g}",
                "yes" if i == best else "",
                *(f"{value:.6g}" for value in test.values()),
            ]
        )
    save_table(
        out / "grid.csv",
        [*cells[0], "val_loss", "chosen", *(f"test_{name}" for name in test)],
        lines,
    )
    for seed in seeds:
        shutil.copytree(
            trial_folder(out, cells[best], False) / f"seed-{seed}",
            out / f"seed-{seed}",
            dirs_exist_ok=True,
        )
        (trial_folder(out, cells[best], False) / f"seed-{seed}" / "model.pt").unlink(
            missing_ok=True
        )
    click.echo(
        f"chosen on validation out of {len(cells)}: "
        + ", ".join(f"{key} {value}" for key, value in cells[best].items())
        + f"; all in {out}/grid.csv"
    )
    return cells[best]
