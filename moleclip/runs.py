"""The run folder: what a seed's training gave, the aggregate over seeds, and the grid of trials."""

import csv
import json
import math
import shutil
from dataclasses import dataclass

import click
import numpy as np

from moleclip.files import save_json, save_table, save_whole
from moleclip.metrics import (
    MODEL,
    against_mean,
    best_epoch,
    bootstrap,
    difference,
    over_seeds,
    print_table,
    save_scores,
    score_all,
)
from moleclip.model import save_model
from moleclip.plots import plot_report
from moleclip.splits import SUBSETS
from moleclip.table import LabelScale

TABLES = ("predictions.csv", "splits.csv", "history.csv", "scores.csv", "report.png")
DEVIATIONS = "standard deviations of each target's labels in training"


@dataclass
class SeedResult:
    """What the training of one seed gave."""

    seed: int
    split: dict  # {"train": [...], "val": [...], "test": [...]} of row numbers
    history: list  # one dict an epoch
    predicted: dict  # {row: (targets,)} in the label's unit, as predictions.csv has them
    metrics: dict  # what metrics.json holds

    def part_of(self):
        """Return {row: "train", "val" or "test"}."""
        return {row: part for part, rows in self.split.items() for row in rows}


def make_result(data, seed, split, history, predicted, compared):
    """Return the SeedResult of a model's predictions {row: (targets,)}.

    compared: {name: predictions of the test part, (n, targets)} of other methods.
    """
    best, truth, known = (
        best_epoch(history),
        data.labels[split["test"]],
        data.labels[split["train"]],
    )
    unit = 1.0 if data.one_column() else LabelScale.of(known).std
    methods = {MODEL: np.stack([predicted[row] for row in split["test"]])} | compared
    validated = np.stack([predicted[row] for row in split["val"]])
    metrics = {
        "seed": seed,
        "best_epoch": best["epoch"],
        "val_loss": best["val_loss"],
        "val_against_mean": against_mean(known, data.labels[split["val"]], validated, data.task),
        "pooled_unit": "the label's" if data.one_column() else DEVIATIONS,
        "test": {
            name: score_all(truth, values, data.targets, data.task, unit)
            for name, values in methods.items()
        },
        "bootstrap": bootstrap(truth, methods, data.task, unit),
        "sizes": {part: len(rows) for part, rows in split.items()},
        "rejected": sum(map(bool, data.problems)),
    }
    # As read_result has them: an interrupted run aggregates the same.
    split = {part: sorted(rows) for part, rows in split.items()}
    written = {
        row: np.array([float(f"{value:.7g}") for value in values])
        for row, values in predicted.items()
    }
    return SeedResult(seed, split, history, written, metrics)


def save_predictions(path, data, results, best=0):
    """Write one line for every row of the input.

    row, smiles, split, then truth and prediction of each target (and the likelier class, where
    classes have names), and error. Split and prediction are those of result `best`, whose model
    lies beside the file; with several seeds there follow mean and SD of their predictions, and in
    how many the row was tested.
    """
    several, parts = len(results) > 1, [result.part_of() for result in results]
    header = ["row", "smiles", "split"]
    for name, words in zip(data.targets, data.classes):
        kinds = ["true", "predicted", *["class"] * bool(words), *["mean", "sd"] * several]
        header += [f"{kind}_{name}" for kind in kinds]
    header += ["tested", "error"] if several else ["error"]
    lines = []
    for row, smiles in enumerate(data.smiles):
        line = [row, smiles, parts[best].get(row, "")]
        for t, words in enumerate(data.classes):
            values = [each.predicted[row][t] for each in results if row in each.predicted]
            line += [truth_text(data, row, t), number_text(values[best] if values else math.nan)]
            if words:
                line.append(words[int(values[best] > 0.5)] if values else "")
            if several:
                spread = [np.mean(values), np.std(values, ddof=1)] if values else [math.nan] * 2
                line += map(number_text, spread)
        if several:
            line.append(sum(part.get(row) == "test" for part in parts))
        lines.append([*line, data.problems[row]])
    save_table(path, header, lines)


def truth_text(data, row, t):
    """Return a label as predictions.csv has it: a number, a class's word, or >10 as it stands."""
    value, words = data.labels[row, t], data.classes[t]
    if row in data.qualified[t]:
        return data.qualified[t][row]
    return words[int(value)] if words and not np.isnan(value) else number_text(value)


def number_text(value):
    """Return a number as predictions.csv has it, "" for NaN."""
    return "" if np.isnan(value) else f"{value:.7g}"


def finished(folder, config):
    """Tell whether a seed's folder is complete.

    Raises click.ClickException if it was begun with other settings, and got anywhere.
    """
    path, wanted = folder / "config.json", json.loads(json.dumps(config))
    if any((folder / name).exists() for name in ("metrics.json", "progress.pt")) and path.exists():
        there = load_facts(path)
        other = [key for key in wanted if there.get(key) != wanted[key]]
        if other:
            change = f"{other[0]} ({there.get(other[0])}, now {wanted[other[0]]})"
            raise click.ClickException(
                f"{folder}: part of an unfinished run with another {change}; "
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


def read_result(folder, data):
    """Return the SeedResult of a complete folder; its metrics alone if its trial lost before."""
    metrics = load_facts(folder / "metrics.json")
    if not (folder / "predictions.csv").exists():
        return SeedResult(metrics["seed"], {}, [], {}, metrics)
    with open(folder / "predictions.csv", newline="", errors="surrogateescape") as stream:
        lines = list(csv.DictReader(stream))
    with open(folder / "history.csv", newline="") as stream:
        table = csv.DictReader(stream)
        history = [{key: float(value) for key, value in line.items()} for line in table]
    split = {part: [] for part in SUBSETS}
    for line in lines:
        if line["split"]:
            split[line["split"]].append(int(line["row"]))
    names = [f"predicted_{name}" for name in data.targets]
    predicted = {
        int(line["row"]): np.array([float(line[name]) for name in names])
        for line in lines
        if line[names[0]]
    }
    return SeedResult(metrics["seed"], split, history, predicted, metrics)


def save_result(folder, result, model, data, pictures, config, seen):
    """Write a seed's folder, whole or not at all. seen: hashes of all molecules trained on."""
    scores, best = over_seeds([result.metrics]), best_epoch(result.history)
    facts = {"test": result.metrics["test"][MODEL], "best_epoch": best["epoch"]}
    save_model(folder / "model.pt", model, data, config, facts, seen)
    lines = [[row, data.smiles[row], part] for row, part in sorted(result.part_of().items())]
    save_table(folder / "splits.csv", ["row", "smiles", "split"], lines)
    lines = [list(line.values()) for line in result.history]
    save_table(folder / "history.csv", list(result.history[0]), lines)
    save_predictions(folder / "predictions.csv", data, [result])
    save_scores(folder / "scores.csv", scores)
    plot_report(folder / "report.png", data, [result], scores, pictures)
    save_json(folder / "metrics.json", result.metrics)  # its presence says that all are there
    (folder / "progress.pt").unlink(missing_ok=True)
    click.echo(
        f"seed {result.seed}: epoch {best['epoch']} of {result.history[-1]['epoch']} is best on "
        f"validation (loss {best['val_loss']:.4g}); {folder}/report.png"
    )


def aggregate(out, data, results, config, pictures):
    """Write the aggregate over seeds and print its table of test scores.

    model.pt is a copy of the one that is best on validation.
    """
    runs = [result.metrics for result in results]
    best = best_seed(runs)
    source, table = out / f"seed-{results[best].seed}" / "model.pt", over_seeds(runs)
    save_whole(out / "model.pt", lambda target: shutil.copyfile(source, target))
    save_splits(out / "splits.csv", data, results, best)
    lines = [
        [result.seed, *(f"{value:.10g}" for value in line.values())]
        for result in results
        for line in result.history
    ]
    save_table(out / "history.csv", ["seed", *results[0].history[0]], lines)
    save_predictions(out / "predictions.csv", data, results, best)
    save_scores(out / "scores.csv", table)
    plot_report(out / "report.png", data, results, table, pictures)
    save_json(out / "config.json", config)
    facts = {"best_seed": results[best].seed, "test": table, "runs": runs}
    fixed = fixed_split(results)
    facts |= {"difference": difference(runs, data.task, fixed), "fixed_split": fixed}
    save_json(out / "metrics.json", facts)
    unit = "" if data.one_column() or data.task == "classification" else DEVIATIONS
    print_table(table, fixed, unit, facts["difference"])


def best_seed(runs):
    """Return the place of the seed that is best against its own mean on its validation part.

    Losses of different parts can't be compared; a part with one class tells nothing. runs: what
    each seed's metrics.json holds.
    """
    against = [run.get("val_against_mean") for run in runs]
    if against.count(None) == len(runs):
        against = [run["val_loss"] for run in runs]
    return min(range(len(runs)), key=lambda i: math.inf if against[i] is None else against[i])


def fixed_split(results):
    """Tell whether all seeds have the same split."""
    return all(result.split == results[0].split for result in results)


def save_splits(path, data, results, best):
    """Write the part of each row in the best seed's split and in every seed's."""
    parts = [result.part_of() for result in results]
    lines = []
    for row in sorted(set().union(*parts)):
        own = [part.get(row, "") for part in parts]
        lines.append([row, data.smiles[row], own[best], *own])
    seeds = [f"seed_{result.seed}" for result in results]
    save_table(path, ["row", "smiles", "split", *seeds], lines)


def trial_folder(out, trial):
    """Return the folder of one trial of a grid, named by its rates and augmentation."""
    rates = {key: f"{value:g}" for key, value in trial.items() if key != "augment"}
    words = [f"{key.replace('_', '-')}-{value}" for key, value in (trial | rates).items()]
    return out / "grid" / "_".join(words)


def keep_best(out, trials, results):
    """Return each trial's mean validation loss and the best's place; drop the others' models.

    results: the SeedResults of each trial so far.
    """
    losses = [float(np.mean([each.metrics["val_loss"] for each in seeds])) for seeds in results]
    best = int(np.argmin(losses))
    for i, seeds in enumerate(results):
        for result in seeds if i != best else ():
            folder = trial_folder(out, trials[i]) / f"seed-{result.seed}"
            for name in ("model.pt", *TABLES):
                (folder / name).unlink(missing_ok=True)
    return losses, best


def finish_grid(out, trials, results):
    """Write grid.csv, move the winner's seeds to their place, and return the winner's place."""
    losses, best = keep_best(out, trials, results)
    lines = []
    for i, (trial, seeds) in enumerate(zip(trials, results)):
        scores = over_seeds([result.metrics for result in seeds])[MODEL]["pooled"]
        chosen = "yes" if i == best else ""
        values = [f"{summary['mean']:.6g}" for summary in scores.values()]
        lines.append([*trial.values(), f"{losses[i]:.6g}", chosen, *values])
    tested = [f"test_{name}" for name in scores]
    save_table(out / "grid.csv", [*trials[0], "val_loss", "chosen", *tested], lines)
    for result in results[best]:
        folder = trial_folder(out, trials[best]) / f"seed-{result.seed}"
        shutil.copytree(folder, out / f"seed-{result.seed}", dirs_exist_ok=True)
        (folder / "model.pt").unlink(missing_ok=True)
    setting = ", ".join(f"{key} {value}" for key, value in trials[best].items())
    click.echo(f"chosen on validation out of {len(trials)}: {setting}; all in {out}/grid.csv")
    return best
