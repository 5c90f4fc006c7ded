"""Molecules and their texts: read from a table, and given to the encoder of texts in passages."""

from itertools import accumulate

import click
import numpy as np
import torch

from moleclip.counted import fit_places
from moleclip.device import autocast, pick_precision
from moleclip.graphs import fragment_counts
from moleclip.molecules import Rejected
from moleclip.pairtable import Pairs, as_pairs, joined
from moleclip.texts import (
    LARGE,
    LONGEST,
    NAMES,
    Vocabulary,
    passage,
    sentences_of,
    text_columns,
    text_of,
)
from moleclip.tokens import TextTokens, padded_tokens

BLOCK, ALIKE = 64, 32  # texts that are embedded at once; of like length in a call of the encoder


def with_texts(path, members, column=None, masked=False):
    """Return ([((molecule, graph), sentences)], {row: why}) of a table's texts.

    masked: the molecule's names, of a table's columns that hold them, don't stand in its texts.
    Raises click.ClickException if no column holds texts, or names where they are to be masked.
    """
    header = list(members[0][0].fields)
    columns, names = text_columns(path, header, column), []
    if masked:
        names = [each for each in header if each.strip().lower() in NAMES]
        if not names:
            says = f"no column of names ({', '.join(NAMES)})"
            raise click.ClickException(f"{path}: {says}; leave --mask-names out")
    results, cut = [], 0
    for molecule, _ in members:
        try:
            text, was_cut = text_of(molecule.fields, columns, names)
        except Rejected as reason:
            results.append(reason)
            continue
        cut += was_cut
        results.append(sentences_of(text))
    if cut:
        click.echo(f"{path}: {cut} texts are cut to their first {LONGEST} words", err=True)
    return joined(path, members, results)


def text_pairs(found):
    """Return the Pairs of [((molecule, graph), sentences)]; those of one text are one group."""
    rows, graphs, given, groups, smiles = as_pairs(found)
    return Pairs(rows, graphs, given, same_text(groups, given), smiles)


def same_text(groups, given):
    """Return groups in which molecules of one text are together, int64 (n,).

    groups: int64 (n,), equal for rows of one molecule; given: the sentences of each.
    """
    texts = np.unique([" ".join(sentences).lower() for sentences in given], return_inverse=True)[1]
    found, before = groups.copy(), None
    while before is None or (found != before).any():
        before = found.copy()
        for kind in (groups, texts):
            least = np.full(kind.max() + 1, len(groups))
            np.minimum.at(least, kind, found)
            found = least[kind]
    return np.unique(found, return_inverse=True)[1]


class TextReader:
    """Texts of pairs as features: what the encoder makes of them, and their words behind it.

    tokens: TextTokens; vocabulary: Vocabulary; words: whether they stand behind; layers: of the
    encoder that learn: where none does, each sentence is embedded once.
    """

    def __init__(self, tokens, vocabulary, words, layers):
        self.tokens, self.vocabulary = tokens, vocabulary
        self.words, self.layers, self.stored = words, layers, None

    @classmethod
    def of(cls, folder, other, texts, words, layers):
        """Return the reader of a folder's tokeniser and of the words of some texts.

        other: facts of a text model that is gone on from, whose words are taken, or None.
        """
        vocabulary = Vocabulary.from_json(other["vocabulary"]) if other else Vocabulary.of(texts)
        return cls(TextTokens(folder), vocabulary, words, layers)

    def facts(self):
        """Return what aligned.pt keeps of it."""
        return {"tokenizer": self.tokens.text, "vocabulary": self.vocabulary.to_json()}

    def embed(self, encoder, texts, device):
        """Return what the encoder makes of texts, float32 (n, width); in bf16 if that is fast."""
        rows = [self.tokens(text) for text in texts]
        order, found = np.argsort([len(row) for row in rows], kind="stable"), []
        dtype = pick_precision("auto", torch.device(device))[0]
        with autocast(torch.device(device), None if dtype == torch.float16 else dtype):
            for part in np.array_split(order, -(-len(order) // ALIKE)):
                tokens = padded_tokens([rows[i] for i in part])
                found.append(encoder(torch.from_numpy(tokens).to(device)))
        return torch.cat(found).float()[torch.from_numpy(np.argsort(order)).to(device)]

    def store(self, encoder, given, device):
        """Embed all sentences, and whole texts, once; given: lists of sentences."""
        every = [text for sentences in given for text in (*sentences, " ".join(sentences))]
        order = np.argsort([len(text) for text in every], kind="stable")
        found = torch.zeros(len(every), encoder.arch["width"])
        with torch.no_grad():
            for part in np.array_split(order, -(-len(order) // BLOCK)):
                vectors = self.embed(encoder, [every[i] for i in part], device)
                found[torch.from_numpy(part)] = vectors.float().cpu()
        ends = list(accumulate(len(sentences) + 1 for sentences in given))
        self.stored = [found[a:b] for a, b in zip([0, *ends], ends)]

    def features(self, encoder, given, places, device, random=None):
        """Return features (n, width and words) of the texts of some pairs, or of passages of them.

        given: the sentences of each of all pairs; random: by which passages are chosen.
        """
        if not self.layers and self.stored is None:
            self.store(encoder, given, device)
        chosen = [np.ones(len(given[i]), bool) for i in places]
        if random is not None:
            chosen = [passage(given[i], random) for i in places]
        texts = [
            " ".join(sentence for sentence, taken in zip(given[i], kept) if taken)
            for i, kept in zip(places, chosen)
        ]
        if self.stored:
            rows = [
                self.stored[i][-1] if kept.all() else self.stored[i][:-1][kept].mean(0)
                for i, kept in zip(places, chosen)
            ]
            found = torch.stack(rows).to(device)
        else:
            found = self.embed(encoder, texts, device)
        if not self.words:
            return found
        words = torch.from_numpy(LARGE * self.vocabulary.vectors(texts))
        return torch.cat([found, words.to(device)], 1)

    def correlate(self, model, pairs, places, known=None):
        """Give a model's words and fragments their places, by some pairs.

        known: what stands beside them, (of molecules (n, out), of texts (n, width)), if anything.
        """
        if known is None:
            widths = model.arch["graph"]["out"], len(model.middle)
            known = [torch.zeros(len(places), width) for width in widths]
        counts = fragment_counts([pairs.graphs[i] for i in places]).astype(np.float32)
        words = self.vocabulary.vectors([" ".join(pairs.given[i]) for i in places])
        sides = torch.from_numpy(counts).add_(1).log_(), torch.from_numpy(words)
        fit_places(model.fragments, model.words, *zip(sides, known))
