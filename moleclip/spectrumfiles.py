"""Files of spectra: MGF, mzML, MSP, JCAMP-DX, text and CSV.

A spectrum that can't be used costs itself alone, and is named.
"""

import gzip
import zlib
from pathlib import Path

import click
import numpy as np

from moleclip.files import open_bytes, open_text
from moleclip.formats import suffix_of
from moleclip.jcamp import read_jcamp
from moleclip.molecules import Rejected
from moleclip.mzml import read_mzml
from moleclip.peaktables import (
    MERGED,
    POINTS,
    clean,
    labelled,
    pick_peaks,
    plain,
    read_msp,
    read_table,
    read_text,
)
from moleclip.spectra import NAMES, NMR, checked, read_peaks

MASS_ONLY = (".mgf", ".mzml", ".msp")  # kinds of file that hold no NMR


def read_spectra(path, modality):
    """Yield (name, Spectrum or Rejected) of each spectrum of a file: see `read_measured`."""
    for name, result, _ in read_measured(path, modality):
        yield name, result


def read_measured(path, modality):
    """Yield (name, Spectrum or Rejected, SMILES or "") of each spectrum of a file, streaming.

    modality: nmr13c, nmr1h, msms or ei. Raises click.ClickException for a file that can't be read,
    is of no known kind or of another modality, or needs nmrglue where that is not there.
    """
    suffix = suffix_of(str(path))
    if suffix not in READERS:
        kinds = ", ".join(READERS)
        raise click.ClickException(f"{path}: unknown kind of file; spectra are read from {kinds}")
    if modality in NMR and suffix in MASS_ONLY:
        says = f"holds mass spectra, {NAMES[modality]} is wanted"
        raise click.ClickException(f"{path}: {says}")
    opened = open_bytes if suffix == ".mzml" else open_text
    stem, count = Path(str(path).removesuffix(".gz")).stem, 0
    try:
        with opened(str(path)) as stream:
            for raw in READERS[suffix](path, stream, modality):
                count += 1
                yield clean(raw.name) or stem, finished(raw, modality), clean(raw.smiles, 10**5)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        why = f"the gzip file is truncated or damaged (after {count} spectra)"
        raise click.ClickException(f"{path}: {why}") from None
    if not count:
        raise click.ClickException(f"{path}: holds no spectrum")


def spectrum_files(path):
    """Return the files of spectra that a path names, in order: itself, or those in a folder.

    Raises click.ClickException for a folder without any.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if suffix_of(file.name) in READERS)
    if not found:
        kinds = ", ".join(READERS)
        raise click.ClickException(f"{path}: holds no file of spectra ({kinds})")
    return [file for file in found if file.is_file()]


def finished(raw, modality):
    """Return the Spectrum of a Raw, or the Rejected that says why there is none."""
    try:
        if raw.problem:
            raise Rejected(clean(raw.problem))
        if raw.peaks:
            return read_peaks(raw.peaks, modality, raw.precursor)
        if not len(raw.places):
            raise Rejected("no peaks")
        if not (np.isfinite(raw.places).all() and np.isfinite(raw.heights).all()):
            raise Rejected("a peak is no finite number")
        places, heights = raw.places, raw.heights
        if modality in NMR and len(places) > POINTS:
            places, heights = pick_peaks(places, heights, MERGED[modality])
            if not 0 < len(places) <= POINTS:
                raise Rejected(f"a curve of {len(raw.places)} points in which no peaks stand out")
        return checked(places, heights, modality, raw.precursor)
    except Rejected as reason:
        return reason


def read_mgf(path, stream, modality):
    """Yield the Raw spectra of an .mgf. pyteomics would end with the first bad record."""
    lines, number = None, 0
    for line in stream:
        word = line.strip()
        if word.upper() == "BEGIN IONS":
            if lines is not None:
                yield of_mgf(lines, number)._replace(problem="no END IONS")
            lines, number = [], number + 1
        elif word.upper() == "END IONS" and lines is not None:
            yield of_mgf(lines, number)
            lines = None
        elif lines is not None and word[:1] not in ("", "#", ";", "!", "/"):
            lines.append(word)
    if lines is not None:
        yield of_mgf(lines, number)._replace(problem="no END IONS")


def of_mgf(lines, number):
    """Return the Raw of the lines of one record: LABEL=value, and peaks."""
    told, peaks = {}, []
    for line in lines:
        label, equals, value = line.partition("=")
        if equals:
            told.setdefault(plain(label), value.strip())
        else:
            peaks.append(line)
    return labelled(told, f"{number}", peaks)


READERS = {
    ".mgf": read_mgf,
    ".mzml": read_mzml,
    ".msp": read_msp,
    ".jdx": read_jcamp,
    ".dx": read_jcamp,
    ".jcamp": read_jcamp,
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_text,
}
