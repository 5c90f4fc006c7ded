"""How finetuning should begin and at which rates, by FreeSolv's validation part: one trial for each row of a table.

    python benchmarks/trials.py bundled                              # half an hour on one core
    python benchmarks/trials.py dinov2-small.safetensors             # the encoder's rate and augmentation alone, 20 minutes
    python benchmarks/trials.py scratch:small

Each trial is one run of finetune.py, some with a part of it taken out: the head that learns first, or the rates that rise and
fall. Scaffold split, seed 1, 6 epochs of batches of 32. Writes the epochs' losses to benchmarks/results/finetune_trials.csv;
trials that are done are skipped. What a run says of the test part is not read.
"""

import csv
import shutil
from pathlib import Path
from unittest import mock

import click
from record import ROOT, surroundings  # which puts the project's own scripts before these

import finetune

RESULTS, RUNS = (
    ROOT / "benchmarks" / "results" / "finetune_trials.csv",
    ROOT / "benchmarks" / "runs",
)
RATES = [
    ("head first", "rise and fall", rate, "none") for rate in ("1e-5", "2e-5", "5e-5", "1e-4")
] + [("head first", "rise and fall", "1e-5", "default")]
PARTS = [
    ("together", "constant", "1e-5", "none"),
    ("together", "rise and fall", "1e-5", "none"),
    ("head first", "constant", "1e-5", "none"),
]
KEYS = ("init", "begin", "rates", "lr_encoder", "augment")


def run_trial(init, begin, rates, lr_encoder, augment):
    """Finetune as the trial says and return the history's lines."""
    out = RUNS / f"trial {Path(init).stem} {begin} {rates} {lr_encoder} {augment}".replace(
        " ", "-"
    ).replace(":", "-")
    shutil.rmtree(
        out, ignore_errors=True
    )  # of a trial that was interrupted, or is not in the table any more
    words = [
        "--data",
        ROOT / "data" / "freesolv.csv",
        "--split",
        "scaffold",
        "--epochs",
        6,
        "--batch",
        32,
        "--lr-head",
        "1e-4",
        "--lr-encoder",
        lr_encoder,
        "--augment",
        augment,
        "--init",
        init,
        "-o",
        out,
    ]
    with (
        mock.patch.multiple(
            finetune,
            baselines=lambda *_, **__: {},
            **({} if rates == "rise and fall" else {"rise_and_fall": lambda done: 1.0}),
        ),
        mock.patch.object(
            finetune.Experiment,
            "head_first",
            finetune.Experiment.head_first if begin == "head first" else lambda *_: None,
        ),
    ):
        finetune.main.main([str(word) for word in words], standalone_mode=False)
    return list(csv.DictReader(open(out / "history.csv", newline="")))


@click.command(help=__doc__)
@click.argument("init")
def main(init):
    name = Path(init).stem
    for trial in RATES + (PARTS if init == "bundled" else []):
        done = list(csv.DictReader(open(RESULTS, newline=""))) if RESULTS.exists() else []
        if any(tuple(line[key] for key in KEYS) == (name, *trial) for line in done):
            print("done:", *trial)
            continue
        facts = surroundings(("torch", "rdkit", "scikit-learn")) | {
            "command": f"python benchmarks/trials.py {Path(init).name}"
        }
        lines = [
            dict(zip(KEYS, (name, *trial)))
            | {key: line[key] for key in ("epoch", "train_loss", "val_loss")}
            | facts
            for line in run_trial(init, *trial)
        ]
        with open(RESULTS, "a", newline="") as stream:
            table = csv.DictWriter(stream, lines[0])
            table.writerows(([] if stream.tell() else [dict(zip(lines[0], lines[0]))]) + lines)


if __name__ == "__main__":
    main()
