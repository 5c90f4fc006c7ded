"""The page of hits: each query with its best molecules drawn, measured against predicted peaks."""

import math
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moleclip.files import save_whole
from moleclip.molecules import Molecule
from moleclip.peaktables import clean
from moleclip.pixels import png
from moleclip.reportpage import draw_molecules
from moleclip.spectra import NMR, Spectrum, peak_distance
from moleclip.workers import default_workers

SHOWN = 1000  # hits in the page: 5 MB
WIDTH, HEIGHT, MIDDLE, MARGIN = 340, 110, 52, 12  # of a plot, in its own units
TICKS = 6  # at most


class Hit(NamedTuple):
    """One molecule that was found for a query."""

    rank: int  # from 1
    molecule: Molecule
    score: float
    formula: str
    mass: float  # monoisotopic, in u
    shifts: np.ndarray | None  # predicted, float32 (classes,), in ppm


class Answer(NamedTuple):
    """A query and what was found for it."""

    name: str
    spectrum: Spectrum | None
    picture: np.ndarray | None  # palette indices, uint8 (224, 224)
    text: str  # the query as it was given, where it is neither
    hits: list  # of Hit, best first
    remark: str  # what makes them worth less, or why there are none


def write_page(path, title, facts, answers, kept, modality, max_atoms, workers=None):
    """Write one page that needs no other file, and no script.

    facts: a line about the search; answers: a list of Answer; kept: {column of the library: its
    name in hits.csv}.
    """
    shown, room = [], SHOWN
    for answer in answers:
        if answer.hits and not room:
            break
        shown.append(answer._replace(hits=answer.hits[:room]))
        room -= len(shown[-1].hits)
    if len(shown) < len(answers) or not room:
        facts += f" · of {sum(len(a.hits) for a in answers)} hits the first {SHOWN} are shown"
    drawings = draw_hits([hit for answer in shown for hit in answer.hits], max_atoms, workers)
    body = "\n".join(section(answer, drawings, kept, modality) for answer in shown)
    page = Path(__file__).with_name("hits.html").read_text(encoding="utf-8")
    parts = {"TITLE": told(title), "FACTS": told(facts), "BODY": body}
    page = re.sub("|".join(parts), lambda found: parts[found[0]], page)
    save_whole(path, lambda name: name.write_text(page, encoding="utf-8"))


def told(text):
    """Return a text as it stands in a page."""
    return escape(clean(text, 10**5))


def draw_hits(hits, max_atoms, workers):
    """Return {row: PNG in base64} of the hits' molecules that can be drawn."""
    molecules = {hit.molecule.row: hit.molecule for hit in hits}
    crew = min(workers or default_workers(), 1 + len(molecules) // 64)
    images = draw_molecules(molecules.values(), crew, max_atoms=max_atoms)
    return {row: image for row, image in zip(molecules, images) if image}


def section(answer, drawings, kept, modality):
    """Return the HTML of one query and its hits."""
    parts = [f"<h2>{told(answer.name)}</h2>"]
    if answer.remark:
        parts.append(f'<p class="unlike">{told(answer.remark)}</p>')
    if answer.picture is not None:
        parts.append(f'<img alt="query" src="data:image/png;base64,{png(answer.picture)}">')
    elif answer.spectrum is not None:
        parts.append(sticks(answer.spectrum, None, modality))
    if answer.text:
        parts.append(f"<p>{told(answer.text)}</p>")
    if not answer.hits:
        return "\n".join(parts)
    plotted = answer.spectrum is not None and answer.hits[0].shifts is not None
    words = '<span class="measured-word">measured</span>, <span class="predicted-word">predicted'
    heads = [("number", "rank"), ("number", "score"), ("", "")]
    heads += [("", f"{words}</span>")] * plotted
    heads += [("", "smiles"), ("", "name"), ("", "formula"), ("number", "mass"), ("number", "row")]
    heads += [("", told(name)) for name in kept.values()]
    line = "".join(f'<th class="{kind}">{name}</th>' for kind, name in heads)
    rows = [row_of(hit, answer, drawings, kept, modality, plotted) for hit in answer.hits]
    table = f"<table><thead><tr>{line}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return "\n".join([*parts, f'<div class="scroll">{table}</div>'])


def row_of(hit, answer, drawings, kept, modality, plotted):
    """Return the HTML of one hit."""
    molecule, drawing = hit.molecule, drawings.get(hit.molecule.row, "")
    picture = f'<img alt="{told(molecule.smiles)}" src="data:image/png;base64,{drawing}">'
    cells = [
        f'<td class="number">{hit.rank}</td>',
        f'<td class="number score">{hit.score:.3f}</td>',
        f"<td>{picture if drawing else ''}</td>",
    ]
    if plotted:
        cells.append(f"<td>{sticks(answer.spectrum, hit.shifts, modality)}</td>")
    cells += [
        f'<td class="smiles">{told(molecule.smiles)}</td>',
        f"<td>{told(molecule.name)}</td>",
        f'<td class="formula">{told(hit.formula)}</td>',
        f'<td class="number">{hit.mass:.4f}</td>',
        f'<td class="number">{molecule.row}</td>',
    ]
    others = (told(molecule.fields.get(name, "")) for name in kept)
    cells += [f'<td class="kept"><div>{text}</div></td>' for text in others]
    return f"<tr>{''.join(cells)}</tr>"


def sticks(spectrum, predicted, modality):
    """Return a plot of a Spectrum as SVG, predicted shifts mirrored below it if they are given."""
    mirrored = predicted is not None
    every = np.concatenate([spectrum.places, predicted if mirrored else []])
    low, high = float(every.min()), float(every.max())
    room = max((high - low) * 0.05, 2.0 if modality == "nmr13c" else 0.3)
    low, high = low - room, high + room
    away = peak_distance(predicted, spectrum.places, modality) if mirrored else math.nan
    says = f"{len(spectrum.places)} measured peaks" + (
        f", {len(predicted)} predicted, {away:.2g} ppm apart" if mirrored else ""
    )
    height = HEIGHT if mirrored else MIDDLE + 2 * MARGIN
    bottom = HEIGHT - MARGIN if mirrored else MIDDLE

    def across(place):
        part = (float(place) - low) / (high - low)
        part = 1 - part if modality in NMR else part  # shifts run from right to left
        return round(MARGIN + part * (WIDTH - 2 * MARGIN), 1)

    lines = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{says}">']
    lines.append(f"<title>{says}</title>")
    lines.append(f'<path class="axis" d="M0 {MIDDLE}H{WIDTH}"/>')
    tall = (MIDDLE - MARGIN / 2) * spectrum.heights / spectrum.heights.max()
    ups = [f"M{across(x)} {MIDDLE}v{-y:.1f}" for x, y in zip(spectrum.places, tall)]
    lines.append(f'<path class="measured" d="{"".join(ups)}"/>')
    if mirrored:
        downs = [f"M{across(x)} {MIDDLE}V{bottom - MARGIN}" for x in predicted]
        lines.append(f'<path class="predicted" d="{"".join(downs)}"/>')
    for place in ticks(low, high):
        at = f'x="{across(place)}" y="{bottom + 9}" text-anchor="middle"'
        lines.append(f"<text {at}>{place:g}</text>")
    return "".join([*lines, "</svg>"])


def ticks(low, high):
    """Return round numbers between two, TICKS at most, in steps of 1, 2 or 5."""
    rough = (high - low) / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough)
    return [round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
