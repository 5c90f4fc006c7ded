"""Finetune the encoder on a CSV of molecules and labels, and say honestly how good the model is.

    python finetune.py --data dhbd.csv                          # from encoder.pt to runs/dhbd/
    python finetune.py --data esol.csv --split scaffold --seeds 1,2,3 --lr-head 1e-3,4e-4,1e-4
    python finetune.py --data assay.csv --target pIC50 --freeze # the head alone, in seconds

A 3-layer MLP learns on the encoder's embeddings first, then both are trained together; the test
value reported is that of the epoch that was best on validation. Every report has fingerprint
baselines on the same split beside it (MoleCLIP, section 9 of its protocol).
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import torch
from click.core import ParameterSource
from rdkit import rdBase

from moleclip import options
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
from moleclip.files import check_output, save_json
from moleclip.heads import HEAD_EPOCHS, HEAD_PATIENCE, FrozenEncoder, baselines, train_head
from moleclip.metrics import print_table
from moleclip.model import Model, predict_rows
from moleclip.molecules import MAX_ATOMS, Rejected, find_input, input_facts
from moleclip.options import LEVELS, comma_list, number_between, positive_weight
from moleclip.pixels import inflate
from moleclip.runs import (
    aggregate,
    finish_grid,
    finished,
    keep_best,
    make_result,
    read_result,
    save_result,
    trial_folder,
)
from moleclip.splits import SPLIT_KINDS, make_split
from moleclip.table import Data, LabelScale, check_targets, positive_weights
from moleclip.training import (
    WARM_UP,
    Loss,
    Objective,
    PictureSource,
    Plan,
    adam,
    rank0_bar,
    train,
    warmup_cosine,
)
from moleclip.weights import default_init, load_encoder
from moleclip.workers import default_workers


def draw_rows(data, world=ALONE, r_groups=False):
    """Return ({row: uint8 (224, 224)} of what can be drawn, why each row is left out or "").

    Raises click.ClickException if there is no picture.
    """
    mine = data.molecules[world.rank :: world.size]  # the processes share the drawing
    workers = max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    shares = [{}]
    with rank0_bar("drawing", "molecules", len(mine), world) as bar:
        for molecule, result in draw_all(mine, workers, r_groups=r_groups):
            shares[0][molecule.row] = result if isinstance(result, Rejected) else result[0]
            bar.update()
    if world.size > 1:
        own, shares = shares[0], [None] * world.size
        torch.distributed.all_gather_object(shares, own)
    pictures, problems = {}, list(data.problems)
    for row, result in sorted(item for share in shares for item in share.items()):
        if isinstance(result, Rejected):
            problems[row] = str(result)
        else:
            pictures[row] = inflate(result)
    for row, problem in enumerate(problems):
        if not problem and np.isnan(data.labels[row]).all():
            problems[row] = "no label"
    if not world.rank:
        print_rejected(data, problems)
    if not pictures:
        raise click.ClickException(
            f"{data.path}: none of its {len(data)} rows is a readable molecule"
        )
    return pictures, problems


def print_rejected(data, problems):
    """Print which rows are left out and why."""
    rejected = [pair for pair in zip(data.molecules, problems) if pair[1]]
    for molecule, problem in rejected[:5]:
        click.echo(f"{data.place(molecule)} is left out: {problem}", err=True)
    if len(rejected) > 5:
        click.echo(f"... and {len(rejected) - 5} more; all are named in predictions.csv", err=True)


def print_estimate(source, split, epochs, batch):
    """Print how long training will take on a CPU, and how much of it --freeze would.

    Measured on one slice, without learning from it.
    """
    alone = PictureSource(source.model, source.pictures, source.embedder, ALONE)
    plain = Embedder(source.model.encoder, source.device, None)
    frozen = PictureSource(source.model, source.pictures, plain, ALONE)
    rows = list(split["train"][: min(batch, 16)])
    random = np.random.default_rng(0).random((len(rows), N_UNIFORMS))

    def learn():
        for _, outputs in alone.micro_batches(rows, random):
            outputs.sum().backward()

    def measure(work):
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / len(rows) / source.world.size

    for _ in range(2):  # the first time pays for what is set up once
        learning, embedding = measure(learn), measure(lambda: frozen.features(rows))
    source.model.zero_grad()
    everything = embedding * sum(map(len, split.values()))
    epoch = learning * len(split["train"]) + embedding * len(split["val"])
    click.echo(
        f"embedding all molecules takes about {format_seconds(everything)} here, the head then "
        "learns in seconds, and that is all with --freeze; an epoch of both takes "
        f"{format_seconds(epoch)}, {epochs} epochs {format_seconds(epochs * epoch)}"
    )


def format_seconds(seconds):
    """Return a duration in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass
class Experiment:
    """What all seeds and trials of a run share; parts can be left out, to study them."""

    data: Data
    pictures: dict  # {row: uint8 (224, 224)}
    config: dict
    device: torch.device
    dtype: torch.dtype | None  # of training with gradients; None: fp32
    world: Distributed
    with_baselines: bool = True
    head_first: bool = True
    rates: Callable = warmup_cosine
    compared: dict = field(default_factory=dict)  # the baselines' predictions, by seed
    announced: bool = False

    def __post_init__(self):
        random = self.config["init"].startswith("scratch:")
        rows = len(self.data)
        self.frozen = FrozenEncoder(self.pictures, rows, random, self.device, self.world)

    def usable(self):
        """Return the rows with a picture and a label."""
        return [row for row in sorted(self.pictures) if not self.data.problems[row]]

    def run_seed(self, folder, seed, trial):
        """Train, test and write one complete folder; return its SeedResult, None but on rank 0.

        A folder that is complete already is left as it is, and read.
        """
        config, data, first = self.config | trial | {"seed": seed}, self.data, not self.world.rank
        if finished(folder, config):
            return read_result(folder, data) if first else None
        if first:
            save_json(folder / "config.json", config)
        split = make_split(data, self.usable(), config["split"], seed, warn=first)
        check_targets(data, split, warn=first)
        known, scale = data.labels[split["train"]], LabelScale.identity(len(data.targets))
        if data.task == "regression" and not config["raw_labels"]:
            scale = LabelScale.of(known)
        weights = config["pos_weight"] and positive_weights(known, config["pos_weight"])
        labels = torch.from_numpy(scale.standardise(data.labels)).float()
        objective = Objective(labels, split, Loss(data.task, weights))
        model, history, predicted = self.fit(folder, seed, trial, objective, scale)
        result = None
        if first:
            compared = self.compare(seed, objective, scale)
            result = make_result(data, seed, split, history, predicted, compared)
            save_result(folder, result, model, data, self.pictures, config)
        self.world.barrier()
        return result

    def fit(self, folder, seed, trial, objective, scale):
        """Return (model, history, predictions {row: (targets,)}) of one seed and one trial."""
        config = self.config
        torch.manual_seed(seed)
        encoder = load_encoder(config["init"], seed)
        model = Model(encoder, len(self.data.targets), scale)
        plan = Plan(config["epochs"], config["batch"], seed, f"seed {seed}", config["patience"])
        if config["freeze"]:
            history, found = self.fit_frozen(model, trial, objective, plan)
        else:
            history, found = self.fit_whole(folder, model, trial, objective, plan)
        return model, history, dict(zip(sorted(self.pictures), found))

    def fit_frozen(self, model, trial, objective, plan):
        """Train the head on embeddings, on the CPU; return (history, predictions of all rows)."""
        embeddings = self.frozen.embeddings(model.encoder, plan.seed)
        history = train_head(model.cpu().head, embeddings, objective, trial["lr_head"], plan)
        with torch.no_grad():
            outputs = model.head(embeddings[sorted(self.pictures)])
            return history, model.unscale(outputs, self.data.task).numpy()

    def fit_whole(self, folder, model, trial, objective, plan):
        """Train encoder and head together; return (history, predictions of all rows)."""
        micro = fitting_batch(model.encoder.arch, self.device, self.dtype)
        micro, augment = min(plan.batch, micro), trial["augment"]
        embedder = Embedder(model.to(self.device).encoder, self.device, self.dtype, augment, micro)
        source = PictureSource(model, self.pictures, embedder, self.world)
        if not self.announced and self.device.type == "cpu" and not self.world.rank:
            print_estimate(source, objective.split, plan.epochs, plan.batch)
        self.announced, start, progress = True, None, folder / "progress.pt"
        if self.head_first and not progress.exists():
            start = self.frozen.probe_head(model, trial["lr_head"], objective, plan)
        self.world.barrier()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        optimizers = [adam(model.encoder, trial["lr_encoder"]), adam(model.head, trial["lr_head"])]
        plan = plan._replace(rates=self.rates)
        history = train(source, objective, optimizers, plan, scaler, progress, start)
        batch, rows, task = min(64, plan.batch), sorted(self.pictures), self.data.task
        found = predict_rows(model, self.pictures, rows, task, batch, self.device, self.world)
        return history, found

    def compare(self, seed, objective, scale):
        """Return {name: predictions of the test part} of the baselines, made once for a seed.

        Their MLP has the learning rates and epochs of the model's head.
        """
        if self.with_baselines and seed not in self.compared:
            epochs, patience = HEAD_EPOCHS, HEAD_PATIENCE
            if self.config["freeze"]:
                epochs, patience = self.config["epochs"], self.config["patience"]
            plan = Plan(epochs, 64, seed, "ECFP + MLP", patience)
            rates = self.config["rates"]
            self.compared[seed] = baselines(self.data, scale, objective, rates, plan)
        return self.compared.get(seed, {})


COUNT = click.IntRange(1)
TASKS = click.Choice(["auto", "regression", "classification"])
RATES = comma_list(number_between(0, 1e3), "a learning rate, or several such as 5e-6,2e-5")
SEEDS = comma_list(number_between(-1, 2**32, int), "a list of whole numbers such as 1,2,3")
AUGMENT = comma_list(LEVELS.__getitem__, "none, default, intense or several of them")


@click.command()
@click.option("--data", required=True, help="CSV or TSV with a SMILES column and labels.")
@options.out_path(None, "Folder for the results.  [default: runs/NAME]")
@click.option(
    "--init", help="Encoder to start from.  [default: encoder.pt, else bundled, else ViT-B/16]"
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Label column; repeatable.  [default: every column of numbers that is no index]",
)
@options.shown("--task", "auto", "auto: classification if all labels are 0 or 1.", type=TASKS)
@click.option(
    "--pos-weight",
    callback=positive_weight,
    help="Weight of the positives in the loss: a number, or auto for negatives / positives.",
)
@click.option("--raw-labels", is_flag=True, help="Don't standardise the labels (the paper's way).")
@options.shown(
    "--split", "random", "random, scaffold, random-scaffold, column, or a splits.csv; 80/10/10%."
)
@click.option(
    "--split-column",
    help="Column that says train, val or test.  [default with --split column: split]",
)
@options.shown("--seeds", "1", "Seeds of split and training, such as 1,2,3.", callback=SEEDS)
@options.shown(
    "--epochs",
    60,
    "Passes over the training part; the learning rates fall to 0 over them.",
    type=COUNT,
)
@click.option(
    "--patience", type=COUNT, help="Stop after so many epochs without a better validation loss."
)
@options.batch(64, 1, "Molecules in a step.")
@options.shown(
    "--lr-encoder",
    "5e-6",
    "Highest learning rate of the encoder; several make a grid.",
    callback=RATES,
)
@options.shown(
    "--lr-head", "4e-4", "Highest learning rate of the head; several make a grid.", callback=RATES
)
@options.shown(
    "--augment",
    "default",
    "Pixel augmentation of training pictures; several make a grid.",
    callback=AUGMENT,
)
@click.option(
    "--freeze", is_flag=True, help="Embed once and train the head alone: seconds instead of hours."
)
@click.option("--r-groups", is_flag=True, help="Draw the ends of all molecules as R-groups.")
@options.device()
@options.precision(["auto", "bf16", "fp16", "fp32"], "auto", "Of training; embeddings are fp32.")
@options.smiles_column()
@click.pass_context
def main(context, **_):
    """Train encoder and head on the labels of a table and compare with fingerprints."""
    run(context)


def run(context, **parts):
    """Finetune as the options of a click context say, and write the whole folder.

    parts: of Experiment, to leave something out: run(main.make_context("finetune.py", words),
    with_baselines=False).
    """
    chosen = SimpleNamespace(**context.params)
    with report_once(), enough_memory(chosen.batch):
        device = pick_device(chosen.device)
        world = Distributed.start(device)
        data = read_data(context, chosen)
        name = re.sub(r"(\.(csv|tsv))?(\.gz)?$", "", Path(data.path).name)
        out = chosen.out or Path("runs") / name
        if (out / "metrics.json").exists():
            raise click.ClickException(
                f"{out}: holds a finished run; give another folder with -o, or delete it"
            )
        if not world.rank:
            check_output(out / "model.pt")
        chosen.init = chosen.init or default_init()
        with world.rank0_first():
            load_encoder(chosen.init)  # a wrong --init shows before the drawing
        dtype, reason = pick_precision(chosen.precision, device)
        config = make_config(chosen, data)
        pictures, data.problems = draw_rows(data, world, chosen.r_groups)
        experiment = Experiment(data, pictures, config, device, dtype, world, **parts)
        if len(experiment.usable()) < 10:
            raise click.ClickException(
                f"{data.path}: {len(experiment.usable())} molecules with labels; "
                "at least 10 are needed for three parts"
            )
        if not world.rank:
            print_facts(experiment, reason)
        train_all(experiment, chosen, out)


def read_data(context, chosen):
    """Return the Data of --data, when the options are seen to fit together."""
    path = find_input(chosen.data)
    if chosen.split not in SPLIT_KINDS and not Path(chosen.split).is_file():
        raise click.BadParameter(
            f"{chosen.split!r} is none of {', '.join(SPLIT_KINDS)}, nor a splits.csv that exists",
            param_hint="--split",
        )
    sources = [context.get_parameter_source(name) for name in ("lr_encoder", "augment")]
    if chosen.freeze and any(source != ParameterSource.DEFAULT for source in sources):
        raise click.BadParameter(
            "the encoder stays as it is: leave out --lr-encoder and --augment",
            param_hint="--freeze",
        )
    if chosen.split_column:
        chosen.split = "column"
    column = chosen.split_column or ("split" if chosen.split == "column" else None)
    return Data(path, chosen.targets, chosen.task, chosen.smiles_column, column)


def make_config(chosen, data):
    """Return what config.json holds of a run, but for the trial and the seed."""
    training = ("pos_weight", "raw_labels", "epochs", "patience", "batch", "freeze", "r_groups")
    return {
        "data": Path(data.path).name,
        "data_sha256": input_facts(data.path, chosen.smiles_column)["sha256"],
        "init": chosen.init,
        "split": chosen.split,
        "seeds": chosen.seeds,
        "rates": chosen.lr_head,
        "task": data.task,
        "targets": data.targets,
        "max_atoms": MAX_ATOMS,
        "rdkit": rdBase.rdkitVersion,
        "torch": str(torch.__version__),
        "head_first": None if chosen.freeze else [HEAD_EPOCHS, HEAD_PATIENCE, WARM_UP],
        "precision": chosen.precision,
        **{name: getattr(chosen, name) for name in training},
    }


def print_facts(experiment, reason):
    """Print what is learned, from which encoder, and where."""
    data, config, count = experiment.data, experiment.config, len(experiment.data.targets)
    targets = f"{count} target{'s' * (count > 1)} ({', '.join(data.targets[:6])})"
    dtype = str(experiment.dtype or "fp32").removeprefix("torch.")
    click.echo(
        f"{data.path}: {len(experiment.usable())} molecules, {targets}, {data.task}; "
        f"{'frozen ' * config['freeze']}encoder from {config['init']}; "
        f"{experiment.device.type} in {dtype} ({reason})"
    )


def train_all(experiment, chosen, out):
    """Train every trial with every seed, and write what they give together."""
    trials, results, first = [], [], not experiment.world.rank
    for lr_encoder in chosen.lr_encoder:
        for lr_head in chosen.lr_head:
            for augment in ["none"] if chosen.freeze else chosen.augment:
                trials.append({"lr_encoder": lr_encoder, "lr_head": lr_head, "augment": augment})
    grid, best = len(trials) > 1, 0
    for trial in trials:
        where = trial_folder(out, trial) if grid else out
        seeds = [(where / f"seed-{seed}", seed, trial) for seed in chosen.seeds]
        results.append([experiment.run_seed(*seed) for seed in seeds])
        if grid and first:
            keep_best(out, trials, results)
    if first:
        if grid:
            best = finish_grid(out, trials, results)
        config, pictures = experiment.config | trials[best], experiment.pictures
        scores = aggregate(out, experiment.data, results[best], config, pictures)
        print_table(scores, len(chosen.seeds))
        note = "test values of the epochs that are best on validation; see report.png there"
        click.echo(f"\n{out}: {note}")


if __name__ == "__main__":
    main()
