"""The tables of README.md and docs/, made from benchmarks/results/ and published.csv.

    make tables                              # rewrites what stands between the marks
    python benchmarks/tables.py --check      # exit code 1 if a table is not what the results say

A table stands between <!-- table NAME --> and <!-- end -->; what no result fills stays visibly
empty.
"""

import re
import sys
from itertools import product

from record import RESULTS, ROOT, read_csv

FOLDERS = [ROOT, ROOT / "benchmarks", ROOT / "weights"]
PAGES = [folder / "README.md" for folder in FOLDERS] + sorted((ROOT / "docs").glob("*.md"))
SETS = {
    "esol": "ESOL, scaffold, RMSE in log mol/L",
    "freesolv": "FreeSolv, scaffold, RMSE in kcal/mol",
    "bace": "BACE, scaffold, ROC-AUC",
    "bbbp": "BBBP, scaffold, ROC-AUC",
    "dhbd": "DHBDs, random, MAE in eV",
    "nhcs": "NHCs, random, MAE in e",
    "phosphines_yield": "phosphine yield, random, MAE as fraction",
    "kraken": "Kraken buried volumes, random, MAE in %",
}
OURS = {
    "mean of training": "mean of training",
    "ECFP + random forest": "ECFP + random forest",
    "ECFP + MLP": "ECFP + MLP",
    "DINOv2-S, frozen": "DINOv2-S frozen",
    "first bundled, frozen": "first bundled frozen",
    "bundled, frozen": "bundled frozen",
    "scratch, finetuned": "scratch finetuned",
    "DINOv2-S, finetuned": "DINOv2-S finetuned",
    "first bundled, finetuned": "first bundled finetuned",
    "bundled, finetuned": "bundled finetuned",
}
CHOSEN = {"ECFP, fingerprints": "fingerprints, best head", "bundled, heads": "bundled, best head"}
GRAPHS = {
    "graph untrained, graph": "graph untrained, frozen",
    "graph by targets, graph": "graph by dense targets, frozen",
    "graph by 13C, graph": "graph by 13C, frozen",
    "graph by texts, graph": "graph by texts, frozen",
}
MOMU = GRAPHS | {
    name.replace(", graph", ", graph-finetuned"): title.replace("frozen", "finetuned")
    for name, title in GRAPHS.items()
}
MOMU_SETS = {"bace": "BACE", "bbbp": "BBBP", "sider": "SIDER, 27 targets", "clintox": "ClinTox, 2"}
PEERS = {
    "chemprop": "chemprop",
    "RDKit descriptors + random forest": "RDKit descriptors + random forest",
}
FIRST_LOOK = (  # of these the columns that have something
    "chemprop",
    "ECFP + random forest",
    "ECFP, fingerprints",
    "bundled, frozen",
    "bundled, heads",
)
SHARE = "of the training mean's"  # error: a column of likeness.csv
PUBLISHED = ("MoleCLIP", "ImageMol", "GEM")


def results(name):
    """Return the lines of results/NAME.csv."""
    return read_csv(RESULTS / f"{name}.csv")


def published():
    """Return the lines of the figures that others have published."""
    return read_csv(ROOT / "benchmarks" / "published.csv")


def number(value):
    """Return a figure with three significant digits, as text."""
    text = f"{float(value):#.3g}".rstrip(".")
    return f"{float(value):.0f}" if "e" in text else text


def whole(value, unit="s"):
    """Return a figure without decimals, with its unit, as text."""
    return f"{float(value):.0f} {unit}"


def interval(row):
    """Return a figure ± its 95% t-interval over seeds, as text; "" where nothing was run yet."""
    if not row:
        return ""
    wide = float(row["ci95"] or 0)
    return number(row["mean"]) + (f" ± {wide:.2g}" if wide > 1e-9 else "")


def markdown(header, rows):
    """Return a table as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def by_most_seeds(rows):
    """Return rows with those that a table shows last: where a cell was made in several ways, the
    one of most seeds counts, and of these the last made."""
    return sorted(rows, key=lambda row: int(row["seeds"]))


def accuracy_rows(name, metric):
    """Return {model: row} of a set's figures in one metric, others' programs among them."""
    rows = [row | {"model": row["peer"]} for row in results("peers")]
    rows += by_most_seeds(results("accuracy"))
    return {row["model"]: row for row in rows if (row["set"], row["metric"]) == (name, metric)}


def metric_of(title):
    """Return the metric that one of SETS' titles names."""
    return re.split(" in | as ", title.split(", ")[2])[0]


def compared(models, others):
    """Sets by models: the test figure ± 95% t-interval over seeds, and the published figures.

    Models that were not run on any set are left out.
    """
    theirs = {(row["set"], row["model"]): row["mean"] for row in published()}
    found = {name: accuracy_rows(name, metric_of(title)) for name, title in SETS.items()}
    models, rows = [each for each in models if any(each in row for row in found.values())], []
    for name, title in SETS.items():
        ours = found[name]
        cells = [interval(ours.get(model)) for model in models]
        rows.append([title, *cells, *(theirs.get((name, model), "") for model in others)])
    names = OURS | CHOSEN | PEERS | GRAPHS
    titles = [names[model] for model in models] + [f"{model}, published" for model in others]
    return markdown(["set, split, metric", *titles], rows)


def accuracy():
    """All our models and the published ones."""
    return compared(OURS, PUBLISHED)


def heads():
    """The heads that held-out folds chose, fingerprints alone, and what others would pick."""
    return compared((*PEERS, "ECFP + MLP", *CHOSEN, "bundled, frozen"), PUBLISHED)


def graphs():
    """Frozen encoders of graphs, beside fingerprints and pictures with the same head."""
    return compared(("ECFP + MLP", *GRAPHS, "bundled, frozen"), ())


def momu():
    """Four of MoMu's sets: graph encoders, frozen and finetuned, beside its published values."""
    found = {(row["set"], row["model"]): row for row in results("momu")}
    theirs = {(row["set"], row["model"]): number(row["mean"]) for row in published()}
    models = [name for name in MOMU if any(name == model for _, model in found)]
    rows = []
    for name, title in MOMU_SETS.items():
        cells = [interval(found.get((name, model))) for model in models]
        rows.append([title, *cells, *(theirs[name, each] for each in ("MoMu-S", "MoMu-K"))])
    titles = [MOMU[name] for name in models] + ["MoMu-S, published", "MoMu-K, published"]
    return markdown(["scaffold, mean ROC-AUC over targets", *titles], rows)


def rival():
    """Sets by the chosen heads with and without pictures: scores, paired difference, heads."""
    found, rows = {row["set"]: row for row in results("rival")}, []
    for name, title in SETS.items():
        if name not in found:
            continue
        row = found[name]
        span = f"{float(row['low']):+.2g} to {float(row['high']):+.2g}, {row['over']}"
        cells = [number(row["ours"]), number(row["rival"]), f"{float(row['less']):+.2g}"]
        cells += [f"{span}: {row['verdict']}"] if float(row["less"]) else ["the same heads"]
        took = row["our seconds a seed"]
        cells += [row["our heads"], f"{took} s" if took else ""]
        rows.append([f"{', '.join(title.split(', ')[:2])}, {row['metric']}", *cells])
    header = ["set, split, metric", "pictures too", "fingerprints alone", "difference", "95%, over"]
    return markdown([*header, "heads chosen (seeds)", "a seed takes"], rows)


def intervals():
    """Sets by what the chosen heads' 90% intervals hold, and how wide they are."""
    rows = []
    for name, title in SETS.items():
        held, wide = (accuracy_rows(name, each) for each in ("coverage", "width"))
        held, wide = (found.get("bundled, heads") for found in (held, wide))
        if held:
            words = re.split(", | in | as ", title)
            share = f"{100 * float(held['mean']):.1f}%"
            share += f" ± {100 * float(held['ci95']):.1f}" if held["ci95"] else ""
            width = f"{interval(wide)} {words[-1]}"
            rows.append([", ".join(words[:2]), share, width, held["seeds"]])
    header = ["set, split", "test values within the 90% interval", "its width", "seeds"]
    return markdown(header, rows)


def summary():
    """The models that a first look is for."""
    return compared(FIRST_LOOK, PUBLISHED[:1])


def transfer():
    """Phosphine yields, learned from the start named and after Kraken's buried volumes."""
    ours = accuracy_rows("phosphines_yield", "MAE")
    theirs = {row["model"]: row["mean"] for row in published() if row["set"] == "phosphines_yield"}
    rows = []
    for start, way in product(("first bundled", "bundled"), ("frozen", "finetuned")):
        cells = [ours.get(f"{each}, {way}") for each in (start, f"{start} then Kraken")]
        if any(cells):
            rows.append([f"{start} {way}", *map(interval, cells)])
    published_row = [theirs["MoleCLIP"], theirs["MoleCLIP then Kraken"]]
    rows.append(["MoleCLIP, finetuned, published", *published_row])
    header = ["phosphine yield, random, MAE as fraction", "as it is"]
    return markdown([*header, "after Kraken's buried volumes"], rows)


def study(name, metric, variants):
    """Return {(set, model): [row of each variant, or None]} of a study's results, in file order."""
    lines = [row for row in results(name) if row["metric"] == metric]
    found = {(row["set"], row["model"]): {} for row in lines}
    for row in by_most_seeds(lines):
        found[row["set"], row["model"]][row["variant"]] = row
    return {cell: [rows.get(variant) for variant in variants] for cell, rows in found.items()}


def r_groups():
    """Models by set: the error on original pictures and with R-groups, and how much it grows."""

    def line(name, model, original, replaced, shown):
        growth = 100 * (float(replaced["mean"]) / float(original["mean"]) - 1)
        title = SETS[name].split(", ")[0]
        return [title, model, shown(original), shown(replaced), f"{growth:+.0f}%"]

    theirs = {row["set"]: row for row in published() if row["model"] == "MoleCLIP"}
    found = study("r_groups", "MAE", ("original", "R-groups"))
    rows = [line(*cell, *pair, interval) for cell, pair in found.items() if all(pair)]
    for name in ("esol", "freesolv"):
        pair = theirs[f"{name} original"], theirs[f"{name} R-groups"]
        title = "MoleCLIP, finetuned, published"
        rows.append(line(name, title, *pair, lambda row: row["mean"]))
    header = ["set, random split, MAE", "model", "original", "R-groups", "change"]
    return markdown(header, sorted(rows, key=lambda row: row[0]))


def fractions():
    """Models by the share of ESOL's training part that they see; all of it: the main table's."""
    everything = accuracy_rows("esol", "RMSE")
    rows = []
    for (_, model), shares in study("fractions", "RMSE", ("10%", "30%")).items():
        rows.append([model, *map(interval, [*shares, everything.get(model)])])
    titles = [f"{share} of the training part" for share in ("10%", "30%", "100%")]
    return markdown(["ESOL, scaffold, RMSE", *titles], rows)


def likeness():
    """Sets by likeness to training: the error, in its unit and of the training mean's."""
    bins = ("below 0.3", "0.3 to 0.5", "0.5 to 0.7", "0.7 and above")
    found = {(row["set"], row["nearest_training"]): row for row in results("likeness")}
    rows = []
    for name, title in SETS.items():
        *words, unit = re.split(", | in | as ", title)
        unit = "accuracy" if unit == "ROC-AUC" else f"MAE in {unit}"
        cells = [likeness_cell(found.get((name, each))) for each in bins]
        rows.append([f"{words[0]}, {words[1]}, {unit}", *cells])
    return markdown(["`nearest_training`", *bins], rows)


def likeness_cell(row):
    """Return a bin's figure, what of the training mean's error that is, and of how many."""
    if not row:
        return ""
    share = f"{100 * float(row[SHARE]):.0f}%"
    return f"{number(row['MAE'] or row['accuracy'])}, {share} ({row['molecules']})"


def prediction():
    """Sizes of encoder by ways of prediction, molecules a second."""
    keys = ("encoder", "way", "tokens", "precision")
    found = {tuple(row[key] for key in keys): row for row in results("predict")}
    rows = []
    for size, tokens in (("tiny", "inked"), ("small", "inked"), ("base", "inked"), ("base", "all")):
        encoder = f"ViT {size}, patch 16"
        theirs = found[encoder, "the original's", "all", "fp32"]
        ours = [found[encoder, "predict.py", tokens, each] for each in ("fp32", "int8")]
        rates = [number(row["molecules/s"]) for row in (theirs, *ours)]
        title = encoder + ", all tokens" * (tokens == "all")
        rows.append([title, *rates, number(ours[1]["times the original"]) + " times"])
    header = ["encoder", "the original's way", "fp32", "int8", "int8 against the original's"]
    return markdown(header, rows)


def training():
    """Sizes of encoder by tokens, images a second in pretraining, in turns."""
    rows = []
    for row in results("tokens"):
        rates = [number(row[f"{mode}, images/s"]) for mode in ("all", "inked")]
        memory = [number(row[f"{mode}, peak memory, GB"]) for mode in ("all", "inked")]
        times = number(row["inked / all"]) + " times"
        matrices = "with AMX" if "amx" in row["machine"] else "without AMX"
        facts = [row["encoder"], matrices, *rates, times]
        rows.append([*facts, f"{' and '.join(memory)} GB"])
    header = ["encoder, bf16", "2 cores", "all tokens, images/s", "inked tokens", "", "peak memory"]
    return markdown(header, rows)


def finetuning():
    """ViT-S by sets: seconds an epoch whole, and frozen."""
    found = {
        (row["set"], row["tokens"]): row
        for row in results("finetune")
        if row["encoder"] == "ViT small, patch 16"
    }
    rows = []
    for name, title in (("esol", "ESOL"), ("dhbd", "DHBDs")):
        inked, everything = found[name, "inked"], found[name, "all"]
        rows.append(
            [
                f"{title}, {inked['molecules']} molecules",
                whole(inked["seconds an epoch"]),
                whole(everything["seconds an epoch"]),
                whole(inked["frozen: seconds to embed all"]),
                f"{float(inked['frozen: seconds an epoch']):.1f} s",
                whole(inked["drawing all once, seconds"]),
            ]
        )
    header = ["ViT-S/16", "an epoch in bf16, inked tokens", "all tokens"]
    frozen = ["`--freeze`: embedding all once, inked", "an epoch of the head"]
    return markdown([*header, *frozen, "drawing all once"], rows)


def speed():
    """One line for each station, ViT-S where there is an encoder."""
    size, theirs, mode = "ViT small, patch 16", "the original's way", "with all tokens"
    slow, fast = "original's way, one core", "render.py, one core"
    drawn = {row["figure"]: number(row["value"]) for row in results("render")}
    named = [row for row in results("tokens") if "AMD" in row["machine"]]  # in README.md
    images = next(row for row in named if row["encoder"] == size)
    epochs = {(row["set"], row["encoder"], row["tokens"]): row for row in results("finetune")}
    inked, everything = (epochs["esol", size, tokens] for tokens in ("inked", "all"))
    count, epoch = inked["molecules"], "seconds an epoch"
    once, head = "frozen: seconds to embed all", float(inked["frozen: seconds an epoch"])
    rates = [row["molecules/s"] for row in results("predict") if row["encoder"] == size]
    original, fp32, int8 = map(number, rates)
    rows = [
        ("`render.py`, pictures/s on one core", drawn[fast]),
        ("`pretrain.py`, pictures/s", number(images["inked, images/s"])),
        (f"`finetune.py`, an epoch of ESOL's {count} molecules", whole(inked[epoch])),
        ("`finetune.py --freeze`: embedding, an epoch", f"{whole(inked[once])}, {head:.1f} s"),
        ("`predict.py`, molecules/s", f"{fp32}, {int8} in int8"),
    ]
    others = [
        f"{drawn[slow]} {theirs}",
        f"{number(images['all, images/s'])} {mode}",
        f"{whole(everything[epoch])} {mode}",
        f"{whole(everything[once])} {mode}",
        f"{original} {theirs}",
    ]
    lines = [(*row, other) for row, other in zip(rows, others)]
    return markdown(["ViT-S/16, 2 cores", "here", "otherwise"], lines)


def tokens():
    """Modes by encoder: what looking at inked patches alone costs in accuracy."""
    lines = results("tokens_accuracy")
    if not lines:
        return ""
    sets = [key.removesuffix(", MAE") for key in lines[0] if key.endswith(", MAE")]
    rows = []
    for row in lines:
        errors = []
        for name in sets:
            spread = row[f"{name}, SD over seeds"]
            errors.append(interval({"mean": row[f"{name}, MAE"], "ci95": spread}))
        state = row["encoder"].split(", ")[1]
        rows.append([state, row["tokens"], number(row["cosine between the modes"]), *errors])
    return markdown(["DINOv2-S", "tokens", "cosine between the modes", *sets], rows)


PROBED = {  # encoder of probe.csv: its title, drawings it learned from after the first's
    "ecfp": ("ECFP counts", ""),
    "first": ("the first bundled one", "0"),
    "step1200": ("step 1,200", "154,000"),
    "step3200": ("step 3,200", "410,000"),
    "encoder": ("step 3,908: bundled", "500,000"),
}


def probe():
    """What frozen features are worth, by the drawings that an encoder has learned from.

    Within training and validation parts.
    """
    sets = {
        "esol": "ESOL, log mol/L",
        "freesolv": "FreeSolv, kcal/mol",
        "bace": "BACE",
        "bbbp": "BBBP",
        "dhbd": "DHBDs, eV",
        "kraken": "Kraken",
        "nhcs": "NHCs, e",
        "phosphines_yield": "phosphine yield",
    }
    found, rows = {row["encoder"]: row for row in results("probe")}, []
    for name, title in PROBED.items():
        if name in found:
            rows.append([*title, *(number(found[name][key]) for key in sets)])
    return markdown(["", "drawings", *sets.values()], rows)


def trials():
    """Ways to finetune by the validation loss: of the head alone, the lowest of the epochs after
    it, and the last."""
    keys, runs = ("init", "begin", "rates", "lr_encoder", "augment"), {}
    for row in results("finetune_trials"):
        run = runs.setdefault(tuple(row[key] for key in keys), {})
        run[int(row["epoch"])] = row["val_loss"]
    names = {"dinov2-small-fp16": "DINOv2-S", "scratch:small": "scratch"}
    rows = []
    for (start, *facts), losses in sorted(runs.items()):
        head = number(losses[0]) if 0 in losses else ""
        best = min((losses[epoch] for epoch in losses if epoch), key=float)
        last = losses[max(losses)]
        rows.append([names.get(start, start), *facts, head, number(best), number(last)])
    header = ["from", "head and encoder begin", "rates", "encoder's", "augmentation"]
    return markdown([*header, "head alone", "best epoch", "last epoch"], rows)


def views():
    """Sets by drawings that predict.py looks at: errors, paired difference, seconds."""
    rows = []
    for row in sorted(results("views"), key=lambda row: list(SETS).index(row["set"])):
        found = [{"mean": row[key], "ci95": row[f"{key}, ci95"]} for key in ("1 view", "4 views")]
        less = f"{float(row['difference']):+.2g}"
        less += f" ± {float(row['difference, ci95']):.1g}" if row["difference, ci95"] else ""
        seconds = [f"{number(row[f'seconds, {count}'])} s" for count in (1, 4)]
        title = f"{', '.join(SETS[row['set']].split(', ')[:2])}, {row['metric']}"
        title += {"heads": ", best head", "frozen": ", MLP on pictures"}[row["way"]]
        seeds = f"{row['drawn']} of {row['seeds']}"
        rows.append([title, *map(interval, found), less, row["molecules"], *seconds, seeds])
    header = ["set, split, metric", "1 drawing", "4 drawings", "difference", "molecules", "1 takes"]
    return markdown([*header, "4 take", "seeds whose head sees drawings"], rows) if rows else ""


def embedding_map():
    """Sets by encoder: how far apart scaffolds lie, and the figure."""
    found = {}
    for row in results("embedding_map"):
        found.setdefault(row["set"], {})[row["encoder"]] = row
    if not found:
        return ""
    encoders, rows = list(next(iter(found.values()))), []
    for name, by in found.items():
        first = by[encoders[0]]
        counts = f"{first['molecules']} molecules of {first['scaffolds']} scaffolds"
        indices = [number(by[encoder]["Davies-Bouldin"]) for encoder in encoders]
        rows.append([SETS[name].split(", ")[0], counts, *indices])
    table = markdown(["Davies-Bouldin's index", "", *encoders], rows)
    return f"{table}\n\n![t-SNE by scaffold](../benchmarks/results/embedding_map.png)"


LOSSES = {
    "second-node-killed": "the second node is killed, agent and process",
    "first-node-killed": "the first node is killed, rank 0's",
    "second-agent-killed": "the second node's agent alone is killed",
    "second-node-told": "the second node is told to leave (SIGTERM)",
}


def nodes():
    """Trials of two agents: when the other ends, how far all is from one process."""
    rows = []
    for row in results("nodes"):
        what, _, lost = row["what"].partition(": ")
        apart = [float(row[key]) for key in ("losses, relative", "weights, absolute")]
        apart = [f"{value:.0e}" if value else "0" for value in apart]
        rows.append([LOSSES[lost] if lost else what, whole(row["seconds"]) if lost else "", *apart])
    header = ["two agents", "the other ends after", "losses off by, relative"]
    return markdown([*header, "weights off by"], rows)


def affinity():
    """Folds of Davis by what inhibitors are seen as: CI and MSE, beside DeepDTA's published."""
    rows = results("affinity")
    found = {(row["fold"], row["inhibitor"], row["head"], row["metric"]): row for row in rows}
    theirs = {(row["set"], row["model"]): row for row in published()}
    lines = []
    for fold, title in AFFINITY.items():
        cells = {key[1:3]: None for key in found if key[0] == fold}
        cells = cells or dict.fromkeys([("picture", "mlp"), ("ecfp", "mlp")])
        for inhibitor, head in sorted(cells, key=lambda cell: (not cell[1], cell)):
            name = f"{inhibitor} and k-mers, {head}" if head else inhibitor
            own = (found.get((fold, inhibitor, head, metric)) for metric in ("CI", "MSE"))
            lines.append([title, name, *map(interval, own)])
        own = (theirs.get((f"davis {fold}, {metric}", "DeepDTA")) for metric in ("CI", "MSE"))
        own = [row["mean"] for row in own if row]
        if own:
            lines.append([title, "DeepDTA, published", *own])
    return markdown(["Davis, test pairs", "model", "CI", "MSE"], lines)


AFFINITY = {
    "published": "DeepDTA's fold, random pairs",
    "scaffold": "inhibitors held out by scaffold, 5 folds",
}


def columns_of(name, titles):
    """A results file as it is, of these columns: {column: title}; "" where there is no file."""
    rows = [[cell(row[key]) for key in titles] for row in results(name)]
    return markdown(list(titles.values()), rows) if rows else ""


def cell(text):
    """Return a value of a results file with three digits; counts and words as they are."""
    try:
        return text if text.isdigit() or not text else number(text)
    except ValueError:
        return text


INT8 = {"form": "500 DHBDs by the ESOL model", "mean": "mean", "99th percentile": "99th percentile"}
INT8 |= {"worst": "worst", "largest change, 8 against 64": "by its batch"}
INT8 |= {"ms a picture": "ms a picture", "times fp32": "speed, times fp32"}
EXPLAINED = {"features": "features", "top atom is one": "top atom is a nitrogen"}
EXPLAINED |= {"by chance": "by chance", "molecules with nitrogen": "molecules"}
EXPLAINED |= {"rank correlation with Crippen": "rank correlation with Crippen"}
EXPLAINED |= {"molecules ranked": "molecules ranked"}
PICTURES = {"drawn by": "ESOL's test molecules, drawn by", "MAE": "MAE in log mol/L"}
PICTURES |= {"from SMILES, median": "from that by SMILES, median", "unlike": "noted as no drawing"}
PICTURES |= {"left out": "left out", "pictures": "pictures"}
COMPONENTS = {"encoder": "graph encoder", "component": "component", "variance": "of the variance"}
COMPONENTS |= {name: name for name in ("MW", "logP", "TPSA", "donors", "acceptors", "rings")}
CAPTIONS = {"caption": "caption", "BLEU-2": "BLEU-2", "BLEU-4": "BLEU-4", "rouge1": "ROUGE-1"}
CAPTIONS |= {"rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "METEOR": "METEOR", "texts": "molecules"}
GENERATED = {"text": "texts", "hit has all": "best hit has what is asked"}
GENERATED |= {"first has all": "first molecule has", "have all": "of 20 have", "new": "new"}
GENERATED |= {"diversity": "diversity"}
RETRIEVED = ("top1", "top10", "top100")


def retrieval():
    """Galleries by modality: how often the right molecule is among the first."""
    rows = []
    for row in results("retrieval"):
        shares = [f"{100 * float(row[key]):.1f}%" for key in RETRIEVED]
        name = f"{row['modality']}, {row['split']} split"
        rows.append([name, row["gallery"], row["size"], row["queries"], *shares])
    header = ["model", "gallery", "molecules", "queries", "top 1", "top 10", "top 100"]
    return markdown(header, rows) if rows else ""


TEXTS = {"first": "bundled", "third": "another seed", "first+third": "both"}
TEXTS |= {"other": "graph encoder from nothing", "first+other": "bundled with that from nothing"}
TEXTS |= {"first+third+other": "all three"}
SCALED = {"what": "on 2 cores", "value": "measured"}
MANY = {"model": "model", "rows": "rows", "killed after": "killed after"}
MANY |= {"first seen again": "went on from", "with an error": "no molecules"}
MANY |= {"molecules/s, second tenth": "molecules/s, second tenth"}
MANY |= {"molecules/s, last tenth": "last tenth", "peak memory, GB": "memory at most, GB"}


def texts():
    """Models by how texts are asked and among which molecules: both ways' hits."""
    keys = {"text to molecule": ("mrr", "hits1", "hits10", "rec20", "top1_of_64")}
    keys["molecule to text"] = ("mrr", "hits1", "top1_of_64")
    found = {}
    for row in results("text"):
        facts = (row["model"], row["how"], row["asked by"], f"{row['gallery']}, {row['size']}")
        found.setdefault(facts, {})[row["way"]] = row
    rows = []
    for (model, how, *facts), ways in found.items():
        cells = [cell(ways[way][key]) for way, each in keys.items() for key in each]
        rows.append([TEXTS.get(model, f"{model}, {how}"), *facts, *cells])
    header = ["model", "asked by", "among", "text to molecule: MRR", "first", "of 10", "of 20"]
    header += ["first of 64", "molecule to text: MRR", "first", "first of 64"]
    return markdown(header, rows) if rows else ""


def generated():
    """The means over the texts that molecules were generated for."""
    rows = [[cell(row[key]) for key in GENERATED] for row in results("generation")[-1:]]
    return markdown(list(GENERATED.values()), rows) if rows else ""


TABLES = {
    "generation": generated,
    "texts": texts,
    "momu": momu,
    "captions": lambda: columns_of("captions", CAPTIONS),
    "int8": lambda: columns_of("int8", INT8),
    "scale": lambda: columns_of("scale", SCALED),
    "many_rows": lambda: columns_of("many_rows", MANY),
    "explain": lambda: columns_of("explain", EXPLAINED),
    "pictures": lambda: columns_of("pictures", PICTURES),
    "retrieval": retrieval,
    "components": lambda: columns_of("components", COMPONENTS),
    "accuracy": accuracy,
    "heads": heads,
    "rival": rival,
    "intervals": intervals,
    "graphs": graphs,
    "summary": summary,
    "speed": speed,
    "transfer": transfer,
    "r_groups": r_groups,
    "fractions": fractions,
    "likeness": likeness,
    "views": views,
    "embedding_map": embedding_map,
    "prediction": prediction,
    "training": training,
    "finetuning": finetuning,
    "tokens": tokens,
    "probe": probe,
    "trials": trials,
    "nodes": nodes,
    "affinity": affinity,
}


def renewed(text):
    """Return a page's text with every marked table made anew."""

    def replace(match):
        indent, name = match.groups()
        table = "".join(f"{indent}{line}\n" for line in TABLES[name]().splitlines())
        return f"{indent}<!-- table {name} -->\n{table}{indent}<!-- end -->"

    marked = r"^([ ]*)<!-- table (\w+) -->\n.*?<!-- end -->"
    return re.sub(marked, replace, text, flags=re.S | re.M)


def main():
    for path in PAGES:
        before, after = path.read_text(), renewed(path.read_text())
        if after == before:
            continue
        if "--check" in sys.argv:
            sys.exit(
                f"{path.relative_to(ROOT)} is not what benchmarks/results says; run: make tables"
            )
        path.write_text(after)


if __name__ == "__main__":
    main()
