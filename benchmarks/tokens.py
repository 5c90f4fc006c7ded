"""What looking only at inked patches gains, and what it costs in accuracy.

    python benchmarks/tokens.py speed                                     # about 9 minutes on 2 cores; results/tokens.csv
    python benchmarks/tokens.py accuracy --init dinov2-small.safetensors  # about 40 minutes; results/tokens_accuracy.csv

speed: training images a second and peak memory on the real mix of plain and styled drawings, both modes in turns.
accuracy: the same short pretraining in both modes, then frozen features on three sets over five seeds; and how much the two
modes' embeddings differ, before and after. Prediction in both modes stands in results/predict.csv (python benchmarks/predict.py).
"""

import csv
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from record import ROOT, record  # which puts the project's own scripts before these

from moleclip.drawing import draw, layout
from moleclip.encoder import Embedder
from moleclip.molecules import parse
from moleclip.weights import load_encoder, save_checkpoint

MODES, TURNS = ("all", "inked"), 3
RUN = ROOT / "benchmarks" / "runs" / "tokens"
PRETRAIN = "--batch 32 --lr 2e-5 --loss contrastive=1,classes=0.03 --epochs 2 --steps 88 --log-every 4"  # with all tokens 5e-5 collapses
FROZEN = "--freeze --epochs 200 --patience 15 --lr-head 4e-4 --seeds 1,2,3,4,5"


def python(*words):
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


@click.group()
def main():
    """Measure --tokens inked against --tokens all."""


@main.command()
def speed():
    """Training, both modes in turns, each run a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "some.smi"
        lines = gzip.open(ROOT / "data" / "druglike_20000.smi.gz", "rt").read().splitlines()[:600]
        source.write_text("\n".join(lines) + "\n")
        python("render.py", source, "-o", f"{folder}/shards")
        python("cluster.py", source, "--k", "30", "-o", f"{folder}/labels.npz")
        for size in ("small", "base"):
            found = {mode: [] for mode in MODES}
            for _ in range(TURNS):
                for mode in MODES:
                    done = subprocess.run(
                        [
                            sys.executable,
                            ROOT / "benchmarks" / "pretrain.py",
                            folder,
                            size,
                            "bf16",
                            mode,
                        ],
                        check=True,
                        capture_output=True,
                        text=True,
                    )
                    found[mode].append(json.loads(done.stdout.splitlines()[-1]))
            rate = {mode: np.array([run["rate"] for run in runs]) for mode, runs in found.items()}
            rows.append(
                {"encoder": f"ViT {size}, patch 16", "precision": "bf16"}
                | {f"{mode}, images/s": float(np.median(rate[mode])) for mode in MODES}
                | {"inked / all": float(np.median(rate["inked"] / rate["all"]))}
                | {
                    f"{mode}, peak memory, GB": max(run["memory"] for run in found[mode])
                    for mode in MODES
                }
            )
    record("tokens", rows, ("torch", "openai-clip"))


def cosine(one, other):
    """Return the mean cosine between the embeddings of the same molecules in both modes; (n, 512) each."""
    return float((one * other).sum(1).div(one.norm(dim=1) * other.norm(dim=1)).mean())


def between_modes(path, smiles):
    """Return the mean cosine between an encoder's embeddings of plain drawings when it looks at all and at inked patches."""
    import torch

    encoder, found = load_encoder(str(path)).eval(), {}
    index = np.stack([draw(layout(parse(s))) for s in smiles])
    for mode in MODES:
        encoder.arch["tokens"] = mode
        with torch.no_grad():
            found[mode] = Embedder(encoder, torch.device("cpu"), None).embed_batch(index, None)
    return cosine(found["all"], found["inked"])


@main.command()
@click.option("--init", required=True, help="Encoder to start from.")
@click.option(
    "--molecules", default=2000, show_default=True, help="Of data/druglike_20000.smi.gz, the first."
)
def accuracy(init, molecules):
    """The same pretraining in both modes, then frozen features."""
    RUN.mkdir(parents=True, exist_ok=True)
    lines = gzip.open(ROOT / "data" / "druglike_20000.smi.gz", "rt").read().splitlines()[:molecules]
    (RUN / "some.smi").write_text("\n".join(lines) + "\n")
    dhbd = (ROOT / "data" / "dhbd.csv").read_text().splitlines()
    (RUN / "dhbd_1600.csv").write_text(
        "\n".join(
            dhbd[:1]
            + [
                dhbd[i]
                for i in np.sort(1 + np.random.default_rng(0).permutation(len(dhbd) - 1)[:1600])
            ]
        )
        + "\n"
    )
    if not (RUN / "labels.npz").exists():
        python("render.py", RUN / "some.smi", "-o", RUN / "shards")
        python("cluster.py", RUN / "some.smi", "--k", "30", "--k", "300", "-o", RUN / "labels.npz")
    rows, smiles = [], [line.split()[0] for line in lines[:200]]
    for mode in MODES:
        start, trained = RUN / f"start-{mode}.pt", RUN / f"trained-{mode}.pt"
        encoder = load_encoder(init)
        encoder.arch["tokens"] = mode
        save_checkpoint(
            start,
            encoder=encoder.visual.state_dict(),
            arch=encoder.arch,
            step=0,
            config={},
            metrics={},
        )
        python(
            "pretrain.py",
            "--shards",
            RUN / "shards",
            "--labels",
            RUN / "labels.npz",
            "--init",
            init,
            "--tokens",
            mode,
            *PRETRAIN.split(),
            "-o",
            trained,
            "--resume",
        )
        for state, path in (("start", start), ("trained", trained)):
            row = {
                "tokens": mode,
                "encoder": f"{Path(init).stem}, {state}",
                "cosine between the modes": between_modes(path, smiles),
            }
            for name, table in (
                ("ESOL", ROOT / "data" / "esol.csv"),
                ("FreeSolv", ROOT / "data" / "freesolv.csv"),
                ("DHBD, 1600 rows", RUN / "dhbd_1600.csv"),
            ):
                out = RUN / f"{table.stem}-{state}-{mode}"
                if not (out / "metrics.json").exists():
                    python(
                        "finetune.py", "--data", table, "--init", path, *FROZEN.split(), "-o", out
                    )
                line = next(
                    line
                    for line in csv.DictReader(open(out / "scores.csv", newline=""))
                    if (line["method"], line["target"], line["metric"]) == ("this model", "", "MAE")
                )
                row |= {
                    f"{name}, MAE": float(line["mean"]),
                    f"{name}, SD over seeds": float(line["sd"]),
                }
            rows.append(row)
    record("tokens_accuracy", rows, ("torch", "openai-clip", "rdkit"))


if __name__ == "__main__":
    main()
