"""Spectra as people write them: peak tables in text and CSV, and MSP. Read by lines, tolerantly.

A comma in a number is a decimal one wherever it can't separate anything.
"""

import csv
import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from moleclip.files import one_line
from moleclip.spectra import NMR

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
PLACES = ("ppm", "shift", "delta", "mz", "mass", "position")  # words of a column's name
HEIGHTS = ("intensity", "height", "abundance", "area", "int")
NAMES = ("name", "id", "title", "spectrum", "compound", "sample")
LISTS = ("peaks", "shifts", "peaklist")  # a column of whole peak lists
PRECURSORS = ("precursormz", "pepmass", "precursor", "parentmass")
POINTS = 1000  # an NMR table of more is no list of peaks but a curve
MERGED = {"nmr13c": 0.1, "nmr1h": 0.06}  # ppm: lines of one signal
NOISE, LEAST = 8, 0.02  # a peak is so many times the noise, and such a part of the largest


class Raw(NamedTuple):
    """One spectrum of a file as it stands there."""

    name: str
    places: list = ()  # of float: ppm or m/z
    heights: list = ()
    precursor: float = math.nan  # m/z
    smiles: str = ""  # of the molecule, where the file tells it
    problem: str = ""  # why it can't be used, if that shows while reading
    peaks: str = ""  # instead of places and heights, a text for `read_peaks`


def to_number(text):
    """Return the number of a text, a decimal comma allowed, or None."""
    text = text.strip()
    number = float(text.replace(",", ".")) if NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def numbers_of(line):
    """Return the numbers at the beginning of a line, and what follows the last.

    Blanks, tabs, semicolons separate them, commas too where they aren't decimal ones.
    """
    line = re.sub(r",(?=\s|$)", " ", line.strip().strip("()[]"))
    if re.search(r"\.[0-9]*,|,[0-9]*\.|,[^,;\s]*,", line):
        line = line.replace(",", " ")
    words = [word for word in re.split(r"[\s;]+", line) if word]
    found = list(itertools.takewhile(lambda number: number is not None, map(to_number, words)))
    return found, " ".join(words[len(found) :])


def clean(text, most=200):
    """Return a text in one line that can be printed, at most so many characters."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:most]


def plain(text):
    """Return a column's or label's name by its letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def read_text(path, stream, modality):
    """Yield the Raw spectra of a text: paragraphs, each with a name before it if it has one."""
    number, paragraph = 1, []
    for line in itertools.chain(stream, [""]):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield of_lines(paragraph, f"{number}", modality)
            number, paragraph = number + 1, []


def of_lines(lines, name, modality):
    """Return the Raw of a paragraph: peaks one a line with their heights, or several a line."""
    rows = []
    for line in lines:
        if modality not in NMR and ":" in line:
            pairs = [numbers_of(word.replace(":", " ")) for word in line.split()]
            if all(len(found) == 2 and not rest for found, rest in pairs):
                rows += [found for found, _ in pairs]
                continue
        found, rest = numbers_of(line)
        if rows and line.lstrip().startswith("#"):
            continue
        if not found and not rows:
            words = line.strip().lstrip("#>").strip(" :")
            header = {plain(word) for word in re.split(r"[\s,;]+", words)} & {*PLACES, *HEIGHTS}
            name = name if header else words or name
        elif not found or (rest and not rest.startswith(("#", '"'))):
            wrong = (rest or line).strip()[:40]
            return Raw(name, problem=f"{wrong!r} is no number")
        else:
            rows.append(found)
    if modality in NMR and not (len(rows) > 1 and all(len(row) == 2 for row in rows)):
        places = [place for row in rows for place in row]
        return Raw(name, places, [1.0] * len(places))
    if any(len(row) > 2 and modality not in NMR for row in rows):
        return Raw(name, problem="more than two numbers in a line; write m/z and intensity")
    return Raw(name, [row[0] for row in rows], [(*row, 1.0)[1] for row in rows])


def read_table(path, stream, modality):
    """Yield the Raw spectra of a .csv or .tsv: one, one a name, or one a row with all its peaks."""
    lines = [line for line in stream if line.strip()]
    mark = max("\t;,", key=(lines or [""])[0].count)
    if mark not in (lines or [""])[0]:
        yield from read_text(path, lines, modality)
        return
    csv.field_size_limit(1 << 24)
    try:
        rows = [cells for cells in csv.reader(lines, delimiter=mark) if any(cells)]
    except csv.Error as error:
        yield Raw("", problem=f"not a readable table: {one_line(error)}")
        return
    header = [plain(cell) for cell in rows[0]]
    listed = next((i for i, name in enumerate(header) if name in LISTS), None)
    if listed is not None:
        yield from lists(rows, header, listed)
    else:
        yield from columns(rows, header, mark, modality)


def lists(rows, header, listed):
    """Yield a Raw for each row of a table with a column of peak lists."""
    places = {"name": find(header, NAMES), "smiles": find(header, ("smiles",))}
    places["precursor"] = find(header, PRECURSORS)
    for number, cells in enumerate(rows[1:]):
        told = {key: cells[i].strip() for key, i in places.items() if -1 < i < len(cells)}
        precursor = to_number(told.get("precursor", ""))
        yield Raw(
            told.get("name") or f"row {number}",
            precursor=math.nan if precursor is None else precursor,
            smiles=told.get("smiles", ""),
            problem="" if listed < len(cells) else "the row ends before its peaks",
            peaks=cells[listed] if listed < len(cells) else "",
        )


def columns(rows, header, mark, modality):
    """Yield the Raw spectra of a table with a peak a row, apart by the column of names if any."""
    told = [i for i, cell in enumerate(rows[0]) if to_number(cell) is None and cell.strip()]
    place, height = find(header, PLACES), find(header, HEIGHTS)
    if told and place < 0:
        yield Raw("", problem="no column ppm or m/z, nor peaks; name the columns in the first line")
        return
    whole = all(len(row) == 2 and row[0].isdecimal() and row[1].isdecimal() for row in rows)
    if not told and mark == "," and modality in NMR and whole:
        yield Raw("", problem="decimal commas or two columns? Write decimal points, or a header")
        return
    if not told:
        place, height = 0, 1
    named = find(header, NAMES) if told else -1
    spectra = {}
    for cells in rows[1:] if told else rows:
        numbers = [to_number(cells[i]) if -1 < i < len(cells) else 1.0 for i in (place, height)]
        name = cells[named].strip() if -1 < named < len(cells) else ""
        peaks = spectra.setdefault(name, ([], [], []))
        if None in numbers or place >= len(cells):
            peaks[2].append(f"{mark.join(cells)[:40]!r} has no number where a peak should be")
            continue
        peaks[0].append(numbers[0])
        peaks[1].append(numbers[1])
    for name, (places, heights, problems) in spectra.items():
        yield Raw(name, places, heights, problem=problems[0] if problems else "")


def find(header, words):
    """Return the place of the first column that has, or else begins with, one of some names.

    -1 where there is none.
    """
    for fits in (str.__eq__, str.startswith):
        for i, name in enumerate(header):
            if any(fits(name, word) for word in words if len(word) > 3 or fits is str.__eq__):
                return i
    return -1


def read_msp(path, stream, modality):
    """Yield the Raw spectra of an .msp: labels, then Num Peaks and the peaks."""
    for number, lines in enumerate(msp_records(stream), 1):
        told, peaks = {}, None
        for line in lines:
            label, colon, value = line.partition(":")
            if peaks is not None:
                peaks.append(line)
            elif colon and plain(label) == "numpeaks":
                told["numpeaks"], peaks = value.strip(), []
            elif colon:
                told.setdefault(plain(label), value.strip())
        if modality == "ei" and "exactmass" in told:
            told.setdefault("precursormz", told["exactmass"])
        yield labelled(told, f"{number}", peaks)


def msp_records(stream):
    """Yield the lines of each record of an .msp: up to a blank line, or the next Name."""
    record = []
    for line in itertools.chain(stream, [""]):
        begins = plain(line.partition(":")[0]) == "name" and ":" in line
        if record and (not line.strip() or begins):
            yield record
            record = []
        if line.strip():
            record.append(line.strip())


def labelled(told, name, lines):
    """Return the Raw of {label: text} and lines of peaks, or None where no peaks are told of."""
    precursor = next((told[label] for label in PRECURSORS if told.get(label)), "")
    mass = (numbers_of(precursor)[0] or [0.0])[0]
    name, many = told.get("name") or told.get("title") or name, told.get("numpeaks", "")
    told = {"precursor": mass if mass > 0 else math.nan, "smiles": told.get("smiles", "")}
    if lines is None:
        return Raw(name, problem="no line Num Peaks", **told)
    places, heights = [], []
    for line in lines:
        line = re.sub(r'"[^"]*"', " ", line)
        for text in re.findall(r"\(([^)]*)\)", line) or re.split(r";(?=\s|$)", line):
            found, rest = numbers_of(text)
            if text.strip() and len(found) < 2:
                return Raw(name, problem=f"{text.strip()[:40]!r} is no m/z and intensity", **told)
            places += found[:1]
            heights += found[1:2]
    if many.isdecimal() and int(many) > len(places):
        return Raw(name, problem=f"{len(places)} peaks of {many}: the record is cut off", **told)
    return Raw(name, places, heights, **told)


def pick_peaks(places, heights, merged=0.0):
    """Return (places, heights) of the peaks of a curve: maxima well above its noise.

    merged: those as close as that become one, at their mean weighted by height; so do those
    between which the curve stays above half the lower one.
    """
    order = np.argsort(places, kind="stable")
    x, y = np.asarray(places, float)[order], np.asarray(heights, float)[order]
    if len(x) < 3:
        return [], []
    y = y - np.median(y)
    least = max(NOISE * 1.4826 * np.median(np.abs(y)), LEAST * y.max())
    inner = y[1:-1]
    top = 1 + np.flatnonzero((inner >= y[:-2]) & (inner > y[2:]) & (inner > max(least, 0)))
    valleys = np.minimum.reduceat(y, top)[:-1] if len(top) else y[:0]  # from each to the next
    apart = (np.diff(x[top]) > merged) & (2 * valleys < np.minimum(y[top[:-1]], y[top[1:]]))
    groups = np.split(top, 1 + np.flatnonzero(apart)) if len(top) else []
    found = [(np.average(x[group], weights=y[group]), y[group].max()) for group in groups]
    return [place for place, _ in found], [height for _, height in found]
