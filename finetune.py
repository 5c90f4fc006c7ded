"""Finetune the encoder on a CSV of molecules and labels, and say honestly how good the model is.

    python finetune.py --data dhbd.csv                          # from encoder.pt; writes runs/dhbd/
    python finetune.py --data esol.csv --split scaffold --seeds 1,2,3
    python finetune.py --data assay.csv --target pIC50 --epochs 30 --init ViT-B/16

Encoder and a 3-layer MLP are trained together; the test value reported is that of the epoch that was best on
validation. Every report has fingerprint baselines on the same split beside it (MoleCLIP, section 9 of its protocol).
"""

import math
import re
import shutil
import time
from functools import cache
from pathlib import Path

import click
import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy.stats import spearmanr
from sklearn import metrics as skm
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from tqdm import tqdm

import pretrain
import render

INDEX_NAMES = {"num", "index", "indices", "id", "idx", "row", "no", "nr", "number", ""}
BLANKS = {"", "nan", "na", "null", "none"}
PARTS = ("train", "val", "test")


# ---------------------------------------------------------------------------------------------------------------------
# The table


class Data:
    """What a CSV holds: one entry for every row, unreadable ones included.

    smiles: list of str; problems: list of str, "" where the row can be used; targets: names;
    labels: float64 (rows, targets), NaN where missing; task: "regression" or "classification".
    """

    def __init__(self, path, targets=(), task="auto", smiles_column=None):
        self.path = path
        if render.input_kind(path, smiles_column) != "table" or path == "-":
            raise click.ClickException(f"{path}: labels need a .csv or .tsv file with a header")
        self.molecules = list(render.read_molecules(path, smiles_column))
        header = list(self.molecules[0].fields)
        self.smiles_column = render.find_smiles_column(path, header, smiles_column)
        self.problems = [m.problem for m in self.molecules]
        columns = self.pick_columns(header, targets)
        parsed = [self.parse_column(name) for name in columns]
        self.labels = np.concatenate(parsed, 1)
        self.targets = [name if values.shape[1] == 1 else f"{name}_{i + 1}"
                        for name, values in zip(columns, parsed) for i in range(values.shape[1])]
        for name in self.targets:
            if self.targets.count(name) > 1:
                raise click.ClickException(f"{path}: two targets would be called {name!r}; rename a column, or name each --target once")
        known = self.labels[~np.isnan(self.labels)]
        if not len(known):
            raise click.ClickException(f"{path}: every label in {', '.join(columns)} is blank")
        binary = bool(np.isin(known, (0, 1)).all())
        self.task = {"auto": "classification" if binary else "regression"}.get(task, task)
        if self.task == "classification" and not binary:
            raise click.ClickException(f"{path}: --task classification needs labels 0 and 1 only; there is {known[~np.isin(known, (0, 1))][0]:g}")

    def __len__(self):
        return len(self.molecules)

    def column(self, name):
        return [m.fields.get(name, "").strip() for m in self.molecules]

    def pick_columns(self, header, wanted):
        """Return the label columns: those asked for, or every column of numbers that is no index."""
        for name in wanted:
            if name not in header:
                raise click.ClickException(f"{self.path}: no column {name!r} for --target; it has {', '.join(map(repr, header))}")
        found = list(wanted) or [name for name in header if name != self.smiles_column and self.looks_like_labels(name)]
        if not found:
            others = [name for name in header if name != self.smiles_column]
            hint = f"; columns beside the SMILES: {', '.join(others)}" if others else ", it has the SMILES column alone"
            raise click.ClickException(f"{self.path}: no column of numbers to learn from{hint}. Name one with --target")
        return found

    def looks_like_labels(self, name):
        """Tell whether most cells of a column are numbers and it doesn't just count the rows.

        Not all cells: a stray `>100` in a label column has to be reported, not to hide the column.
        """
        cells = [cell for cell in self.column(name) if cell.lower() not in BLANKS]
        numbers = [numbers_in(cell) for cell in cells]
        good = [values for values in numbers if values is not None]
        if name.strip().lower() in INDEX_NAMES or not good or 2 * len(good) <= len(cells):
            return False
        single = [values[0] for values in good if len(values) == 1]
        counts = len(single) == len(cells) > 2 and (np.diff(single) == 1).all()
        return not counts

    def parse_column(self, name):
        """Return a column as float64 (rows, width): several blank-separated labels may share one column (MoleCLIP)."""
        values = []
        for molecule, cell in zip(self.molecules, self.column(name)):
            numbers = [] if cell.lower() in BLANKS else numbers_in(cell)
            if numbers is None and not molecule.problem:
                raise click.ClickException(f"{self.path}: row {molecule.row} (line {molecule.line}): {name} is {cell!r}, not a number; "
                                           "write a number, or leave the cell blank if it was not measured")
            values.append(numbers or [])
        width = max(map(len, values), default=0) or 1
        for molecule, numbers in zip(self.molecules, values):
            if numbers and len(numbers) != width and not molecule.problem:
                raise click.ClickException(f"{self.path}: row {molecule.row} (line {molecule.line}): {name} has {len(numbers)} labels where others have {width}")
        return np.array([numbers if len(numbers) == width else [math.nan] * width for numbers in values])


def numbers_in(cell):
    """Return the finite numbers of a blank-separated cell as floats, or None if it holds anything else."""
    try:
        numbers = [float(word) if word.lower() not in BLANKS else math.nan for word in cell.split()]
    except ValueError:
        return None
    return numbers if numbers and all(abs(x) < 1e30 or x != x for x in numbers) else None


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def random_split(usable, seed):
    """Return (train, val, test) index lists of 80/10/10 %, the paper's own for the same rows and seed."""
    order = list(range(len(usable)))
    np.random.RandomState(seed).shuffle(order)
    tenth = int(0.1 * len(order))
    pick = lambda part: [usable[i] for i in part]
    return pick(order[2 * tenth:]), pick(order[tenth:2 * tenth]), pick(order[:tenth])


def scaffold_split(usable, smiles):
    """Return (train, val, test): whole Bemis-Murcko scaffolds, the most frequent to train (MoleCLIP; DeepChem's order)."""
    groups = {}
    for i in usable:
        groups.setdefault(scaffold(smiles[i]), []).append(i)
    train_until, val_until = (1 - 0.1 - 0.1) * len(usable), (1 - 0.1) * len(usable)
    train, val, test = [], [], []
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(train) + len(group) <= train_until:
            train += group
        elif len(train) + len(val) + len(group) <= val_until:
            val += group
        else:
            test += group
    return train, val, test


@cache
def scaffold(smiles):
    return MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(smiles), includeChirality=True)


def make_split(data, usable, kind, seed):
    """Return {"train": [...], "val": [...], "test": [...]} of row numbers, and print what a user should know of it."""
    smiles = [m.smiles for m in data.molecules]
    split = dict(zip(PARTS, parts := random_split(usable, seed) if kind == "random" else scaffold_split(usable, smiles)))
    if min(map(len, parts)) == 0:
        raise click.ClickException(f"{data.path}: {len(usable)} usable molecules leave a part of the {kind} split empty; "
                                   + ("more are needed" if kind == "random" else "its scaffolds are too few or too large, take --split random"))
    scaffolds = {part: {scaffold(smiles[i]) for i in rows} for part, rows in split.items()}
    shared = np.mean([scaffold(smiles[i]) in scaffolds["train"] for i in split["test"]])
    click.echo(f"{kind} split, seed {seed}: {len(parts[0])} train, {len(parts[1])} val, {len(parts[2])} test; "
               f"{100 * shared:.0f}% of the test molecules share a scaffold with training")
    spelled = {i: Chem.CanonSmiles(smiles[i]) for i in usable}
    twins = len({spelled[i] for i in split["train"]} & {spelled[i] for i in split["val"] + split["test"]})
    if twins:
        click.echo(f"warning: {twins} molecules of the training part stand in val or test as well", err=True)
    return split


# ---------------------------------------------------------------------------------------------------------------------
# Model and metrics


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
        embedding = self.encoder(pixels).float()
        with torch.autocast(embedding.device.type, enabled=False):        # the head costs nothing, and rounds nothing
            return self.head(embedding)

    def to_unit(self, outputs, task):
        """Return predictions in the label's own unit, or probabilities."""
        return outputs.sigmoid() if task == "classification" else outputs * self.spread + self.center


def label_scaling(labels, task):
    """Return (center, spread), float64 (targets,): mean and standard deviation of the known training labels."""
    center, spread = np.zeros(labels.shape[1]), np.ones(labels.shape[1])
    for t, column in enumerate(labels.T if task == "regression" else ()):
        known = column[~np.isnan(column)]
        if len(known):
            center[t], deviation, largest = known.mean(), known.std(), np.abs(known).max()
            spread[t] = deviation if deviation > 1e-12 * largest else largest or 1.0         # a constant: nothing to divide by
    return center, spread


def masked_loss(outputs, labels, task):
    """Return the mean L1 (regression) or BCE (classification) over known labels; outputs, labels (n, targets)."""
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, torch.zeros_like(labels))
    each = (torch.nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
            if task == "classification" else (outputs - target).abs())
    return (each * known).sum() / known.sum().clamp(min=1)


def score(truth, predicted, task):
    """Return the metrics of one target (1-d arrays, NaN where unknown); one that is undefined is left out."""
    known = ~np.isnan(truth)
    truth, predicted = truth[known].astype(float), predicted[known].astype(float)
    result = {}
    if task == "classification":
        if len(set(truth)) == 2:
            result["ROC-AUC"] = skm.roc_auc_score(truth, predicted)
            result["PR-AUC"] = skm.average_precision_score(truth, predicted)
        if len(truth):
            result["accuracy"] = np.mean((predicted > 0.5) == truth)
    elif len(truth):
        result["MAE"] = skm.mean_absolute_error(truth, predicted)
        result["RMSE"] = math.sqrt(skm.mean_squared_error(truth, predicted))
        if np.ptp(truth) > 0 and len(truth) > 1:
            result["R2"] = skm.r2_score(truth, predicted)
            if np.ptp(predicted) > 0:
                result["Spearman"] = spearmanr(truth, predicted).statistic
    return {name: float(value) for name, value in result.items()}


def score_all(truth, predicted, targets, task):
    """Return {"pooled": {...}, "targets": {name: {...}}}.

    Pooled MAE and RMSE are over all known labels, the others are means over the targets for which they are defined.
    """
    each = {name: score(truth[:, t], predicted[:, t], task) for t, name in enumerate(targets)}
    pooled = {}
    for name in {name: None for scores in each.values() for name in scores}:
        values = [scores[name] for scores in each.values() if name in scores]
        pooled[name] = float(np.mean(values))
        if len(values) < len(targets):
            pooled[f"{name} defined for"] = len(values)
    if task == "regression":
        pooled |= {k: v for k, v in score(truth.ravel(), predicted.ravel(), task).items() if k in ("MAE", "RMSE")}
    return {"pooled": pooled, "targets": each}


# ---------------------------------------------------------------------------------------------------------------------
# Training


def run_batches(model, inputs, rows, batch, device, dtype):
    """Return the model's outputs, fp32 (len(rows), targets), in the mode without gradient."""
    model.eval()
    with torch.no_grad(), pretrain.autocast(device, dtype):
        return torch.cat([model(inputs(rows[i:i + batch])).float() for i in range(0, len(rows), batch)])


def fit(model, inputs, labels, split, task, optimizers, epochs, batch, seed, device, dtype, name, patience=None):
    """Train on split["train"], keep the weights of the epoch with the lowest validation loss, and return the history.

    inputs: rows -> tensor for the model; labels: (rows, targets), scaled. History: one dict an epoch. The
    test part is never looked at here.
    """
    order, random = np.array(split["train"]), np.random.default_rng([seed, 1])
    known = torch.from_numpy(labels).float().to(device)
    best, history = (math.inf, None, 0), []
    bar = tqdm(total=epochs * -(-len(order) // batch), desc=name, unit=" steps", disable=None, leave=False)
    for epoch in range(1, epochs + 1):
        model.train()
        losses, began = [], time.time()
        for rows in np.split(random.permutation(order), range(batch, len(order), batch)):
            with pretrain.autocast(device, dtype):
                outputs = model(inputs(rows)).float()
            loss = masked_loss(outputs, known[rows], task)
            if not torch.isfinite(loss):
                raise click.ClickException("the loss is not a number any more; lower --lr-encoder and --lr-head, or try --precision fp32")
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item() * len(rows))
            bar.update()
        outputs = run_batches(model, inputs, split["val"], batch, device, dtype)
        val = masked_loss(outputs, known[split["val"]], task).item()
        history.append({"epoch": epoch, "train_loss": sum(losses) / len(order), "val_loss": val, "seconds": time.time() - began})
        if val <= best[0]:                                   # ties take the later epoch, as in the paper
            best = val, {k: v.detach().clone() for k, v in model.state_dict().items()}, epoch
        bar.set_postfix_str(f"val {val:.3f}, best {best[0]:.3f} at epoch {best[2]}")
        if patience and epoch - best[2] >= patience:
            break
    bar.close()
    if best[1] is None:
        raise click.ClickException("the validation loss was never a finite number; lower --lr-encoder and --lr-head, or try --precision fp32")
    model.load_state_dict(best[1])
    return history


def finetune(model, pictures, labels, split, task, lr_encoder, lr_head, device, dtype, **run):
    """Train encoder and head on index pictures, {row: uint8 (224, 224)}; see `fit`."""
    optimizers = [torch.optim.Adam(model.encoder.parameters(), lr_encoder, weight_decay=1e-5, **pretrain.ADAM),
                  torch.optim.Adam(model.head.parameters(), lr_head, weight_decay=1e-5, **pretrain.ADAM)]
    return fit(model, pixels_of(pictures, device), labels, split, task, optimizers, device=device, dtype=dtype, **run)


def predict_rows(model, pictures, rows, task, batch, device):
    """Return predictions in the label's unit (or probabilities), float32 (len(rows), targets); in fp32, as ONNX computes them."""
    return model.to_unit(run_batches(model, pixels_of(pictures, device), rows, batch, device, None), task).cpu().numpy()


def pixels_of(pictures, device):
    """Return a function from row numbers to the model's input."""
    return lambda rows: pretrain.to_pixels(np.stack([pictures[i] for i in rows]), device)


# ---------------------------------------------------------------------------------------------------------------------
# Baselines on the same split


def fingerprints(smiles):
    """Return ECFP4, 2048-bit Morgan fingerprints of radius 2, float32 (n, 2048)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles]).astype(np.float32)


def baselines(data, labels, center, spread, split, epochs, seed):
    """Return {name: predictions of split["test"], float32 (n, targets)} of ECFP + MLP, ECFP + forest and the mean."""
    rows = sum(split.values(), [])
    bits = np.zeros((len(data), 2048), np.float32)
    bits[rows] = fingerprints([data.molecules[i].smiles for i in rows])
    device, task = torch.device("cpu"), data.task
    torch.manual_seed(seed)
    network, table = mlp(2048, labels.shape[1]), torch.from_numpy(bits)
    optimizer = torch.optim.Adam(network.parameters(), 4e-4, weight_decay=1e-5, **pretrain.ADAM)
    fit(network, lambda part: table[part], labels, split, task, [optimizer], epochs, 64, seed, device, None, "ECFP + MLP")
    outputs = run_batches(network, lambda part: table[part], split["test"], 64, device, None).numpy()
    mlp_values = 1 / (1 + np.exp(-outputs)) if task == "classification" else outputs * spread + center
    forest_values = np.stack([forest(bits, data.labels[:, t], split, task, seed) for t in range(labels.shape[1])], 1)
    known = data.labels[split["train"]]
    mean = np.array([np.nanmean(column) if (~np.isnan(column)).any() else 0.0 for column in known.T])
    return {"ECFP + MLP": mlp_values, "ECFP + random forest": forest_values,
            "mean of training": np.tile(mean, (len(split["test"]), 1))}


def forest(bits, labels, split, task, seed):
    """Return a random forest's predictions of one target for the test part."""
    rows = [i for i in split["train"] if not np.isnan(labels[i])]
    if not rows or (task == "classification" and len(set(labels[rows])) < 2):
        return np.full(len(split["test"]), labels[rows[0]] if rows else 0.0)
    kind = RandomForestClassifier if task == "classification" else RandomForestRegressor
    model = kind(300, random_state=seed, n_jobs=-1).fit(bits[rows], labels[rows])
    test = bits[split["test"]]
    return model.predict_proba(test)[:, list(model.classes_).index(1)] if task == "classification" else model.predict(test)


# ---------------------------------------------------------------------------------------------------------------------
# The run folder


def write_predictions(path, data, split, predicted):
    """Write one line for every row of the input: row, smiles, split, then truth and prediction of each target."""
    part_of = {row: part for part, rows in split.items() for row in rows}
    header = ["row", "smiles", "split"] + [f"{kind}_{name}" for name in data.targets for kind in ("true", "predicted")] + ["error"]
    lines = []
    for m in data.molecules:
        cells = []
        for t in range(len(data.targets)):
            truth = data.labels[m.row, t]
            cells += ["" if np.isnan(truth) else f"{truth:.7g}", f"{predicted[m.row][t]:.7g}" if m.row in predicted else ""]
        lines.append([m.row, m.smiles, part_of.get(m.row, ""), *cells, data.problems[m.row]])
    render.save_table(path, header, lines)


def plot_report(path, data, split, predicted, history, scores):
    """Draw learning curves, and truth against prediction (or the ROC curve) of the test part for up to 6 targets."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    shown = data.targets[:6]
    figure, axes = plt.subplots(1, 1 + len(shown), figsize=(4 * (1 + len(shown)), 3.8), layout="constrained")
    axes[0].plot([h["epoch"] for h in history], [h["train_loss"] for h in history], label="train")
    axes[0].plot([h["epoch"] for h in history], [h["val_loss"] for h in history], label="validation")
    best = min(reversed(history), key=lambda h: h["val_loss"])
    axes[0].axvline(best["epoch"], color="grey", lw=0.8, ls="--", label=f"kept: epoch {best['epoch']}")
    axes[0].set(title="loss", xlabel="epoch")
    axes[0].legend()
    for t, (name, axis) in enumerate(zip(shown, axes[1:])):
        rows = [i for i in split["test"] if not np.isnan(data.labels[i, t])]
        truth, values = data.labels[rows, t], np.array([predicted[i][t] for i in rows])
        if data.task == "classification" and len(set(truth)) == 2:
            axis.plot(*skm.roc_curve(truth, values)[:2])
            axis.plot([0, 1], [0, 1], "k--", lw=0.8)
            axis.set(xlabel="false positive rate", ylabel="true positive rate")
        elif len(rows):
            axis.scatter(truth, values, s=12, alpha=0.6)
            axis.axline((truth.mean(), truth.mean()), slope=1, color="k", lw=0.8, ls="--")
            axis.set(xlabel="truth", ylabel="prediction")
        axis.set_title(f"{name}, test\n" + "  ".join(f"{k} {v:.3g}" for k, v in scores["targets"][name].items()), fontsize=8, parse_math=False)
    render.save_whole(path, lambda name: figure.savefig(name, dpi=110, format="png"))
    plt.close(figure)


def print_scores(table):
    """Print one line a method with its pooled test metrics."""
    names = [name for name in next(iter(table.values()))["pooled"] if "defined" not in name]
    click.echo(f"\n{'test part':24s}" + "".join(f"{name:>12s}" for name in names))
    for method, scores in table.items():
        click.echo(f"{method:24s}" + "".join(f"{scores['pooled'][n]:12.4g}" if n in scores["pooled"] else f"{'-':>12s}" for n in names))


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


def draw_rows(data, workers, max_atoms):
    """Return {row: uint8 (224, 224)} of every molecule that can be drawn; the reasons of the others go to data.problems."""
    pictures = {}
    drawn = render.draw_all(data.molecules, workers, max_atoms=max_atoms)
    for molecule, result in tqdm(drawn, total=len(data), desc="drawing", unit=" molecules", disable=None, leave=False):
        if isinstance(result, str):
            data.problems[molecule.row] = result
        else:
            pictures[molecule.row] = render.inflate(result[0])
    for row, problem in enumerate(data.problems):
        if not problem and np.isnan(data.labels[row]).all():
            data.problems[row] = "no label"
    rejected = [(m, p) for m, p in zip(data.molecules, data.problems) if p]
    for molecule, problem in rejected[:5]:
        click.echo(f"{data.path}: row {molecule.row} (line {molecule.line}) is left out: {problem}", err=True)
    if len(rejected) > 5:
        click.echo(f"... and {len(rejected) - 5} more; all are named in predictions.csv", err=True)
    if not pictures:
        raise click.ClickException(f"{data.path}: none of its {len(data)} rows is a readable molecule")
    return pictures


def default_init():
    """Return the encoder to start from when --init is not given."""
    if Path("encoder.pt").is_file():
        return "encoder.pt"
    return "bundled" if pretrain.BUNDLED.is_file() else "ViT-B/16"


def one_seed(folder, data, pictures, split, seed, config, device, dtype):
    """Train, test and write one complete folder; return the table of test scores by method."""
    usable = sum(split.values(), [])
    center, spread = label_scaling(data.labels[split["train"]], data.task)
    labels = (data.labels - center) / spread
    torch.manual_seed(seed)
    model = Model(pretrain.load_encoder(config["init"], seed), len(data.targets), center, spread).to(device)
    history = finetune(model, pictures, labels, split, data.task, config["lr_encoder"], config["lr_head"], device, dtype,
                       epochs=config["epochs"], batch=config["batch"], seed=seed, name=f"seed {seed}", patience=config["patience"])
    model.eval()
    shown = [row for row in range(len(data)) if row in pictures]
    predicted = dict(zip(shown, predict_rows(model, pictures, shown, data.task, config["batch"], device)))
    truth = data.labels[split["test"]]
    methods = {"this model": np.stack([predicted[i] for i in split["test"]])}
    methods |= baselines(data, labels, center, spread, split, config["epochs"], seed)
    table = {name: score_all(truth, values, data.targets, data.task) for name, values in methods.items()}
    best = min(reversed(history), key=lambda h: h["val_loss"])
    metrics = {"seed": seed, "best_epoch": best["epoch"], "val_loss": best["val_loss"], "test": table,
               "sizes": {part: len(rows) for part, rows in split.items()}, "rejected": len(data) - len(usable)}
    save_model(folder / "model.pt", model, data, config, {"test": table["this model"], "best_epoch": best["epoch"]})
    render.save_json(folder / "config.json", config | {"seed": seed})
    render.save_table(folder / "splits.csv", ["row", "split"], sorted((row, part) for part, rows in split.items() for row in rows))
    render.save_table(folder / "history.csv", list(history[0]), [list(h.values()) for h in history])
    write_predictions(folder / "predictions.csv", data, split, predicted)
    plot_report(folder / "report.png", data, split, predicted, history, table["this model"])
    render.save_json(folder / "metrics.json", metrics)
    return metrics


def aggregate(out, runs, config):
    """Write the aggregate over seeds, metrics.json, and copy the files of the seed that is best on validation."""
    best = min(runs, key=lambda run: run["val_loss"])
    summary = {}
    for method in runs[0]["test"]:
        pooled = [run["test"][method]["pooled"] for run in runs]
        summary[method] = {name: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None, "seeds": len(values)}
                           for name in pooled[0] if (values := [scores[name] for scores in pooled if name in scores])}
    for stale in set(out.glob("seed-*")) - {out / f"seed-{run['seed']}" for run in runs}:      # of the run that was overwritten
        shutil.rmtree(stale)
    for name in ("model.pt", "predictions.csv", "splits.csv", "history.csv", "report.png"):
        source = out / f"seed-{best['seed']}" / name
        render.save_whole(out / name, lambda target: shutil.copyfile(source, target))
    render.save_json(out / "config.json", config)
    render.save_json(out / "metrics.json", {"best_seed": best["seed"], "test": summary, "runs": runs})
    return best


def parse_seeds(context, parameter, value):
    if not re.fullmatch(r"\d+(,\d+)*", value):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,2,3")
    seeds = [int(seed) for seed in value.split(",")]
    if len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise click.BadParameter(f"{value!r}: each seed once, and below 2^32")
    return seeds


@click.command()
@click.option("--data", required=True, help="CSV or TSV with a SMILES column and labels.")
@click.option("-o", "--out", default=None, type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/NAME]")
@click.option("--init", default=None, help="Encoder to start from.  [default: encoder.pt, else bundled, else ViT-B/16]")
@click.option("--target", "targets", multiple=True, help="Label column; repeatable.  [default: every column of numbers that is no index]")
@click.option("--task", default="auto", show_default=True, type=click.Choice(["auto", "regression", "classification"]), help="auto: classification if all labels are 0 or 1.")
@click.option("--split", default="random", show_default=True, type=click.Choice(["random", "scaffold"]), help="How the 80/10/10 parts are drawn.")
@click.option("--seeds", default="1", show_default=True, callback=parse_seeds, help="Seeds of split and training, such as 1,2,3.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Passes over the training part.")
@click.option("--patience", default=None, type=click.IntRange(1), help="Stop after so many epochs without a better validation loss.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Molecules in a step.")
@click.option("--lr-encoder", default=5e-6, show_default=True, type=pretrain.Positive(), help="Learning rate of the encoder.")
@click.option("--lr-head", default=4e-4, show_default=True, type=pretrain.Positive(), help="Learning rate of the head.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "bf16", "fp32"]), help="Arithmetic; weights are always fp32.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Drawing processes.  [default: one a core]")
@click.option("--max-atoms", default=render.MAX_ATOMS, show_default=True, type=click.IntRange(1), help="Reject molecules with more heavy atoms.")
@click.option("--smiles-column", help="Column that holds the SMILES.  [default: found by name]")
@click.option("--overwrite", is_flag=True, help="Replace the finished run that lies in the folder.")
def main(data, out, init, targets, task, split, seeds, device, precision, workers, max_atoms, smiles_column, overwrite, **training):
    """Train encoder and head on the labels of a table and compare with fingerprints."""
    path = render.find_input(data)
    table = Data(path, targets, task, smiles_column)
    out = out or Path("runs") / re.sub(r"(\.(csv|tsv))?(\.gz)?$", "", Path(path).name)
    if (out / "metrics.json").exists() and not overwrite:
        raise click.ClickException(f"{out}: holds a finished run; give another folder with -o, or --overwrite it")
    render.check_output(out / "model.pt")
    config = {"data": Path(path).name, "init": init or default_init(), "split": split, "seeds": seeds, "task": table.task,
              "targets": table.targets, "max_atoms": max_atoms, "rdkit": rdBase.rdkitVersion, "torch": str(torch.__version__), **training}
    device = pretrain.pick_device(device)
    dtype, reason = pretrain.pick_precision(precision, device)
    dtype = None if dtype is torch.float16 else dtype
    pretrain.load_encoder(config["init"])                    # a wrong --init shows before the drawing
    pictures = draw_rows(table, workers, max_atoms)
    usable = [row for row in range(len(table)) if row in pictures and not table.problems[row]]
    if len(usable) < 10:
        raise click.ClickException(f"{path}: {len(usable)} molecules with labels; at least 10 are needed for three parts")
    click.echo(f"{path}: {len(usable)} molecules, {len(table.targets)} target{'s' * (len(table.targets) > 1)} "
               f"({', '.join(table.targets[:6])}), {table.task}; encoder from {config['init']}; "
               f"{device.type} in {str(dtype or 'fp32').removeprefix('torch.')} ({reason})")
    runs = []
    for seed in seeds:
        parts = make_split(table, usable, split, seed)
        runs.append(one_seed(out / f"seed-{seed}", table, pictures, parts, seed, config, device, dtype))
        print_scores(runs[-1]["test"])
    best = aggregate(out, runs, config)
    click.echo(f"\n{out}: test values of epoch {best['best_epoch']}, the best on validation" +
               (f" (seed {best['seed']}; means over {len(seeds)} seeds in metrics.json)" if len(seeds) > 1 else ""))


if __name__ == "__main__":
    main()
