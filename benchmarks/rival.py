"""Is a picture worth it? Heads on pictures and fingerprints against heads on fingerprints alone.

    python benchmarks/rival.py                            # half an hour on 2 cores
    python benchmarks/rival.py --sets esol,bace --seeds 1

On both sides held-out folds choose the head (`finetune.py --freeze`; the rival `--features ecfp`),
by the runs of benchmarks/accuracy.py, which are made where they are not there yet: the bundled
encoder, the paper's splits. Test values, and their paired difference with 95% of it: over the seeds
where each has another split, else over the test molecules, resampled, the seeds' mean. Errors are
MAE (below 0 is better), of classes ROC-AUC (above 0). Beside them the heads that were chosen, and
the seconds of a seed from table to report, which an idle machine tells alone. Writes
benchmarks/results/rival.csv, set by set.
"""

import json
from collections import Counter

import accuracy
import click
import numpy as np
from likeness import INIT, encoder, place, tested
from record import RESULTS, ROOT, read_csv, record

from moleclip.metrics import MAIN, MODEL, differences, summarise
from moleclip.table import Data

TEN = "1,2,3,4,5,6,7,8,9,10"
SEEDS = {"dhbd": "1", "nhcs": TEN, "phosphines_yield": TEN}


def cells(name, seeds):
    """Return the accuracy.Cell of the encoder's heads, and of the rival's."""
    ours = accuracy.Cell("sets", name, "", "heads", INIT, INIT, seeds, "1e-5", False)
    return ours, ours._replace(way="fingerprints", init="none", name="ECFP")


def side(cell, metric):
    """Return {"values", "chosen", "seconds"} of a run: each seed's score and head."""
    made, values, chosen = accuracy.finetuned(cell), [], Counter()
    seeds = cell.seeds.split(",")
    for seed in seeds:
        path = cell.folder / f"seed-{seed}" / "metrics.json"
        facts = json.loads(path.read_text())
        values.append(facts["test"][MODEL]["pooled"][metric])
        chosen[facts["head"]["chosen"]] += 1
    words = ", ".join(f"{head} ({count})" for head, count in chosen.most_common())
    seconds = made["seconds"] / len(seeds) if "seconds" in made else ""
    return {"values": np.array(values), "chosen": words, "seconds": seconds}


def over_seeds(ours, theirs):
    """Return (mean, low, high, over) of the paired differences of seeds, by a t-interval."""
    found = summarise((ours["values"] - theirs["values"]).tolist())
    half = found["ci95"]
    return found["mean"], found["mean"] - half, found["mean"] + half, "splits"


def over_molecules(pair, data):
    """Return (mean, low, high, over) of the difference by resampling the test molecules.

    pair: both cells. Each seed is drawn the same molecules, and the seeds' mean is what counts.
    """
    drawn = []
    for seed in map(int, pair[0].seeds.split(",")):
        ours, theirs = (tested(cell.folder, data, seed) for cell in pair)
        told = {"ours": ours["said"], "rival": theirs["said"]}
        drawn.append(differences(ours["known"], told, data.task)["rival"])
    mean, *others = np.mean(drawn, 0)
    return mean, *np.nanpercentile(others, [2.5, 97.5]), "test molecules"


def verdict(low, high, task):
    """Return "ahead", "behind" or "open" by the bounds of the difference."""
    if low <= 0 <= high:
        return "open"
    return "ahead" if (high < 0) == (task == "regression") else "behind"


def measure(name, seeds):
    """Return the row of one set."""
    data, split = Data(str(ROOT / "data" / f"{name}.csv")), accuracy.SETS[name][0]
    metric, pair = MAIN[data.task], cells(name, seeds)
    ours, theirs = (side(cell, metric) for cell in pair)
    several = split == "random" and len(ours["values"]) > 1
    mean, low, high, over = over_seeds(ours, theirs) if several else over_molecules(pair, data)
    row = {"set": name, "split": split, "metric": metric}
    row |= {"ours": f"{ours['values'].mean():.6g}", "rival": f"{theirs['values'].mean():.6g}"}
    row |= {key: f"{value:.6g}" for key, value in zip(("less", "low", "high"), (mean, low, high))}
    row |= {"over": over, "verdict": verdict(low, high, data.task), "seeds": seeds}
    for title, found in (("our", ours), ("rival's", theirs)):
        row[f"{title} heads"] = found["chosen"]
        row[f"{title} seconds a seed"] = f"{found['seconds']:.0f}" if found["seconds"] else ""
    return row | {"init": encoder()}


@click.command()
@click.option("--sets", default=",".join(accuracy.SETS), help="Data sets.  [default: all]")
@click.option("--seeds", default=None, help="Seeds.  [default: 1,2,3; 10 of small sets]")
def main(sets, seeds):
    """Compare heads on pictures and fingerprints with those on fingerprints alone."""
    for name in sets.split(","):
        found = measure(name, seeds or SEEDS.get(name, "1,2,3"))
        with accuracy.alone():
            before = [row for row in read_csv(RESULTS / "rival.csv") if row["set"] != name]
            before = [row for row in before if row["init"] == encoder()]
            record("rival", sorted([*before, found], key=place), ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main()
