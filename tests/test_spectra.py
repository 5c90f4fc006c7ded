"""Spectra as vectors and as lists: what is a spectrum, and how alike two are."""

import math

import numpy as np
import pytest

from moleclip.molecules import Rejected
from moleclip.spectra import (
    BINS,
    MASS_BINS,
    SPECTRA,
    peak_distance,
    read_peaks,
    to_vector,
    vector_width,
)


@pytest.mark.parametrize("text", ["20.6 170.5", "170.5, 20.6", "20.6;170.5", "20.6\n170.5,"])
def test_shifts_in_any_order(text):
    spectrum = read_peaks(text, "nmr13c")
    assert spectrum.places.tolist() == [20.6, 170.5] and spectrum.heights.tolist() == [1, 1]
    assert math.isnan(spectrum.precursor)


def test_masses_have_heights():
    spectrum = read_peaks("55.05:10 43.02:999 60", "msms", 153.09)
    assert spectrum.places.tolist() == [43.02, 55.05, 60]
    assert spectrum.heights.tolist() == [999, 10, 1] and spectrum.precursor == 153.09
    assert read_peaks("43:0 55:1", "ei").places.tolist() == [55]


@pytest.mark.parametrize(
    "text, modality, says",
    [
        ("", "nmr13c", "no peaks"),
        (" ; , ", "ei", "no"),
        ("20,6", "nmr13c", "'20,6' has a decimal comma; write 20.6"),
        ("128.5 7.2", "nmr1h", "128.5 ppm is no 1H NMR shift (-50 to 30); is this a 13C spectrum?"),
        ("20.5 21 7", "nmr1h", "most shifts are above 15 ppm; is this a 13C spectrum?"),
        ("500", "nmr13c", "500 ppm is no 13C NMR shift (-300 to 400)"),
        ("1.2 3.6 7.1 7.3", "nmr13c", "all shifts are below 15 ppm; is this a 1H spectrum?"),
        ("20:5", "nmr13c", "'20:5': a shift has no height here; give ppm alone"),
        ("43:0 55:-1", "ei", "no peak has an intensity above 0"),
        ("-43:5", "msms", "-43 is no m/z; it must be above 0"),
        ("1_0", "nmr13c", "'1_0' is no number"),
        ("1e999", "nmr13c", "'1e999' is no finite number"),
        ("43:", "msms", "'' is no number"),
        ("4\0", "msms", "'4\\x00' is no number"),
    ],
)
def test_what_is_no_spectrum_says_why(text, modality, says):
    with pytest.raises(Rejected) as reason:
        read_peaks(text, modality)
    assert says in str(reason.value)


@pytest.mark.parametrize("modality", SPECTRA)
def test_a_vector_has_its_width(modality):
    spectrum = read_peaks("1.5 2.5 90" if modality != "nmr1h" else "1.5 2.5", modality)
    vector = to_vector(spectrum, modality)
    assert vector.shape == (vector_width(modality),) and vector.dtype == np.float32
    assert np.isfinite(vector).all() and vector.any()


def test_a_shift_stands_where_it_is():
    vector = to_vector(read_peaks("80", "nmr13c"), "nmr13c")
    sharp, wide, count = np.split(vector, [BINS + 1, 2 * BINS + 2])
    assert sharp.argmax() == wide.argmax() == 100 and sharp.max() == 1  # -20 ppm is bin 0
    assert sharp[102] < wide[102] and count == pytest.approx(1 / 20)
    beyond = to_vector(read_peaks("300", "nmr13c"), "nmr13c")  # the last bin takes it in
    assert beyond[: BINS + 1].argmax() == BINS and beyond[BINS] == 1


def test_losses_need_a_precursor():
    known = to_vector(read_peaks("43:1 135:1", "msms", 153.1), "msms")
    unknown = to_vector(read_peaks("43:1 135:1", "msms"), "msms")
    assert np.array_equal(known[:MASS_BINS], unknown[:MASS_BINS])
    assert np.flatnonzero(known[:MASS_BINS]).tolist() == [86, 270]
    assert np.flatnonzero(known[MASS_BINS:]).tolist() == [18, 110] and not unknown[MASS_BINS:].any()
    assert np.isfinite(to_vector(read_peaks("99999:1", "ei"), "ei")).all()


@pytest.mark.parametrize(
    "predicted, measured, distance",
    [
        ([10, 20], [20, 10], 0),
        ([10, 20], [11, 23], 2),
        ([10, 200], [10, 20], 7.5),  # no peak costs more than 15
        ([], [10], 15),
        ([10, 20], [10], (10 / 2 + 0) / 2 + 0.15),
    ],
)
def test_peaks_that_are_apart(predicted, measured, distance):
    given = [np.array(each, float) for each in (predicted, measured)]
    assert peak_distance(*given, "nmr13c") == pytest.approx(distance)
    assert peak_distance(*given[::-1], "nmr13c") == pytest.approx(distance)
