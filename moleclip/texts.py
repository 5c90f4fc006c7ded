"""Texts about molecules: read, cut into sentences, and as weights of the words in them."""

import json
import math
import re
from collections import Counter

import click
import numpy as np

from moleclip.molecules import Rejected

COLUMNS = ("text", "texts", "description", "descriptions", "caption", "captions", "abstract")
NAMES = ("name", "names", "synonyms", "iupac_name")  # columns of what a molecule is called
LONGEST = 1000  # words; what is longer is cut
WORD = re.compile(r"[a-z]+|\d+")
# fmt: off
EMPTY = {
    "the", "molecule", "is", "a", "an", "it", "of", "and", "that", "has", "in", "as", "by", "to",
    "from",
}
# fmt: on
LARGE = 10.0  # times a row of `vectors` a model is given: fragments' rows are so much longer
TERMS = 6000  # words and pairs of words that are looked at, at most
RARE = 2  # texts at least that a term stands in
FEW = 0.5  # part of a text's words: with fewer that are known, an answer means little


def read_text(raw):
    """Return (text, whether it was cut) of what stands in a cell or on the command line.

    In one line, without control characters, at most LONGEST words. Raises Rejected.
    """
    raw = str(raw).encode("utf-8", "replace").decode()
    words = "".join(letter if letter.isprintable() else " " for letter in raw).split()
    if not any(letter.isalpha() for word in words for letter in word):
        raise Rejected("no text")
    return " ".join(words[:LONGEST]), len(words) > LONGEST


def sentences_of(text):
    """Return the sentences of a text, a list; a text has at least one."""
    return re.split(r"(?<=[.!?])\s+(?=[^a-z\s])", text)


def passage(sentences, random):
    """Return which sentences of a text are taken, bool (n,): at least one, from few to all."""
    kept = random.random(len(sentences)) < random.random()
    kept[random.integers(len(sentences))] = True
    return kept


def without_names(text, names):
    """Return a text in which the molecule isn't called by its names, a list, longest first."""
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "the molecule", text, flags=re.I)
    return text


def text_columns(path, header, wanted=None):
    """Return the columns of a table that hold texts, a list. Raises click.ClickException."""
    if wanted is not None and wanted not in header:
        raise click.ClickException(f"{path}: no column {wanted!r}; it has {', '.join(header)}")
    found = [wanted] if wanted else [n for n in header if n.strip().lower() in COLUMNS]
    if not found:
        has = f"it has {', '.join(header)}" if header else "it is no table"
        raise click.ClickException(
            f"{path}: no column of texts, called {', '.join(COLUMNS[:3])} or so; {has}. "
            "Name it with --column"
        )
    return found


def text_of(fields, columns, names=()):
    """Return (text, whether it was cut) of a row's cells. Raises Rejected.

    names: columns of what the molecule is called, where that is to be masked.
    """
    cells = [fields[column].strip() for column in columns]
    cells = [cell if cell.endswith((".", "!", "?")) else f"{cell}." for cell in cells if cell]
    text, was_cut = read_text(" ".join(cells))
    called = [name.strip() for column in names for name in fields[column].split(";")]
    return without_names(text, called), was_cut


def terms_of(text):
    """Return the words of a text, and the pairs of neighbours, a list."""
    words = [word for word in WORD.findall(text.lower()) if word not in EMPTY]
    return words + [f"{one} {other}" for one, other in zip(words, words[1:])]


class Vocabulary:
    """The terms of some texts, and how much each says: TF-IDF, tf as 1 + ln(tf).

    terms: list of str; weights: float32 (terms,), ln((1 + n) / (1 + texts with it)) + 1.
    """

    def __init__(self, terms, weights):
        self.terms, self.weights = list(terms), np.asarray(weights, np.float32)
        self.places = {term: i for i, term in enumerate(self.terms)}

    @classmethod
    def of(cls, texts, most=TERMS):
        """Return the Vocabulary of a list of texts: the terms that stand in most of them."""
        found = Counter(term for text in texts for term in set(terms_of(text)))
        least = min(RARE, max(found.values(), default=0))
        kept = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:most]
        kept = [(term, count) for term, count in kept if count >= least]
        weights = [math.log((1 + len(texts)) / (1 + count)) + 1 for _, count in kept]
        return cls([term for term, _ in kept], weights)

    def vectors(self, texts):
        """Return the weights of a list of texts, float32 (n, terms), rows of length 1 or 0."""
        rows = np.zeros((len(texts), len(self.terms)), np.float32)
        for row, text in zip(rows, texts):
            for term, count in Counter(terms_of(text)).items():
                if term in self.places:
                    row[self.places[term]] = 1 + math.log(count)
        rows *= self.weights
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    def doubt(self, text):
        """Return why an answer to a text means little, or ""."""
        words = [word for word in WORD.findall(text.lower()) if word not in EMPTY]
        known = sum(word in self.places for word in words)
        if words and known >= FEW * len(words):
            return ""
        return (
            f"of its {len(words)} words the model knows {known}: the hits mean little; "
            "is it of another language, or another subject?"
        )

    def to_json(self):
        """Return it as text."""
        weights = [round(float(weight), 5) for weight in self.weights]
        return json.dumps({"terms": self.terms, "weights": weights})

    @classmethod
    def from_json(cls, text):
        """Return the Vocabulary of a text. Raises ValueError, KeyError, TypeError."""
        facts = json.loads(text)
        if len(facts["terms"]) != len(facts["weights"]):
            raise ValueError("as many weights as terms")
        return cls(facts["terms"], facts["weights"])
