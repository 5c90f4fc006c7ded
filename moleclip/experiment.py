"""What all seeds of a finetuning run share: molecules, splits, training, methods beside it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import click
import torch

from moleclip.choice import LEARNED, Study, choose_head, predict_with
from moleclip.device import ALONE, Distributed
from moleclip.drawing import draw_all
from moleclip.encoders import embedder_of, load_encoders
from moleclip.features import count_fingerprints, featurize
from moleclip.files import save_json
from moleclip.heads import (
    HEAD_EPOCHS,
    HEAD_PATIENCE,
    FrozenEncoder,
    baselines,
    print_estimate,
    train_head,
)
from moleclip.model import Model, predict_rows
from moleclip.molecules import Rejected
from moleclip.results import make_chosen_result, make_result
from moleclip.runs import finished, read_result, save_result
from moleclip.seen import molecule_hashes, refuse_seen, seen_by
from moleclip.splits import make_splits
from moleclip.stages import save_validation, too_few, without_validation
from moleclip.table import Data, LabelScale, positive_weights
from moleclip.training import (
    EncoderSource,
    Loss,
    Objective,
    Plan,
    adam,
    rank0_bar,
    train,
    warmup_cosine,
)
from moleclip.workers import default_workers, parallel

LOOKS = {"picture": lambda found: found.streams[0], "graph": lambda found: found.graph}


def read_rows(data, kinds=("picture",), world=ALONE, r_groups=False):
    """Return ({kind: {row: what an encoder of it looks at}}, why each row is left out or "").

    kinds: "picture", of which each row has a zlib stream, "graph", a Graph, or both. Raises
    click.ClickException if there is nothing to look at.
    """
    distinct = data.pairs.distinct() if data.pairs else range(len(data))
    mine = [data.molecules[row] for row in distinct][world.rank :: world.size]  # shared work
    workers = max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    how = {"drawn": "picture" in kinds, "graph": "graph" in kinds, "r_groups": r_groups}
    shares = [{}]
    with rank0_bar("reading", "molecules", len(mine), world) as bar:
        for molecule, result in parallel(featurize, mine, workers, **how):
            shares[0][molecule.row] = result
            bar.update()
    if world.size > 1:
        own, shares = shares[0], [None] * world.size
        torch.distributed.all_gather_object(shares, own)
    given, problems = {kind: {} for kind in kinds}, list(data.problems)
    for row, result in sorted(item for share in shares for item in share.items()):
        if isinstance(result, Rejected):
            problems[row] = str(result)
            continue
        for kind in kinds:
            given[kind][row] = LOOKS[kind](result)
    if data.pairs:
        data.pairs.spread(given, problems)
    problems = [problem or data.why_unlabelled(row) for row, problem in enumerate(problems)]
    if not world.rank:
        print_rejected(data, problems)
    if not given[kinds[0]]:
        raise click.ClickException(
            f"{data.path}: none of its {len(data)} rows is a readable molecule"
        )
    return given, problems


def print_rejected(data, problems):
    """Print which rows are left out and why."""
    rejected = [pair for pair in zip(data.molecules, problems) if pair[1]]
    for molecule, problem in rejected[:5]:
        click.echo(f"{data.place(molecule)} is left out: {problem}", err=True)
    if len(rejected) > 5:
        click.echo(f"... and {len(rejected) - 5} more; all are named in predictions.csv", err=True)


@dataclass
class Experiment:
    """What all seeds and trials of a run share; parts can be left out, to study them."""

    data: Data
    given: dict  # of `read_rows`: zlib streams of 3 kB each, unpacked they would be 50
    config: dict
    device: torch.device
    dtype: torch.dtype | None  # of training with gradients; None: fp32
    world: Distributed
    with_baselines: bool = True
    head_first: bool = True
    rates: Callable = warmup_cosine
    compared: dict = field(default_factory=dict)  # the baselines' predictions, by seed
    announced: bool = False
    splits: dict = field(default_factory=dict)  # {seed: split}
    beside: dict = field(default_factory=dict)  # {seed: what `compare` returns} of an earlier stage
    trials: int = 0  # trainings that are ahead, where an earlier stage has given a model already
    fingerprints: torch.Tensor | None = None

    def __post_init__(self):
        weights = {"--init": self.config["init"], "--graph": self.config.get("graph")}
        if self.config["init"] == "none":  # no pictures are looked at
            del weights["--init"]
        weights = {flag: path for flag, path in weights.items() if path is not None}
        self.seen = {f"{flag} {path}": seen_by(path) for flag, path in weights.items()}
        random = any(path == "none" or path.startswith("scratch:") for path in weights.values())
        shared = random, self.device, self.world
        first = self.data.pairs and self.data.pairs.first
        self.frozen = FrozenEncoder(self.given, len(self.data), *shared, first)
        self.protein = self.data.pairs and torch.from_numpy(self.data.pairs.features)

    @property
    def rows(self):
        """The rows whose molecules can be read, in order."""
        return sorted(next(iter(self.given.values())))

    def usable(self):
        """Return the rows with a readable molecule and a label."""
        rows = [row for row in self.rows if not self.data.problems[row]]
        return [row for row in rows if not self.data.why_unlabelled(row)]

    def encoder(self, seed):
        """Return the encoder as it is before training, None with fingerprints alone."""
        return load_encoders(self.config["init"], self.config.get("graph"), seed)

    def drawn(self, rows):
        """Return {row: zlib stream} of the pictures of some rows, as far as they can be drawn."""
        if "picture" in self.given:
            return self.given["picture"]
        molecules, r_groups = [self.data.molecules[row] for row in rows], self.config["r_groups"]
        found = draw_all(molecules, 1, r_groups=r_groups) if molecules else ()
        return {each.row: told[0] for each, told in found if not isinstance(told, Rejected)}

    def make_splits(self, force=False):
        """Split for every seed, leave out what can't be learned, and note it in the settings."""
        data, config, first = self.data, self.config, not self.world.rank
        self.splits = make_splits(data, self.usable, config["split"], config["seeds"], first)
        pairs = enumerate(data.problems)
        data.problems = [problem or data.why_unlabelled(row) for row, problem in pairs]
        config |= {"targets": data.targets, "classes": data.classes, "task": data.task}
        for source, seen in self.seen.items() if not force else ():
            refuse_seen(data, self.splits, config, seen, source)

    def run_seed(self, folder, seed, trial):
        """Train, test and write one complete folder; return its SeedResult, None but on rank 0.

        A folder that is complete already is left as it is, and read.
        """
        config, data, first = self.config | trial | {"seed": seed}, self.data, not self.world.rank
        if self.world.from_rank0(lambda: finished(folder, config)):
            return read_result(folder, data) if first else None
        if first:
            save_json(folder / "config.json", config)
        split = self.splits[seed]
        if "head" in config:
            return self.choose(folder, config, split)
        known, scale = data.labels[split["train"]], LabelScale.identity(len(data.targets))
        if data.task == "regression" and not config["raw_labels"]:
            scale = LabelScale.of(known)
        weights = config["pos_weight"] and positive_weights(known, config["pos_weight"])
        labels = torch.from_numpy(scale.standardise(data.labels)).float()
        objective = Objective(labels, split, Loss(data.task, weights))
        model, history, predicted = self.fit(folder, seed, trial, objective, scale)
        result = None
        if first:
            compared = self.compare(seed, objective, scale) | self.beside.get(seed, {})
            result = make_result(data, seed, split, history, predicted, compared)
            self.save(folder, result, model, config, split["train"])
        self.world.barrier()
        return result

    def save(self, folder, result, model, config, learned):
        """Write a seed's folder. learned: the rows that the model learned from."""
        own = molecule_hashes(self.data.smiles[row] for row in learned)
        known = [each.molecules for each in self.seen.values() if each.labelled]
        seen = torch.unique(torch.cat([*known, own]))
        if "graph" in config:
            result.metrics["features"] = "+".join(model.encoder.names)
        save_result(folder, result, model, self.data, self.drawn, config, seen)

    def choose(self, folder, config, split):
        """Fit and compare heads, write one complete folder; return its SeedResult on rank 0."""
        seed, embedding = config["seed"], None
        encoder = self.encoder(seed)
        if encoder is not None:
            embedding = self.frozen.embeddings(encoder, seed)
            self.check_embeddings(embedding)
        work = lambda: self.fit_heads(folder, config, split, encoder, embedding)
        return self.world.together(work, not self.world.rank)

    def fit_heads(self, folder, config, split, encoder, embedding):
        """Fit and compare heads on embeddings (all rows, width) or None; as `choose`, on rank 0."""
        seed, rows, encoded = config["seed"], self.rows, () if encoder is None else encoder.names
        given = embedding, self.counts(), config["rates"], encoded, self.protein
        study = Study(self.data, split, seed, config["split"], *given)
        asked = config["head"], config["features"], self.with_baselines
        chosen = choose_head(study, encoder and encoder.cpu(), *asked)
        given = study.of(chosen.best.inputs, rows)
        told = [dict(zip(rows, values)) for values in predict_with(chosen.model.head, *given)]
        result = make_chosen_result(self.data, seed, split, *told, chosen)
        if config.get("stage") and not too_few(self.splits):
            validated = without_validation(study, chosen.best)
            save_validation(folder, self.data, split["val"], validated)
        learned = split["train"] + split["val"] * (chosen.facts["learned_from"] == LEARNED)
        self.save(folder, result, chosen.model, config, learned)
        return result

    def check_embeddings(self, embedding):
        """Refuse embeddings that are not numbers."""
        for row in self.rows:
            if not torch.isfinite(embedding[row]).all():
                raise click.ClickException(
                    f"{self.data.place(self.data.molecules[row])}: the encoder's embedding is not "
                    f"a number; {' or '.join(self.seen)} is damaged, take another"
                )

    def counts(self):
        """Return the ECFP counts of all readable rows, uint8 (rows, 2048), made once."""
        if self.fingerprints is None:
            rows, pairs = self.rows, self.data.pairs
            rows = sorted({*pairs.first[rows].tolist()}) if pairs else rows
            smiles = [self.data.smiles[row] for row in rows]
            found = count_fingerprints(smiles, self.config["r_groups"])
            self.fingerprints = torch.zeros(len(self.data), found.shape[1], dtype=torch.uint8)
            self.fingerprints[rows] = torch.from_numpy(found)
            self.fingerprints = self.fingerprints[pairs.first] if pairs else self.fingerprints
        return self.fingerprints

    def fit(self, folder, seed, trial, objective, scale):
        """Return (model, history, predictions {row: (targets,)}) of one seed and one trial."""
        config = self.config
        torch.manual_seed(seed)
        model = Model(self.encoder(seed), len(self.data.targets), scale)
        plan = Plan(config["epochs"], config["batch"], seed, f"seed {seed}", config["patience"])
        if config["freeze"]:
            history, found = self.fit_frozen(model, trial, objective, plan)
        else:
            history, found = self.fit_whole(folder, model, trial, objective, plan)
        return model, history, dict(zip(self.rows, found))

    def fit_frozen(self, model, trial, objective, plan):
        """Train the head on embeddings, on the CPU; return (history, predictions of all rows)."""
        embeddings = self.frozen.embeddings(model.encoder, plan.seed)
        history = train_head(model.cpu().head, embeddings, objective, trial["lr_head"], plan)
        with torch.no_grad():
            outputs = model.head(embeddings[self.rows])
            return history, model.unscale(outputs, self.data.task).numpy()

    def fit_whole(self, folder, model, trial, objective, plan):
        """Train encoder and head together; return (history, predictions of all rows)."""
        how = self.device, self.dtype, trial["augment"], plan.batch
        embedder = embedder_of(model.to(self.device).encoder, *how)
        given = self.given[model.encoder.names[0]]
        source = EncoderSource(model, given, embedder, self.world)
        told = self.trials or self.device.type == "cpu"
        if told and not self.announced and not self.world.rank:
            print_estimate(source, objective.split, plan.epochs, plan.batch, self.trials)
        self.announced, start, progress = True, None, folder / "progress.pt"
        if self.head_first and not self.world.from_rank0(progress.exists):
            start = self.frozen.probe_head(model, trial["lr_head"], objective, plan)
        self.world.barrier()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        optimizers = [adam(model.encoder, trial["lr_encoder"]), adam(model.head, trial["lr_head"])]
        plan = plan._replace(rates=self.rates)
        history = train(source, objective, optimizers, plan, scaler, progress, start)
        batch, task = min(64, plan.batch), self.data.task
        found = predict_rows(model, given, self.rows, task, batch, self.device, self.world)
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
