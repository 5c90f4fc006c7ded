"""Molecules and what belongs to each: the pairs that align.py learns from, and their parts."""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rdkit import rdBase
from tqdm import tqdm

from moleclip.drawing import draw_views
from moleclip.graphs import graph_of
from moleclip.molecules import MAX_ATOMS, Molecule, Rejected, canonical, flat_smiles, read_molecules
from moleclip.peaktables import LISTS
from moleclip.spectra import NMR, PROTON, Spectrum, read_peaks, to_vector
from moleclip.spectrumfiles import read_measured, spectrum_files
from moleclip.splits import named_split
from moleclip.tokens import smiles_views
from moleclip.workers import parallel

COLUMNS = (*LISTS, "spectrum", "spectra")  # that may hold the peaks
PARTS = "split"  # column that says train, val or test
TEST, VALIDATION = 0.2, 0.05  # parts of all molecules
JITTER = {"nmr13c": 0.5, "nmr1h": 0.05}  # ppm: of each peak, in training
LOST = 0.05  # part of the peaks that an augmented spectrum lacks
LOST_MASS = 0.2
SPELLINGS = 5  # of a molecule: its canonical SMILES, and random ones


class Pairs(NamedTuple):
    """What is learned from: one entry for each row that can be used."""

    rows: np.ndarray  # int64 (n,)
    graphs: list  # of Graph
    given: list  # of Spectrum, or of lists: a picture's zlib stream, spellings' tokens, sentences
    groups: np.ndarray  # int64 (n,): equal for rows of one molecule
    smiles: list  # as written

    def __len__(self):
        return len(self.rows)


def find_column(path, header, wanted=None):
    """Return the column that holds the peaks. Raises click.ClickException."""
    if wanted and wanted not in header:
        raise click.ClickException(f"{path}: no column {wanted!r}; it has {', '.join(header)}")
    likely = [name for name in header if name.strip().lower() in COLUMNS]
    if wanted or len(likely) == 1:
        return wanted or likely[0]
    several = f"several columns may hold the peaks ({', '.join(likely)})"
    raise click.ClickException(
        f"{path}: {several if likely else 'no column of peaks'}; name it with --column. "
        f"Columns: {', '.join(header)}"
    )


def read_graphs(path, smiles_column=None, max_atoms=MAX_ATOMS, workers=None, skip=(), **how):
    """Return ([(Molecule, Graph)], {row: why it is left out}) of a file of molecules.

    skip: rows that aren't wanted; how: what else `graph_of` takes.
    """
    molecules = [m for m in read_molecules(path, smiles_column) if m.row not in skip]
    return graphs_of(path, molecules, max_atoms, workers, **how)


def graphs_of(path, molecules, max_atoms=MAX_ATOMS, workers=None, **how):
    """Return ([(Molecule, Graph)], {row: why it is left out}) of a list of Molecule of a path."""
    results = parallel(graph_of, molecules, workers, max_atoms=max_atoms, **how)
    bar = tqdm(results, total=len(molecules), unit=" molecules", desc="graphs", disable=None)
    return sorted_out(path, bar)


def sorted_out(path, results):
    """Return ([(molecule, result)], {row: why}) of results, some Rejected.

    Raises click.ClickException if none can be used.
    """
    kept, reasons = [], {}
    for molecule, result in results:
        if isinstance(result, Rejected):
            reasons[molecule.row] = str(result)
        else:
            kept.append((molecule, result))
    if not kept:
        row, why = next(iter(reasons.items()), (0, "there is none"))
        raise click.ClickException(f"{path}: no row can be used; row {row}: {why}")
    return kept, reasons


def with_spectra(path, members, modality, column=None):
    """Return ([((molecule, graph), Spectrum)], {row: why}) of a table's cells.

    Raises click.ClickException if no column holds peaks, or none can be read.
    """
    header = list(members[0][0].fields)
    if not header:
        raise click.ClickException(f"{path}: {modality} needs a table with a column of peaks")
    column = find_column(path, header, column)
    return joined(path, members, (spectrum_of(*pair, modality, column) for pair in members))


def joined(path, members, results):
    """Return ([((molecule, graph), result)], {row: why}) of results, one for each member."""
    graphs = {molecule.row: graph for molecule, graph in members}
    good, reasons = sorted_out(path, ((m, result) for (m, _), result in zip(members, results)))
    return [((molecule, graphs[molecule.row]), found) for molecule, found in good], reasons


def spectrum_of(molecule, graph, modality, column):
    """Return the Spectrum of a table's cell, its precursor [M+H]+ or M+., or the Rejected."""
    try:
        return read_peaks(molecule.fields[column], modality, precursor_of(graph, modality))
    except Rejected as reason:
        return reason


def with_measured(path, modality, max_atoms=MAX_ATOMS, workers=None):
    """Return ([((molecule, graph), Spectrum)], {row: why}) of a folder's files of spectra.

    The spectra of all files are counted as rows, in the order of the files' names; each has to name
    its molecule by a SMILES. A precursor that a record lacks follows from the molecule.
    """
    spectra, molecules = [], []
    for file in spectrum_files(path):
        for name, found, smiles in read_measured(file, modality):
            problem = "" if smiles else f"{file}: {name} has no SMILES"
            problem = f"{file}: {name}: {found}" if isinstance(found, Rejected) else problem
            molecules.append(Molecule(len(spectra), 0, smiles, name, problem=problem))
            spectra.append(found)
    members, reasons = graphs_of(path, molecules, max_atoms, workers)
    good = []
    for molecule, graph in members:
        spectrum = spectra[molecule.row]
        if math.isnan(spectrum.precursor):
            spectrum = spectrum._replace(precursor=precursor_of(graph, modality))
        good.append(((molecule, graph), spectrum))
    return good, reasons


def folder_facts(path):
    """Return {"input": a folder's name, "sha256": of its files of spectra, names and bytes}."""
    digest = hashlib.sha256()
    for file in spectrum_files(path):
        digest.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes())
    return {"input": Path(path).name, "sha256": digest.hexdigest()}


def precursor_of(graph, modality):
    """Return the m/z of a molecule's ion: [M+H]+ in MS/MS, else M+., in u."""
    return graph.mass + (PROTON if modality == "msms" else 0)


def with_drawings(path, members, max_atoms=MAX_ATOMS, workers=None):
    """Return ([((molecule, graph), [zlib stream of its plain drawing])], {row: why})."""
    return made_of(path, members, draw_views, "drawings", workers, max_atoms=max_atoms)


def with_spellings(path, members, max_atoms=MAX_ATOMS, workers=None):
    """Return ([((molecule, graph), token numbers of its spellings)], {row: why})."""
    how = {"views": SPELLINGS, "max_atoms": max_atoms}
    return made_of(path, members, smiles_views, "spellings", workers, **how)


def made_of(path, members, function, what, workers, **how):
    """Return ([((molecule, graph), result)], {row: why}) of a task of `parallel`."""
    results = parallel(function, [molecule for molecule, _ in members], workers, **how)
    bar = tqdm(results, total=len(members), unit=" molecules", desc=what, disable=None)
    return joined(path, members, (result for _, result in bar))


def with_predicted(path, members, predicted, modality):
    """Return ([((molecule, graph), Spectrum)], {row: why}) of predicted shifts.

    predicted: a list of arrays in ppm.
    """
    found = [
        Spectrum(np.sort(shifts.clip(*NMR[modality])), np.ones(len(shifts)))
        if len(shifts)
        else Rejected("has no such atoms")
        for shifts in predicted
    ]
    return joined(path, members, found)


def as_pairs(found):
    """Return the Pairs of [((molecule, graph), what is given of it)]."""
    members, given = zip(*found)
    molecules, graphs = zip(*members)
    with rdBase.BlockLogs():
        names = [canonical(molecule.smiles) for molecule in molecules]
    groups = np.unique(names, return_inverse=True)[1]
    rows = np.array([molecule.row for molecule in molecules])
    smiles = [molecule.smiles for molecule in molecules]
    return Pairs(rows, list(graphs), list(given), groups, smiles)


def split_pairs(pairs, kind, seed):
    """Return {"train", "val", "test": int64 places among the pairs}: 75, 5 and 20% of molecules.

    kind: random, where rows of one molecule stay together, or skeleton, where all that differ in
    stereochemistry or isotopes alone do.
    """
    groups = pairs.groups
    if kind == "skeleton":
        names = [flat_smiles(row, text, 10**6) for row, text in zip(pairs.rows, pairs.smiles)]
        groups = np.unique(names, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    test, held = (math.ceil(part * len(order)) for part in (TEST, TEST + VALIDATION))
    of = {"test": order[:test], "val": order[test:held], "train": order[held:]}
    return {part: np.flatnonzero(np.isin(groups, members)) for part, members in of.items()}


def named_parts(path, smiles_column, pairs):
    """Return {"train", "val", "test": int64 places among the pairs} as a column of parts says.

    Raises click.ClickException.
    """
    words = {m.row: m.fields.get(PARTS) for m in read_molecules(path, smiles_column)}
    if None in words.values():
        raise click.ClickException(f"{path}: --split column: it has no column {PARTS!r}")
    found = named_split(pairs.rows.tolist(), words, f"{path}: column {PARTS!r}")
    return {
        part: np.flatnonzero(np.isin(pairs.rows, rows))
        for part, rows in zip(("train", "val", "test"), found)
    }


def augmented(spectrum, modality, random, jitter=1.0):
    """Return a Spectrum as another measurement might have it: peaks moved a little, some lost.

    jitter: of NMR's peaks, in units of JITTER.
    """
    nmr, count = modality in NMR, len(spectrum.places)
    kept = random.random(count) >= (LOST if nmr else LOST_MASS)
    kept[random.integers(count)] = True
    places, heights = spectrum.places[kept], spectrum.heights[kept]
    if nmr:
        moved = places + random.normal(0, jitter * JITTER[modality], len(places))
        return Spectrum(np.sort(moved), heights)
    return Spectrum(places, heights * random.lognormal(0, 0.3, len(places)), spectrum.precursor)


def vectors_of(spectra, modality):
    """Return the vectors of a list of Spectrum, float32 (n, vector_width)."""
    return np.stack([to_vector(spectrum, modality) for spectrum in spectra])
