"""The run folder: what a seed's training gave, and the aggregate over seeds."""

import csv
import json
import math
import shutil

import click
import numpy as np

from moleclip.files import save_json, save_table, save_whole
from moleclip.metrics import MODEL, difference, over_seeds, print_table, save_scores
from moleclip.model import save_model
from moleclip.plots import plot_report
from moleclip.results import DEVIATIONS, SeedResult
from moleclip.splits import SUBSETS

TABLES = ("predictions.csv", "splits.csv", "history.csv", "choice.csv", "scores.csv", "report.png")


def save_predictions(path, data, results, best=0):
    """Write one line for every row of the input.

    row, smiles, of pairs protein, split, then truth and prediction of each target (and the likelier
    class, where classes have names), and error. Split and prediction are those of result `best`,
    whose model lies beside the file; with several seeds there follow mean and SD of their
    predictions, and in how many the row was tested.
    """
    several, parts = len(results) > 1, [result.part_of() for result in results]
    header = ["row", "smiles", *["protein"] * bool(data.proteins), "split"]
    for name, words in zip(data.targets, data.classes):
        kinds = ["true", "predicted", *["class"] * bool(words), *results[best].sure]
        kinds += ["mean", "sd"] * several
        header += [f"{kind}_{name}" for kind in kinds]
    header += ["tested", "error"] if several else ["error"]
    lines = []
    for row, smiles in enumerate(data.smiles):
        own = [data.proteins[row]] if data.proteins else []
        line = [row, smiles, *own, parts[best].get(row, "")]
        for t, words in enumerate(data.classes):
            values = [each.predicted[row][t] for each in results if row in each.predicted]
            line += [truth_text(data, row, t), number_text(values[best] if values else math.nan)]
            if words:
                line.append(words[int(values[best] > 0.5)] if values else "")
            for found in results[best].sure.values():
                line.append(number_text(found[row][t] if row in found else math.nan))
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
    history = []
    if (folder / "history.csv").exists():
        with open(folder / "history.csv", newline="") as stream:
            table = csv.DictReader(stream)
            history = [{key: float(value) for key, value in line.items()} for line in table]
    split = {part: [] for part in SUBSETS}
    for line in lines:
        if line["split"]:
            split[line["split"]].append(int(line["row"]))
    found = {}
    for kind in ("predicted", "spread", "low", "high"):
        names = [f"{kind}_{name}" for name in data.targets]
        if names[0] in lines[0]:
            found[kind] = {
                int(line["row"]): np.array([float(line[name] or "nan") for name in names])
                for line in lines
                if line[f"predicted_{data.targets[0]}"]
            }
    predicted = found.pop("predicted")
    return SeedResult(metrics["seed"], split, history, predicted, metrics, found)


def save_result(folder, result, model, data, drawn, config, seen):
    """Write a seed's folder, whole or not at all. seen: hashes of all molecules trained on.

    drawn: see `plot_report`.
    """
    scores = over_seeds([result.metrics])
    facts = {"test": result.metrics["test"][MODEL], "best_epoch": result.metrics["best_epoch"]}
    save_model(folder / "model.pt", model, data, config, facts, seen, result.intervals)
    lines = [[row, data.smiles[row], part] for row, part in sorted(result.part_of().items())]
    save_table(folder / "splits.csv", ["row", "smiles", "split"], lines)
    save_learning(folder, [result])
    save_predictions(folder / "predictions.csv", data, [result])
    save_scores(folder / "scores.csv", scores)
    plot_report(folder / "report.png", data, [result], scores, drawn)
    save_json(folder / "metrics.json", result.metrics)  # its presence says that all are there
    (folder / "progress.pt").unlink(missing_ok=True)
    loss, head = result.metrics["val_loss"], result.metrics.get("head")
    if head:
        said = f"{head['chosen']} is best of {len(head['among'])} on {head['held_out']}"
        click.echo(f"seed {result.seed}: {said} ({head['loss']} {loss:.4g}); {folder}/report.png")
        return
    click.echo(
        f"seed {result.seed}: epoch {result.metrics['best_epoch']} of "
        f"{result.history[-1]['epoch']} is best on validation (loss {loss:.4g}); "
        f"{folder}/report.png"
    )


def save_learning(folder, results, several=False):
    """Write history.csv, or choice.csv of heads that were chosen: candidates and their losses."""
    lead = (lambda result: [result.seed]) if several else (lambda result: [])
    header = ["seed"] if several else []
    if results[0].history:
        digits = (lambda value: f"{value:.10g}") if several else (lambda value: value)
        lines = [
            [*lead(result), *map(digits, line.values())]
            for result in results
            for line in result.history
        ]
        save_table(folder / "history.csv", [*header, *results[0].history[0]], lines)
        return
    lines = []
    for result in results:
        head = result.metrics["head"]
        for name, loss in head["among"].items():
            chosen = "yes" if name == head["chosen"] else ""
            lines.append([*lead(result), name, f"{loss:.6g}", chosen])
    save_table(folder / "choice.csv", [*header, "head", "loss", "chosen"], lines)


def aggregate(out, data, results, config, drawn, folder=None, stage=None):
    """Write the aggregate over seeds and print its table of test scores.

    model.pt is a copy of the one that is best on validation. folder: where the seeds' folders lie,
    if not in out; stage: more of metrics.json, of a run in two stages; drawn: see `plot_report`.
    """
    runs = [result.metrics for result in results]
    best = best_seed(runs)
    source = (folder or out) / f"seed-{results[best].seed}" / "model.pt"
    table, decision = over_seeds(runs), (stage or {}).get("decision")
    why = f"the {decision['kept']} model is kept: {decision['why']}" if decision else ""
    save_whole(out / "model.pt", lambda target: shutil.copyfile(source, target))
    save_splits(out / "splits.csv", data, results, best)
    save_learning(out, results, several=True)
    save_predictions(out / "predictions.csv", data, results, best)
    save_scores(out / "scores.csv", table)
    plot_report(out / "report.png", data, results, table, drawn, why)
    save_json(out / "config.json", config)
    facts = (stage or {}) | {"best_seed": results[best].seed, "test": table, "runs": runs}
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
