"""How finetuning should begin and at which rates, by FreeSolv's validation part.

    python benchmarks/trials.py bundled                        # half an hour on one core
    python benchmarks/trials.py dinov2-small.safetensors       # 20 minutes
    python benchmarks/trials.py scratch:small

One trial for each row of a table; with other encoders than the bundled one, the encoder's rate and
augmentation alone are tried. Each trial is one run of finetune.py, some with a part of it left out:
the head that learns first, or the rates that rise and fall. Scaffold split, seed 1, 6 epochs of
batches of 32. Writes the epochs' losses to benchmarks/results/finetune_trials.csv; trials that are
done are skipped. What a run says of the test part is not read.
"""

import csv
import shutil
from pathlib import Path

import click
from record import RESULTS, ROOT, RUNS, read_csv, surroundings

import finetune
from moleclip.training import warmup_cosine

TABLE = RESULTS / "finetune_trials.csv"
KEYS = ("init", "begin", "rates", "lr_encoder", "augment")
RATES = [
    ("head first", "rise and fall", "1e-5", "none"),
    ("head first", "rise and fall", "2e-5", "none"),
    ("head first", "rise and fall", "5e-5", "none"),
    ("head first", "rise and fall", "1e-4", "none"),
    ("head first", "rise and fall", "1e-5", "default"),
]
PARTS = [
    ("together", "constant", "1e-5", "none"),
    ("together", "rise and fall", "1e-5", "none"),
    ("head first", "constant", "1e-5", "none"),
]
SETTINGS = "--head mlp --split scaffold --epochs 6 --batch 32 --lr-head 1e-4"


def constant(done):
    """Return the learning rates' factor, whatever part of training is done."""
    return 1.0


def run_trial(init, begin, rates, lr_encoder, augment):
    """Finetune as the trial says and return the history's lines."""
    name = f"trial {Path(init).stem} {begin} {rates} {lr_encoder} {augment}"
    out = RUNS / name.replace(" ", "-").replace(":", "-")
    # Of a trial that was interrupted, or is not in the table any more.
    shutil.rmtree(out, ignore_errors=True)
    words = ["--data", str(ROOT / "data" / "freesolv.csv"), *SETTINGS.split()]
    words += ["--lr-encoder", lr_encoder, "--augment", augment, "--init", init, "-o", str(out)]
    finetune.run(
        finetune.main.make_context("finetune.py", words),
        with_baselines=False,
        head_first=begin == "head first",
        rates=warmup_cosine if rates == "rise and fall" else constant,
    )
    return read_csv(out / "history.csv")


def append(lines):
    """Add lines to the table."""
    begun = TABLE.exists()
    with open(TABLE, "a", newline="") as stream:
        table = csv.DictWriter(stream, lines[0])
        if not begun:
            table.writeheader()
        table.writerows(lines)


@click.command(help=__doc__)
@click.argument("init")
def main(init):
    name = Path(init).stem
    for trial in RATES + (PARTS if init == "bundled" else []):
        done = [tuple(line[key] for key in KEYS) for line in read_csv(TABLE)]
        if (name, *trial) in done:
            print("done:", *trial)
            continue
        facts = surroundings(("torch", "rdkit", "scikit-learn"))
        facts["command"] = f"python benchmarks/trials.py {Path(init).name}"
        lines = []
        for line in run_trial(init, *trial):
            losses = {key: line[key] for key in ("epoch", "train_loss", "val_loss")}
            lines.append(dict(zip(KEYS, (name, *trial))) | losses | facts)
        append(lines)


if __name__ == "__main__":
    main()
