"""aligned.onnx: its contract, written and read here alone, and both encoders ready to run.

Inputs of the graph encoder: the fields of Graphs. Of the other modality's: `spectrum`, float32
(queries, vector_width), `images`, uint8 (queries, 224, 224, 3), or `tokens`, int64 (queries,
tokens). Of texts also `words`, float32 (queries, terms), and `fragments`, uint8 (molecules,
FRAGMENTS), where what is counted stands beside. All have to be fed. Outputs `molecule` and `query`,
float32 (n, dim), whose inner product is a score; `shifts`, float32 (atoms, 2), of 13C and 1H in
ppm, where those were learned. Metadata: facts in JSON; of texts the tokeniser and the vocabulary.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.files import one_line
from moleclip.graphs import BLANK, fragment_counts, join
from moleclip.onnxfacts import FACTS as OF_MODELS
from moleclip.onnxfacts import check_format
from moleclip.pixels import SIZE
from moleclip.session import open_session
from moleclip.spectra import MODALITIES, NAMES, NMR, peak_distance, to_vector, vector_width
from moleclip.texts import LARGE, Vocabulary
from moleclip.tokens import TextTokens, padded_tokens, smiles_tokens

FORMAT = 1  # newest format of metadata that this version understands
FACTS = "moleclip_aligned"  # name of the metadata
TOKENIZER, VOCABULARY = "moleclip_tokenizer", "moleclip_vocabulary"  # of a model of texts
PICTURE, SMILES, TEXT = "picture", "smiles", "text"
UNLIKE = 5  # per cent of the right molecules score less: below that even the best hit is unlike
BATCH, TEXTS = 256, 32  # graphs, and texts, in one call


def aligned_props(facts, texts=None):
    """Return the metadata of an aligned.onnx, {name: text}, from plain facts: see `read_facts`.

    texts: {"tokenizer", "vocabulary"}, each as text, of a model of texts.
    """
    props = {FACTS: json.dumps({"format": FORMAT} | facts)}
    if texts:
        props |= {TOKENIZER: texts["tokenizer"], VOCABULARY: texts["vocabulary"]}
    return props


def read_facts(path, session):
    """Return the facts of an opened aligned.onnx, a dict.

    modality, dim, max_atoms; contrast, versions, training, for people; match_weight: what a ppm of
    `peak_distance` takes off a score, 0 if peaks don't count; true_scores: of the right molecules
    in validation, ascending; beside: of texts, what stands beside the encoders; longest: tokens
    that are read. Raises click.ClickException for any other file.
    """
    props = session.get_modelmeta().custom_metadata_map
    if FACTS not in props:
        other = "a model.onnx, made for predict.py" if OF_MODELS in props else "no aligned.onnx"
        raise click.ClickException(
            f"{path}: is {other}; make one with: python export.py aligned.pt"
        )
    try:
        facts = json.loads(props[FACTS])
        check_format(path, facts, FORMAT)
        facts["match_weight"] = float(facts.get("match_weight") or 0)
        facts["true_scores"] = sorted(map(float, facts.get("true_scores") or []))
        facts["beside"] = list(facts.get("beside") or [])
        whole = type(facts["dim"]) is type(facts["max_atoms"]) is int
        if not whole or facts["modality"] not in MODALITIES:
            raise ValueError
    except (TypeError, ValueError, KeyError, AttributeError):
        raise click.ClickException(
            f"{path}: its metadata {FACTS!r} is damaged or not export.py's; export it again"
        ) from None
    check_signature(path, session, facts)
    return facts


def check_signature(path, session, facts):
    """Raise click.ClickException if a model has not the inputs and outputs that its facts say."""
    wanted = {"atoms", "bonds", "kinds", "owner", "counts", query_input(facts["modality"])}
    wanted |= {"fragments", "words"} if facts["beside"] else set()
    shapes = {given.name: given.shape for given in [*session.get_inputs(), *session.get_outputs()]}
    missing = sorted({*wanted, "molecule", "query"} - {*shapes})
    if missing or {given.name for given in session.get_inputs()} != wanted:
        lacks = f"lacks {', '.join(missing)}" if missing else "has inputs that nobody knows"
        raise click.ClickException(f"{path}: {lacks}; export it again with export.py")
    kind = facts["modality"]
    given = shapes[query_input(kind)][1]
    width = given  # any number of tokens
    if kind not in (SMILES, TEXT):
        width = blank_query(kind).shape[1]
    if [given, shapes["molecule"][1]] != [width, facts["dim"]]:
        raise click.ClickException(
            f"{path}: its inputs or outputs have other widths than this moleclip's; export it again"
        )


def query_input(modality):
    """Return the name of a modality's input."""
    return {PICTURE: "images", SMILES: "tokens", TEXT: "tokens"}.get(modality, "spectrum")


def blank_query(modality):
    """Return a query that says nothing, as the model takes it."""
    if modality == PICTURE:
        return np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    if modality in (SMILES, TEXT):
        return padded_tokens([[1, 1]])
    return np.zeros((1, vector_width(modality)), np.float32)


class AlignedModel:
    """An aligned.onnx, ready to run.

    facts: see `read_facts`; modality, dim, max_atoms, match_weight of them; predicts_shifts:
    whether `embed_molecules` gives shifts; title: the modality's name; sha256: the file's;
    device: "CPU" or "CUDA"; notice: why it runs where it runs, or "". Raises click.ClickException.
    """

    def __init__(self, path, provider="auto"):
        if not Path(path).is_file():
            raise click.ClickException(
                f"{path}: no such file; make it with: python export.py aligned.pt -o aligned.onnx"
            )
        self.session, self.notice = open_session(path, provider)
        self.path, self.facts = path, read_facts(path, self.session)
        self.modality, self.dim = self.facts["modality"], self.facts["dim"]
        self.max_atoms, self.match_weight = self.facts["max_atoms"], self.facts["match_weight"]
        self.title = NAMES.get(self.modality, self.modality)
        outputs = {output.name for output in self.session.get_outputs()}
        self.predicts_shifts = "shifts" in outputs and self.modality in NMR
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        if self.modality == TEXT:
            self.tokens, self.vocabulary = self.read_texts()
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    def read_texts(self):
        """Return (TextTokens, Vocabulary) of the metadata. Raises click.ClickException."""
        props = self.session.get_modelmeta().custom_metadata_map
        try:
            vocabulary = Vocabulary.from_json(props[VOCABULARY])
            return TextTokens(self.path, props[TOKENIZER], int(self.facts["longest"])), vocabulary
        except (TypeError, ValueError, KeyError):
            raise click.ClickException(
                f"{self.path}: its tokeniser or vocabulary is missing or damaged; export it again"
            ) from None

    @property
    def takes(self):
        """What `graph_of` has to be told, a dict."""
        counted = {"fragments": True} if self.facts["beside"] else {}
        return {"max_atoms": self.max_atoms} | counted

    def run(self, outputs, graphs, query, words=None):
        """Return the named outputs of a list of Graph and of a query, as the model takes it.

        words: of texts, as `Vocabulary.vectors` gives them, where the model takes any.
        """
        given = join(graphs)._asdict() | {query_input(self.modality): query}
        if self.facts["beside"]:
            blank = np.zeros((len(query), len(self.vocabulary.terms)), np.float32)
            given["words"] = blank if words is None else words
            given["fragments"] = fragment_counts(graphs)
        options = onnxruntime.RunOptions()
        with suppress(AttributeError):  # the other side's encoder is spared
            options.only_execute_path_to_fetches = True
        try:
            return self.session.run(outputs, given, options)
        except Exception as error:  # onnxruntime's own kinds share no base class
            raise click.ClickException(
                f"{self.path}: the model failed while it ran ({one_line(error)})"
            ) from None

    def embed_molecules(self, graphs):
        """Return (embeddings, shifts) of a list of Graph, BATCH at a time.

        embeddings: float32 (n, dim). shifts: of each molecule those predicted of the atoms of
        `alike`, float32 (classes,), in ppm; None if the model predicts none.
        """
        embeddings, shifts = [np.zeros((0, self.dim), np.float32)], []
        outputs = ["molecule"] + ["shifts"] * self.predicts_shifts
        for start in range(0, len(graphs), BATCH):
            some = graphs[start : start + BATCH]
            found, *told = self.run(outputs, some, blank_query(self.modality))
            embeddings.append(found)
            starts = np.cumsum([0, *(len(graph.atoms) for graph in some)])
            for graph, first in zip(some, starts) if told else ():
                atoms = first + graph.alike(self.modality)
                shifts.append(told[0][atoms, list(NMR).index(self.modality)])
        return np.concatenate(embeddings), shifts if self.predicts_shifts else None

    def embed_query(self, given):
        """Return the embedding (dim,) of a Spectrum, a picture (224, 224, 3), SMILES or text."""
        if self.modality == TEXT:
            return self.embed_texts([given])[0]
        if self.modality == SMILES:
            query = padded_tokens([smiles_tokens(given)])
        else:
            query = (given if self.modality == PICTURE else to_vector(given, self.modality))[None]
        return self.run(["query"], [BLANK], query)[0][0]

    def embed_texts(self, texts):
        """Return the embeddings of a list of texts, float32 (n, dim), by a model of texts."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = np.zeros((len(texts), self.dim), np.float32)
        for part in np.array_split(order, -(-len(order) // TEXTS)):
            some = [texts[i] for i in part]
            words = LARGE * self.vocabulary.vectors(some)
            tokens = padded_tokens([self.tokens(text) for text in some])
            found[part] = self.run(["query"], [BLANK], tokens, words)[0]
        return found

    def final_scores(self, products, shifts, spectrum):
        """Return the scores of molecules, float64 (n,), as they are ranked and calibrated.

        products: of embeddings, (n,); shifts: what is predicted of each, or None; spectrum: the
        measured one, or None.
        """
        products = np.asarray(products, float)
        if not self.match_weight or shifts is None or spectrum is None:
            return products
        away = [peak_distance(each, spectrum.places, self.modality) for each in shifts]
        return products - self.match_weight * np.array(away)

    def least_likely(self):
        """Return the score that all but UNLIKE per cent of right molecules reach, or None."""
        scores = self.facts["true_scores"]
        return float(np.percentile(scores, UNLIKE)) if scores else None
