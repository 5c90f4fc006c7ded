"""The READMEs' tables, made from benchmarks/results/ and published.csv.

    make tables                              # rewrites what stands between the marks in the three README.md
    python benchmarks/tables.py --check      # exit code 1 if one of them is not what the results say

A table stands between <!-- table NAME --> and <!-- end -->; what no result fills stays visibly empty.
"""

import csv
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
READMES = [HERE.parent / "README.md", HERE / "README.md", HERE.parent / "weights" / "README.md"]
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
    "bundled, frozen": "bundled frozen",
    "scratch, finetuned": "scratch finetuned",
    "DINOv2-S, finetuned": "DINOv2-S finetuned",
    "bundled, finetuned": "bundled finetuned",
}
PUBLISHED = ("MoleCLIP", "ImageMol", "GEM")


def read(name):
    path = HERE / name
    return list(csv.DictReader(open(path, newline=""))) if path.exists() else []


def number(value):
    """Return a figure with three significant digits, as text."""
    text = f"{float(value):#.3g}".rstrip(".")
    return f"{float(value):.0f}" if "e" in text else text


def markdown(header, rows):
    lines = [
        "| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)
    ]
    return "\n".join(lines)


def accuracy():
    """Sets by models: the test figure ± 95% t-interval over seeds, and the published figures."""
    metric = {
        name: title.split(", ")[2].split(" in ")[0].split(" as ")[0] for name, title in SETS.items()
    }
    ours = {
        (row["set"], row["model"]): row
        for row in read("results/accuracy.csv")
        if row["metric"] == metric.get(row["set"])
    }
    theirs = {(row["set"], row["model"]): row for row in read("published.csv")}
    rows = []
    for name, title in SETS.items():
        cells = [title]
        cells += [interval(ours.get((name, model))) for model in OURS]
        cells += [
            theirs[name, model]["mean"] if (name, model) in theirs else "" for model in PUBLISHED
        ]
        rows.append(cells)
    return markdown(
        ["set, split, metric", *OURS.values(), *(f"{model}, published" for model in PUBLISHED)],
        rows,
    )


def interval(row):
    """Return a figure ± its 95% t-interval over seeds, as text, and "" where nothing was run yet."""
    if not row:
        return ""
    wide = float(row["ci95"] or 0)
    return number(row["mean"]) + (f" ± {wide:.2g}" if wide > 1e-9 else "")


def transfer():
    """Phosphine yields, learned from the start named and after Kraken's buried volumes."""
    ours = {
        row["model"]: row
        for row in read("results/accuracy.csv")
        if (row["set"], row["metric"]) == ("phosphines_yield", "MAE")
    }
    theirs = {
        row["model"]: row["mean"]
        for row in read("published.csv")
        if row["set"] == "phosphines_yield"
    }
    rows = [
        [
            f"bundled {way}",
            interval(ours.get(f"bundled, {way}")),
            interval(ours.get(f"bundled then Kraken, {way}")),
        ]
        for way in ("frozen", "finetuned")
    ]
    rows.append(
        ["MoleCLIP, finetuned, published", theirs["MoleCLIP"], theirs["MoleCLIP then Kraken"]]
    )
    return markdown(
        ["phosphine yield, random, MAE as fraction", "as it is", "after Kraken's buried volumes"],
        rows,
    )


def study(name, metric, variants):
    """Return {(set, model): {variant: row}} of a study's results, in the order of SETS and of the file."""
    found = {}
    for row in read(f"results/{name}.csv"):
        if row["metric"] == metric:
            found.setdefault((row["set"], row["model"]), {})[row["variant"]] = row
    return {cell: [rows.get(variant) for variant in variants] for cell, rows in found.items()}


def r_groups():
    """Models by set: the error on original pictures and on those with R-groups, and how much it grows."""

    def line(name, model, original, replaced, shown):
        return [
            SETS[name].split(", ")[0],
            model,
            shown(original),
            shown(replaced),
            f"{100 * (float(replaced['mean']) / float(original['mean']) - 1):+.0f}%",
        ]

    theirs = {row["set"]: row for row in read("published.csv") if row["model"] == "MoleCLIP"}
    found = study("r_groups", "MAE", ("original", "R-groups"))
    rows = [
        line(name, model, *pair, interval) for (name, model), pair in found.items() if all(pair)
    ]
    rows += [
        line(
            name,
            "MoleCLIP, finetuned, published",
            theirs[f"{name} original"],
            theirs[f"{name} R-groups"],
            lambda row: row["mean"],
        )
        for name in ("esol", "freesolv")
    ]
    return markdown(
        ["set, random split, MAE", "model", "original", "R-groups", "change"],
        sorted(rows, key=lambda row: row[0]),
    )


def fractions():
    """Models by the share of ESOL's training part that they see; all of it is the set's row of the main table."""
    whole = {
        row["model"]: row
        for row in read("results/accuracy.csv")
        if (row["set"], row["metric"]) == ("esol", "RMSE")
    }
    shares = study("fractions", "RMSE", ("10%", "30%"))
    return markdown(
        [
            "ESOL, scaffold, RMSE",
            *(f"{share} of the training part" for share in ("10%", "30%", "100%")),
        ],
        [[model, *map(interval, [*rows, whole.get(model)])] for (_, model), rows in shares.items()],
    )


def prediction():
    """Sizes of encoder by ways of prediction, molecules a second."""
    found = {
        (row["encoder"], row["way"], row["tokens"], row["precision"]): row
        for row in read("results/predict.csv")
    }
    rows = []
    for size, tokens in (("tiny", "inked"), ("small", "inked"), ("base", "inked"), ("base", "all")):
        encoder = f"ViT {size}, patch 16"
        ways = (
            found[encoder, "the original's", "all", "fp32"],
            *(found[encoder, "predict.py", tokens, precision] for precision in ("fp32", "int8")),
        )
        rows.append(
            [
                encoder + (", all tokens" if tokens == "all" else ""),
                *(number(way["molecules/s"]) for way in ways),
                number(ways[2]["times the original"]) + " times",
            ]
        )
    return markdown(
        ["encoder", "the original's way", "fp32", "int8", "int8 against the original's"], rows
    )


def training():
    """Sizes of encoder by tokens, images a second in pretraining, in turns."""
    rows = [
        [
            row["encoder"],
            number(row["all, images/s"]),
            number(row["inked, images/s"]),
            number(row["inked / all"]) + " times",
            f"{number(row['all, peak memory, GB'])} and {number(row['inked, peak memory, GB'])} GB",
        ]
        for row in read("results/tokens.csv")
    ]
    return markdown(
        ["encoder, bf16", "all tokens, images/s", "inked tokens", "", "peak memory"], rows
    )


def finetuning():
    """ViT-S by sets: seconds an epoch whole, and frozen."""
    found = [row for row in read("results/finetune.csv") if row["encoder"] == "ViT small, patch 16"]
    modes = {
        tokens: {row["set"]: row for row in found if row["tokens"] == tokens}
        for tokens in ("inked", "all")
    }
    rows = [
        [
            f"{title}, {modes['inked'][name]['molecules']} molecules",
            *(f"{float(modes[tokens][name]['seconds an epoch']):.0f} s" for tokens in modes),
            f"{float(modes['inked'][name]['frozen: seconds to embed all']):.0f} s",
            f"{float(modes['inked'][name]['frozen: seconds an epoch']):.1f} s",
            f"{float(modes['inked'][name]['drawing all once, seconds']):.0f} s",
        ]
        for name, title in (("esol", "ESOL"), ("dhbd", "DHBDs"))
    ]
    return markdown(
        [
            "ViT-S/16",
            "an epoch in bf16, inked tokens",
            "all tokens",
            "`--freeze`: embedding all once, inked",
            "an epoch of the head",
            "drawing all once",
        ],
        rows,
    )


def tokens():
    """Modes by encoder: what looking at inked patches alone costs in accuracy."""
    rows = []
    for row in read("results/tokens_accuracy.csv"):
        sets = [key.removesuffix(", MAE") for key in row if key.endswith(", MAE")]
        rows.append(
            [
                row["encoder"].split(", ")[1],
                row["tokens"],
                number(row["cosine between the modes"]),
                *(
                    f"{number(row[f'{name}, MAE'])} ± {float(row[f'{name}, SD over seeds']):.2g}"
                    for name in sets
                ),
            ]
        )
    return markdown(["DINOv2-S", "tokens", "cosine between the modes", *sets], rows) if rows else ""


def probe():
    """Steps of the bundled encoder's pretraining by sets: what frozen features are worth, within training and validation parts."""
    names = {
        "dinov2-small-fp16": "the start",
        "step200": "step 200",
        "step350": "step 350",
        "bundled": "step 590, bundled",
    }
    sets = {
        "esol": "ESOL",
        "freesolv": "FreeSolv",
        "dhbd": "DHBDs",
        "nhcs": "NHCs",
        "phosphines_yield": "phosphine yield",
    }
    found = {row["encoder"]: row for row in read("results/probe.csv")}
    return markdown(
        ["", *sets.values()],
        [[title, *(number(found[name][key]) for key in sets)] for name, title in names.items()],
    )


def trials():
    """Ways to finetune by the validation loss: of the head alone, the lowest of the epochs after it, and the last."""
    runs = {}
    for row in read("results/finetune_trials.csv"):
        runs.setdefault(
            tuple(row[key] for key in ("init", "begin", "rates", "lr_encoder", "augment")), {}
        )[int(row["epoch"])] = row["val_loss"]
    names = {"dinov2-small-fp16": "DINOv2-S", "scratch:small": "scratch"}
    rows = [
        [
            names.get(key[0], key[0]),
            *key[1:],
            number(losses[0]) if 0 in losses else "",
            number(min((losses[i] for i in losses if i), key=float)),
            number(losses[max(losses)]),
        ]
        for key, losses in sorted(runs.items())
    ]
    return markdown(
        [
            "from",
            "head and encoder begin",
            "rates",
            "encoder's",
            "augmentation",
            "head alone",
            "best epoch",
            "last epoch",
        ],
        rows,
    )


TABLES = {
    "accuracy": accuracy,
    "transfer": transfer,
    "r_groups": r_groups,
    "fractions": fractions,
    "prediction": prediction,
    "training": training,
    "finetuning": finetuning,
    "tokens": tokens,
    "probe": probe,
    "trials": trials,
}


def renewed(text):
    """Return a README's text with every marked table made anew."""

    def replace(match):
        return (
            f"{match[1]}<!-- table {match[2]} -->\n"
            + "".join(f"{match[1]}{line}\n" for line in TABLES[match[2]]().splitlines())
            + f"{match[1]}<!-- end -->"
        )

    return re.sub(r"^([ ]*)<!-- table (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.S | re.M)


def main():
    for path in READMES:
        before, after = path.read_text(), renewed(path.read_text())
        if after == before:
            continue
        if "--check" in sys.argv:
            sys.exit(
                f"{path.relative_to(HERE.parent)} is not what benchmarks/results says; run: make tables"
            )
        path.write_text(after)


if __name__ == "__main__":
    main()
