"""Find the molecules of a library that a spectrum, a text, a picture or a molecule is most like.

    python search.py aligned.onnx library.csv --spectrum spectra.mgf --html hits.html
    python search.py library.smi --text "a flavonoid with a methoxy group"
    python search.py texts.csv.gz --describe molecules.smi
    python search.py aligned.onnx library.smi --part 1/8    # an eighth of the index, no search

The library is embedded once, into the folder index/; then a search takes a moment. Needs
onnxruntime and RDKit, no PyTorch.
"""

import re
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import click
import numpy as np
from rdkit import Chem, rdBase

from moleclip import options
from moleclip.alignedmodel import PICTURE, SMILES, TEXT, UNLIKE, AlignedModel
from moleclip.describe import Told, describe
from moleclip.files import ROOT, check_output, final_path, kept_columns, save_table
from moleclip.formats import find_smiles_column, input_kind
from moleclip.graphs import graph_of
from moleclip.hitspage import Answer, Hit, write_page
from moleclip.index import Index
from moleclip.molecules import Rejected, find_input, molecules_at, read_molecules
from moleclip.pictures import to_drawing
from moleclip.pixels import to_rgb
from moleclip.spectra import NMR, Spectrum, read_peaks
from moleclip.spectrumfiles import read_spectra
from moleclip.texts import read_text
from moleclip.workers import try_item

BUNDLED = ROOT / "weights" / "aligned-nmr13c.onnx"
OF_TEXTS = ROOT / "weights" / "aligned-text.onnx"
OWN = ("query", "rank", "row", "smiles", "name", "score", "formula", "mass")  # columns of hits.csv
RANKED_AGAIN = 2000  # molecules whose peaks are compared, or 20 times --top
SAID = 10  # queries of which the console speaks


class Query(NamedTuple):
    """What is searched with."""

    name: str
    embedding: np.ndarray  # float32 (dim,)
    spectrum: Spectrum | None = None
    picture: np.ndarray | None = None  # palette indices, uint8 (224, 224)
    text: str = ""  # a SMILES, or a text
    doubt: str = ""  # why the hits mean little
    rated: bool = True  # whether the right molecules' scores in validation are like its own


def name_arguments(arguments, asked):
    """Return the paths of model and library, of one argument or two. Raises click.UsageError."""
    *model, library = arguments
    if len(model) > 1 or library.lower().endswith(".onnx"):
        raise click.UsageError("give a LIBRARY of molecules, and before it a MODEL if you have one")
    bundled = OF_TEXTS if asked.text is not None or asked.describe else BUNDLED
    return model[0] if model else str(bundled), library


def read_queries(model, asked):
    """Return a list of Query, [] where none is asked for. Raises click.ClickException.

    A spectrum of a file that can't be used is named, and left out.
    """
    given = [name for name in READERS if vars(asked)[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"--{given[0]} and --{given[1]}: give one kind of query")
    kind = given[0] if given else None
    if asked.precursor and kind != "peaks":
        raise click.UsageError("--precursor belongs to --peaks; a file has its own")
    if asked.precursor and model.modality in NMR:
        raise click.UsageError(f"--precursor: {model.title} has none")
    if kind and kind != "smiles":
        check_kind(model, kind)
    return READERS[kind](model, asked) if kind else []


def check_kind(model, kind):
    """Raise click.UsageError if the model takes another kind of query."""
    own = {PICTURE: ("picture",), SMILES: ("smiles",), TEXT: ("text",)}
    takes = own.get(model.modality, ("peaks", "spectrum"))
    if kind not in takes:
        wanted = " or ".join(f"--{each}" for each in takes)
        raise click.UsageError(f"--{kind}: {model.path} takes {model.title}; give {wanted}")


def of_peaks(model, asked):
    """Return the Query of --peaks."""
    try:
        spectrum = read_peaks(asked.peaks, model.modality, asked.precursor or np.nan)
    except Rejected as reason:
        raise click.ClickException(f"--peaks: {reason}") from None
    return [Query("peaks", model.embed_query(spectrum), spectrum)]


def of_file(model, asked):
    """Return a Query for each spectrum of --spectrum, under names of their own."""
    queries, failed = {}, 0
    for name, result in read_spectra(asked.spectrum, model.modality):
        if isinstance(result, Rejected):
            failed += 1
            click.echo(f"{asked.spectrum}: spectrum {name} is left out: {result}", err=True)
            continue
        count, first = 1, name
        while name in queries:
            count, name = count + 1, f"{first} ({count + 1})"
        queries[name] = Query(name, model.embed_query(result), result)
    if not queries:
        raise click.ClickException(f"{asked.spectrum}: none of its {failed} spectra can be used")
    return list(queries.values())


def of_picture(model, asked):
    """Return the Query of --picture."""
    try:
        picture, note = to_drawing(asked.picture)
    except Rejected as reason:
        raise click.ClickException(f"--picture {asked.picture}: {reason}") from None
    if note:
        click.echo(f"{asked.picture}: {note}", err=True)
    embedding = model.embed_query(to_rgb(picture))
    return [Query(Path(asked.picture).name, embedding, picture=picture)]


def of_smiles(model, asked):
    """Return the Query of --smiles: the molecule's own embedding, or a model of SMILES' one."""
    with rdBase.BlockLogs():
        graph = try_item(graph_of, 0, asked.smiles, "", model.takes)
    if isinstance(graph, Rejected):
        raise click.ClickException(f"--smiles: {graph}")
    if model.modality == SMILES:
        embedding = model.embed_query(asked.smiles)
    else:
        embedding = model.embed_molecules([graph])[0][0]
    return [Query("smiles", embedding, text=asked.smiles, rated=False)]


def of_text(model, asked):
    """Return the Query of --text."""
    try:
        text, was_cut = read_text(asked.text)
    except Rejected as reason:
        raise click.ClickException(f"--text: {reason}") from None
    tokens, most = model.tokens.count(text), model.tokens.longest
    if was_cut or tokens > most:
        click.echo(f"--text: is long; of {tokens} tokens the encoder reads {most}", err=True)
    doubt = model.vocabulary.doubt(text)
    return [Query("text", model.embed_query(text), text=text, doubt=doubt)]


READERS = {
    "peaks": of_peaks,
    "spectrum": of_file,
    "picture": of_picture,
    "smiles": of_smiles,
    "text": of_text,
}


def parse_formula(context, parameter, value):
    """Return a formula in Hill's order, as RDKit writes it, or None. Charges: C4H12N+, O4S-2."""
    if value is None:
        return None
    found = re.fullmatch(r"((?:[A-Z][a-z]?[0-9]*)+)([+-][0-9]*)?", value.strip())
    table, counts = Chem.GetPeriodicTable(), {}
    elements = {table.GetElementSymbol(number) for number in range(1, 119)}
    for element, count in re.findall(r"([A-Z][a-z]?)([0-9]*)", found[1]) if found else ():
        counts[element] = counts.get(element, 0) + int(count or 1)
    if not found or {*counts} - elements or not all(counts.values()):
        raise click.BadParameter(f"{value!r} is not a formula such as C9H12O2")
    first = ("C", "H") if "C" in counts else ()
    order = sorted(counts, key=lambda element: (element not in first, element))
    charge = (found[2] or "").replace("+1", "+").replace("-1", "-") if found[2] else ""
    return "".join(f"{each}{counts[each] if counts[each] > 1 else ''}" for each in order) + charge


def restriction(asked):
    """Return what `Index.search` asks of a block for --formula and --mass, or None."""
    if asked.formula is None and asked.mass is None:
        return None

    def wanted(block):
        kept = np.ones(len(block["mass"]), bool)
        if asked.formula is not None:
            kept &= block["formula"] == asked.formula.encode()
        if asked.mass is not None:
            kept &= np.abs(block["mass"] - asked.mass) <= asked.mass * asked.ppm * 1e-6
        return kept

    return wanted


def why_none(index, asked):
    """Return why a search has found nothing."""
    if index.rows and asked.formula is not None:
        return f"no molecule of the library has the formula {asked.formula}" + (
            " and that mass" if asked.mass is not None else ""
        )
    if asked.mass is not None:
        nearest = index.nearest_mass(asked.mass)
        away = abs(nearest - asked.mass) / asked.mass * 1e6
        return (
            f"no molecule of the library is within {asked.ppm:g} ppm of {asked.mass:g} u; "
            f"the nearest has {nearest:.4f} u, {away:.3g} ppm away: see --ppm"
        )
    return "no molecule of the library can be read"


def find_answers(model, index, queries, asked):
    """Return an Answer for each Query; the SMILES of the hits are still to be read."""
    again = [model.match_weight and query.spectrum is not None for query in queries]
    count = max(RANKED_AGAIN, 20 * asked.top) if any(again) else asked.top
    embeddings, answers = np.stack([query.embedding for query in queries]), []
    found = index.search(embeddings, count, restriction(asked))
    none = why_none(index, asked) if any(not len(each.rows) for each in found) else ""
    for query, near in zip(queries, found):
        known = index.details(near.rows)
        scores = model.final_scores(near.products, known.shifts, query.spectrum)
        order = np.lexsort([near.rows, -scores])[: asked.top]
        hits = [
            Hit(
                rank,
                int(near.rows[i]),
                float(scores[i]),
                known.formulas[i],
                float(known.masses[i]),
                known.shifts and known.shifts[i],
            )
            for rank, i in enumerate(order, 1)
        ]
        remark = query.doubt or unlike(model, query, hits) if hits else none
        answers.append(Answer(query.name, query.spectrum, query.picture, query.text, hits, remark))
    return answers


def unlike(model, query, hits):
    """Return a warning if even the best hit is unlike the query, else ""."""
    least = model.least_likely()
    if not query.rated or least is None or hits[0].score >= least:
        return ""
    return (
        f"even the best hit is unlike: it scores {hits[0].score:.3f}, and of {100 - UNLIKE}% of "
        f"queries whose molecule was known that molecule scored above {least:.3f}; "
        "it may not be in the library"
    )


def read_hits(path, smiles_column, answers):
    """Return the answers, their hits' rows made molecules by one pass through the library."""
    rows = {hit.molecule for answer in answers for hit in answer.hits}
    found = molecules_at(path, smiles_column, rows)
    return [
        answer._replace(hits=[hit._replace(molecule=found[hit.molecule]) for hit in answer.hits])
        for answer in answers
    ]


def columns_of(path, smiles_column):
    """Return {column of the library: its name in hits.csv}."""
    if input_kind(path, smiles_column) != "table":
        return {}
    with closing(read_molecules(path, smiles_column)) as molecules:
        header = list(next(molecules).fields)
    return kept_columns(path, header, find_smiles_column(path, header, smiles_column), OWN)


def write_hits(path, answers, kept):
    """Write hits.csv."""
    lines = (
        [
            *(answer.name, hit.rank, hit.molecule.row, hit.molecule.smiles, hit.molecule.name),
            *(f"{hit.score:.5f}", hit.formula, f"{hit.mass:.5f}"),
            *(hit.molecule.fields.get(name, "") for name in kept),
        ]
        for answer in answers
        for hit in answer.hits
    )
    save_table(path, [*OWN, *kept.values()], lines)


def say(answers, asked, index, seconds):
    """Say what was found."""
    for answer in answers[:SAID]:
        said = answer.remark
        if answer.hits:
            best = answer.hits[0]
            name = f" {best.molecule.name}" if best.molecule.name else ""
            said = f"best {best.score:.3f}, row {best.molecule.row}, {best.molecule.smiles}{name}"
        click.echo(f"{answer.name}: {said.encode(errors='replace').decode()}")
        if answer.hits and answer.remark:
            click.echo(f"{answer.name}: {answer.remark}", err=True)
    remarks = sum(bool(answer.remark) for answer in answers[SAID:])
    if remarks:
        click.echo(f"{remarks} more queries have no hit that is likely", err=True)
    hits = sum(len(answer.hits) for answer in answers)
    of = f"of {len(answers)} queries" if len(answers) > 1 else ""
    says = f"{hits} hits {of}".strip()
    click.echo(f"{asked.out}: {says} in {index.rows} molecules ({seconds:.1f} s)")


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[MODEL] LIBRARY")
@options.out_path("hits.csv", "CSV to write.")
@click.option("--peaks", help='A spectrum: shifts "20.6 170.5", or "m/z:intensity" pairs.')
@click.option("--precursor", type=options.Positive(), help="m/z of the ion that --peaks are of.")
@click.option("--spectrum", help="File of spectra, each a query.")
@click.option("--picture", help="A .png or .jpg of a molecule.")
@click.option("--smiles", help="A molecule, to find others like it.")
@click.option("--text", help="What is said of a molecule.")
@click.option("--describe", help="File of molecules; LIBRARY is a table with texts.")
@options.shown("--top", 20, "Hits of each query.", type=click.IntRange(1, 10**5))
@click.option("--formula", callback=parse_formula, help="Only molecules of this formula.")
@click.option(
    "--mass", type=options.Positive(), help="Only molecules of this monoisotopic mass, u."
)
@options.shown("--ppm", 10.0, "How far from --mass a molecule may be.", type=options.Positive())
@click.option(
    "--html", type=click.Path(path_type=Path), help="Write a page with the hits drawn, and plots."
)
@options.shown(
    "--index", "index", "Folder of the library's embeddings.", type=click.Path(path_type=Path)
)
@options.part("Embed every N-th block of the library from the I-th, for a job array; no search.")
@options.provider()
@options.workers("Processes that read molecules.")
@options.smiles_column()
def main(arguments, **asked):
    """Find the molecules of LIBRARY that a query is most like, by an aligned.onnx of export.py's.

    MODEL: by default the bundled one, of 13C NMR or, with --text, of texts. LIBRARY: .smi, .txt,
    .csv, .tsv, .sdf, gzipped or not, .xlsx, .parquet. Without a query the library is embedded and
    nothing searched.
    """
    asked = SimpleNamespace(**asked)
    path, library = name_arguments(arguments, asked)
    library = find_input(library)
    if library == "-":
        raise click.UsageError("the library is read more than once; give a file")
    model = AlignedModel(path, asked.provider)
    if model.notice:
        click.echo(model.notice, err=True)
    if asked.describe:
        return describe_all(model, library, asked)
    queries = read_queries(model, asked)
    if queries and asked.part.count > 1:
        raise click.UsageError("--part embeds a part of the library; search without it afterwards")
    out, html = name_outputs(asked, library, path)
    kept = columns_of(library, asked.smiles_column)
    index = Index(asked.index, model, library, asked.smiles_column)
    index.build(asked.part, asked.workers)
    if not queries:
        if not index.missing():
            click.echo(f"{asked.index}: has all {index.rows} rows of {library}; give a query")
        return
    began = time.time()
    answers = find_answers(model, index, queries, asked)
    answers = read_hits(library, asked.smiles_column, answers)
    write_hits(out, answers, kept)
    say(answers, asked, index, time.time() - began)
    if html:
        title = f"{Path(library).name}, searched by {model.title}"
        facts = f"{index.rows} molecules · model {Path(path).name}"
        how = (kept, model.modality, model.max_atoms, asked.workers)
        write_page(html, title, facts, answers, *how)
        click.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser")


def describe_all(model, library, asked):
    """Describe the molecules of --describe by LIBRARY's texts. Raises click.ClickException."""
    if model.modality != TEXT:
        raise click.UsageError(f"--describe: {model.path} takes {model.title}; give one of texts")
    others = [*READERS, "formula", "mass", "html"]
    given = next((name for name in others if vars(asked)[name] is not None), None)
    given = "part" if asked.part.count > 1 else given
    if given:
        raise click.UsageError(f"--describe and --{given} don't go together")
    molecules = find_input(asked.describe)
    check_output(asked.out, library, molecules, model.path)
    told = Told(asked.index, model, library, asked.smiles_column, asked.workers)
    how = asked.workers, min(asked.top, len(told.rows))
    click.echo(describe(molecules, told, None, final_path(asked.out), *how))


def name_outputs(asked, *inputs):
    """Return the paths of hits.csv and of the page, or None. Raises click.ClickException."""
    sources = [*inputs, *filter(None, (asked.spectrum, asked.picture))]
    for path in filter(None, (asked.out, asked.html)):
        check_output(path, *sources)
    paths = [path and final_path(path) for path in (asked.out, asked.html)]
    if paths[0] == paths[1]:
        raise click.ClickException(f"{paths[0]}: is asked for as CSV and as page")
    return paths


if __name__ == "__main__":
    main()
