"""What do several drawings of a molecule gain? predict.py --views 4 against 1, on the eight sets.

    python benchmarks/several_views.py                  # the heads that held-out folds chose
    python benchmarks/several_views.py frozen           # the MLP on pictures alone
    python benchmarks/several_views.py --sets nhcs --seeds 1

The bundled encoder, frozen, by the runs of benchmarks/accuracy.py, which are made where they are
not there yet. Each seed's model is exported, and predict.py asked for its test molecules in both
ways, in turns. Errors in the set's own metric, and their difference paired over the seeds; the
seconds from a file of SMILES to the CSV without Python's imports, the median over seeds and turns.
A head that was chosen on fingerprints alone sees no drawing: with it both say the same, and only
the seeds whose head sees some are counted in `drawn`. Writes benchmarks/results/views.csv, set by
set.
"""

import json
import tempfile
import time
from pathlib import Path

import accuracy
import click
import numpy as np
from likeness import INIT, encoder, place
from record import RESULTS, ROOT, read_csv, record
from rival import SEEDS

import export
import predict
from moleclip.files import save_table
from moleclip.metrics import score_all, summarise
from moleclip.onnxmodel import OnnxModel
from moleclip.table import Data

VIEWS = (1, 4)
TURNS = 3
PACKAGES = ("torch", "rdkit", "onnxruntime-gpu", "scikit-learn")


def predicted(model, source, views):
    """Return (predictions, float64 (n, targets), seconds) of a file of SMILES by predict.py."""
    out, loaded = source.with_name("predicted.csv"), OnnxModel(str(model), "cpu")
    words = [str(model), str(source), "-o", str(out), "--views", str(views), "--provider", "cpu"]
    began = time.perf_counter()
    predict.main.main(words, standalone_mode=False)
    seconds, names = time.perf_counter() - began, loaded.columns(views)[: len(loaded.targets)]
    return np.array([[float(line[name]) for name in names] for line in read_csv(out)]), seconds


def tried(folder, run, data):
    """Return ({views: {"test": predictions, "seconds"}}, rows) of a seed's folder's test part."""
    model, source = folder / "model.onnx", folder / "test.csv"
    export.main.main([str(run), "-o", str(model)], standalone_mode=False)
    lines = read_csv(run / "predictions.csv")
    rows = [row for row, line in enumerate(lines) if line["split"] == "test"]
    save_table(source, ["smiles"], [[data.smiles[row]] for row in rows])
    found = {}
    for _ in range(TURNS):
        for views in VIEWS:
            told, seconds = predicted(model, source, views)
            found.setdefault(views, {"test": told, "seconds": []})["seconds"].append(seconds)
    return found, rows


def sees_drawings(run):
    """Tell whether the head of a seed's folder looks at pictures; the MLP of `frozen` does."""
    facts = json.loads((run / "metrics.json").read_text())
    return "head" not in facts or "picture" in facts["head"]["chosen"]


def measure(name, way, seeds):
    """Return the row of one set."""
    split, metric = accuracy.SETS[name]
    cell = accuracy.Cell("sets", name, "", way, INIT, INIT, seeds, "1e-5", False)
    accuracy.finetuned(cell)
    data = Data(str(ROOT / "data" / f"{name}.csv"))
    errors, seconds, drawn, counts = {v: [] for v in VIEWS}, {v: [] for v in VIEWS}, 0, []
    for seed in seeds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found, rows = tried(Path(folder), cell.folder / f"seed-{seed}", data)
        drawn += sees_drawings(cell.folder / f"seed-{seed}")
        counts.append(len(rows))
        for views, each in found.items():
            scores = score_all(data.labels[rows], each["test"], data.targets, data.task)
            errors[views].append(scores["pooled"][metric])
            seconds[views].append(each["seconds"])
    one, four = (np.array(errors[views]) for views in VIEWS)
    row = {"set": name, "split": split, "way": way, "metric": metric, "seeds": len(one)}
    row |= {"drawn": drawn, "molecules": int(np.median(counts))}
    for title, values in (("1 view", one), ("4 views", four), ("difference", four - one)):
        summary = summarise(values.tolist())
        row |= {title: f"{summary['mean']:.6g}", f"{title}, ci95": summary["ci95"] or ""}
    for views in VIEWS:
        row[f"seconds, {views}"] = f"{np.median(seconds[views]):.4g}"
    return row | {"init": encoder()}


@click.command()
@click.argument("way", default="heads", type=click.Choice(["heads", "frozen"]))
@click.option("--sets", default=",".join(accuracy.SETS), help="Data sets.  [default: all]")
@click.option("--seeds", default=None, help="Seeds.  [default: 1,2,3; 10 of small sets]")
def main(way, sets, seeds):
    """Measure what four drawings gain and cost on these sets; others stay as they are."""
    for name in sets.split(","):
        found = measure(name, way, seeds or SEEDS.get(name, "1,2,3"))
        with accuracy.alone():
            before = read_csv(RESULTS / "views.csv")
            before = [row for row in before if (row["set"], row["way"]) != (name, way)]
            before = [row for row in before if row["init"] == encoder()]
            record("views", sorted([*before, found], key=place), PACKAGES)


if __name__ == "__main__":
    main()
