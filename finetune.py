"""Finetune the encoder on a CSV of molecules and labels, and say honestly how good the model is.

    python finetune.py --data dhbd.csv                          # from encoder.pt to runs/dhbd/
    python finetune.py --data esol.csv --split scaffold --seeds 1,2,3 --head mlp --lr-head 1e-3,4e-4
    python finetune.py --data assay.csv --target pIC50 --freeze # heads alone, in seconds

Heads on a frozen encoder first; then, unless --freeze, a 3-layer MLP learns on the encoder's
embeddings, and both are trained together. The test value reported is that of the epoch that was
best on validation; the better stage there is kept. Every report has fingerprint baselines on the
same split beside it (MoleCLIP, section 9 of its protocol).
"""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import torch
from click.core import ParameterSource
from rdkit import rdBase

from moleclip import options
from moleclip.device import Distributed, local_rank, pick_device, pick_precision, report_once
from moleclip.encoders import load_encoders
from moleclip.experiment import Experiment, read_rows
from moleclip.files import check_output
from moleclip.grid import finish_grid, keep_best, trial_folder
from moleclip.heads import HEAD_EPOCHS, HEAD_PATIENCE
from moleclip.metrics import FROZEN
from moleclip.molecules import MAX_ATOMS, find_input, input_facts
from moleclip.options import LEVELS, comma_list, number_between, positive_weight
from moleclip.outputs import interrupted_by_sigterm
from moleclip.results import taken
from moleclip.runs import aggregate, load_facts
from moleclip.splits import SPLIT_KINDS
from moleclip.stages import decide, read_validation, too_few
from moleclip.table import Data
from moleclip.training import WARM_UP, enough_memory
from moleclip.weights import default_init, init_digest

COUNT = click.IntRange(1)
TASKS = click.Choice(["auto", "regression", "classification"])
HEADS = click.Choice(["auto", "mlp", "gp", "forest"])
KINDS = ("picture", "graph", "picture+graph")  # what encoders look at
FEATURES = click.Choice(["auto", *KINDS, "ecfp", *(f"{kind}+ecfp" for kind in KINDS)])
ALIGNED = "aligned.pt"  # where align.py leaves a graph encoder
LR_PICTURE, LR_GRAPH = 5e-6, 4e-4  # the paper's; a shallow encoder is no slower than a head
# Options of a head that is trained step by step, the MLP on an encoder.
STEPWISE = ("lr_head", "epochs", "patience", "batch", "pos_weight", "raw_labels")
FINETUNING = ("epochs", "patience", "batch", "precision")  # settings that frozen heads don't have
LABELLING = ("pos_weight", "raw_labels")  # of these, what frozen heads can't follow
RATES = comma_list(number_between(0, 1e3), "a learning rate, or several such as 5e-6,2e-5")
SEEDS = comma_list(number_between(-1, 2**32, int), "a list of whole numbers such as 1,2,3")
AUGMENT = comma_list(LEVELS.__getitem__, "none, default, intense or several of them")


@click.command()
@click.option("--data", required=True, help="CSV or TSV with a SMILES column and labels.")
@options.out_path(None, "Folder for the results.  [default: runs/NAME]")
@click.option(
    "--init", help="Encoder of pictures.  [default: encoder.pt, else bundled, else ViT-B/16]"
)
@click.option("--graph", help="Encoder of graphs: aligned.pt, a run, none.  [default: aligned.pt]")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Label column, or COLUMN=WORD with the class that is 1; repeatable.  "
    "[default: every column of numbers that is no index]",
)
@options.shown(
    "--task", "auto", "auto: classification if labels are 0 or 1, or two words.", type=TASKS
)
@click.option(
    "--pos-weight",
    callback=positive_weight,
    help="Weight of the positives in the loss: a number, or auto for negatives / positives.",
)
@click.option("--raw-labels", is_flag=True, help="Don't standardise the labels (the paper's way).")
@options.shown(
    "--split", "random", "random, scaffold, random-scaffold, column, or a splits.csv; 80/10/10%."
)
@click.option(
    "--split-column",
    help="Column that says train, val or test.  [default with --split column: split]",
)
@options.shown("--seeds", "1", "Seeds of split and training, such as 1,2,3.", callback=SEEDS)
@options.shown(
    "--epochs",
    60,
    "Passes over the training part; the learning rates fall to 0 over them.",
    type=COUNT,
)
@click.option(
    "--patience", type=COUNT, help="Stop after so many epochs without a better validation loss."
)
@options.batch(64, 1, "Molecules in a step.")
@click.option(
    "--lr-encoder",
    callback=RATES,
    help="Highest learning rate of the encoder; several make a grid.  [default: 5e-6; graphs 4e-4]",
)
@options.shown(
    "--lr-head", "4e-4", "Highest learning rate of the head; several make a grid.", callback=RATES
)
@options.shown(
    "--augment",
    "default",
    "Pixel augmentation of training pictures; several make a grid.",
    callback=AUGMENT,
)
@click.option(
    "--freeze", is_flag=True, help="Stop after the heads on a frozen encoder: no finetuning."
)
@options.shown(
    "--head",
    "auto",
    "auto: the best of several by cross-validation, then finetuning; mlp: the MLP at once.",
    type=HEADS,
)
@options.shown(
    "--features", "auto", "What the head looks at; auto compares encoder and ecfp.", type=FEATURES
)
@options.r_groups("Draw the ends of all molecules as R-groups.")
@options.proteins("Rows are pairs: a table of proteins' sequences, or .npz of their embeddings.")
@click.option("--force", is_flag=True, help="Test on molecules that --init was trained on.")
@options.device()
@options.precision(["auto", "bf16", "fp16", "fp32"], "auto", "Of training; embeddings are fp32.")
@options.smiles_column()
@click.pass_context
def main(context, **_):
    """Train encoder and head on the labels of a table and compare with fingerprints."""
    run(context)


def run(context, **parts):
    """Finetune as the options of a click context say, and write the whole folder.

    parts: of Experiment, to leave something out: run(main.make_context("finetune.py", words),
    with_baselines=False).
    """
    chosen = SimpleNamespace(**context.params)
    with told_when_interrupted(chosen), report_once(), enough_memory(chosen.batch):
        device = pick_device(chosen.device)
        world = Distributed.start(device)
        data = read_data(context, chosen)
        for line in data.notes() if not world.rank else ():
            click.echo(line, err=True)
        chosen.out = run_folder(chosen, data)
        if not world.rank:
            check_output(chosen.out / "model.pt")
        # a wrong --init shows before the drawing
        world.local0_first(lambda: load_encoders(chosen.init, chosen.graph))
        dtype, reason = pick_precision(chosen.precision, device)
        config = make_config(chosen, data)
        world.compare(config | {"precision": str(dtype)})
        kinds = chosen.encoded or ("picture",)
        given, data.problems = read_rows(data, kinds, world, chosen.r_groups)
        experiment = Experiment(data, given, config, device, dtype, world, **parts)
        experiment.make_splits(chosen.force)
        if not world.rank:
            print_facts(experiment, reason)
        if chosen.staged:
            train_in_stages(experiment, chosen)
        else:
            train_all(experiment, chosen)


@contextmanager
def told_when_interrupted(chosen):
    """Say after Ctrl-C or SIGTERM what there is, in one line, and leave with code 130."""
    with interrupted_by_sigterm():
        try:
            yield
        except KeyboardInterrupt:
            if local_rank():
                raise SystemExit(130) from None
            said, out = "interrupted", chosen.out
            if out and (out / "metrics.json").exists():
                said += f"; {out} keeps the frozen heads' model, which export.py takes"
            if out and out.exists():
                said += f"; the same command goes on from what is in {out}"
            stopped = click.ClickException(said)
            stopped.exit_code = 130
            raise stopped from None


def run_folder(chosen, data):
    """Return the folder of the run. Raises click.ClickException if it holds a finished one."""
    name = re.sub(r"(\.(csv|tsv|sdf|xlsx|parquet))?(\.gz)?$", "", Path(data.path).name)
    out = chosen.out or Path("runs") / name
    facts = out / "metrics.json"
    undecided = chosen.staged and facts.exists() and load_facts(facts)
    if facts.exists() and not (undecided and "stage" in undecided and "decision" not in undecided):
        raise click.ClickException(
            f"{out}: holds a finished run; give another folder with -o, or delete it"
        )
    return out


def read_data(context, chosen):
    """Return the Data of --data, when the options are seen to fit together."""
    path = find_input(chosen.data)
    if chosen.split not in SPLIT_KINDS and not Path(chosen.split).is_file():
        raise click.BadParameter(
            f"{chosen.split!r} is none of {', '.join(SPLIT_KINDS)}, nor a splits.csv that exists",
            param_hint="--split",
        )
    settle_proteins(context, chosen)
    settle_head(context, chosen)
    settle_encoders(context, chosen)
    if chosen.freeze and given(context, "lr_encoder", "augment"):
        raise click.BadParameter(
            "the encoder stays as it is: leave out --lr-encoder and --augment",
            param_hint="--freeze",
        )
    if chosen.split_column:
        source = context.get_parameter_source("split")
        if source != ParameterSource.DEFAULT and chosen.split != "column":
            says = f"the column says the parts; leave out --split {chosen.split}"
            raise click.BadParameter(says, param_hint="--split-column")
        chosen.split = "column"
    if chosen.split == "column":
        chosen.split_column = chosen.split_column or "split"
    columns = chosen.smiles_column, chosen.split_column
    data = Data(path, chosen.targets, chosen.task, *columns, chosen.proteins)
    if chosen.pos_weight and data.task == "regression":
        says = f"is for classes; {data.targets[0]} is a regression"
        raise click.BadParameter(says, param_hint="--pos-weight")
    return data


def given(context, *names):
    """Return those of some options that were given in words."""
    default = ParameterSource.DEFAULT
    return [name for name in names if context.get_parameter_source(name) != default]


def settle_proteins(context, chosen):
    """Settle what --proteins says of other options: heads learn on a frozen encoder, at once."""
    if not chosen.proteins:
        return
    chosen.proteins = find_input(chosen.proteins)
    wrong = given(context, *STEPWISE, "lr_encoder", "augment")
    wrong = [name for name in wrong if name != "lr_head"]
    if wrong:
        says = f"has heads on a frozen encoder alone; leave out {flag(wrong[0])}"
        raise click.BadParameter(says, param_hint="--proteins")
    if not chosen.freeze and chosen.features != "ecfp" and not local_rank():
        click.echo("--proteins: the encoder stays frozen, as with --freeze", err=True)
    chosen.freeze = True


def settle_head(context, chosen):
    """Settle --head and --freeze: what one of them, or --features, says of the others.

    Afterwards chosen.compares tells whether heads are fitted by moleclip/choice.py, instead of the
    MLP on an encoder being trained step by step; chosen.staged, whether the one and then the other.
    """
    ecfp = "ecfp" in chosen.features or bool(chosen.proteins)
    stepwise = given(context, *STEPWISE)
    chosen.freeze = chosen.freeze or ecfp or chosen.head in ("gp", "forest")
    for_mlp = stepwise if chosen.freeze else given(context, *LABELLING)
    if chosen.head == "auto" and for_mlp and not ecfp:
        click.echo(f"{flag(for_mlp[0])} is of the MLP: --head mlp", err=True)
        chosen.head = "mlp"
    chosen.compares = chosen.freeze and (chosen.head != "mlp" or ecfp)
    chosen.staged = not chosen.freeze and chosen.head == "auto"
    wrong = [name for name in stepwise if name != "lr_head" or chosen.head in ("gp", "forest")]
    if chosen.compares and wrong:
        says = "is of the MLP on an encoder; leave it out, or take --head mlp, without ecfp"
        raise click.BadParameter(says, param_hint=flag(wrong[0]))


def settle_encoders(context, chosen):
    """Settle which encoders are looked at: chosen.encoded; of others init is "none", graph None."""
    named = chosen.features.split("+")
    wanted = {"picture": "picture" in named, "graph": "graph" in named}
    if chosen.features == "auto":
        wanted = {"picture": bool(chosen.init or not chosen.graph), "graph": bool(chosen.graph)}
    given_by = {"picture": ("--init", chosen.init), "graph": ("--graph", chosen.graph)}
    for kind, (option, value) in given_by.items():
        if value and not wanted[kind]:
            says = f"--features {chosen.features} has no {kind}: leave it out"
            if chosen.features == "ecfp":
                says = "fingerprints alone need no encoder: leave it out"
            raise click.BadParameter(says, param_hint=option)
    if chosen.init == "none":
        says = "none is no encoder; for fingerprints alone take --features ecfp"
        raise click.BadParameter(says, param_hint="--init")
    chosen.encoded = tuple(kind for kind in wanted if wanted[kind])
    chosen.init = (chosen.init or default_init()) if wanted["picture"] else "none"
    chosen.graph = (chosen.graph or ALIGNED) if wanted["graph"] else None
    chosen.lr_encoder = chosen.lr_encoder or [LR_GRAPH if wanted["graph"] else LR_PICTURE]
    if len(chosen.encoded) == 2 and not chosen.freeze:
        says = "encoders of pictures and graphs aren't finetuned together; add --freeze"
        raise click.BadParameter(says, param_hint="--features")
    if chosen.encoded == ("graph",):
        if given(context, "augment"):
            raise click.BadParameter("is of pictures; leave it out", param_hint="--augment")
        chosen.augment = ["none"]
        if not given(context, "precision"):
            chosen.precision = "fp32"  # there is nothing to be gained


def flag(name):
    """Return the option that has this name."""
    return "--" + name.replace("_", "-")


def make_config(chosen, data):
    """Return what config.json holds of a run, but for the trial and the seed."""
    training = ("pos_weight", "raw_labels", "epochs", "patience", "batch", "freeze", "r_groups")
    graph = {"graph": chosen.graph, "features": "+".join(chosen.encoded)}
    return {
        "data": Path(data.path).name,
        "data_sha256": input_facts(data.path, chosen.smiles_column)["sha256"],
        "columns": data.header,
        "smiles_column": data.smiles_column,
        "init": chosen.init,
        "init_sha256": init_digest(chosen.init),
        "split": chosen.split,
        "split_sha256": data.parts_digest(chosen.split),
        "seeds": chosen.seeds,
        "rates": chosen.lr_head,
        "max_atoms": MAX_ATOMS,
        "rdkit": rdBase.rdkitVersion,
        "torch": str(torch.__version__),
        "head_first": None if chosen.freeze else [HEAD_EPOCHS, HEAD_PATIENCE, WARM_UP],
        "precision": chosen.precision,
        **{name: getattr(chosen, name) for name in training},
        **(graph | {"graph_sha256": init_digest(chosen.graph)} if chosen.graph else {}),
        **({"head": chosen.head, "features": chosen.features} if chosen.compares else {}),
        **(data.pairs.facts() if data.pairs else {}),
    }


def print_facts(experiment, reason):
    """Print what is learned, from which encoder, and where."""
    data, config, count = experiment.data, experiment.config, len(experiment.data.targets)
    targets = f"{count} target{'s' * (count > 1)} ({', '.join(data.targets[:6])})"
    dtype = str(experiment.dtype or "fp32").removeprefix("torch.")
    sources = [config["init"]] * (config["init"] != "none")
    sources += [f"{config['graph']} (graphs)"] if "graph" in config else []
    encoder = f"{'frozen ' * config['freeze']}encoder from {' and '.join(sources)}"
    encoder = encoder if sources else "fingerprints alone"
    rows = experiment.usable()
    counted = f"{len(rows)} {data.pairs.said(rows) if data.pairs else 'molecules'}"
    click.echo(
        f"{data.path}: {counted}, {targets}, {data.task}; "
        f"{encoder}; "
        f"{experiment.device.type} in {dtype} ({reason})"
    )


def train_all(experiment, chosen):
    """Train every trial with every seed, and write what they give together."""
    results, trial = train_trials(experiment, chosen, chosen.out, trials_of(chosen))
    if not experiment.world.rank:
        config = experiment.config | trial
        aggregate(chosen.out, experiment.data, results, config, experiment.drawn)
        note = "test values of the epochs that are best on validation; see report.png there"
        if chosen.compares:
            note = "test values of the heads that held-out folds chose; see report.png there"
        click.echo(f"\n{chosen.out}: {note}")


def train_in_stages(experiment, chosen):
    """Fit heads on the frozen encoder, then finetune, and keep what validation says."""
    out, data, first = chosen.out, experiment.data, not experiment.world.rank
    why, trials, trial = too_few(experiment.splits), trials_of(chosen), frozen_stage(chosen)
    frozen, _ = train_trials(experiment, chosen, out / "frozen", [trial])
    decision = {"kept": "frozen", "why": why} if why else None
    if first:
        finish_stage(experiment, out, "frozen", frozen, trial, decision)
    if why:
        return
    for result in frozen:
        rows = experiment.splits[result.seed]["test"]
        experiment.beside[result.seed] = {FROZEN: taken(result.predicted, rows)}
    experiment.trials = len(trials) * len(chosen.seeds)
    finetuned, best = train_trials(experiment, chosen, out / "finetuned", trials)
    if first:
        folders = [out / "frozen" / f"seed-{result.seed}" for result in frozen]
        before = [(each.split, read_validation(at)) for each, at in zip(frozen, folders)]
        decision = decide(data, before, [(each.split, each.predicted) for each in finetuned])
        kept = decision["kept"]
        results, trial = (finetuned, best) if kept == "finetuned" else (frozen, trial)
        finish_stage(experiment, out, kept, results, trial, decision)


def frozen_stage(chosen):
    """Return the trial that the heads on the frozen encoder are.

    What only finetuning heeds is no part of it: that may change before finetuning has begun.
    """
    heads = {"head": chosen.head, "features": chosen.features, "stage": "frozen"}
    return heads | {"freeze": True, "head_first": None} | dict.fromkeys(FINETUNING)


def finish_stage(experiment, out, stage, results, trial, decision):
    """Write the run's folder as a stage leaves it. decision: what is kept and why, or None yet."""
    folder, config, facts = out / stage, experiment.config | trial, {"stage": stage}
    if decision:
        facts["decision"] = decision
        for result in results:
            name = f"seed-{result.seed}"
            shutil.copytree(folder / name, out / name, dirs_exist_ok=True)
    aggregate(out, experiment.data, results, config, experiment.drawn, folder, facts)
    if not decision:
        click.echo(f"\n{out}: the frozen head, which export.py takes from now on; now finetuning")
        return
    for result in results:  # its copy stands where those of other runs do
        (folder / f"seed-{result.seed}" / "model.pt").unlink()
    click.echo(f"\n{out}: the {stage} model is kept: {decision['why']}; see report.png there")


def trials_of(chosen):
    """Return the trials of a run, each a dict of rates and augmentation; of compared heads {}."""
    if chosen.compares:
        return [{}]
    return [
        {"lr_encoder": lr_encoder, "lr_head": lr_head, "augment": augment}
        for lr_encoder in chosen.lr_encoder
        for lr_head in chosen.lr_head
        for augment in (["none"] if chosen.freeze else chosen.augment)
    ]


def train_trials(experiment, chosen, out, trials):
    """Train every trial with every seed; return (the best one's SeedResults, that trial).

    Without results but on rank 0.
    """
    results, first, grid, best = [], not experiment.world.rank, len(trials) > 1, 0
    for trial in trials:
        where = trial_folder(out, trial) if grid else out
        seeds = [(where / f"seed-{seed}", seed, trial) for seed in chosen.seeds]
        results.append([experiment.run_seed(*seed) for seed in seeds])
        if grid and first:
            keep_best(out, trials, results)
    if grid and first:
        best = finish_grid(out, trials, results)
    return results[best] if first else [], trials[best]


if __name__ == "__main__":
    main()
