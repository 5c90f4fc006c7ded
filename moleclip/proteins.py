"""Proteins beside molecules: the features of a sequence, and which protein a row has.

A sequence's features are plain: the counts of its amino acids, of pairs of neighbours, and of
triples of seven classes alike in dipole and volume (Shen et al., PNAS 2007, 104, 4337), and its
length, each as log(1 + number).
"""

import hashlib
from functools import lru_cache

import click
import numpy as np

from moleclip.molecules import Rejected

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OTHERS = "BJOUXZ*"  # unknown, ambiguous or rare: a pair or triple with one isn't counted
CLASSES = ("AGV", "ILFP", "YMTS", "HNQW", "RK", "DE", "C")
KMERS = {  # what model.onnx says of features by sequence
    "kind": "kmers",
    "letters": LETTERS,
    "classes": list(CLASSES),
    "order": "length, letters, pairs of letters, triples of classes; the first letter counts least",
    "scale": "log(1 + number)",
    "width": 1 + 20 + 20**2 + 7**3,
}
CLASS_OF = np.array([next(i for i, some in enumerate(CLASSES) if a in some) for a in LETTERS])
SHOWN = 60  # letters of a name in messages


def sequence_features(text):
    """Return the features of a sequence of amino acids, float32 (764,). Raises Rejected.

    Letters of either case; blanks between them don't count.
    """
    letters = "".join(text.split()).upper()
    odd = next((i for i, each in enumerate(letters) if each not in LETTERS + OTHERS), None)
    if odd is not None:
        place = f"at place {odd + 1} of its sequence"
        raise Rejected(f"{letters[odd]!r} {place} stands for no amino acid")
    codes = np.array([LETTERS.find(each) for each in letters], int)
    if not (codes >= 0).any():
        raise Rejected("its sequence is empty" if not letters else "its sequence has no amino acid")
    classes = np.where(codes < 0, -1, CLASS_OF[codes])
    counted = [count_runs(codes, 1, 20), count_runs(codes, 2, 20), count_runs(classes, 3, 7)]
    return np.log1p(np.concatenate([[len(letters)], *counted])).astype(np.float32)


def count_runs(codes, length, kinds):
    """Return how often each run of so many neighbours occurs, int (kinds ** length,).

    codes: (n,), each below `kinds`; runs with one below 0 don't count.
    """
    if len(codes) < length:
        return np.zeros(kinds**length, int)
    runs = np.lib.stride_tricks.sliding_window_view(codes, length)
    runs = runs[(runs >= 0).all(1)]
    return np.bincount(runs @ kinds ** np.arange(length), minlength=kinds**length)


@lru_cache(4096)
def cached_features(text):
    """Return `sequence_features`: a table of pairs has a protein many times."""
    return sequence_features(text)


class Proteins:
    """What a row's protein is given as: found by its name, or made of a sequence in the row.

    column: of the table of molecules; facts: what model.onnx says of the features, KMERS or those
    of embeddings, and the column; known: {name: float32 (width,), or the Rejected that says why it
    has none}, None where the column holds sequences; path, sha256: of the file.
    """

    def __init__(self, column, facts, known=None, path=None):
        self.column, self.facts = column, facts | {"column": column}
        self.known, self.path, self.sha256 = known, path, None
        if path:
            with open(path, "rb") as stream:
                self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    def features_of(self, fields):
        """Return the features of a record's protein, float32 (width,). Raises Rejected."""
        text = fields.get(self.column, "").strip()
        if not text:
            raise Rejected(f"no protein in column {self.column!r}")
        if self.known is None:
            return cached_features(text)
        found = self.known.get(text)
        if found is None:
            raise Rejected(f"protein {text[:SHOWN]!r} is not in {self.path}")
        if isinstance(found, Rejected):
            raise Rejected(f"protein {text[:SHOWN]!r}: {found}")
        return found

    def beside(self, molecule, given):
        """Return a row's Features with its protein's, or the Rejected that says why it can't."""
        if isinstance(given, Rejected):
            return given
        try:
            vector = self.features_of(molecule.fields)
        except Rejected as reason:
            return reason
        return with_protein(given, vector)


def with_protein(given, vector):
    """Return a molecule's Features with a protein's; those without an atom have it, too."""
    hidden = given.hidden and [each._replace(protein=vector) for each in given.hidden]
    return given._replace(protein=vector, hidden=hidden)


def paired(found, proteins):
    """Return Features, or why there are none, each with a protein: a sequence, or its embedding.

    proteins: one for each of `found`. Raises click.ClickException if they aren't.
    """
    if proteins is None or len(proteins) != len(found):
        says = "the model looks at proteins beside molecules"
        raise click.ClickException(f"{says}: give proteins=[...], a sequence for each SMILES")
    pairs = []
    for given, protein in zip(found, proteins):
        try:
            text = isinstance(protein, str)
            vector = cached_features(protein) if text else np.asarray(protein, np.float32)
            pairs.append(given if isinstance(given, Rejected) else with_protein(given, vector))
        except Rejected as reason:
            pairs.append(reason)
    return pairs
