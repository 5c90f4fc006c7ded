"""The page of a predictions.csv: every molecule drawn, to sort and filter."""

import csv
import itertools
import json
from pathlib import Path

from moleclip.explain import draw_contributions, scale_of
from moleclip.features import featurize
from moleclip.files import open_text, save_whole
from moleclip.molecules import Molecule, Rejected
from moleclip.pixels import inflate, png
from moleclip.workers import parallel

REPORTED = 5000  # rows in the page of --html: 15 MB; no browser likes a larger one


def write_report(path, table, title, told, files, workers, explained=(), **options):
    """Write one page of a finished predictions.csv, each row with its picture as the model saw it.

    It needs no other file. told: {column to stress: what its numbers are}, [(low, high), ...] of
    intervals' columns, and the share of molecules that they hold; files: of picture input, by row,
    or None; explained: columns of what atoms carry, which are drawn instead; options: those of
    `featurize`.
    """
    header, lines, more = read_head(table)
    data = dict(zip(("targets", "intervals", "level"), told))
    data |= {"title": title, "columns": header, "more": more, "rows": lines, "scales": {}}
    if explained:
        maps = [draw_maps(lines, header.index(name), workers) for name in explained]
        data["scales"] = {name: f"{scale:.2g}" for name, (scale, _) in zip(explained, maps)}
        drawn = zip(*(images for _, images in maps))
    else:
        drawn = zip(draw_lines(lines, files, workers, **options))
    data["images"] = [[image for image in images if image] for images in drawn]
    fill_page(path, "page.html", data)


def fill_page(path, template, data):
    """Write a page that has its data in itself. template: a file beside this one."""
    # Nothing in it can end the script or begin a tag.
    text = json.dumps(data)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = Path(__file__).with_name(template).read_text(encoding="utf-8").replace('"DATA"', text)
    save_whole(path, lambda name: name.write_text(page, encoding="utf-8"))


def draw_lines(lines, files, workers, **options):
    """Return a PNG in base64 of each line of a predictions.csv, "" where there is none."""
    molecules = []
    for line in lines:
        row, text = int(line[0]), line[1]
        text = str(files[row]) if files else text
        molecules.append(Molecule(row, 0, text, line[2], problem=line[-1]))
    return draw_molecules(molecules, workers, pictures=bool(files), **options)


def draw_molecules(molecules, workers, **options):
    """Return a PNG in base64 of each Molecule, "" of what can't be drawn.

    options: those of `featurize`.
    """
    failed = lambda result: isinstance(result, Rejected)
    drawn = parallel(featurize, molecules, workers, **options)
    return ["" if failed(result) else png(inflate(result.streams[0])) for _, result in drawn]


def draw_maps(lines, place, workers):
    """Return (scale, PNGs) of the molecules of lines with their atoms' contributions.

    place: of the column that has them.
    """
    scale = scale_of(line[place] for line in lines)
    molecules = [
        Molecule(int(line[0]), 0, f"{line[1]}\t{line[place]}", problem=line[-1]) for line in lines
    ]
    drawn = parallel(draw_contributions, molecules, workers, scale=scale)
    return scale, ["" if isinstance(image, Rejected) else image for _, image in drawn]


def read_head(table):
    """Return (column names, the first REPORTED lines, how many more there are) of a CSV."""
    csv.field_size_limit(1 << 24)
    with open_text(table) as stream:
        reader = csv.reader(stream)
        header, lines = next(reader), list(itertools.islice(reader, REPORTED))
        return header, lines, sum(1 for _ in reader)
