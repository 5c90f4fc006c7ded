"""What looking only at inked patches gains, and what it costs in accuracy.

    python benchmarks/tokens.py speed          # 9 minutes on 2 cores; writes results/tokens.csv
    python benchmarks/tokens.py accuracy --init dinov2-small.safetensors    # 40 minutes

speed: training images a second and peak memory on the real mix of plain and styled drawings, both
modes in turns. accuracy: the same short pretraining in both modes, then frozen features on three
sets over five seeds; and how much the two modes' embeddings differ, before and after; writes
results/tokens_accuracy.csv. Prediction in both modes stands in results/predict.csv (python
benchmarks/predict_speed.py).
"""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from pretrain_speed import measured
from record import RESULTS, ROOT, RUNS, machine, read_csv, record

from moleclip.drawing import draw, layout
from moleclip.embedder import Embedder
from moleclip.molecules import parse
from moleclip.weights import load_encoder, save_checkpoint

MODES, TURNS = ("all", "inked"), 3
RUN = RUNS / "tokens"
# With all tokens a rate of 5e-5 collapses.
PRETRAIN = "--batch 32 --lr 2e-5 --loss contrastive=1,classes=0.03 --epochs 2 --steps 88"
FROZEN = "--freeze --epochs 200 --patience 15 --lr-head 4e-4 --seeds 1,2,3,4,5"
TABLES = {
    "ESOL": ROOT / "data" / "esol.csv",
    "FreeSolv": ROOT / "data" / "freesolv.csv",
    "DHBD, 1600 rows": RUN / "dhbd_1600.csv",
}


def python(*words):
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def write_lines(path, lines):
    """Write a text file."""
    Path(path).write_text("\n".join(lines) + "\n")


def druglike(count):
    """Return the first lines of the drug-like molecules."""
    text = gzip.open(ROOT / "data" / "druglike_20000.smi.gz", "rt").read()
    return text.splitlines()[:count]


def draw_and_label(source, folder, sizes):
    """Make shards/ and labels.npz of a SMILES file in a folder."""
    python("render.py", source, "-o", f"{folder}/shards")
    words = [word for size in sizes for word in ("--k", size)]
    python("cluster.py", source, *words, "-o", f"{folder}/labels.npz")


@click.group()
def main():
    """Measure --tokens inked against --tokens all."""


@main.command()
def speed():
    """Training, both modes in turns, each run a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_lines(f"{folder}/some.smi", druglike(600))
        draw_and_label(f"{folder}/some.smi", folder, [30])
        for size in ("small", "base"):
            found = {mode: [] for mode in MODES}
            for _ in range(TURNS):
                for mode in MODES:
                    found[mode].append(measured(folder, size, "bf16", mode))
            rate = {mode: np.array([run["rate"] for run in runs]) for mode, runs in found.items()}
            row = {"encoder": f"ViT {size}, patch 16", "precision": "bf16"}
            for mode in MODES:
                row[f"{mode}, images/s"] = float(np.median(rate[mode]))
            row["inked / all"] = float(np.median(rate["inked"] / rate["all"]))
            for mode in MODES:
                row[f"{mode}, peak memory, GB"] = max(run["memory"] for run in found[mode])
            rows.append(row)
    others = [row for row in read_csv(RESULTS / "tokens.csv") if row["machine"] != machine()]
    record("tokens", [*others, *rows], ("torch", "openai-clip"))


def between_modes(path, smiles):
    """Return the mean cosine between an encoder's embeddings of plain drawings in both modes."""
    encoder, found = load_encoder(str(path)).eval(), []
    index = np.stack([draw(layout(parse(text))) for text in smiles])
    for mode in MODES:
        encoder.arch["tokens"] = mode
        with torch.no_grad():
            found.append(Embedder(encoder, torch.device("cpu"), None).embed_batch(index, None))
    return float(torch.nn.functional.cosine_similarity(*found).mean())


def write_start(path, init, mode):
    """Write the encoder that pretraining begins with, looking in one mode."""
    encoder = load_encoder(init)
    encoder.arch["tokens"] = mode
    weights, facts = encoder.visual.state_dict(), {"step": 0, "config": {}, "metrics": {}}
    save_checkpoint(path, encoder=weights, arch=encoder.arch, **facts)


def pretrain(path, init, mode):
    """Write an encoder that was pretrained a little in one mode, unless it is there."""
    data = ["--shards", RUN / "shards", "--labels", RUN / "labels.npz", "--init", init]
    words = [*data, "--tokens", mode, *PRETRAIN.split(), "--log-every", 4]
    python("pretrain.py", *words, "-o", path, "--resume")


def frozen_error(table, init, out):
    """Return (MAE, SD over seeds) of frozen features, finetuned unless it is there."""
    if not (out / "metrics.json").exists():
        python("finetune.py", "--data", table, "--init", init, *FROZEN.split(), "-o", out)
    for line in read_csv(out / "scores.csv"):
        if (line["method"], line["target"], line["metric"]) == ("this model", "", "MAE"):
            return float(line["mean"]), float(line["sd"])


def write_inputs(lines):
    """Write the molecules, their drawings and labels, and the smaller table."""
    RUN.mkdir(parents=True, exist_ok=True)
    write_lines(RUN / "some.smi", lines)
    header, *rows = (ROOT / "data" / "dhbd.csv").read_text().splitlines()
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:1600])
    write_lines(RUN / "dhbd_1600.csv", [header, *(rows[i] for i in chosen)])
    if not (RUN / "labels.npz").exists():
        draw_and_label(RUN / "some.smi", RUN, [30, 300])


@main.command()
@click.option("--init", required=True, help="Encoder to start from.")
@click.option(
    "--molecules", default=2000, show_default=True, help="Of data/druglike_20000.smi.gz, the first."
)
def accuracy(init, molecules):
    """The same pretraining in both modes, then frozen features."""
    lines = druglike(molecules)
    write_inputs(lines)
    rows, smiles = [], [line.split()[0] for line in lines[:200]]
    for mode in MODES:
        start, trained = RUN / f"start-{mode}.pt", RUN / f"trained-{mode}.pt"
        write_start(start, init, mode)
        pretrain(trained, init, mode)
        for state, path in (("start", start), ("trained", trained)):
            row = {"tokens": mode, "encoder": f"{Path(init).stem}, {state}"}
            row["cosine between the modes"] = between_modes(path, smiles)
            for name, table in TABLES.items():
                error, sd = frozen_error(table, path, RUN / f"{table.stem}-{state}-{mode}")
                row[f"{name}, MAE"], row[f"{name}, SD over seeds"] = error, sd
            rows.append(row)
    record("tokens_accuracy", rows, ("torch", "openai-clip", "rdkit"))


if __name__ == "__main__":
    main()
