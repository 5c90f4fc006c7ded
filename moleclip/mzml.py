"""mzML files, read with the standard library alone.

pyteomics needs psims for them, which looks for a controlled vocabulary on the internet.
"""

import base64
import binascii
import math
import zlib
from xml.etree import ElementTree

import numpy as np

from moleclip.files import one_line
from moleclip.molecules import Rejected
from moleclip.peaktables import Raw, pick_peaks

# Terms of the PSI-MS vocabulary.
LEVEL, TITLE, PROFILE, ION = "MS:1000511", "MS:1000796", "MS:1000128", "MS:1000744"
MZ, INTENSITY = "MS:1000514", "MS:1000515"
KINDS = {"MS:1000521": "<f4", "MS:1000523": "<f8", "MS:1000519": "<i4", "MS:1000522": "<i8"}
PLAIN, ZIPPED = "MS:1000576", "MS:1000574"
MOST = 1 << 28  # bytes of an inflated array


def read_mzml(path, stream, modality):
    """Yield the Raw spectra of a file: of MS level 2 or higher for msms, of level 1 for ei."""
    number, groups, root = 0, {}, None
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            root = element if root is None else root
            kind = element.tag.rpartition("}")[2]
            if event == "end" and kind == "referenceableParamGroup":
                groups[element.get("id")] = terms_of(element, {})
            if event == "end" and kind == "spectrum":
                terms = terms_of(element, groups)
                if (terms.get(LEVEL, "1") != "1") == (modality == "msms"):
                    number += 1
                    yield of_spectrum(element, terms, groups, number)
                element.clear()
    except ElementTree.ParseError as error:
        yield Raw(f"after {number}", problem=f"the file can't be read further ({one_line(error)})")


def children(element, *names):
    """Return the descendants of an element along a path of names."""
    found = [element]
    for name in names:
        found = [each for one in found for each in one if each.tag.rpartition("}")[2] == name]
    return found


def terms_of(element, groups):
    """Return {accession: value} of what an element says of itself, by groups of terms too."""
    terms = {}
    for reference in children(element, "referenceableParamGroupRef"):
        terms |= groups.get(reference.get("ref"), {})
    return terms | {t.get("accession"): t.get("value", "") for t in children(element, "cvParam")}


def of_spectrum(element, terms, groups, number):
    """Return the Raw of one element."""
    name, arrays, precursor = terms.get(TITLE) or element.get("id") or f"{number}", {}, math.nan
    try:
        for array in children(element, "binaryDataArrayList", "binaryDataArray"):
            told = terms_of(array, groups)
            for which in {MZ, INTENSITY} & {*told}:
                arrays[which] = decoded(array, told)
        steps = ("precursorList", "precursor", "selectedIonList", "selectedIon")
        for ion in children(element, *steps):
            precursor = float(terms_of(ion, groups).get(ION, math.nan))
        if {*arrays} != {MZ, INTENSITY}:
            raise Rejected("has not both m/z and intensities")
        if len(arrays[MZ]) != len(arrays[INTENSITY]):
            raise Rejected("a peak has no intensity")
    except (binascii.Error, zlib.error, ValueError) as error:
        return Raw(name, problem=f"not a readable record ({one_line(error)})")
    except Rejected as reason:
        return Raw(name, problem=str(reason))
    peaks = arrays[MZ], arrays[INTENSITY]
    if PROFILE in terms and all(np.isfinite(each).all() for each in peaks):
        peaks = pick_peaks(*peaks)
    return Raw(name, *peaks, precursor)


def decoded(array, told):
    """Return an array's numbers, float64 (n,). Raises Rejected, ValueError, zlib.error."""
    kind = next((KINDS[term] for term in KINDS if term in told), None)
    if kind is None or not {PLAIN, ZIPPED} & {*told}:
        raise Rejected("its arrays are packed in a way that is not read here; use zlib or none")
    text = "".join(each.text or "" for each in children(array, "binary"))
    data = base64.b64decode("".join(text.split()), validate=True)
    if ZIPPED in told:
        inflater = zlib.decompressobj()
        data = inflater.decompress(data, MOST)
        if not inflater.eof:
            raise Rejected("an array is cut off, or too long")
    return np.frombuffer(data, kind).astype(float)
