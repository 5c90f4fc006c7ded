"""Finetune the encoder on a CSV of molecules and labels, and say honestly how good the model is.

    python finetune.py --data dhbd.csv                          # from encoder.pt; writes runs/dhbd/
    python finetune.py --data esol.csv --split scaffold --seeds 1,2,3 --lr-head 1e-3,4e-4,1e-4
    python finetune.py --data assay.csv --target pIC50 --freeze # embeds once, then trains the head alone in seconds

A 3-layer MLP learns on the encoder's embeddings first, then both are trained together; the test value reported is that of
the epoch that was best on validation. Every report has fingerprint baselines on the same split beside it (MoleCLIP, section 9 of its protocol).
"""

import os
import re
import time
from pathlib import Path

import click
import numpy as np
import torch
from click.core import ParameterSource
from rdkit import rdBase
from tqdm import tqdm

from moleclip.augment import N_UNIFORMS
from moleclip.device import (
    ALONE,
    Distributed,
    enough_memory,
    fitting_batch,
    pick_device,
    pick_precision,
    report_once,
)
from moleclip.drawing import draw_all
from moleclip.encoder import Embedder
from moleclip.files import check_output, save_json, save_table
from moleclip.heads import baselines, train_head
from moleclip.metrics import best_epoch, over_seeds, print_table, save_scores, score_all
from moleclip.model import Model, predict_rows, save_model
from moleclip.molecules import MAX_ATOMS, Rejected, find_input, input_facts
from moleclip.options import LEVELS, comma_list, number_between, positive_weight
from moleclip.pixels import inflate
from moleclip.plots import plot_report
from moleclip.runs import (
    aggregate,
    finish_grid,
    finished,
    keep_best,
    save_predictions,
    trial_folder,
)
from moleclip.splits import SPLIT_KINDS, make_split
from moleclip.table import Data, check_targets, label_scaling, positive_weights
from moleclip.training import WARM_UP, Loss, PictureSource, adam, copied, train, warmup_cosine
from moleclip.weights import default_init, load_encoder
from moleclip.workers import default_workers

HEAD_EPOCHS, HEAD_PATIENCE = (
    200,
    40,
)  # of the head alone, before encoder and head are trained together


def print_estimate(source, split, epochs, batch):
    """Print how long training will take on a CPU, measured on one slice without learning from it, and how much of it --freeze would."""
    alone, rows = (
        PictureSource(source.model, source.pictures, source.embedder, ALONE),
        list(split["train"][: min(batch, 16)]),
    )
    frozen = PictureSource(
        source.model, source.pictures, Embedder(source.model.encoder, source.device, None), ALONE
    )
    for _ in range(2):  # the first time pays for what is set up once
        began = time.perf_counter()
        for _, outputs in alone.parts(
            rows, np.random.default_rng(0).random((len(rows), N_UNIFORMS))
        ):
            outputs.sum().backward()
        learning = (time.perf_counter() - began) / len(rows) / source.world.size
        began = time.perf_counter()
        frozen.features(rows)
        looking = (time.perf_counter() - began) / len(rows) / source.world.size
    source.model.zero_grad()
    everything, epoch = (
        looking * sum(map(len, split.values())),
        learning * len(split["train"]) + looking * len(split["val"]),
    )
    click.echo(
        f"embedding all molecules takes about {format_seconds(everything)} here, the head then learns in seconds, and that is all with --freeze; "
        f"an epoch of both takes {format_seconds(epoch)}, {epochs} epochs {format_seconds(epochs * epoch)}"
    )


def format_seconds(seconds):
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def train_whole(source, labels, split, loss, cell, **run):
    """Train encoder and head of source, Pictures, together and return the history; cell: lr_encoder, lr_head."""
    source.world.barrier()
    scaler = torch.amp.GradScaler(
        source.device.type, enabled=source.embedder.dtype is torch.float16
    )
    optimizers = [
        adam(source.model.encoder, cell["lr_encoder"]),
        adam(source.model.head, cell["lr_head"]),
    ]
    return train(source, labels, split, loss, optimizers, scaler=scaler, rates=warmup_cosine, **run)


def draw_rows(data, world=ALONE, r_groups=False):
    """Return {row: uint8 (224, 224)} of every molecule that can be drawn; the reasons of the others go to data.problems."""
    mine = data.molecules[world.rank :: world.size]  # the processes share the drawing
    workers = max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    drawn = tqdm(
        draw_all(mine, workers, r_groups=r_groups),
        total=len(mine),
        desc="drawing",
        unit=" molecules",
        disable=True if world.rank else None,
        leave=False,
    )
    results = [
        {
            molecule.row: result if isinstance(result, Rejected) else result[0]
            for molecule, result in drawn
        }
    ]
    if world.size > 1:
        shares, results = results[0], [None] * world.size
        torch.distributed.all_gather_object(results, shares)
    pictures, found = {}, {row: result for part in results for row, result in part.items()}
    for row, result in sorted(found.items()):
        if isinstance(result, Rejected):
            data.problems[row] = str(result)
        else:
            pictures[row] = inflate(result)
    for row, problem in enumerate(data.problems):
        if not problem and np.isnan(data.labels[row]).all():
            data.problems[row] = "no label"
    rejected = [(m, p) for m, p in zip(data.molecules, data.problems) if p and not world.rank]
    for molecule, problem in rejected[:5]:
        click.echo(
            f"{data.path}: row {molecule.row} (line {molecule.line}) is left out: {problem}",
            err=True,
        )
    if len(rejected) > 5:
        click.echo(f"... and {len(rejected) - 5} more; all are named in predictions.csv", err=True)
    if not pictures:
        raise click.ClickException(
            f"{data.path}: none of its {len(data)} rows is a readable molecule"
        )
    return pictures


class Experiment:
    """What all seeds and settings of a run share."""

    def __init__(self, data, pictures, usable, config, device, dtype, world):
        self.data, self.pictures, self.usable, self.config = data, pictures, usable, config
        self.device, self.dtype, self.world = device, dtype, world
        self.embedded, self.heads, self.compared, self.announced = {}, {}, {}, False

    def embeddings(self, encoder, seed):
        """Return the frozen encoder's embeddings of all drawn rows, fp32 (rows, 512); made once, unless its weights are a seed's."""
        key = seed if str(self.config["init"]).startswith("scratch:") else 0
        if key not in self.embedded:
            rows = sorted(self.pictures)
            source = PictureSource(
                None,
                self.pictures,
                Embedder(
                    encoder,
                    self.device,
                    None,
                    "none",
                    fitting_batch(encoder.arch, self.device, None),
                ),
                self.world,
            )
            with tqdm(
                total=len(rows),
                desc="embedding",
                unit=" molecules",
                disable=True if self.world.rank else None,
                leave=False,
            ) as bar:
                found = source.features(rows, bar).cpu()
            table = torch.zeros(len(self.data), found.shape[1])
            table[rows] = found
            self.embedded[key] = table
        return self.embedded[key]

    def train(self, folder, seed, cell, split, labels, label_mean, label_std, loss):
        """Return (model, history, predictions {row: (targets,)}) of one seed and one choice of rates and augmentation."""
        data, config = self.data, self.config
        torch.manual_seed(seed)
        model = Model(
            load_encoder(config["init"], seed), len(data.targets), label_mean, label_std
        ).to(self.device)
        rows, task = sorted(self.pictures), (labels, split, loss)
        run = {
            "batch": config["batch"],
            "seed": seed,
            "name": f"seed {seed}",
            "epochs": config["epochs"],
            "patience": config["patience"],
        }
        if config["freeze"]:
            embeddings, model = self.embeddings(model.encoder, seed), model.cpu()
            history = train_head(model.head, embeddings, *task, cell["lr_head"], **run)
            with torch.no_grad():
                return (
                    model,
                    history,
                    dict(zip(rows, model.unscale(model.head(embeddings[rows]), data.task).numpy())),
                )
        micro = min(config["batch"], fitting_batch(model.encoder.arch, self.device, self.dtype))
        source = PictureSource(
            model,
            self.pictures,
            Embedder(model.encoder, self.device, self.dtype, cell["augment"], micro),
            self.world,
        )
        if not self.announced and self.device.type == "cpu" and not self.world.rank:
            print_estimate(source, split, config["epochs"], config["batch"])
        self.announced = True
        progress = folder / "progress.pt"
        start = None if progress.exists() else self.probe_head(model, seed, cell["lr_head"], task)
        history = train_whole(source, *task, cell, progress=progress, start=start, **run)
        return (
            model,
            history,
            dict(
                zip(
                    rows,
                    predict_rows(
                        model,
                        self.pictures,
                        rows,
                        data.task,
                        min(64, config["batch"]),
                        self.device,
                        self.world,
                    ),
                )
            ),
        )

    def probe_head(self, model, seed, rate, task):
        """Train the head alone, once for a seed and rate, put it into the model, and return its line of the history, as epoch 0."""
        if (seed, rate) not in self.heads:
            history = train_head(
                model.head.cpu(),
                self.embeddings(model.encoder, seed),
                *task,
                rate,
                epochs=HEAD_EPOCHS,
                patience=HEAD_PATIENCE,
                batch=self.config["batch"],
                seed=seed,
                name=f"seed {seed}, head",
            )
            self.heads[seed, rate] = (
                copied(model.head),
                best_epoch(history)
                | {"epoch": 0, "seconds": round(sum(line["seconds"] for line in history), 3)},
            )
        model.head.load_state_dict(self.heads[seed, rate][0])
        for parameter in model.to(self.device).head.parameters():
            parameter.data = self.world.mean(
                parameter.data
            )  # the same on machines that round differently
        return self.heads[seed, rate][1]

    def seed(self, folder, seed, cell):
        """Train, test and write one complete folder; a folder that is complete already is left as it is."""
        config = self.config | cell | {"seed": seed}
        if finished(folder, config):
            return
        if not self.world.rank:
            save_json(folder / "config.json", config)
        data, world = self.data, self.world
        split = make_split(data, self.usable, config["split"], seed, warn=not world.rank)
        check_targets(data, split, warn=not world.rank)
        label_mean, label_std = label_scaling(
            data.labels[split["train"]], data.task if not config["raw_labels"] else None
        )
        labels = (data.labels - label_mean) / label_std
        loss = Loss(
            data.task,
            positive_weights(data.labels[split["train"]], config["pos_weight"])
            if config["pos_weight"]
            else None,
        )
        model, history, predicted = self.train(
            folder, seed, cell, split, labels, label_mean, label_std, loss
        )
        if not world.rank:
            if seed not in self.compared:
                long = (
                    {key: config[key] for key in ("epochs", "patience")}
                    if config["freeze"]
                    else {"epochs": HEAD_EPOCHS, "patience": HEAD_PATIENCE}
                )  # as the head
                self.compared[seed] = baselines(
                    data,
                    labels,
                    label_mean,
                    label_std,
                    split,
                    loss,
                    config["rates"],
                    batch=64,
                    seed=seed,
                    **long,
                )
            self.write(folder, config, model, split, history, predicted)
        world.barrier()

    def write(self, folder, config, model, split, history, predicted):
        data, best = self.data, best_epoch(history)
        truth = data.labels[split["test"]].copy()
        truth[:, np.isnan(data.labels[split["train"]]).all(0)] = (
            np.nan
        )  # never learned, so not scored
        methods = {"this model": np.stack([predicted[i] for i in split["test"]])} | self.compared[
            config["seed"]
        ]
        table = {
            name: score_all(truth, values, data.targets, data.task)
            for name, values in methods.items()
        }
        metrics = {
            "seed": config["seed"],
            "best_epoch": best["epoch"],
            "val_loss": best["val_loss"],
            "test": table,
            "sizes": {part: len(rows) for part, rows in split.items()},
            "rejected": sum(map(bool, data.problems)),
        }
        save_model(
            folder / "model.pt",
            model,
            data,
            config,
            {"test": table["this model"], "best_epoch": best["epoch"]},
        )
        save_table(
            folder / "splits.csv",
            ["row", "split"],
            sorted((row, part) for part, rows in split.items() for row in rows),
        )
        save_table(folder / "history.csv", list(history[0]), [list(h.values()) for h in history])
        run = {"seed": config["seed"], "split": split, "predicted": predicted, "history": history}
        save_predictions(folder / "predictions.csv", data, [run])
        summary = over_seeds([metrics])
        save_scores(folder / "scores.csv", summary)
        plot_report(folder / "report.png", data, [run], summary, self.pictures)
        save_json(folder / "metrics.json", metrics)  # its presence says that all are there
        (folder / "progress.pt").unlink(missing_ok=True)
        click.echo(
            f"seed {config['seed']}: epoch {best['epoch']} of {history[-1]['epoch']} is best on validation (loss {best['val_loss']:.4g}); {folder}/report.png"
        )


@click.command()
@click.option("--data", required=True, help="CSV or TSV with a SMILES column and labels.")
@click.option(
    "-o",
    "--out",
    default=None,
    type=click.Path(path_type=Path),
    help="Folder for the results.  [default: runs/NAME]",
)
@click.option(
    "--init",
    default=None,
    help="Encoder to start from.  [default: encoder.pt, else bundled, else ViT-B/16]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Label column; repeatable.  [default: every column of numbers that is no index]",
)
@click.option(
    "--task",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "regression", "classification"]),
    help="auto: classification if all labels are 0 or 1.",
)
@click.option(
    "--pos-weight",
    default=None,
    callback=positive_weight,
    help="Weight of the positives in the loss: a number, or auto for negatives / positives.",
)
@click.option("--raw-labels", is_flag=True, help="Don't standardise the labels (the paper's way).")
@click.option(
    "--split",
    default="random",
    show_default=True,
    help="random, scaffold, random-scaffold, column, or a splits.csv; 80/10/10%.",
)
@click.option(
    "--split-column",
    default=None,
    help="Column that says train, val or test.  [default with --split column: split]",
)
@click.option(
    "--seeds",
    default="1",
    show_default=True,
    callback=comma_list(number_between(-1, 2**32, int), "a list of whole numbers such as 1,2,3"),
    help="Seeds of split and training, such as 1,2,3.",
)
@click.option(
    "--epochs",
    default=60,
    show_default=True,
    type=click.IntRange(1),
    help="Passes over the training part; the learning rates fall to 0 over them.",
)
@click.option(
    "--patience",
    default=None,
    type=click.IntRange(1),
    help="Stop after so many epochs without a better validation loss.",
)
@click.option(
    "--batch", default=64, show_default=True, type=click.IntRange(1), help="Molecules in a step."
)
@click.option(
    "--lr-encoder",
    default="5e-6",
    show_default=True,
    callback=comma_list(number_between(0, 1e3), "a learning rate, or several such as 5e-6,2e-5"),
    help="Highest learning rate of the encoder; several make a grid.",
)
@click.option(
    "--lr-head",
    default="4e-4",
    show_default=True,
    callback=comma_list(number_between(0, 1e3), "a learning rate, or several such as 1e-3,4e-4"),
    help="Highest learning rate of the head; several make a grid.",
)
@click.option(
    "--augment",
    default="default",
    show_default=True,
    callback=comma_list(LEVELS.__getitem__, "none, default, intense or several of them"),
    help="Pixel augmentation of training pictures; several make a grid.",
)
@click.option(
    "--freeze", is_flag=True, help="Embed once and train the head alone: seconds instead of hours."
)
@click.option("--r-groups", is_flag=True, help="Draw the ends of all molecules as R-groups.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where to compute.",
)
@click.option("--smiles-column", help="Column that holds the SMILES.  [default: found by name]")
@click.pass_context
def main(context, device, **options):
    """Train encoder and head on the labels of a table and compare with fingerprints."""
    given = {
        name for name in options if context.get_parameter_source(name) != ParameterSource.DEFAULT
    }
    with report_once(), enough_memory(options["batch"]):
        device = pick_device(device)
        run(given, device, Distributed.start(device), **options)


def run(
    given,
    device,
    world,
    data,
    out,
    init,
    targets,
    task,
    split,
    split_column,
    smiles_column,
    seeds,
    lr_encoder,
    lr_head,
    augment,
    **training,
):
    """Check what the user may have got wrong, draw, train every cell with every seed, and write the whole folder."""
    path = find_input(data)
    if split not in SPLIT_KINDS and not Path(split).is_file():
        raise click.BadParameter(
            f"{split!r} is none of {', '.join(SPLIT_KINDS)}, nor a splits.csv that exists",
            param_hint="--split",
        )
    if training["freeze"] and {"lr_encoder", "augment"} & given:
        raise click.BadParameter(
            "the encoder stays as it is: leave out --lr-encoder and --augment",
            param_hint="--freeze",
        )
    split = "column" if split_column else split
    table = Data(
        path, targets, task, smiles_column, split_column or ("split" if split == "column" else None)
    )
    out = out or Path("runs") / re.sub(r"(\.(csv|tsv))?(\.gz)?$", "", Path(path).name)
    if (out / "metrics.json").exists():
        raise click.ClickException(
            f"{out}: holds a finished run; give another folder with -o, or delete it"
        )
    if not world.rank:
        check_output(out / "model.pt")
    init = init or default_init()
    with world.rank0_first():
        load_encoder(init)  # a wrong --init shows before the drawing
    dtype, reason = pick_precision("auto", device)
    cells = [
        {"lr_encoder": a, "lr_head": b, "augment": c}
        for a in lr_encoder
        for b in lr_head
        for c in (["none"] if training["freeze"] else augment)
    ]
    config = {
        "data": Path(path).name,
        "data_sha256": input_facts(path, smiles_column)["sha256"],
        "init": init,
        "split": split,
        "seeds": seeds,
        "rates": lr_head,
        "task": table.task,
        "targets": table.targets,
        "max_atoms": MAX_ATOMS,
        "rdkit": rdBase.rdkitVersion,
        "torch": str(torch.__version__),
        "head_first": None if training["freeze"] else [HEAD_EPOCHS, HEAD_PATIENCE, WARM_UP],
        **training,
    }
    pictures = draw_rows(table, world, training["r_groups"])
    usable = [row for row in range(len(table)) if row in pictures and not table.problems[row]]
    if len(usable) < 10:
        raise click.ClickException(
            f"{path}: {len(usable)} molecules with labels; at least 10 are needed for three parts"
        )
    if not world.rank:
        click.echo(
            f"{path}: {len(usable)} molecules, {len(table.targets)} target{'s' * (len(table.targets) > 1)} "
            f"({', '.join(table.targets[:6])}), {table.task}; {'frozen ' * training['freeze']}encoder from {init}; "
            f"{device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})"
        )
    job = Experiment(table, pictures, usable, config, device, dtype, world)
    for cell in cells:
        for seed in seeds:
            job.seed(trial_folder(out, cell, len(cells) == 1) / f"seed-{seed}", seed, cell)
        if len(cells) > 1 and not world.rank:
            keep_best(out, cells[: cells.index(cell) + 1], seeds)
    if not world.rank:
        cell = finish_grid(out, cells, seeds) if len(cells) > 1 else cells[0]
        scores = aggregate(out, table, seeds, config | cell, pictures)
        print_table(scores, len(seeds))
        click.echo(
            f"\n{out}: test values of the epochs that are best on validation; see report.png there"
        )


if __name__ == "__main__":
    main()
