"""How the files in weights/ are made: the encoder's molecules, and what is released.

    python benchmarks/bundle.py molecules druglike.smi.gz -o data/druglike_100000.smi.gz
    python benchmarks/bundle.py left-out druglike_100000.smi.gz *.csv.gz -o left_out.smi.gz
    python benchmarks/bundle.py release encoder.pt      # seconds; writes weights/
    python benchmarks/bundle.py seen data/druglike_100000.smi.gz    # a minute; what it drew
    python benchmarks/bundle.py aligned aligned.pt      # seconds; writes into weights/, too

Before the last lies pretraining, see weights/README.md. molecules (minutes): a random sample of a
large file, after every molecule of the eight evaluation sets is taken out (not only those of their
test parts, so that no seed of a split matters), by RDKit's canonical SMILES. left-out: those
molecules of a file that also stand in others, compared as cluster.py --leave-out does; with it the
encoder sees none of them. release: the encoder in fp16 without heads and optimiser, with its
SHA-256, log and curves beside it. seen: the hashes of the molecules that it learned from, by which
finetune.py says which of a table it knows. aligned: a model for search.py, with its SHA-256, log,
settings, and the rows of its table that its test part has.
"""

import gzip
import hashlib
import io
import shutil
from pathlib import Path

import click
import numpy as np
import torch
from rdkit import Chem, RDLogger
from record import ROOT

from moleclip.alignedfile import export_aligned
from moleclip.features import overlap
from moleclip.files import save_json, save_whole
from moleclip.molecules import read_molecules
from moleclip.seen import molecule_hashes
from moleclip.weights import load_checkpoint, save_checkpoint

EVALUATED = ("esol", "freesolv", "bace", "bbbp", "dhbd", "nhcs", "phosphines_yield", "kraken")
RELEASED = ROOT / "weights" / "moleclip-small.pt"


def canonical(smiles):
    """Return RDKit's canonical SMILES, or "" if it can't be read."""
    molecule = Chem.MolFromSmiles(smiles)
    return Chem.MolToSmiles(molecule) if molecule else ""


def canonical_molecules(path):
    """Return RDKit's canonical SMILES of every row of a file, "" where one can't be read."""
    return [canonical(molecule.smiles) for molecule in read_molecules(str(path))]


@click.group()
def main():
    """Make what the bundled encoder is made of, and release it."""


@main.command()
@click.argument("source")
@click.option("-o", "--out", required=True, help="File to write, .smi.gz.")
@click.option("--count", default=100_000, show_default=True, help="Molecules in the sample.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
def molecules(source, out, count, seed):
    """Sample SOURCE without the molecules of the evaluation sets."""
    RDLogger.DisableLog("rdApp.*")
    evaluated = set()
    for name in EVALUATED:
        evaluated.update(canonical_molecules(ROOT / "data" / f"{name}.csv"))
    evaluated.discard("")
    found = canonical_molecules(source)
    free = list(dict.fromkeys(smiles for smiles in found if smiles and smiles not in evaluated))
    print(
        f"{len(found)} molecules; {len(set(found) & evaluated)} of the {len(evaluated)} distinct "
        "ones of the evaluation sets among them, taken out"
    )
    chosen = np.random.default_rng(seed).permutation(len(free))[:count]
    save_lines(out, [free[i] for i in chosen])
    print(f"{out}: {len(chosen)} of the remaining {len(free)}, in random order")


def save_lines(out, lines):
    """Write lines into a .gz, whole or not at all, without a date: the same bytes each time."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write("".join(f"{line}\n" for line in lines).encode())
    save_whole(out, lambda name: Path(name).write_bytes(packed.getvalue()))


@main.command()
@click.argument("source")
@click.argument("others", nargs=-1, required=True)
@click.option("-o", "--out", required=True, help="File to write, .smi.gz.")
def left_out(source, others, out):
    """Write those molecules of SOURCE that also stand in OTHERS, one SMILES a line."""
    common = overlap(source, None, others)
    lines = [m.smiles.split()[0] for m in read_molecules(source) if common[m.row]]
    save_lines(out, lines)
    print(f"{out}: {len(lines)} of {len(common)} molecules")


def sign(path):
    """Write a file's SHA-256 beside it, as sha256sum does, and return it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n")
    return digest


@main.command()
@click.argument("encoder")
def release(encoder):
    """Write ENCODER, a checkpoint of pretrain.py, into weights/ as the bundled one."""
    checkpoint = load_checkpoint(encoder)
    RELEASED.parent.mkdir(exist_ok=True)
    half = {name: value.half() for name, value in checkpoint["encoder"].items()}
    assert all(torch.isfinite(value).all() for value in half.values())
    facts = {key: checkpoint[key] for key in ("arch", "step", "config", "metrics")}
    own = {key: Path(facts["config"][key]).name for key in ("shards", "labels")}
    facts["config"] |= own  # in which folder they lay is of no use to others
    save_checkpoint(RELEASED, encoder=half, **facts)
    save_json(RELEASED.with_suffix(".json"), facts)
    digest = sign(RELEASED)
    for suffix in (".log.jsonl", ".curves.png"):
        shutil.copy(Path(encoder).with_suffix(suffix), RELEASED.with_suffix(suffix))
    size = RELEASED.stat().st_size / 1e6
    print(f"{RELEASED}: {size:.1f} MB, step {checkpoint['step']}, SHA-256 {digest}")


@main.command()
@click.argument("model")
def aligned(model):
    """Write MODEL, a checkpoint of align.py, into weights/ as the one of its modality."""
    checkpoint, source = load_checkpoint(model), Path(model)
    name = checkpoint["arch"]["modality"]
    path = RELEASED.with_name(f"aligned-{name}.onnx")
    print(export_aligned(model, path))
    config = checkpoint["config"]
    names = ("graph", "out", "input", "labels", "shifts_from", "leave_out", "text_encoder")
    config |= {key: Path(config[key]).name for key in names if config.get(key)}
    rows = {part: [*map(int, rows)] for part, rows in checkpoint["parts"].items()}
    facts = {"arch": checkpoint["arch"], "config": config, "test": rows["test"], "val": rows["val"]}
    save_json(path.with_suffix(".json"), facts | {"calibration": checkpoint["calibration"]})
    digest = sign(path)
    shutil.copy(source.with_suffix(".log.jsonl"), path.with_suffix(".log.jsonl"))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")


@main.command()
@click.argument("source")
def seen(source):
    """Write the hashes of the molecules of SOURCE, int64, beside the bundled encoder."""
    hashes = molecule_hashes(molecule.smiles for molecule in read_molecules(source)).numpy()
    path, packed = RELEASED.with_suffix(".seen.npy"), io.BytesIO()
    np.save(packed, hashes)
    save_whole(path, lambda name: name.write_bytes(packed.getvalue()))
    print(f"{path}: {len(hashes)} molecules")


if __name__ == "__main__":
    main()
