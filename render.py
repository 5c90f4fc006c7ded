"""Draw molecules for the encoder: SMILES in, indexed-colour NPZ shards out.

    python render.py data/chembl_3000.smi                     # shards/, two views of each molecule
    python render.py library.csv --smiles-column SMILES -o shards --views 4 --workers 8
    python render.py library.csv --preview grid.png           # just look at the first ones

View 0 is the plain drawing, the others are drawn in a random style. Whoever draws, draws with `draw`: training and
deployment see the same picture.
"""

import itertools
import json
import textwrap
from pathlib import Path

import click
from PIL import Image, ImageDraw
from rdkit import rdBase
from tqdm import tqdm

from moleclip.drawing import FONTS, draw_all, font_path
from moleclip.files import read_arrays, save_json, save_table, save_whole
from moleclip.molecules import BLOCK, MAX_ATOMS, Rejected, find_input, input_facts, read_molecules
from moleclip.options import parse_part
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.shards import MANIFEST_KEYS, load_json, shard_path, write_shard


def draw_shards(molecules, out, workers, **options):
    """Draw the molecules into out/shard-*.npz, yielding once for each molecule; options are those of `draw_views`."""
    drawn = draw_all(molecules, workers, level=8, **options)
    for number, members in itertools.groupby(drawn, lambda pair: pair[0].row // BLOCK):
        rows, smiles, streams, rejected = [], [], [], []
        for molecule, result in members:
            if isinstance(result, Rejected):
                rejected.append([molecule.row, molecule.line, molecule.smiles, str(result)])
            else:
                rows.append(molecule.row)
                smiles.append(molecule.smiles)
                streams += result
            yield molecule
        write_shard(shard_path(out, number), rows, smiles, streams, rejected, options["views"])


def write_rejected(path, shards):
    """Gather the rejected rows of shards into a CSV and return (drawn, rejected) counts."""
    counts = [0, 0]

    def rows():
        for shard in shards:
            arrays = read_arrays(shard, ("row", "rejected"))
            rejected = json.loads(arrays["rejected"].tobytes())
            counts[0] += len(arrays["row"])
            counts[1] += len(rejected)
            yield from rejected

    save_table(path, ["row", "line", "smiles", "reason"], rows())
    return counts


def check_folder(out, manifest, facts, resume):
    """Refuse a folder that holds shards of another input or other options, or this part's without --resume."""
    if manifest.exists() and not resume:
        raise click.ClickException(
            f"{out}: already holds these shards, or a part of them; go on with --resume, or start afresh elsewhere with -o"
        )
    manifests = sorted(out.glob("manifest*.json"))
    if not manifests and any(out.glob("shard-*.npz")):
        raise click.ClickException(
            f"{out}: holds shards without a manifest; give another folder with -o"
        )
    for path in manifests:
        before = load_json(path)
        for key in MANIFEST_KEYS:
            if before[key] != facts[key]:
                raise click.ClickException(
                    f"{out}: holds shards with {key} {before[key]}, not {facts[key]}; start afresh in another folder with -o"
                )


def preview(molecules, path, workers, count=12, **options):
    """Write a PNG grid: a line for each of the first molecules with its row and SMILES, a column for each view."""
    rows = [pair for pair in draw_all(itertools.islice(molecules, count), workers, **options)]
    sheet = Image.new("RGB", (options["views"] * (SIZE + 8) + 8, len(rows) * (SIZE + 28)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (molecule, result) in enumerate(rows):
        top, room = i * (SIZE + 28), options["views"] * 36 - 4  # letters that fit
        label = f"{molecule.row}  {molecule.name or molecule.smiles}"
        pen.text(
            (10, top + 6),
            label if len(label) <= room else label[: room - 3] + "...",
            "black",
            font_size=13,
        )
        for view, stream in enumerate([] if isinstance(result, Rejected) else result):
            sheet.paste(Image.fromarray(to_rgb(inflate(stream))), (8 + view * (SIZE + 8), top + 24))
        if isinstance(result, Rejected):
            pen.text(
                (10, top + 40),
                "\n".join(textwrap.wrap(str(result), room)),
                "firebrick",
                font_size=13,
            )
        pen.line((0, top, sheet.width, top), "lightgrey")
    save_whole(path, lambda name: sheet.save(name, "PNG"))
    click.echo(f"{path}: {len(rows)} molecules, a row of {options['views']} views each")


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--out",
    default="shards",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the shards.",
)
@click.option(
    "--views",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Drawings of each molecule; the first is plain.",
)
@click.option("--r-groups", is_flag=True, help="Draw terminal, singly bonded atoms as R1 to R8.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the random styles.",
)
@click.option(
    "--workers",
    default=None,
    type=click.IntRange(1),
    help="Drawing processes.  [default: one a core]",
)
@click.option(
    "--part",
    default=None,
    callback=parse_part,
    help="I/N: draw every N-th shard from the I-th, for a job array.",
)
@click.option(
    "--max-atoms",
    default=MAX_ATOMS,
    show_default=True,
    type=click.IntRange(1),
    help="Reject molecules with more heavy atoms.",
)
@click.option("--resume", is_flag=True, help="Go on in a folder that an interrupted run left.")
@click.option(
    "--preview",
    "grid",
    default=None,
    type=click.Path(path_type=Path),
    help="Only draw the first molecules into this PNG, to look at.",
)
@click.option(
    "--smiles-column",
    help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]",
)
def main(source, out, workers, part, resume, grid, smiles_column, **options):
    """Draw the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not, or - for standard input) into shards."""
    source, (index, parts) = find_input(source), part
    if grid:
        return preview(read_molecules(source, smiles_column), grid, workers, **options)
    if source == "-" and (resume or parts > 1):
        raise click.UsageError(
            "--resume and --part need a file: standard input can't be read twice"
        )
    facts = (
        (
            {"input": "-", "sha256": None, "rows": None, "smiles_column": smiles_column}
            if source == "-"
            else input_facts(source, smiles_column)
        )
        | options
        | {"rdkit": rdBase.rdkitVersion, "part": index, "parts": parts, "complete": False}
    )
    tail = f"-{index}-of-{parts}" if parts > 1 else ""
    manifest, rejects = out / f"manifest{tail}.json", out / f"rejected{tail}.csv"
    check_folder(out, manifest, facts, resume)
    for font in FONTS if options["views"] > 1 else ():
        font_path(font)
    save_json(manifest, facts)
    mine = lambda number: number % parts == index - 1
    done = {
        number for path in out.glob("shard-*.npz") if mine(number := int(path.stem.split("-")[1]))
    }
    rows = facts["rows"] and sum(
        min(BLOCK, facts["rows"] - first)
        for first in range(0, facts["rows"], BLOCK)
        if mine(first // BLOCK)
    )
    bar = tqdm(total=rows, unit=" molecules", desc="drawing", disable=None)
    bar.update(sum(min(BLOCK, (facts["rows"] or 0) - number * BLOCK) for number in done))
    wanted = (
        m
        for m in read_molecules(source, smiles_column)
        if mine(m.row // BLOCK) and m.row // BLOCK not in done
    )
    last = -1
    for molecule in draw_shards(wanted, out, workers, **options):
        last = molecule.row
        bar.update()
    bar.close()
    total = facts["rows"] or last + 1
    drawn, refused = write_rejected(
        rejects, [shard_path(out, n) for n in range(-(-total // BLOCK)) if mine(n)]
    )
    if not drawn and parts == 1:
        for path in (
            manifest,
            *out.glob("shard-*.npz"),
        ):  # so that the mended file can be drawn here
            path.unlink()
        raise click.ClickException(
            f"{source}: none of its {refused} rows could be drawn; the reasons are in {rejects}"
        )
    save_json(
        manifest, facts | {"rows": total, "drawn": drawn, "rejected": refused, "complete": True}
    )
    click.echo(
        f"{out}: {drawn} molecules in {options['views']} views"
        + (f", {refused} rejected, see {rejects}" if refused else "")
    )


if __name__ == "__main__":
    main()
