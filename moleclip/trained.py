"""What an exported file tells of its training molecules, by the table beside a run."""

import csv
from contextlib import suppress

import numpy as np
import torch
from rdkit import Chem
from tqdm import tqdm

from moleclip.deploy import as_tensors
from moleclip.embeddingmap import principal_axes
from moleclip.familiar import DRAWINGS, flat_of
from moleclip.features import featurize, pack_fingerprint
from moleclip.files import ROOT
from moleclip.molecules import Rejected, read_molecules
from moleclip.workers import try_item

MAX_FINGERPRINTS = 10_000  # training molecules; each takes some 90 bytes in the file
MAPPED = 1000  # training molecules that the map shows, at most; each is embedded for it
AT_ONCE = 16  # of like ink: on a CPU they stay in its cache


def table_beside(path):
    """Return the rows of the predictions.csv beside a model.pt as dicts, [] if it can't be read."""
    path, coding = path.with_name("predictions.csv"), {"encoding": "utf-8", "newline": ""}
    try:
        with open(path, errors="surrogateescape", **coding) as stream:
            return [line for line in csv.DictReader(stream) if line.get("smiles")]
    except (OSError, csv.Error):
        return []


def training_fingerprints(tables, parts=("train",)):
    """Return (fingerprints, number of molecules) of the training rows of the runs, or (None, 0).

    parts: of the split, that were learned from.

    fingerprints: the distinct ones of MAX_FINGERPRINTS molecules at most, uint8 (n, 256). An
    ensemble's are of what any member has seen.
    """
    kept, count = trained_smiles(tables, parts, MAX_FINGERPRINTS)
    bar = tqdm(kept, desc="fingerprints", disable=None, leave=False)
    molecules = [Chem.MolFromSmiles(text) for text in bar]
    packed = [pack_fingerprint(molecule) for molecule in molecules if molecule is not None]
    return (np.unique(np.stack(packed), axis=0), count) if packed else (None, 0)


def trained_smiles(tables, parts, most):
    """Return (training molecules, sorted, at most so many by chance; how many there are)."""
    trained = (line for table in tables for line in table if line.get("split") in parts)
    smiles = sorted({line["smiles"] for line in trained})
    chosen = np.random.default_rng(0).permutation(len(smiles))[:most]
    return [smiles[i] for i in np.sort(chosen)], len(smiles)


def training_means(table, checkpoint, parts):
    """Return the mean label of each target over a run's training rows, None if one has none.

    A class counts as 0 or 1; what is only known to be above or below something doesn't count.
    """
    targets, known = checkpoint["targets"], []
    for name, words in zip(targets, checkpoint.get("classes") or [[]] * len(targets)):
        values = []
        for line in table:
            text = line.get(f"true_{name}") or ""
            if line.get("split") in parts:
                with suppress(ValueError):
                    values.append(words.index(text) if text in (words or []) else float(text))
        known.append(float(np.mean(values)) if values else None)
    return known if None not in known else None


def training_map(deployed, tables, parts, drawn):
    """Return the text of a map of the training molecules, or None without any, or an embedding.

    Of more than MAPPED it holds so many, chosen at random. drawn: how they have to be drawn.
    """
    smiles, _ = trained_smiles(tables, parts, MAPPED)
    if "embedding" not in deployed.names or len(smiles) < 3:
        return None
    how = {name: drawn[name] for name in ("max_atoms", "r_groups") if name in drawn}
    how |= {"counts": True, "graph": True, "drawn": "images" in deployed.inputs}
    return principal_axes(embedded(deployed, smiles, how, "map"))


def known_drawings(deployed):
    """Return the text of where drawings of ChEMBL's molecules lie, None if it takes no pictures."""
    if "embedding" not in deployed.names or not {*deployed.inputs} <= {"images", "fingerprint"}:
        return None
    every = [each.smiles for each in read_molecules(str(ROOT / "data" / "chembl_3000.smi"))]
    chosen = every[:: max(1, len(every) // DRAWINGS)]
    return flat_of(embedded(deployed, chosen, {"counts": True}, "drawings"))


@torch.no_grad()
def embedded(deployed, smiles, how, title):
    """Return the embeddings of molecules that can be drawn, float32 (n, width).

    how: options of `featurize`; title: of the progress bar.
    """
    patch = deployed.encoders[0].facts().get("patch", 0)
    given = [
        try_item(featurize, row, text, "", how | {"patch": patch})
        for row, text in enumerate(smiles)
    ]
    given = [each for each in given if not isinstance(each, Rejected)]
    order = np.argsort([each.ink[0] for each in given], kind="stable")  # of like ink at once
    found, bar = [], tqdm(total=len(given), desc=title, disable=None, leave=False)
    for start in range(0, len(given), AT_ONCE):
        part = [given[i] for i in order[start : start + AT_ONCE]]
        tensors = dict(zip(deployed.inputs, as_tensors(deployed, part)))
        found.append(deployed.encoders[0].embed(tensors).float().numpy())
        bar.update(len(part))
    bar.close()
    return np.concatenate(found)[np.argsort(order)]
