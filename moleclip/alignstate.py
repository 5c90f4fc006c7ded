"""The state of an alignment while it is learned: a step, an evaluation, what is kept on disk."""

from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch

from moleclip.aligned import DIM, Aligned, load_aligned
from moleclip.alignscores import blocks
from moleclip.dense import DenseTargets
from moleclip.device import Distributed
from moleclip.files import one_line
from moleclip.heads import FrozenEncoder
from moleclip.pairtable import augmented, vectors_of
from moleclip.queries import learn_spectra
from moleclip.textpairs import TextReader
from moleclip.tokens import padded_tokens
from moleclip.trainstate import read_log, save_log
from moleclip.transformer import SMILES_ARCH, learn_language, load_bert
from moleclip.weights import load_checkpoint, load_encoder, save_checkpoint

DECAY = 1e-3  # of weights (ACML)
PREDICTED = 5.0  # times the JITTER of measured spectra: of predicted ones, 2 to 3 ppm off
FREE = ("out", "workers")  # settings that may differ on --resume
OF_ENCODER = 0.05  # of --lr: what a pretrained encoder of texts learns at


def embed_pictures(streams, encoder, device, world):
    """Return the features of drawings, a list of one zlib stream each, float32 (n, 512)."""
    given = {"picture": {i: stream for i, (stream,) in enumerate(streams)}}
    return FrozenEncoder(given, len(streams), False, device, world).embeddings(encoder, 0)


def new_model(config, arch, world, device, given, learned):
    """Return (Aligned, what is asked by), the modality's encoder pretrained by what it is given.

    learned: places of what may be learned from, or None where weights are to come from a file.
    """
    kind, seed = arch["modality"], config["seed"]
    if not arch["contrast"]:
        return Aligned(arch), given
    if kind == "picture":
        encoder = load_encoder(config["init"]).eval()
        features = embed_pictures(given, encoder, device, world)
        model = Aligned(arch | {"query": encoder.arch})
        model.query.encoder.load_state_dict(encoder.state_dict())
        return model, features
    if kind == "text":
        encoder = load_bert(config["text_encoder"])
        model = Aligned(arch | {"query": encoder.arch})
        model.query.load_state_dict(encoder.state_dict())
        return model, given
    model = Aligned(arch | {"query": SMILES_ARCH if kind == "smiles" else None})
    learned = [] if learned is None else [given[i] for i in learned]
    if learned and kind == "smiles":
        learn_language(model.query, learned, seed, config["epochs"], world.print0)
    elif learned:
        vectors = torch.from_numpy(vectors_of(learned, kind))
        learn_spectra(model.query, vectors, seed, world.print0)
    return model, given


@dataclass
class AlignState:
    """A run: the model, what trains it, how far it is, and the best that validation saw."""

    out: str
    config: dict
    world: Distributed
    device: torch.device
    model: Aligned
    optimizer: torch.optim.Optimizer
    given: torch.Tensor | list  # what is asked by: features of pictures, or a list of Spectrum
    targets: DenseTargets | None = None
    epoch: int = 0
    log: list = field(default_factory=list)
    best: dict = field(default_factory=dict)  # the entry of its epoch, and "weights"
    calibration: dict = field(default_factory=dict)
    reader: TextReader | None = None  # of texts

    @classmethod
    def start(cls, out, config, arch, world, device, pairs, train, targets=None, resumed=False):
        """Return the state before the first epoch. train: places of the pairs to learn from.

        targets: DenseTargets, if any are to be told. resumed: all weights come from the checkpoint;
        nothing is pretrained in vain.
        """
        torch.manual_seed(config["seed"])
        other, facts = load_aligned(config["graph"]) if config["graph"] else (None, {})
        same = other and other.query is not None and other.arch["modality"] == arch["modality"]
        whole, reader = resumed or same, None
        learned = None if whole else train
        if arch["modality"] == "text":
            texts = [" ".join(pairs.given[i]) for i in train]
            words, layers = bool(arch["beside"]), config["text_layers"]
            own = facts.get("texts"), texts, words, layers
            reader = TextReader.of(config["text_encoder"], *own)
            arch = arch | {"words": len(reader.vocabulary.terms)}
        model, given = new_model(config, arch, world, device, pairs.given, learned)
        if reader:
            reader.tokens.longest = model.query.arch["positions"]
        if other and not resumed:
            world.print0(take_over(model, other, config["graph"]))
        if model.dim > DIM and not resumed and world.rank == 0:
            reader.correlate(model, pairs, train)
        model.load_state_dict(world.from_rank0(model.state_dict))
        model = model.to(device)
        optimizer = new_optimizer(model, config)
        state = cls(out, config, world, device, model, optimizer, given, targets, reader=reader)
        frozen = model.query is not None and not config["unfreeze"]
        if not whole and (reader or frozen):
            state.standardise(train)
        return state

    @property
    def modality(self):
        """What molecules are aligned with."""
        return self.model.arch["modality"]

    @torch.no_grad()
    def standardise(self, places):
        """Set what features are standardised by: those of some pairs."""
        self.model.eval()
        features = torch.cat([self.asked(part) for part in blocks(places)])
        features = features[:, : len(self.model.middle)]  # without words
        self.model.middle.copy_(features.mean(0))
        self.model.spread.copy_(features.std(0).clamp(min=1e-4))

    def train_mode(self):
        """Let dropout and batch statistics work where something is learned."""
        self.model.train()
        if self.model.query is not None:
            self.model.query.train(self.config["unfreeze"])
        if self.reader:
            self.model.query.train_last(self.reader.layers)

    def asked(self, places, random=None):
        """Return the features of what some pairs are asked by, (n, width); with random varied."""
        if self.modality == "picture":
            return self.given[torch.from_numpy(places)].to(self.device)
        if self.reader:
            how = self.given, places, self.device, random
            return self.reader.features(self.model.query, *how)
        if self.modality == "smiles":
            views = [self.given[i] for i in places]
            chosen = [v[0 if random is None else random.integers(len(v))] for v in views]
            return self.model.query(torch.from_numpy(padded_tokens(chosen)).to(self.device))
        spectra = [self.given[i] for i in places]
        if random is not None:
            jitter = PREDICTED if self.config["shifts_from"] else 1.0
            spectra = [augmented(each, self.modality, random, jitter) for each in spectra]
        vectors = torch.from_numpy(vectors_of(spectra, self.modality)).to(self.device)
        return self.model.query(vectors)

    def graphs(self, pairs, places):
        """Return what the model takes of some pairs' molecules, tensors."""
        return self.model.batch([pairs.graphs[i] for i in places], self.device)

    def truth(self, pairs, places):
        """Return the dense targets of some pairs, {name: tensor}."""
        counts = np.array([len(pairs.graphs[i].atoms) for i in places], np.int64)
        return self.targets.of(pairs.rows[places], counts)

    def share_statistics(self):
        """Give every process the mean of the batch statistics that each has seen."""
        for name, buffer in self.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(self.world.mean(buffer.clone()))

    def note(self, entry, left):
        """Put an epoch's entry into the log and on the screen; keep its weights if the best."""
        self.epoch = entry["epoch"]
        self.log.append(entry)
        if not self.best or score_of(entry) > score_of(self.best):
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = entry | {"weights": weights}
        words = [f"{name} {value:.3f}" for name, value in entry.items() if name != "epoch"]
        minutes, seconds = divmod(round(left), 60)
        line = "  ".join([f"epoch {self.epoch:3d}", *words, f"{minutes}:{seconds:02d} left"])
        self.world.print0(line)

    def take_best(self):
        """Give the model the weights of the best epoch."""
        self.model.load_state_dict(self.best["weights"])
        self.model.eval()

    @torch.no_grad()
    def correlate(self, pairs, places):
        """Give words and fragments their places anew, beside what both encoders have learned."""
        if self.world.rank == 0:
            known = []
            for part in blocks(places):
                molecules = self.model.gin(*self.graphs(pairs, part)[:5])[0]
                texts, _ = self.model.told_apart(self.asked(part))
                known.append((molecules.float().cpu(), texts.float().cpu()))
            model = self.model.cpu()
            self.reader.correlate(model, pairs, places, [torch.cat(side) for side in zip(*known)])
        self.model.load_state_dict(self.world.from_rank0(self.model.state_dict))
        self.model.to(self.device)

    def save(self, pairs, parts):
        """Write the log and aligned.pt, which holds what training needs to go on."""
        save_log(Path(self.out).with_suffix(".log.jsonl"), self.log)
        save_checkpoint(
            self.out,
            arch=self.model.arch,
            config=self.config,
            epoch=self.epoch,
            model=self.best.get("weights") or self.model.state_dict(),
            best={name: value for name, value in self.best.items() if name != "weights"},
            calibration=self.calibration,
            current=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            parts={part: pairs.rows[places].tolist() for part, places in parts.items()},
            **({"texts": self.reader.facts()} if self.reader else {}),
        )

    def resume(self):
        """Go on from the checkpoint under `out`, read by rank 0. Raises click.ClickException."""
        checkpoint = self.world.from_rank0(lambda: load_checkpoint(self.out))
        before = checkpoint.get("config", {})
        for key in before | self.config:
            if key not in FREE and before.get(key) != self.config.get(key):
                raise click.ClickException(
                    f"{self.out}: was made with {key} {before.get(key)}, not "
                    f"{self.config.get(key)}; resume with the same settings, or another -o"
                )
        try:
            self.model.load_state_dict(checkpoint["current"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.epoch = checkpoint["epoch"]
            self.best = checkpoint["best"] | {"weights": checkpoint["model"]}
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise click.ClickException(
                f"{self.out}: can't be resumed from ({one_line(error)})"
            ) from None
        if self.world.rank == 0:
            self.log = read_log(Path(self.out).with_suffix(".log.jsonl"), "epoch", self.epoch)


def new_optimizer(model, config):
    """Return the optimizer of what is to learn in a model; the rest is frozen."""
    if model.query is not None:
        model.query.requires_grad_(config["unfreeze"])
    if layers := config.get("text_layers"):
        model.query.learn_last(layers)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if layers:
        inside = {id(parameter) for parameter in model.query.parameters()}
        encoder = [parameter for parameter in learned if id(parameter) in inside]
        rest = [parameter for parameter in learned if id(parameter) not in inside]
        learned = [{"params": rest, "share": 1.0}, {"params": encoder, "share": OF_ENCODER}]
    return torch.optim.AdamW(learned, config["lr"], weight_decay=DECAY)


def score_of(entry):
    """Return how good an epoch was in validation, by its entry of the log: the more, the better."""
    return entry["val_mrr"] if "val_mrr" in entry else -entry["val_loss"]


def take_over(model, other, path):
    """Give a model all weights of another that fit it; return what to say. path: the other's."""
    mine, theirs = model.state_dict(), other.state_dict()
    same = other.arch["modality"] == model.arch["modality"]
    names = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    names = [name for name in names if same or name.startswith(("gin.", "shifts.", "dense."))]
    if not any(name.startswith("gin.layers") for name in names):
        raise click.ClickException(
            f"--graph {path}: its graph encoder has another --width or --layers"
        )
    model.load_state_dict(mine | {name: theirs[name] for name in names})
    parts = sorted({name.partition(".")[0] for name in names})
    return f"taken over from {path}: {', '.join(parts)}"
