"""Texts: what is read of them, and how words weigh."""

import numpy as np
import pytest

from moleclip.molecules import Rejected
from moleclip.texts import LONGEST, Vocabulary, passage, read_text, sentences_of, without_names


def test_what_is_read_of_a_text():
    assert read_text(" An  acid\x00\n with <b>one</b>\tring. ") == (
        "An acid with <b>one</b> ring.",
        False,
    )
    long, cut = read_text("word " * 10000)
    assert cut and len(long.split()) == LONGEST
    for nothing in ("", " \x07\n", "12 - 3"):
        with pytest.raises(Rejected, match="no text"):
            read_text(nothing)
    text = "It is an acid. It has 1.5 rings, i.e. few. (It is new.)"
    assert sentences_of(text) == ["It is an acid.", "It has 1.5 rings, i.e. few.", "(It is new.)"]
    named = "Aspirin, or acetylsalicylic acid (ASPIRIN), not aspirin-d4, is sold."
    masked = "the molecule, or the molecule (the molecule), not aspirin-d4, is sold."
    assert without_names(named, ["aspirin", "", "acetylsalicylic acid"]) == masked
    random = np.random.default_rng(0)
    kept = np.array([passage(["a", "b", "c"], random) for _ in range(300)])
    assert kept.any(1).all() and kept.all(1).any() and (kept.sum(1) == 1).any()


def test_words_weigh_by_how_rare_they_are():
    vocabulary = Vocabulary.of(["an acid ring", "The acid", "the ring, ring", "unique acid"])
    assert vocabulary.terms == ["acid", "ring"]
    row = vocabulary.vectors(["Ring ring acid acid-ring?"])[0]
    acid, ring = (1 + np.log(2)) * (np.log(5 / 4) + 1), (1 + np.log(3)) * (np.log(5 / 3) + 1)
    assert row == pytest.approx(np.array([acid, ring]) / np.hypot(acid, ring), rel=1e-5)
    assert not vocabulary.vectors(["nothing known"]).any()
    assert vocabulary.doubt("an acid ring") == "" and "of its 3 words" in vocabulary.doubt(
        "un az zu"
    )
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.terms == vocabulary.terms and again.weights == pytest.approx(
        vocabulary.weights, abs=1e-5
    )
