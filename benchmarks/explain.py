"""Does predict.py --explain find the right atoms? Asked of models whose answer is known.

    python benchmarks/explain.py [GRAPH]    # 15 minutes on 2 cores; writes results/explain.csv

Two labels are made of ESOL's molecules: the number of nitrogens, and Crippen's logP, of which the
part of each atom with its hydrogens is known exactly. Frozen heads learn them from pictures, from
fingerprints and, with an aligned.pt as GRAPH, from graphs. Of test molecules: how often the atom
that carries most is a nitrogen (of those that have one, and other atoms), and the rank correlation
of the atoms' numbers with Crippen's, the mean over molecules of 5 atoms or more. Chance: the part
of atoms that are one.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import Crippen, rdMolDescriptors
from record import ROOT, read_csv, record
from scipy.stats import spearmanr

from moleclip.files import save_table

LABELS = ("nitrogens", "crippen_logp")
FEWEST = 5  # atoms of a molecule whose ranks are compared


def python(*words):
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def known(smiles):
    """Return {label: each atom's part} of a SMILES, in the order of its atoms."""
    molecule = Chem.MolFromSmiles(smiles)
    nitrogens = [float(atom.GetSymbol() == "N") for atom in molecule.GetAtoms()]
    whole = Chem.AddHs(molecule)
    parts = [part for part, _ in rdMolDescriptors._CalcCrippenContribs(whole)]
    count, logp = len(nitrogens), np.array(parts[: len(nitrogens)])
    for atom, part in zip(list(whole.GetAtoms())[count:], parts[count:]):
        logp[atom.GetNeighbors()[0].GetIdx()] += part  # which is hidden with its hydrogens
    return {"nitrogens": np.array(nitrogens), "crippen_logp": logp}


def write_labels(path):
    """Write ESOL's molecules with the labels that are known."""
    with open(ROOT / "data" / "esol.csv", newline="") as stream:
        smiles = [line["smiles"] for line in csv.DictReader(stream)]
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    counts = [sum(atom.GetSymbol() == "N" for atom in m.GetAtoms()) for m in molecules]
    rows = zip(smiles, counts, [f"{Crippen.MolLogP(m):.4f}" for m in molecules])
    save_table(path, ["smiles", *LABELS], rows)


def told(folder, features, graph):
    """Return {label: [(SMILES, each atom's number), ...]} of the test part, by these features."""
    found = {}
    for label in LABELS:
        run = folder / f"{features}-{label}"
        words = ["--data", folder / "known.csv", "--target", label, "--task", "regression"]
        words += ["--split", "random", "--freeze", "--features", features, "-o", run]
        python("finetune.py", *words, *(["--graph", graph] if "graph" in features else []))
        tested = [line for line in read_csv(run / "predictions.csv") if line["split"] == "test"]
        save_table(folder / "test.csv", ["smiles"], [[line["smiles"]] for line in tested])
        python("export.py", run, "-o", run / "model.onnx")
        out = run / "told.csv"
        python("predict.py", run / "model.onnx", folder / "test.csv", "-o", out, "--explain")
        lines = [(line["smiles"], line[f"{label}_atoms"]) for line in read_csv(out)]
        found[label] = [(s, np.array(words.split(), float)) for s, words in lines if words]
    return found


def scored(found):
    """Return {what: value} of what was told, against what is known."""
    right, chance, ranks = [], [], []
    for smiles, values in found["nitrogens"]:
        wanted = known(smiles)["nitrogens"]
        if 0 < wanted.sum() < len(wanted):
            right.append(wanted[values.argmax()])
            chance.append(wanted.mean())
    for smiles, values in found["crippen_logp"]:
        wanted = known(smiles)["crippen_logp"]
        if len(wanted) >= FEWEST and np.ptp(wanted) > 0 and np.ptp(values) > 0:
            ranks.append(spearmanr(values, wanted).statistic)
    row = {"molecules with nitrogen": len(right), "top atom is one": float(np.mean(right))}
    row |= {"by chance": float(np.mean(chance)), "molecules ranked": len(ranks)}
    return row | {"rank correlation with Crippen": float(np.mean(ranks))}


def main(graph=None):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_labels(folder / "known.csv")
        for features in ["picture", "ecfp", "picture+ecfp", *["graph"] * bool(graph)]:
            rows.append({"features": features} | scored(told(folder, features, graph)))
    record("explain", rows, ("rdkit", "onnxruntime-gpu", "scikit-learn"))


if __name__ == "__main__":
    main(*sys.argv[1:])
