"""Align molecules' graphs with pictures, spectra or texts: find a molecule by what is known of it.

    python align.py pairs.csv --modality nmr13c     # columns smiles and peaks -> aligned.pt
    python align.py texts.csv --modality text       # columns smiles and text
    torchrun --nproc_per_node=4 align.py druglike.smi --modality picture -o by-picture.pt
    python export.py aligned.pt -o aligned.onnx     # for search.py

A shallow graph encoder learns what a frozen encoder of another modality knows: the method is ACML's
(Wang et al., JCIM 2025, 10.1021/acs.jcim.5c00430), with texts MoMu's (Su et al., arXiv:2209.05481).
Test molecules are 20%, and are never chosen by.
"""

import time
from pathlib import Path

import click
import numpy as np
import torch

from moleclip import options
from moleclip.aligned import CONTRASTS, DIM
from moleclip.alignscores import calibrate, evaluate, predict_shifts
from moleclip.alignstate import AlignState
from moleclip.alignstep import learn
from moleclip.dense import TASKS, DenseTargets
from moleclip.device import Distributed, Leaving, Notice, pick_device, report_once
from moleclip.features import overlap
from moleclip.files import ROOT
from moleclip.gin import LAYERS, OUT, WIDTH
from moleclip.molecules import find_input, input_facts
from moleclip.pairtable import (
    as_pairs,
    folder_facts,
    named_parts,
    read_graphs,
    split_pairs,
    with_drawings,
    with_measured,
    with_predicted,
    with_spectra,
    with_spellings,
)
from moleclip.spectra import MODALITIES, NMR, SPECTRA
from moleclip.textpairs import text_pairs, with_texts
from moleclip.tokens import TextTokens
from moleclip.training import warmup_cosine
from moleclip.trainstate import check_new
from moleclip.transformer import load_bert

SPLITS = ("random", "skeleton", "column")
COUNT, POSITIVE = click.IntRange(1), options.Positive()
KINDS = click.Choice(MODALITIES)
FILE = click.Path(dir_okay=False)
ABOUT_KIND = "What molecules are aligned with; without contrast none is needed."
ABOUT_LOSS = "Weights of tasks; shifts: of each atom; descriptors, atoms, electronic: of --labels."
ABOUT_LABELS = "labels.npz of cluster.py, of the same file: what --loss atoms=1 and so on learn."
ABOUT_TEACHER = "Pairs are molecules with the shifts that this aligned.pt predicts."
ABOUT_GRAPH = "Start from this aligned.pt, all that fits."
ABOUT_LAYERS = "Last layers of it that learn; 0: none, texts are embedded once."
ABOUT_BESIDE = "Counted words and fragments beside: maps, cca, maps+cca or none."
MINILM = ROOT / "weights" / "minilm"
OF_TEXT = ("text_encoder", "text_layers", "beside", "mask_names")  # settings of texts alone


@click.command(context_settings={"show_default": True})
@click.argument("pairs")
@click.option("--modality", type=KINDS, help=ABOUT_KIND)
@options.out("aligned.pt", "Checkpoint; its log lies beside it.")
@click.option("--column", help="Column of peaks or texts.  [default: found by name]")
@options.smiles_column()
@options.shown("--contrast", "infonce", "Form of the loss.", type=click.Choice(CONTRASTS))
@options.shown("--loss", "contrast=1", ABOUT_LOSS, callback=options.parse_align_loss)
@options.shown("--init", "bundled", "Encoder of pictures, as finetune.py's.")
@click.option("--graph", type=FILE, help=ABOUT_GRAPH)
@click.option("--labels", type=FILE, help=ABOUT_LABELS)
@click.option("--shifts-from", type=FILE, help=ABOUT_TEACHER)
@click.option("--unfreeze", is_flag=True, help="Train the modality's encoder, too.")
@click.option("--text-encoder", help="Folder of a BERT.  [default: the bundled MiniLM]")
@options.shown("--text-layers", 2, ABOUT_LAYERS, type=click.IntRange(0))
@options.shown("--beside", "maps+cca", ABOUT_BESIDE, callback=options.parse_beside)
@click.option("--mask-names", is_flag=True, help="Take a molecule's names out of its texts.")
@options.shown("--split", "random", "How test is drawn.", type=click.Choice(SPLITS))
@click.option("--leave-out", help="File of molecules that are not learned from.")
@options.shown("--width", WIDTH, "Numbers of an atom.", type=COUNT)
@options.shown("--layers", LAYERS, "Rounds of messages.", type=COUNT)
@options.shown("--epochs", 30, "Passes over the pairs.", type=COUNT)
@options.batch(128, 2, "Pairs in a step, over all processes.")
@options.shown("--lr", 1e-3, "Largest learning rate.", type=POSITIVE)
@options.max_atoms()
@options.workers()
@options.seed("Seed of split, order, weights.")
@options.device()
@options.resume("Go on from the checkpoint under -o, if there is one.")
def main(device, **settings):
    """Align the graphs of molecules with what PAIRS, a table or folder of spectra, has of them."""
    with report_once():
        device = pick_device(device)
        world = Distributed.start(device)
        state, pairs, parts = prepare(world, device, **settings)
    train(state, pairs, parts)
    world.stop()


def prepare(world, device, pairs, workers, resume, **settings):
    """Check everything that the user may have got wrong, and load what the run needs.

    Return (AlignState, Pairs, {part: places}), alike on all processes.
    """
    refuse_misfits(pairs, settings)
    if settings["modality"] == "text":
        settings["text_encoder"] = settings["text_encoder"] or str(MINILM)
    else:
        settings = {name: value for name, value in settings.items() if name not in OF_TEXT}
    folder = Path(pairs).is_dir()
    path = pairs if folder else world.together(lambda: find_input(pairs))
    out = settings["out"]
    world.together(lambda: check_new(world, out, resume))
    column = settings["smiles_column"]
    facts = world.together(lambda: folder_facts(path) if folder else input_facts(path, column))
    targets = world.together(lambda: open_targets(path, facts, settings))
    found, reasons = world.together(lambda: load_pairs(path, device, workers, settings))
    parts = world.together(lambda: part_pairs(path, found, settings))
    counts = ", ".join(f"{len(places)} {part}" for part, places in parts.items())
    world.print0(f"{path}: {len(found)} pairs ({counts})" + left_out(reasons))
    check_sizes(path, parts, settings["batch"])
    config = settings | {"input": facts["input"], "input_sha256": facts["sha256"]}
    arch = {
        "modality": settings["modality"],
        "contrast": settings["contrast"] if "contrast" in settings["loss"] else None,
        "graph": {"width": settings["width"], "layers": settings["layers"], "out": OUT},
        "shifts": "shifts" in settings["loss"],
        **({"beside": settings["beside"]} if "beside" in settings else {}),
    }
    if targets:
        arch["dense"], config["labels_sha256"] = targets.arch, targets.digest
        known = targets.known(found.rows, np.array([len(graph.atoms) for graph in found.graphs]))
        world.print0(f"{settings['labels']}: what isn't known counts for nothing; known: {known}")
    resume = resume and any(world.gather_objects(Path(out).exists()))
    learned = (found, parts["train"], targets)
    state = AlignState.start(out, config, arch, world, device, *learned, resume)
    if resume:
        state.resume()
    return state, found, parts


def part_pairs(path, found, settings):
    """Return {part: places} of Pairs as --split says. Raises click.ClickException."""
    if settings["split"] == "column":
        return named_parts(path, settings["smiles_column"], found)
    return split_pairs(found, settings["split"], settings["seed"])


def check_sizes(path, parts, batch):
    """Raise click.ClickException for parts, {part: places}, that are too small."""
    if not len(parts["val"]):
        raise click.ClickException(f"{path}: too few molecules for a validation part")
    if len(parts["train"]) < batch:
        few = f"{len(parts['train'])} pairs to learn from are less than --batch {batch}"
        raise click.ClickException(f"{path}: {few}; lower it")


def open_targets(path, facts, settings):
    """Return the DenseTargets that --loss asks for, or None. Raises click.ClickException."""
    tasks = [task for task in settings["loss"] if task in TASKS]
    return DenseTargets(settings["labels"], path, facts, tasks) if tasks else None


def load_pairs(path, device, workers, settings):
    """Return (Pairs, {row: why it is left out}). Raises click.ClickException."""
    kind, column, skip = settings["modality"], settings["smiles_column"], ()
    how = {"max_atoms": settings["max_atoms"], "workers": workers}
    if Path(path).is_dir():
        found, reasons = with_measured(path, kind, **how)
        return as_pairs(found), reasons
    if settings["leave_out"]:
        common = overlap(path, column, [find_input(settings["leave_out"])], workers)
        skip = set(np.flatnonzero(common).tolist())
    if kind == "text":
        how["fragments"] = bool(settings["beside"])
        members, reasons = read_graphs(path, column, skip=skip, **how)
        found, others = with_texts(path, members, settings["column"], settings["mask_names"])
        return text_pairs(found), dict(sorted((reasons | others).items()))
    members, reasons = read_graphs(path, column, skip=skip, **how)
    if not kind:
        found, others = [(member, None) for member in members], {}
    elif kind == "picture":
        found, others = with_drawings(path, members, **how)
    elif kind == "smiles":
        found, others = with_spellings(path, members, **how)
    elif settings["shifts_from"]:
        predicted = predict_shifts(settings["shifts_from"], members, kind, device)
        found, others = with_predicted(path, members, predicted, kind)
    else:
        found, others = with_spectra(path, members, kind, settings["column"])
    return as_pairs(found), dict(sorted((reasons | others).items()))


def refuse_misfits(pairs, settings):
    """Raise click.ClickException for options that don't go together."""
    refuse_losses(pairs, settings)
    nmr = settings["modality"] in NMR
    if "shifts" in settings["loss"] and not nmr:
        raise click.ClickException("--loss shifts: only NMR spectra have any; leave it out")
    if settings["shifts_from"] and not nmr:
        raise click.ClickException("--shifts-from: only NMR spectra have shifts; leave it out")
    if settings["modality"] == "text":
        refuse_for_texts(settings)
    if Path(pairs).is_dir() and (
        settings["modality"] not in SPECTRA or settings["leave_out"] or settings["shifts_from"]
    ):
        raise click.ClickException(
            f"{pairs}: is a folder; files of spectra are read from one, without --leave-out and "
            "--shifts-from"
        )
    if Path(pairs).is_dir() and settings["split"] == "column":
        raise click.ClickException(f"{pairs}: is a folder; --split column needs a table")
    if settings["unfreeze"] and settings["modality"] == "picture":
        raise click.ClickException(
            "--unfreeze: the encoder of pictures stays; pretrain.py trains it"
        )


def refuse_for_texts(settings):
    """Raise click.ClickException for options that don't go together where texts are aligned."""
    if settings["unfreeze"]:
        raise click.ClickException(
            "--unfreeze: how much of an encoder of texts learns, --text-layers says; 99 is all"
        )
    if settings["contrast"] == "acml" and "cca" in settings["beside"]:
        raise click.ClickException(
            "--contrast acml: its places have no fixed length, so cca can't stand beside them; "
            "add --beside maps, or none"
        )
    folder = settings["text_encoder"] or MINILM
    if not Path(folder).is_dir():
        says = "--text-encoder takes one with a BERT in Hugging Face's layout"
        raise click.ClickException(f"{folder}: no such folder; {says}")
    load_bert(folder)
    TextTokens(folder)


def refuse_losses(pairs, settings):
    """Raise click.ClickException if --loss asks for what there is not, or there is more."""
    loss, kind, labels = settings["loss"], settings["modality"], settings["labels"]
    dense, asked = [task for task in loss if task in TASKS], loss.keys() & {"contrast", "shifts"}
    if asked and not kind:
        says = f"--loss {'contrast' if 'contrast' in loss else 'shifts'} needs one"
        raise click.UsageError(f"Missing option '--modality': {says}, of {', '.join(MODALITIES)}")
    if kind and not asked:
        raise click.ClickException("--modality: --loss asks nothing of it; leave it out")
    if dense and not labels:
        made = "make it with cluster.py --descriptors --atoms"
        raise click.ClickException(f"--loss {dense[0]}: needs --labels labels.npz; {made}")
    if labels and not dense:
        tasks = ", ".join(f"{task}=1" for task in TASKS)
        raise click.ClickException(f"--labels: no task of --loss learns from it: {tasks}")
    if dense and Path(pairs).is_dir():
        raise click.ClickException("--labels: are of the rows of a file, not of a folder's spectra")


def left_out(reasons):
    """Return what is to be said of rows that can't be used, {row: why}."""
    if not reasons:
        return ""
    row, why = next(iter(reasons.items()))
    return f"; {len(reasons)} rows are left out, the first row {row}: {why}"


def train(state, pairs, parts):
    """Run the epochs that are left; leave the best by validation, calibrated."""
    world, config, notice = state.world, state.config, Notice()
    steps = len(parts["train"]) // config["batch"]
    began, first = time.time(), state.epoch
    try:
        for epoch in range(state.epoch, config["epochs"]):
            means = run_epoch(state, pairs, parts["train"], epoch, steps, notice)
            entry = {"epoch": epoch + 1} | means | evaluate(state, pairs, parts)
            left = (time.time() - began) / (epoch + 1 - first) * (config["epochs"] - epoch - 1)
            state.note(entry, left)
            if world.rank == 0:
                state.save(pairs, parts)
    except Leaving:
        kept = f"{state.out} has epoch {state.epoch}" if state.epoch else "nothing is kept"
        world.print0(f"asked to leave: {kept}; --resume goes on")
        return
    state.take_best()
    if state.model.query is not None:
        if state.model.dim > DIM:
            state.correlate(pairs, parts["train"])
        state.calibration = calibrate(state, pairs, parts)
        state.best["weights"] = state.model.state_dict()
    if world.rank == 0:
        state.save(pairs, parts)
    shown = [name for name in ("val_mrr", "val_top1", "val_loss") if name in state.best]
    said = ", ".join(f"{name} {state.best[name]:.3f}" for name in shown)
    world.print0(f"{state.out}: epoch {state.best['epoch']} is the best by validation ({said})")


def run_epoch(state, pairs, members, epoch, steps, notice):
    """Take all steps of an epoch; return the mean of each part of the loss. Raises Leaving."""
    world, config = state.world, state.config
    # Nothing random outlives an epoch: so a resumed run is the same.
    torch.manual_seed(hash_of(config["seed"], epoch, world.rank))
    random = np.random.default_rng((config["seed"], epoch, world.rank))
    order = np.random.default_rng((config["seed"], epoch)).permutation(members)
    state.train_mode()
    sums, last = {}, steps * config["epochs"]
    for step in range(steps):
        with world.agree():
            notice.check()
        places = order[step * config["batch"] : (step + 1) * config["batch"]]
        rate = config["lr"] * warmup_cosine((epoch * steps + step) / last)
        for name, value in learn(state, pairs, places, random, rate).items():
            sums[name] = sums.get(name, 0.0) + value / steps
    state.share_statistics()
    return sums


def hash_of(*numbers):
    """Return one seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


if __name__ == "__main__":
    main()
