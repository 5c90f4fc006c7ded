"""JCAMP-DX files: peak tables as they stand there, and the peaks of NMR curves, by nmrglue."""

import re
import tempfile
import warnings
from pathlib import Path

import numpy as np

from moleclip.files import library, one_line
from moleclip.molecules import Rejected
from moleclip.peaktables import MERGED, Raw, pick_peaks, plain, to_number
from moleclip.spectra import NAMES, NMR

NUCLEI = {"nmr13c": "13C", "nmr1h": "1H"}
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
LISTS = ("PEAKTABLE", "PEAKASSIGNMENTS", "XYPOINTS", "XYDATA")  # where pairs may stand


def read_jcamp(path, stream, modality):
    """Yield a Raw for each block of a file that has data."""
    for block, text in blocks(stream):
        kind, name = plain(block.get("DATATYPE", "")), block.get("TITLE", "").strip()
        if kind == "link":
            continue
        nucleus = re.sub(r"[^0-9A-Z]", "", block.get(".OBSERVENUCLEUS", "").upper())
        if kind and ("nmr" in kind) != (modality in NMR):
            nucleus = block["DATATYPE"].strip().lower()
        elif modality not in NMR or nucleus in ("", NUCLEI[modality]):
            yield of_block(path, name, block, text, modality)
            continue
        yield Raw(name, problem=f"its data are {nucleus}, {NAMES[modality]} is wanted")


def blocks(stream):
    """Yield ({label: value}, text) of each block; of a label that comes twice the first value."""
    stack = []
    for line in stream:
        line = line.split("$$")[0].rstrip()
        label, equals, value = line.lstrip().partition("=")
        begins = label[:2] == "##" and equals
        label = re.sub(r"[^A-Z0-9.$]", "", label.upper())
        if begins and label == "TITLE":
            stack.append([{}, [], ""])
        if not stack:
            continue
        found, lines, last = stack[-1]
        lines.append(line)
        if begins and label == "END":
            stack.pop()
            yield found, "\n".join([*lines, ""])
        elif begins:
            stack[-1][2] = "" if label in found else label
            found.setdefault(label, value.strip())
        elif last:
            found[last] += "\n" + line
    for found, lines, _ in reversed(stack):  # a file that is cut off
        yield found, "\n".join([*lines, "##END=", ""])


def of_block(path, name, block, text, modality):
    """Return the Raw of one block."""
    listed = next((each for each in LISTS if "++" not in block.get(each, "++")), None)
    try:
        if listed:
            places, heights = pairs(*block[listed].partition("\n")[::2])
            return Raw(name, in_ppm(places, block) if modality in NMR else places, heights)
        if modality not in NMR or not {"XYDATA", "DATATABLE"} & {*block}:
            raise Rejected("neither a peak table nor an NMR spectrum")
        heights = points(path, text)
        first, last = ends(block)
        places = in_ppm(np.linspace(first, last, len(heights)), block)
        return Raw(name, *pick_peaks(places, heights, MERGED[modality]))
    except Rejected as reason:
        return Raw(name, problem=str(reason))


def pairs(form, text):
    """Return (places, heights) of the pairs of a table, "(XY..XY)", or of assignments, "(XYA)"."""
    wide = len(re.match(r"[A-Z]*", form.upper().lstrip(" ("))[0])
    if ".." in form:
        found = [float(each) for each in NUMBER.findall(text)]
        rows = [found[i : i + wide] for i in range(0, len(found), max(wide, 1))]
    else:
        inside = re.findall(r"\(([^)]*)\)", text)
        rows = [[float(each) for each in NUMBER.findall(row.split("<")[0])] for row in inside]
    rows = [row for row in rows if row]
    high = wide > 1 and "Y" in form.upper()
    return [row[0] for row in rows], [row[1] if high and len(row) > 1 else 1.0 for row in rows]


def points(path, text):
    """Return the real points of a block's curve, float64 (n,), read by nmrglue. Raises Rejected."""
    jcampdx = library("nmrglue", path).jcampdx
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        copy = Path(folder) / "block.dx"
        copy.write_text(text, encoding="utf-8", errors="replace")
        try:
            _, heights = jcampdx.read(str(copy))
            heights = np.asarray(heights[0] if isinstance(heights, list) else heights, float)
            if heights.ndim != 1 or len(heights) < 3 or not np.isfinite(heights).all():
                raise ValueError("no points")
        except Exception as error:  # of many kinds
            raise Rejected(f"nmrglue can't read its points ({one_line(error)})") from None
    return heights


def ends(block):
    """Return where a block's curve begins and ends, in its unit. Raises Rejected."""
    found = [to_number(x_of(block, label) or "") for label in ("FIRST", "LAST")]
    if None in found:
        raise Rejected("no FIRSTX and LASTX")
    return found


def x_of(block, label):
    """Return what a block tells of its x, such as FIRST, LAST or UNITS, or None."""
    symbols = [plain(each) for each in block.get("SYMBOL", "").split(",")]
    columns = block.get(label, "").split(",")
    if "DATATABLE" in block and "x" in symbols and symbols.index("x") < len(columns):
        return columns[symbols.index("x")]
    return block.get({"UNITS": "XUNITS"}.get(label, f"{label}X"))


def in_ppm(places, block):
    """Return places in ppm, whose unit the block tells. Raises Rejected."""
    if plain(x_of(block, "UNITS") or "") not in ("hz", "hertz"):
        return places
    frequency = to_number(block.get(".OBSERVEFREQUENCY", ""))
    if not frequency:
        raise Rejected("in Hz, without .OBSERVE FREQUENCY")
    return [place / frequency for place in places]
