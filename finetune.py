"""Finetune the encoder on a CSV of molecules and labels, and say honestly how good the model is.

    python finetune.py --data dhbd.csv                          # from encoder.pt; writes runs/dhbd/
    python finetune.py --data esol.csv --split scaffold --seeds 1,2,3 --lr-head 1e-3,4e-4,1e-4
    python finetune.py --data assay.csv --target pIC50 --freeze # embeds once, then trains the head alone in seconds

A 3-layer MLP learns on the encoder's embeddings first, then both are trained together; the test value reported is that of
the epoch that was best on validation. Every report has fingerprint baselines on the same split beside it (MoleCLIP, section 9 of its protocol).
"""

import math
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch
from click.core import ParameterSource
from rdkit import rdBase
from tqdm import tqdm

import pretrain
import render
from report import aggregate, best_epoch, cell_folder, choose, finish_grid, finished, over_seeds, plot_report, print_table, save_predictions, save_scores, score_all
from table import SPLITS, Data, check_targets, fingerprints, forest, label_scaling, make_split, positive_weights

DECAY = 1e-5                # weight decay of encoder and head in finetuning (MoleCLIP)
HEAD_EPOCHS, HEAD_PATIENCE = 200, 40         # of the head alone, before encoder and head are trained together
WARM_UP = 0.1               # part of training over which the learning rates rise
SAVE_EVERY = 60             # seconds between two savings of a run's progress, at the end of an epoch
CHUNK = 512                 # pictures that are unpacked at once to predict


# ---------------------------------------------------------------------------------------------------------------------
# Model and loss


def mlp(inputs, outputs):
    """Return the paper's head: three layers of 512 with ReLU, then one linear layer."""
    hidden = [layer for width in (inputs, 512, 512) for layer in (torch.nn.Linear(width, 512), torch.nn.ReLU())]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(512, outputs))


class Model(torch.nn.Module):
    """Encoder, head and label scaling: float RGB pixels to predictions in the label's own unit, or logits."""

    def __init__(self, encoder, outputs, center=None, spread=None):
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.arch["args"]["output_dim"], outputs)
        self.register_buffer("center", torch.zeros(outputs) if center is None else torch.as_tensor(center).float())
        self.register_buffer("spread", torch.ones(outputs) if spread is None else torch.as_tensor(spread).float())

    def forward(self, pixels):
        """Return logits, or standardised predictions; `to_unit` has the unit."""
        return self.head(self.encoder(pixels).float())

    def to_unit(self, outputs, task):
        """Return predictions in the label's own unit, or probabilities."""
        return outputs.sigmoid() if task == "classification" else outputs * self.spread + self.center


class Loss:
    """L1 (regression) or BCE (classification) over known labels; `weight` (targets,) multiplies the positives' part."""

    def __init__(self, task, weight=None):
        self.task, self.weight = task, None if weight is None else torch.as_tensor(weight).float()

    def __call__(self, outputs, labels):
        """Return the sum over the known among labels (n, targets), NaN where missing."""
        known = ~torch.isnan(labels)
        target = torch.where(known, labels, torch.zeros_like(labels))
        if self.task == "classification":
            weight = None if self.weight is None else self.weight.to(outputs.device)
            each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none", pos_weight=weight)
        else:
            each = (outputs - target).abs()
        return (each * known).sum()

    def mean(self, outputs, labels):
        return self(outputs, labels) / (~torch.isnan(labels)).sum().clamp(min=1)


# ---------------------------------------------------------------------------------------------------------------------
# What a model learns from: pictures through the encoder, or a table of numbers through the head alone


class Alone(pretrain.World):
    """A world of one process, whatever torchrun started: for what every process computes alike."""

    def __init__(self):
        self.size, self.rank = 1, 0


class Pictures:
    """Index pictures, {row: uint8 (224, 224)}: each process looks at its share of a batch, in slices of like ink."""

    def __init__(self, model, pictures, eye, world):
        self.model, self.pictures, self.eye, self.world, self.device = model, pictures, eye, world, eye.device

    def parts(self, rows, random):
        """Yield (positions among rows, outputs with gradient) of this process's share; random: (len(rows), RANDOM)."""
        mine = np.arange(len(rows))[self.world.rank::self.world.size]
        if not len(mine):
            return
        index = np.stack([self.pictures[rows[i]] for i in mine])
        for part in self.eye.slices(index, random[mine]):
            yield mine[part], self.model.head(self.eye.look(index[part], random[mine[part]]))

    def features(self, rows, bar=None):
        """Return embeddings, fp32 (len(rows), 512), without gradient; every process gets all."""
        padded = list(rows) + [rows[-1]] * (-len(rows) % self.world.size)
        mine = np.array_split(padded, self.world.size)[self.world.rank]
        found = []
        for chunk in np.split(mine, range(CHUNK, len(mine), CHUNK)):
            with torch.no_grad():
                found.append(self.eye.look_in_slices(np.stack([self.pictures[i] for i in chunk]), None))
            if bar is not None:
                bar.update(len(chunk) * self.world.size)
        return self.world.gather(torch.cat(found))[:len(rows)]

    def outputs(self, rows):
        with torch.no_grad():
            return self.model.head(self.features(rows))


class Numbers:
    """A table of inputs, fp32 (rows, width): fingerprints, or the frozen encoder's embeddings."""

    def __init__(self, model, table):
        self.model, self.table, self.device, self.world = model, table, table.device, Alone()

    def parts(self, rows, random):
        yield np.arange(len(rows)), self.model(self.table[rows])

    def outputs(self, rows):
        with torch.no_grad():
            return self.model(self.table[rows])


# ---------------------------------------------------------------------------------------------------------------------
# Training


def fit(source, labels, split, loss, optimizers, epochs, batch, seed, name, patience=None, scaler=None, progress=None, start=None, rates=lambda done: 1.0):
    """Train on split["train"], leave the weights of the epoch with the lowest validation loss, and return the history.

    source: Pictures or Numbers; labels: float64 (rows, targets), scaled; progress: file to go on from, written every so often;
    start: the history's line of the weights as they are, if they may be kept (val_loss is measured here, as in all epochs); rates: the
    learning rates' factor as a function of the part of training that is done. History: one dict an epoch.
    """
    order, scaler = np.array(split["train"]), scaler or torch.amp.GradScaler("cpu", enabled=False)
    known = torch.from_numpy(labels).float().to(source.device)
    held_out = lambda: loss.mean(source.outputs(split["val"]), known[split["val"]]).item()         # noqa: E731
    history, best = load_progress(progress, source.model, optimizers, scaler)
    if start and not history:
        history, best = [start | {"val_loss": held_out()}], copied(source.model)
    steps, done, saved = -(-len(order) // batch), history[-1]["epoch"] if history else 0, time.time()
    bar = tqdm(total=epochs * steps, initial=done * steps, desc=name, unit=" steps", disable=True if source.world.rank else None, leave=False)
    for epoch in range(done + 1, epochs + 1):
        losses, began, random = [], time.time(), np.random.default_rng([seed, epoch])
        for rows in np.split(random.permutation(order), range(batch, len(order), batch)):
            numbers = random.random((len(rows), pretrain.RANDOM))
            set_rates(optimizers, rates(((epoch - 1) * steps + len(losses) + 0.5) / (epochs * steps)))
            losses.append(take_step(source, rows, numbers, known[rows], loss, optimizers, scaler) * len(rows))
            bar.update()
        history.append({"epoch": epoch, "train_loss": sum(losses) / len(order), "val_loss": held_out(), "seconds": round(time.time() - began, 3)})
        kept = best_epoch(history)
        if kept["epoch"] == epoch:
            best = copied(source.model)
        bar.set_postfix_str(f"val {history[-1]['val_loss']:.3f}, best {kept['val_loss']:.3f} at epoch {kept['epoch']}")
        if patience and epoch - kept["epoch"] >= patience:
            break
        if progress and not source.world.rank and time.time() - saved > SAVE_EVERY:
            pretrain.save_checkpoint(progress, history=history, best=best, model=source.model.state_dict(), scaler=scaler.state_dict(),
                                     optimizers=[optimizer.state_dict() for optimizer in optimizers])
            saved = time.time()
    bar.close()
    if not math.isfinite(best_epoch(history)["val_loss"]):
        raise click.ClickException("the validation loss was never a finite number; lower --lr-encoder and --lr-head")
    source.model.load_state_dict(best)
    return history


def copied(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def rise_and_fall(done):
    """Return the learning rates' factor: up to 1 over the first tenth of training (a head that has learned is not to be thrown off
    by Adam's first steps), then down to 0 along a cosine (the last epochs' validation losses would else jump about)."""
    return min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * max(0, done - WARM_UP) / (1 - WARM_UP)))


def set_rates(optimizers, factor):
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def load_progress(path, model, optimizers, scaler):
    """Restore training as `fit` left it and return (history, best weights); ([], None) if there is nothing to go on from."""
    if not path or not path.exists():
        return [], None
    found = pretrain.load_checkpoint(path)
    model.load_state_dict(found["model"])
    scaler.load_state_dict(found["scaler"])
    for optimizer, state in zip(optimizers, found["optimizers"]):
        optimizer.load_state_dict(state)
    click.echo(f"going on after epoch {found['history'][-1]['epoch']} of {path}")
    return found["history"], found["best"]


def take_step(source, rows, random, labels, loss, optimizers, scaler):
    """Take one step on a batch and return its mean loss; the processes share the batch and step alike."""
    count, value, world = (~torch.isnan(labels)).sum().clamp(min=1), torch.zeros(1, device=source.device), source.world
    for part, outputs in source.parts(rows, random):
        each = loss(outputs, labels[part]) / count
        scaler.scale(each * world.size).backward()           # the gradients are averaged over the processes
        value += each.detach()
    value = world.mean(value).item() * world.size
    if not math.isfinite(value):
        raise click.ClickException("the loss is not a number any more; lower --lr-encoder and --lr-head")
    parameters = list(source.model.parameters())
    for parameter in parameters:
        if parameter.grad is None:                           # a process without a share
            parameter.grad = torch.zeros_like(parameter)
    world.average_gradients(parameters)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return value


def adam(module, rate):
    return torch.optim.Adam(module.parameters(), rate, weight_decay=DECAY, fused=True, **pretrain.ADAM)


def say_how_long(source, split, epochs, batch):
    """Print how long training will take on a CPU, measured on one slice without learning from it, and how much of it --freeze would."""
    alone, rows = Pictures(source.model, source.pictures, source.eye, Alone()), list(split["train"][:min(batch, 16)])
    frozen = Pictures(source.model, source.pictures, pretrain.Eye(source.model.encoder, source.device, None), Alone())
    for _ in range(2):                                       # the first time pays for what is set up once
        began = time.perf_counter()
        for _, outputs in alone.parts(rows, np.random.default_rng(0).random((len(rows), pretrain.RANDOM))):
            outputs.sum().backward()
        learning = (time.perf_counter() - began) / len(rows) / source.world.size
        began = time.perf_counter()
        frozen.features(rows)
        looking = (time.perf_counter() - began) / len(rows) / source.world.size
    source.model.zero_grad()
    everything, epoch = looking * sum(map(len, split.values())), learning * len(split["train"]) + looking * len(split["val"])
    click.echo(f"embedding all molecules takes about {span(everything)} here, the head then learns in seconds, and that is all with --freeze; "
               f"an epoch of both takes {span(epoch)}, {epochs} epochs {span(epochs * epoch)}")


def span(seconds):
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def train_whole(source, labels, split, loss, cell, **run):
    """Train encoder and head of source, Pictures, together and return the history; cell: lr_encoder, lr_head."""
    source.world.barrier()
    scaler = torch.amp.GradScaler(source.device.type, enabled=source.eye.dtype is torch.float16)
    optimizers = [adam(source.model.encoder, cell["lr_encoder"]), adam(source.model.head, cell["lr_head"])]
    return fit(source, labels, split, loss, optimizers, scaler=scaler, rates=rise_and_fall, **run)


def train_head(head, embeddings, labels, split, loss, rate, **run):
    """Train the head alone on a frozen encoder's embeddings, fp32 (rows, 512), and return the history.

    It learns on embeddings that are standardised on the training part; the scaling is then folded into its first layer.
    """
    known = embeddings[split["train"]]
    mean, deviation = known.mean(0), known.std(0)
    deviation = deviation.clamp(min=1e-3 * deviation.median().item() + 1e-12)
    history = fit(Numbers(head, (embeddings - mean) / deviation), labels, split, loss, [adam(head, rate)], **run)
    with torch.no_grad():
        head[0].bias -= head[0].weight @ (mean / deviation)
        head[0].weight /= deviation
    return history


def predict_rows(model, pictures, rows, task, batch, device, world=Alone()):
    """Return predictions in the label's unit (or probabilities), float32 (len(rows), targets); in fp32, as ONNX computes them."""
    source = Pictures(model, pictures, pretrain.Eye(model.encoder, device, None, "none", batch), world)
    return model.to_unit(source.outputs(rows), task).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Baselines on the same split


def baselines(data, labels, center, spread, split, loss, rates, **run):
    """Return {name: predictions of split["test"], float32 (n, targets)} of ECFP + MLP, ECFP + random forest and the mean.

    The MLP gets the same learning rates to choose from as the model's head, by validation.
    """
    rows = sum(split.values(), [])
    bits = np.zeros((len(data), 2048), np.float32)
    bits[rows] = fingerprints([data.smiles[i] for i in rows])
    found = []
    for rate in rates:
        torch.manual_seed(run["seed"])
        source = Numbers(mlp(2048, labels.shape[1]), torch.from_numpy(bits))
        history = fit(source, labels, split, loss, [adam(source.model, rate)], name="ECFP + MLP", **run)
        found.append((best_epoch(history)["val_loss"], source))
    outputs = min(found, key=lambda pair: pair[0])[1].outputs(split["test"]).numpy()
    mlp_values = 1 / (1 + np.exp(-outputs)) if data.task == "classification" else outputs * spread + center
    weights = [1.0] * labels.shape[1] if loss.weight is None else loss.weight.tolist()
    forests = [forest(bits, data.labels[:, t], split, data.task, run["seed"], weight) for t, weight in enumerate(weights)]
    known = data.labels[split["train"]]
    mean = np.array([np.nanmean(column) if (~np.isnan(column)).any() else 0.0 for column in known.T])
    return {"ECFP + MLP": mlp_values, "ECFP + random forest": np.stack(forests, 1), "mean of training": np.tile(mean, (len(split["test"]), 1))}


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_model(path, model, data, config, metrics):
    """Write model.pt: encoder and arch as in encoder.pt, head, label scaling, target names, task."""
    pretrain.save_checkpoint(path, encoder=model.encoder.visual.state_dict(), arch=model.encoder.arch, step=0, config=config,
                             metrics=metrics, head=model.head.state_dict(), center=model.center, spread=model.spread,
                             targets=data.targets, task=data.task, smiles_column=data.smiles_column)


def load_model(path):
    """Return (Model in eval mode, checkpoint dict) of a model.pt. Raises click.ClickException."""
    checkpoint = pretrain.load_checkpoint(path)
    missing = [key for key in ("head", "targets", "task", "center", "spread", "config", "metrics") if key not in checkpoint]
    if missing:
        raise click.ClickException(f"{path}: holds no finetuned model (no {missing[0]!r}); give a run folder or a model.pt of finetune.py")
    encoder = pretrain.restore_encoder(checkpoint, path)
    try:
        model = Model(encoder, len(checkpoint["targets"]), checkpoint["center"], checkpoint["spread"])
        model.head.load_state_dict(checkpoint["head"])
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise click.ClickException(f"{path}: its head doesn't fit ({pretrain.one_line(error)})") from None
    return model.eval(), checkpoint


def draw_rows(data, world=Alone(), r_groups=False):
    """Return {row: uint8 (224, 224)} of every molecule that can be drawn; the reasons of the others go to data.problems."""
    mine = data.molecules[world.rank::world.size]            # the processes share the drawing
    workers = max(1, render.default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    drawn = tqdm(render.draw_all(mine, workers, r_groups=r_groups), total=len(mine), desc="drawing", unit=" molecules", disable=True if world.rank else None, leave=False)
    results = [{molecule.row: result if isinstance(result, str) else result[0] for molecule, result in drawn}]
    if world.size > 1:
        shares, results = results[0], [None] * world.size
        torch.distributed.all_gather_object(results, shares)
    pictures, found = {}, {row: result for part in results for row, result in part.items()}
    for row, result in sorted(found.items()):
        if isinstance(result, str):
            data.problems[row] = result
        else:
            pictures[row] = render.inflate(result)
    for row, problem in enumerate(data.problems):
        if not problem and np.isnan(data.labels[row]).all():
            data.problems[row] = "no label"
    rejected = [(m, p) for m, p in zip(data.molecules, data.problems) if p and not world.rank]
    for molecule, problem in rejected[:5]:
        click.echo(f"{data.path}: row {molecule.row} (line {molecule.line}) is left out: {problem}", err=True)
    if len(rejected) > 5:
        click.echo(f"... and {len(rejected) - 5} more; all are named in predictions.csv", err=True)
    if not pictures:
        raise click.ClickException(f"{data.path}: none of its {len(data)} rows is a readable molecule")
    return pictures


# ---------------------------------------------------------------------------------------------------------------------
# One seed, and all of them


class Job:
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
            source = Pictures(None, self.pictures, pretrain.Eye(encoder, self.device, None, "none", pretrain.fitting_batch(encoder.arch, self.device, None)), self.world)
            with tqdm(total=len(rows), desc="embedding", unit=" molecules", disable=True if self.world.rank else None, leave=False) as bar:
                found = source.features(rows, bar).cpu()
            table = torch.zeros(len(self.data), found.shape[1])
            table[rows] = found
            self.embedded[key] = table
        return self.embedded[key]

    def train(self, folder, seed, cell, split, labels, center, spread, loss):
        """Return (model, history, predictions {row: (targets,)}) of one seed and one choice of rates and augmentation."""
        data, config = self.data, self.config
        torch.manual_seed(seed)
        model = Model(pretrain.load_encoder(config["init"], seed), len(data.targets), center, spread).to(self.device)
        rows, task = sorted(self.pictures), (labels, split, loss)
        run = {"batch": config["batch"], "seed": seed, "name": f"seed {seed}", "epochs": config["epochs"], "patience": config["patience"]}
        if config["freeze"]:
            embeddings, model = self.embeddings(model.encoder, seed), model.cpu()
            history = train_head(model.head, embeddings, *task, cell["lr_head"], **run)
            with torch.no_grad():
                return model, history, dict(zip(rows, model.to_unit(model.head(embeddings[rows]), data.task).numpy()))
        micro = min(config["batch"], pretrain.fitting_batch(model.encoder.arch, self.device, self.dtype))
        source = Pictures(model, self.pictures, pretrain.Eye(model.encoder, self.device, self.dtype, cell["augment"], micro), self.world)
        if not self.announced and self.device.type == "cpu" and not self.world.rank:
            say_how_long(source, split, config["epochs"], config["batch"])
        self.announced = True
        progress = folder / "progress.pt"
        start = None if progress.exists() else self.head_first(model, seed, cell["lr_head"], task)
        history = train_whole(source, *task, cell, progress=progress, start=start, **run)
        return model, history, dict(zip(rows, predict_rows(model, self.pictures, rows, data.task, min(64, config["batch"]), self.device, self.world)))

    def head_first(self, model, seed, rate, task):
        """Train the head alone, once for a seed and rate, put it into the model, and return its line of the history, as epoch 0."""
        if (seed, rate) not in self.heads:
            history = train_head(model.head.cpu(), self.embeddings(model.encoder, seed), *task, rate, epochs=HEAD_EPOCHS, patience=HEAD_PATIENCE,
                                 batch=self.config["batch"], seed=seed, name=f"seed {seed}, head")
            self.heads[seed, rate] = copied(model.head), best_epoch(history) | {"epoch": 0, "seconds": round(sum(line["seconds"] for line in history), 3)}
        model.head.load_state_dict(self.heads[seed, rate][0])
        for parameter in model.to(self.device).head.parameters():
            parameter.data = self.world.mean(parameter.data)                             # the same on machines that round differently
        return self.heads[seed, rate][1]

    def seed(self, folder, seed, cell):
        """Train, test and write one complete folder; a folder that is complete already is left as it is."""
        config = self.config | cell | {"seed": seed}
        if finished(folder, config):
            return
        if not self.world.rank:
            render.save_json(folder / "config.json", config)
        data, world = self.data, self.world
        split = make_split(data, self.usable, config["split"], seed, warn=not world.rank)
        check_targets(data, split, warn=not world.rank)
        center, spread = label_scaling(data.labels[split["train"]], data.task if not config["raw_labels"] else None)
        labels = (data.labels - center) / spread
        loss = Loss(data.task, positive_weights(data.labels[split["train"]], config["pos_weight"]) if config["pos_weight"] else None)
        model, history, predicted = self.train(folder, seed, cell, split, labels, center, spread, loss)
        if not world.rank:
            if seed not in self.compared:
                long = {key: config[key] for key in ("epochs", "patience")} if config["freeze"] else {"epochs": HEAD_EPOCHS, "patience": HEAD_PATIENCE}     # as the head
                self.compared[seed] = baselines(data, labels, center, spread, split, loss, config["rates"], batch=64, seed=seed, **long)
            self.write(folder, config, model, split, history, predicted)
        world.barrier()

    def write(self, folder, config, model, split, history, predicted):
        data, best = self.data, best_epoch(history)
        truth = data.labels[split["test"]].copy()
        truth[:, np.isnan(data.labels[split["train"]]).all(0)] = np.nan                  # never learned, so not scored
        methods = {"this model": np.stack([predicted[i] for i in split["test"]])} | self.compared[config["seed"]]
        table = {name: score_all(truth, values, data.targets, data.task) for name, values in methods.items()}
        metrics = {"seed": config["seed"], "best_epoch": best["epoch"], "val_loss": best["val_loss"], "test": table,
                   "sizes": {part: len(rows) for part, rows in split.items()}, "rejected": sum(map(bool, data.problems))}
        save_model(folder / "model.pt", model, data, config, {"test": table["this model"], "best_epoch": best["epoch"]})
        render.save_table(folder / "splits.csv", ["row", "split"], sorted((row, part) for part, rows in split.items() for row in rows))
        render.save_table(folder / "history.csv", list(history[0]), [list(h.values()) for h in history])
        run = {"seed": config["seed"], "split": split, "predicted": predicted, "history": history}
        save_predictions(folder / "predictions.csv", data, [run])
        summary = over_seeds([metrics])
        save_scores(folder / "scores.csv", summary)
        plot_report(folder / "report.png", data, [run], summary, self.pictures)
        render.save_json(folder / "metrics.json", metrics)                               # its presence says that all are there
        (folder / "progress.pt").unlink(missing_ok=True)
        click.echo(f"seed {config['seed']}: epoch {best['epoch']} of {history[-1]['epoch']} is best on validation (loss {best['val_loss']:.4g}); {folder}/report.png")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def listed(kind, says):
    """Return a click callback that reads a list such as 1,2,3 and wants each value once."""
    def parse(context, parameter, value):
        try:
            values = [kind(word) for word in value.split(",")]
        except (ValueError, KeyError):
            raise click.BadParameter(f"{value!r} is not {says}") from None
        if len(set(values)) < len(values):
            raise click.BadParameter(f"{value!r} has a value twice; each once")
        return values
    return parse


def within(low, high, kind=float):
    """Return a function that reads a number, and raises ValueError if it is not between the two."""
    def read(word):
        return kind(word) if low < kind(word) < high else kind("")
    return read


def positive_weight(context, parameter, value):
    try:
        return value if value in (None, "auto") else within(0, 1e6)(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither auto nor a number above 0") from None


LEVELS = {level: level for level in ("none", "default", "intense")}


def default_init():
    """Return the encoder to start from when --init is not given."""
    if Path("encoder.pt").is_file():
        return "encoder.pt"
    return "bundled" if pretrain.BUNDLED.is_file() else "ViT-B/16"


@contextmanager
def enough_memory(batch):
    """Turn running out of memory into one line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise click.ClickException(f"out of memory with --batch {batch}; lower --batch, or take a smaller encoder") from None


@click.command()
@click.option("--data", required=True, help="CSV or TSV with a SMILES column and labels.")
@click.option("-o", "--out", default=None, type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/NAME]")
@click.option("--init", default=None, help="Encoder to start from.  [default: encoder.pt, else bundled, else ViT-B/16]")
@click.option("--target", "targets", multiple=True, help="Label column; repeatable.  [default: every column of numbers that is no index]")
@click.option("--task", default="auto", show_default=True, type=click.Choice(["auto", "regression", "classification"]), help="auto: classification if all labels are 0 or 1.")
@click.option("--pos-weight", default=None, callback=positive_weight, help="Weight of the positives in the loss: a number, or auto for negatives / positives.")
@click.option("--raw-labels", is_flag=True, help="Don't standardise the labels (the paper's way).")
@click.option("--split", default="random", show_default=True, help="random, scaffold, random-scaffold, column, or a splits.csv; 80/10/10%.")
@click.option("--split-column", default=None, help="Column that says train, val or test.  [default with --split column: split]")
@click.option("--seeds", default="1", show_default=True, callback=listed(within(-1, 2**32, int), "a list of whole numbers such as 1,2,3"), help="Seeds of split and training, such as 1,2,3.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Passes over the training part; the learning rates fall to 0 over them.")
@click.option("--patience", default=None, type=click.IntRange(1), help="Stop after so many epochs without a better validation loss.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Molecules in a step.")
@click.option("--lr-encoder", default="5e-6", show_default=True, callback=listed(within(0, 1e3), "a learning rate, or several such as 5e-6,2e-5"), help="Highest learning rate of the encoder; several make a grid.")
@click.option("--lr-head", default="4e-4", show_default=True, callback=listed(within(0, 1e3), "a learning rate, or several such as 1e-3,4e-4"), help="Highest learning rate of the head; several make a grid.")
@click.option("--augment", default="default", show_default=True, callback=listed(LEVELS.__getitem__, "none, default, intense or several of them"), help="Pixel augmentation of training pictures; several make a grid.")
@click.option("--freeze", is_flag=True, help="Embed once and train the head alone: seconds instead of hours.")
@click.option("--r-groups", is_flag=True, help="Draw the ends of all molecules as R-groups.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--smiles-column", help="Column that holds the SMILES.  [default: found by name]")
@click.pass_context
def main(context, device, **options):
    """Train encoder and head on the labels of a table and compare with fingerprints."""
    given = {name for name in options if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    with pretrain.one_voice(), enough_memory(options["batch"]):
        device = pretrain.pick_device(device)
        run(given, device, pretrain.World(device), **options)


def run(given, device, world, data, out, init, targets, task, split, split_column, smiles_column, seeds, lr_encoder, lr_head, augment, **training):
    """Check what the user may have got wrong, draw, train every cell with every seed, and write the whole folder."""
    path = render.find_input(data)
    if split not in SPLITS and not Path(split).is_file():
        raise click.BadParameter(f"{split!r} is none of {', '.join(SPLITS)}, nor a splits.csv that exists", param_hint="--split")
    if training["freeze"] and {"lr_encoder", "augment"} & given:
        raise click.BadParameter("the encoder stays as it is: leave out --lr-encoder and --augment", param_hint="--freeze")
    split = "column" if split_column else split
    table = Data(path, targets, task, smiles_column, split_column or ("split" if split == "column" else None))
    out = out or Path("runs") / re.sub(r"(\.(csv|tsv))?(\.gz)?$", "", Path(path).name)
    if (out / "metrics.json").exists():
        raise click.ClickException(f"{out}: holds a finished run; give another folder with -o, or delete it")
    if not world.rank:
        render.check_output(out / "model.pt")
    init = init or default_init()
    with world.first_alone():
        pretrain.load_encoder(init)                          # a wrong --init shows before the drawing
    dtype, reason = pretrain.pick_precision("auto", device)
    cells = [{"lr_encoder": a, "lr_head": b, "augment": c} for a in lr_encoder for b in lr_head for c in (["none"] if training["freeze"] else augment)]
    config = {"data": Path(path).name, "data_sha256": render.input_facts(path, smiles_column)["sha256"], "init": init, "split": split, "seeds": seeds,
              "rates": lr_head, "task": table.task, "targets": table.targets, "max_atoms": render.MAX_ATOMS, "rdkit": rdBase.rdkitVersion, "torch": str(torch.__version__),
              "head_first": None if training["freeze"] else [HEAD_EPOCHS, HEAD_PATIENCE, WARM_UP], **training}
    pictures = draw_rows(table, world, training["r_groups"])
    usable = [row for row in range(len(table)) if row in pictures and not table.problems[row]]
    if len(usable) < 10:
        raise click.ClickException(f"{path}: {len(usable)} molecules with labels; at least 10 are needed for three parts")
    if not world.rank:
        click.echo(f"{path}: {len(usable)} molecules, {len(table.targets)} target{'s' * (len(table.targets) > 1)} "
                   f"({', '.join(table.targets[:6])}), {table.task}; {'frozen ' * training['freeze']}encoder from {init}; "
                   f"{device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})")
    job = Job(table, pictures, usable, config, device, dtype, world)
    for cell in cells:
        for seed in seeds:
            job.seed(cell_folder(out, cell, len(cells) == 1) / f"seed-{seed}", seed, cell)
        if len(cells) > 1 and not world.rank:
            choose(out, cells[:cells.index(cell) + 1], seeds)
    if not world.rank:
        cell = finish_grid(out, cells, seeds) if len(cells) > 1 else cells[0]
        scores = aggregate(out, table, seeds, config | cell, pictures)
        print_table(scores, len(seeds))
        click.echo(f"\n{out}: test values of the epochs that are best on validation; see report.png there")


if __name__ == "__main__":
    main()
