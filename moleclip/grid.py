"""Trials of finetuning with several rates or augmentations: the best by validation is kept."""

import shutil

import click
import numpy as np

from moleclip.files import save_table
from moleclip.metrics import MODEL, over_seeds
from moleclip.runs import TABLES


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
