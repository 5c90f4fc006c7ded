"""The state of a training run: what it keeps in its checkpoint, and how it goes on from there."""

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch

from moleclip.device import BY_TORCHRUN, Distributed, Leaving, local_rank
from moleclip.embedder import Embedder, fitting_batch
from moleclip.encoder import ADAM
from moleclip.files import check_output, one_line, save_json, save_whole
from moleclip.losses import new_heads
from moleclip.transfer import Verdict
from moleclip.weights import load_checkpoint, save_checkpoint

WARM_UP = 5  # steps at a third of the learning rate (MoleCLIP's ConstantLR)
# On --resume: a run's last part at a lower rate is a common wish.
CHANGEABLE = ("lr", "loss", "decay")
FIXED = (
    *("input_sha256", "batch", "seed", "init", "temperature"),
    *("tokens", "pool", "augment", "optimizer"),
)
HASHED = ("labels_sha256", "drawings_")  # what such keys begin with, or are
OWN = ("shards", "labels", "micro_batch")  # what each process may have in its own way
PACE = ("images/s", "memory_gb", "left")  # of a log entry: what says nothing of the result
LATER = {"pool": "cls", "decay": 0.0, "drawings_styles": "paper"}  # what earlier runs had


def launch_command():
    """Return the command line that started this process: torchrun's, if it did."""
    words, parent = sys.orig_argv, Path(f"/proc/{os.getppid()}/cmdline")
    if BY_TORCHRUN and parent.is_file():
        words = parent.read_text().split("\0")[:-1]
        if Path(words[1]).name == "torchrun":
            words = ["torchrun", *words[2:]]
    return shlex.join(words)


def check_new(world, out, resume):
    """Raise click.ClickException for a checkpoint's name that can't be, or is taken."""
    if Path(out).suffix != ".pt":
        raise click.ClickException(
            f"-o {out}: give a name that ends in .pt; what lies beside it is named after it"
        )
    if world.rank == 0:
        if Path(out).exists() and not resume:
            raise click.ClickException(
                f"{out}: exists already; go on with --resume, or give another name with -o"
            )
        check_output(out)


def save_log(path, log):
    """Write the entries of a log, a line each."""
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    save_whole(path, lambda name: name.write_text(lines))


def read_log(path, key, last):
    """Return a log's entries up to a checkpoint's step or epoch; none if it can't be read."""
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [entry for entry in entries if entry[key] <= last]
    except (OSError, ValueError, TypeError, KeyError):
        click.echo(f"warning: {path} is missing or damaged; the log begins anew", err=True)
        return []


@dataclass
class TrainState:
    """A run: what it trains, what it trains with, how far it is, and what it leaves under `out`."""

    out: str
    config: dict
    world: Distributed
    embedder: Embedder
    heads: torch.nn.ModuleDict
    optimizers: list  # of the encoder, of the heads
    scaler: torch.amp.GradScaler
    finite: Verdict = field(default_factory=Verdict)  # of all losses so far
    step: int = 0
    log: list = field(default_factory=list)
    command: str = field(default_factory=launch_command)

    @classmethod
    def start(cls, out, config, world, encoder, labels, device, dtype):
        """Return the state before the first step. labels: of the heads; dtype: autocast's."""
        torch.manual_seed(config["seed"])
        heads = new_heads(encoder.arch, labels.outputs, labels.atom_outputs)
        for module in (encoder, heads):  # other CPUs may round random weights in another way
            module.load_state_dict(world.from_rank0(module.state_dict))
        encoder, heads = encoder.to(device), heads.to(device)
        micro_batch = config["micro_batch"] or fitting_batch(encoder.arch, device, dtype)
        embedder = Embedder(encoder, device, dtype, config["augment"], micro_batch)
        # AdamW, not the paper's Adam: there the decay of 0.1 joins gradients that are mostly
        # smaller, and moves every weight by the learning rate a step: from DINOv2-S at 5e-5 the
        # contrastive loss was after 80 steps still 3.6, not 2.2 (chance 4.2).
        rates, decay = config["lr"], {"weight_decay": 0.1}
        optimizers = [
            torch.optim.AdamW(encoder.parameters(), rates[0], fused=True, **decay, **ADAM),
            torch.optim.Adam(heads.parameters(), rates[1], fused=True, betas=ADAM["betas"]),
        ]
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        return cls(out, config, world, embedder, heads, optimizers, scaler)

    def file(self, suffix):
        """Return the path of what lies beside the checkpoint."""
        return Path(self.out).with_suffix(suffix)

    def save(self):
        """Write the log, which may run ahead, then encoder.pt and its facts as encoder.json."""
        save_log(self.file(".log.jsonl"), self.log)
        held_out = [entry for entry in self.log if "held_out_retrieval" in entry]
        encoder = self.embedder.encoder
        facts = {
            "arch": encoder.arch,
            "step": self.step,
            "config": self.config,
            "metrics": held_out[-1] if held_out else {},
        }
        save_checkpoint(
            self.out,
            encoder=encoder.visual.state_dict(),
            **facts,
            heads=self.heads.state_dict(),
            optimizer=[optimizer.state_dict() for optimizer in self.optimizers],
            scaler=self.scaler.state_dict(),
            rng=torch.get_rng_state(),
            # the order of molecules is a function of both
            sampler={"seed": self.config["seed"], "step": self.step},
        )
        save_json(self.file(".json"), facts)

    def resume(self):
        """Go on from the checkpoint under `out` that rank 0 reads for all, if it has one.

        The log notes which settings are others now. Raises click.ClickException if it can't be
        read, what has to stay differs, or only another process has one.
        """
        there = self.world.gather_objects(Path(self.out).exists())
        if not any(there):
            return
        if not there[0]:
            raise click.ClickException(
                f"{self.out}: is there for {self.world.places[there.index(True)]}, but not for "
                f"{self.world.places[0]}, which all follow; copy it to that node, or delete it"
            )
        checkpoint = self.world.from_rank0(lambda: load_checkpoint(self.out))
        changed = self.changed(checkpoint.get("config", {}))
        try:
            self.restore(checkpoint)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise click.ClickException(
                f"{self.out}: can't be resumed from ({one_line(error)})"
            ) from None
        self.log = [] if self.world.rank else read_log(self.file(".log.jsonl"), "step", self.step)
        if changed:
            self.log.append({"step": self.step, "changed": changed})
            said = f"goes on from step {self.step} with other settings: {json.dumps(changed)}"
            self.world.print0(f"{self.out}: {said}")

    def changed(self, before):
        """Return the settings that are no longer those of a checkpoint's config, by name.

        Raises click.ClickException for one that has to stay.
        """
        if "labels_sha256" not in before:
            said = "of an earlier version, which kept no hashes of labels and drawings"
            self.world.print0(f"warning: {self.out}: {said}; they are taken as they are")
            before = before | {k: v for k, v in self.config.items() if k.startswith(HASHED)}
        changed, before = {}, LATER | before
        for key in before | self.config:
            then, now = before.get(key), self.config.get(key)
            if then == now:
                continue
            if key in FIXED or key.startswith(HASHED):
                raise click.ClickException(
                    f"{self.out}: was made with {key} {then}, not {now}; resume with the same "
                    "settings, or give another -o"
                )
            if key in CHANGEABLE:
                changed[key] = now
        return changed

    def restore(self, checkpoint):
        """Take over what a checkpoint holds."""
        self.embedder.encoder.visual.load_state_dict(checkpoint["encoder"])
        self.heads.load_state_dict(checkpoint["heads"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(checkpoint["rng"])
        self.step = checkpoint["step"]

    def update_weights(self, last):
        """Take one step of both optimizers with the gradients that are there; last: of all."""
        part = 1 / 3 if self.step < WARM_UP else 1
        if self.config["decay"]:
            part *= min(1, (last - self.step) / last / self.config["decay"])
        for optimizer, rate in zip(self.optimizers, self.config["lr"]):
            optimizer.param_groups[0]["lr"] = rate * part
            self.scaler.step(optimizer)
        self.scaler.update()
        self.step += 1

    def leave(self, error):
        """Save the last finished step, as far as it is this process's, and say how to go on.

        Exits with 1 where torchrun is to know that other nodes, or processes, are gone.
        """
        why, kept = getattr(error, "message", "asked to leave"), f"step {self.step}"
        if self.world.rank == 0:
            self.save()
            kept = f"saved step {self.step} in {self.out}"
        if isinstance(error, Leaving) and self.world.nodes == 1:
            self.world.print0(f"{why}: {kept}; --resume goes on from there")
            return
        if local_rank():
            sys.exit(1)
        resume = "" if "--resume" in self.command else " --resume"
        raise click.ClickException(f"{why}: {kept}; go on with: {self.command}{resume}")

    def note(self, entry):
        """Put an entry into the log and on the screen."""
        self.log.append({"step": self.step} | entry)
        self.world.print0(log_line(self.log[-1]))


def log_line(entry):
    """Return one log line: the step, every loss part and accuracy, and in training the pace."""
    silent = ("step", "epoch", "lr", *PACE)
    words = [f"{name} {value:.3f}" for name, value in entry.items() if name not in silent]
    if "left" in entry:
        minutes, seconds = divmod(entry["left"], 60)
        words += [f"{entry['images/s']:.0f} images/s", f"{entry['memory_gb']:.1f} GB"]
        words += [f"{minutes}:{seconds:02d} left"]
    return "  ".join([f"step {entry['step']:5d}", *words])
