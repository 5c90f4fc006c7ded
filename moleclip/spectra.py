"""Spectra as lists of peaks: read from text, made into vectors, and how alike two lists are."""

import math
import re
from typing import NamedTuple

import numpy as np

from moleclip.molecules import Rejected

PROTON = 1.007276  # u: what [M+H]+ has more than the molecule
# Ranges of shifts in ppm: what a vector spans, its ends taking in what lies beyond, and outside
# which a number is no shift of that nucleus.
NMR = {"nmr13c": (-20.0, 240.0), "nmr1h": (-2.0, 15.0)}
POSSIBLE = {"nmr13c": (-300.0, 400.0), "nmr1h": (-50.0, 30.0)}
USUAL_1H = 15.0
MASS = ("msms", "ei")
SPECTRA = (*NMR, *MASS)
MODALITIES = (*SPECTRA, "picture", "smiles", "text")
BINS = 260  # of an NMR spectrum's range
WIDTHS = (1.0, 4.0)  # in bins: a peak is seen sharply, and from afar
MASS_BINS, PER_UNIT = 3000, 2  # to m/z 1500
LOSSES = 500  # neutral losses, to 500 u
PEAKS = 20  # of an NMR spectrum: their number is divided by it
# In ppm: beyond it a predicted peak is simply wrong; what each peak too many or too few costs.
FAR = {"nmr13c": (15.0, 0.15), "nmr1h": (1.5, 0.02)}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # Python reads 1_0, too
NAMES = {
    "nmr13c": "13C NMR",
    "nmr1h": "1H NMR",
    "msms": "MS/MS of [M+H]+",
    "ei": "EI-MS",
    "picture": "pictures",
    "smiles": "SMILES",
    "text": "texts",
}


class Spectrum(NamedTuple):
    """The peaks of one measurement, in ascending order."""

    places: np.ndarray  # float64 (peaks,): ppm, or m/z
    heights: np.ndarray  # float64 (peaks,): above 0; 1 for NMR
    precursor: float = math.nan  # m/z of the ion that broke, where it is known


def vector_width(modality):
    """Return how many numbers a modality's vector has."""
    return len(WIDTHS) * (BINS + 1) + 1 if modality in NMR else MASS_BINS + LOSSES


def read_peaks(text, modality, precursor=math.nan):
    """Return the Spectrum of a text: shifts "20.6 170.5", or "m/z:intensity" pairs.

    Blanks, commas with blanks, semicolons or line ends stand between peaks; a lone m/z has the
    height 1. Raises Rejected with the reason.
    """
    words = [word for word in re.split(r"[\s;]+|,(?=\s)", text.strip()) if word]
    if not words:
        raise Rejected("no peaks")
    pairs = [read_peak(word.rstrip(","), modality) for word in words]
    return checked(*np.array(pairs).T, modality, precursor)


def read_peak(word, modality):
    """Return (place, height) of one peak's text. Raises Rejected."""
    place, colon, height = word.partition(":")
    if colon and modality in NMR:
        raise Rejected(f"{word!r}: a shift has no height here; give ppm alone")
    found = []
    for text in (place, height) if colon else (place,):
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            raise Rejected(f"{text!r} has a decimal comma; write {text.replace(',', '.')}")
        if not NUMBER.fullmatch(text):
            raise Rejected(f"{text[:40]!r} is no number")
        found.append(float(text))
        if not math.isfinite(found[-1]):
            raise Rejected(f"{text!r} is no finite number")
    return (*found, 1.0)[:2]


def checked(places, heights, modality, precursor=math.nan):
    """Return the Spectrum of peaks, sorted. Raises Rejected for what can't be of the modality."""
    order = np.argsort(places, kind="stable")
    places, heights = np.asarray(places, float)[order], np.asarray(heights, float)[order]
    if modality in NMR:
        low, high = POSSIBLE[modality]
        wrong = places[(places < low) | (places > high)]
        if len(wrong):
            other = "; is this a 13C spectrum?" if modality == "nmr1h" else ""
            name = NAMES[modality]
            raise Rejected(f"{wrong[0]:g} ppm is no {name} shift ({low:g} to {high:g}){other}")
        if modality == "nmr1h" and (places > USUAL_1H).mean() > 0.5:
            raise Rejected("most shifts are above 15 ppm; is this a 13C spectrum?")
        if modality == "nmr13c" and len(places) > 3 and places.max() <= USUAL_1H:
            raise Rejected("all shifts are below 15 ppm; is this a 1H spectrum?")
        return Spectrum(places, np.ones(len(places)))
    if places[0] <= 0:
        raise Rejected(f"{places[0]:g} is no m/z; it must be above 0")
    kept = heights > 0
    if not kept.any():
        raise Rejected("no peak has an intensity above 0")
    return Spectrum(places[kept], heights[kept], precursor)


def to_vector(spectrum, modality):
    """Return a Spectrum as an encoder takes it, float32 (vector_width,)."""
    return (nmr_vector if modality in NMR else mass_vector)(spectrum, modality)


def nmr_vector(spectrum, modality):
    """Return each peak as a sharp and a wide bell over the range, and how many there are."""
    low, high = NMR[modality]
    step = (high - low) / BINS
    centres = low + step * np.arange(BINS + 1)
    away = (centres - spectrum.places.clip(low, high)[:, None]) / step
    bells = [np.exp(-((away / width) ** 2) / 2).sum(0) for width in WIDTHS]
    return np.concatenate([*bells, [len(spectrum.places) / PEAKS]]).astype(np.float32)


def mass_vector(spectrum, modality):
    """Return the roots of intensities over m/z and over neutral losses, each of length 1.

    Losses are 0 where the precursor is not known.
    """
    roots = np.sqrt(spectrum.heights / spectrum.heights.max())
    bins = (spectrum.places * PER_UNIT).astype(int)
    inside = bins < MASS_BINS
    peaks = np.bincount(bins[inside], roots[inside], MASS_BINS)
    losses = np.zeros(LOSSES)
    if math.isfinite(spectrum.precursor):
        lost = np.rint(spectrum.precursor - spectrum.places)
        inside = (lost >= 0) & (lost < LOSSES)
        losses = np.bincount(lost[inside].astype(int), roots[inside], LOSSES)
    scaled = [part / max(np.linalg.norm(part), 1e-9) for part in (peaks, losses)]
    return np.concatenate(scaled).astype(np.float32)


def peak_distance(predicted, measured, modality):
    """Return how far two lists of shifts are apart, in ppm; FAR's where one is empty.

    In order where their numbers agree, else from each peak to the nearest of the other list, with
    a fine for each too many or too few.
    """
    far, fine = FAR[modality]
    if not len(predicted) or not len(measured):
        return far
    predicted, measured = np.sort(predicted), np.sort(measured)
    if len(predicted) == len(measured):
        return float(np.minimum(np.abs(predicted - measured), far).mean())
    gaps = np.minimum(np.abs(predicted[:, None] - measured), far)
    both = (gaps.min(1).mean() + gaps.min(0).mean()) / 2
    return float(both + fine * abs(len(predicted) - len(measured)))
