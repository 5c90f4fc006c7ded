"""Draw molecules for the encoder: SMILES in, indexed-colour NPZ shards out.

    python render.py data/chembl_3000.smi                     # shards/, two views of each molecule
    python render.py library.csv --smiles-column SMILES -o shards --views 4 --workers 8
    python render.py library.csv --preview grid.png           # just look at the first ones

View 0 is the plain drawing, the others are drawn in random styles.
"""

import itertools
import json
import textwrap
from pathlib import Path

import click
from PIL import Image, ImageDraw
from rdkit import rdBase
from tqdm import tqdm

from moleclip import options
from moleclip.drawing import draw_all
from moleclip.files import check_output, read_arrays, save_json, save_table, save_whole
from moleclip.molecules import BLOCK, Rejected, find_input, input_facts, read_molecules
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.shards import DRAWING_DEFAULTS, MANIFEST_KEYS, load_manifest, shard_path, write_shard
from moleclip.styles import FONTS, font_path

PREVIEWED = 12  # molecules in a preview


def draw_shards(molecules, out, workers, **drawing):
    """Draw molecules into out/shard-*.npz, yielding each one; drawing: options of `draw_views`."""
    drawn = draw_all(molecules, workers, level=8, **drawing)
    for number, members in itertools.groupby(drawn, lambda pair: pair[0].row // BLOCK):
        rows, smiles, streams, rejected, places = [], [], [], [], []
        for molecule, result in members:
            if isinstance(result, Rejected):
                rejected.append([molecule.row, molecule.line, molecule.smiles, str(result)])
            else:
                rows.append(molecule.row)
                smiles.append(molecule.smiles)
                if drawing["atoms"]:
                    result, where = result
                    places.append(where)
                streams += result
            yield molecule
        path, places = shard_path(out, number), places if drawing["atoms"] else None
        write_shard(path, rows, smiles, streams, rejected, drawing["views"], places)


def draw_missing(molecules, rows, out, part, workers, drawing):
    """Draw the shards of a part that `out` lacks, and return the number of the input's rows.

    rows: that number, or None where only reading can tell.
    """
    numbers = (int(path.stem.split("-")[1]) for path in out.glob("shard-*.npz"))
    done = {number for number in numbers if part.has_block(number)}
    wanted = (m for m in molecules if part.has(m.row) and m.row // BLOCK not in done)
    bar = tqdm(total=part.size(rows), unit=" molecules", desc="drawing", disable=None)
    bar.update(sum(min(BLOCK, (rows or 0) - number * BLOCK) for number in done))
    last = -1
    for molecule in draw_shards(wanted, out, workers, **drawing):
        last = molecule.row
        bar.update()
    bar.close()
    return rows or last + 1


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
    """Refuse a folder that holds shards of another input or other options.

    Also one that holds this part's own, without --resume. Raises click.ClickException.
    """
    if manifest.exists() and not resume:
        raise click.ClickException(
            f"{out}: already holds these shards, or a part of them; "
            "go on with --resume, or start afresh elsewhere with -o"
        )
    manifests = sorted(out.glob("manifest*.json"))
    if not manifests and any(out.glob("shard-*.npz")):
        raise click.ClickException(
            f"{out}: holds shards without a manifest; give another folder with -o"
        )
    for path in manifests:
        before = load_manifest(path)
        for key in [*MANIFEST_KEYS, *DRAWING_DEFAULTS]:
            wanted = facts.get(key, DRAWING_DEFAULTS.get(key))
            if before[key] != wanted:
                raise click.ClickException(
                    f"{out}: holds shards with {key} {before[key]}, not {wanted}; "
                    "start afresh in another folder with -o"
                )


def start_manifest(source, smiles_column, drawing, part):
    """Return what a manifest says before the drawing is done."""
    if source == "-":
        facts = {"input": "-", "sha256": None, "rows": None, "smiles_column": smiles_column}
    else:
        facts = input_facts(source, smiles_column)
    made = {"rdkit": rdBase.rdkitVersion, "part": part.index, "parts": part.count}
    drawing = {key: value for key, value in drawing.items() if value != DRAWING_DEFAULTS.get(key)}
    return facts | drawing | made | {"complete": False}


def preview(molecules, path, workers, **drawing):
    """Write a PNG grid: a line for each of the first molecules, a column for each view."""
    views, height = drawing["views"], SIZE + 28
    drawn = list(draw_all(itertools.islice(molecules, PREVIEWED), workers, **drawing))
    sheet = Image.new("RGB", (views * (SIZE + 8) + 8, len(drawn) * height), "white")
    for i, (molecule, result) in enumerate(drawn):
        preview_row(sheet, i * height, views, molecule, result)
    save_whole(path, lambda name: sheet.save(name, "PNG"))
    click.echo(f"{path}: {len(drawn)} molecules, a row of {views} views each")


def preview_row(sheet, top, views, molecule, result):
    """Put one molecule's row and name, and its views or why there are none, on the sheet."""
    pen, room = ImageDraw.Draw(sheet), views * 36 - 4  # letters that fit
    label = f"{molecule.row}  {molecule.name or molecule.smiles}"
    if len(label) > room:
        label = label[: room - 3] + "..."
    pen.text((10, top + 6), label, "black", font_size=13)
    if isinstance(result, Rejected):
        reason = "\n".join(textwrap.wrap(str(result), room))
        pen.text((10, top + 40), reason, "firebrick", font_size=13)
    else:
        for view, stream in enumerate(result):
            image = Image.fromarray(to_rgb(inflate(stream)))
            sheet.paste(image, (8 + view * (SIZE + 8), top + 24))
    pen.line((0, top, sheet.width, top), "lightgrey")


@click.command()
@click.argument("source")
@options.out_path("shards", "Folder for the shards.")
@click.option(
    "--views",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Drawings of each molecule; the first is plain.",
)
@click.option(
    "--styles",
    default="paper",
    show_default=True,
    type=click.Choice(["paper", "wide"]),
    help="Styles of the others: the paper's, or as many as chemists' figures have.",
)
@options.r_groups("Draw terminal, singly bonded atoms as R1 to R8.")
@click.option("--atoms", is_flag=True, help="Keep where each atom lies in each drawing.")
@options.seed("Seed of the random styles.")
@options.workers()
@options.part("I/N: draw every N-th shard from the I-th, for a job array.")
@options.max_atoms()
@options.resume("Go on in a folder that an interrupted run left.")
@click.option(
    "--preview",
    "grid",
    default=None,
    type=click.Path(path_type=Path),
    help="Only draw the first molecules into this PNG, to look at.",
)
@options.smiles_column()
def main(source, out, workers, part, resume, grid, smiles_column, **drawing):
    """Draw the molecules of SOURCE into shards.

    SOURCE: .smi, .txt, .csv, .tsv, .sdf, gzipped or not, .xlsx, .parquet, or - for standard input.
    """
    source = find_input(source)
    if grid:
        check_output(grid, source)
        drawing |= {"atoms": False}
        return preview(read_molecules(source, smiles_column), grid, workers, **drawing)
    if source == "-" and (resume or part.count > 1):
        raise click.UsageError(
            "--resume and --part need a file: standard input can't be read twice"
        )
    facts = start_manifest(source, smiles_column, drawing, part)
    manifest, rejects = part.named(out / "manifest.json"), part.named(out / "rejected.csv")
    check_folder(out, manifest, facts, resume)
    for font in FONTS if drawing["views"] > 1 else ():
        font_path(font)
    save_json(manifest, facts)
    molecules = read_molecules(source, smiles_column)
    rows = draw_missing(molecules, facts["rows"], out, part, workers, drawing)
    shards = [shard_path(out, number) for number in part.blocks(rows)]
    drawn, rejected = write_rejected(rejects, shards)
    if not drawn and part.count == 1:
        for path in (manifest, *out.glob("shard-*.npz")):  # so that the mended file can be drawn
            path.unlink()
        raise click.ClickException(
            f"{source}: none of its {rejected} rows could be drawn; the reasons are in {rejects}"
        )
    counts = {"rows": rows, "drawn": drawn, "rejected": rejected}
    save_json(manifest, facts | counts | {"complete": True})
    said = f"{out}: {drawn} molecules in {drawing['views']} views"
    click.echo(said + (f", {rejected} rejected, see {rejects}" if rejected else ""))


if __name__ == "__main__":
    main()
