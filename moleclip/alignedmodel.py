"""aligned.onnx: its contract, written and read here alone, and both encoders ready to run.

Inputs of the graph encoder: the fields of Graphs. Of the other modality's: `spectrum`, float32
(queries, vector_width), or `images`, uint8 (queries, 224, 224, 3). All have to be fed. Outputs
`molecule` and `query`, float32 (n, dim), whose inner product is a score; `shifts`, float32 (atoms,
2), of 13C and 1H in ppm, where those were learned. One text of metadata: facts in JSON.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.files import one_line
from moleclip.graphs import BLANK, join
from moleclip.onnxfacts import FACTS as OF_MODELS
from moleclip.onnxfacts import check_format
from moleclip.pixels import SIZE
from moleclip.session import open_session
from moleclip.spectra import MODALITIES, NAMES, NMR, peak_distance, to_vector, vector_width
from moleclip.tokens import padded_tokens, smiles_tokens

FORMAT = 1  # newest format of metadata that this version understands
FACTS = "moleclip_aligned"  # name of the metadata
PICTURE, SMILES = "picture", "smiles"
UNLIKE = 5  # per cent of the right molecules score less: below that even the best hit is unlike
BATCH = 256  # graphs in one call


def aligned_props(facts):
    """Return the metadata of an aligned.onnx, {name: text}, from plain facts: see `read_facts`."""
    return {FACTS: json.dumps({"format": FORMAT} | facts)}


def read_facts(path, session):
    """Return the facts of an opened aligned.onnx, a dict.

    modality, dim, max_atoms; contrast, versions, training, for people; match_weight: what a ppm of
    `peak_distance` takes off a score, 0 if peaks don't count; true_scores: of the right molecules
    in validation, ascending. Raises click.ClickException for any other file.
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
    shapes = {given.name: given.shape for given in [*session.get_inputs(), *session.get_outputs()]}
    missing = sorted({*wanted, "molecule", "query"} - {*shapes})
    if missing or {given.name for given in session.get_inputs()} != wanted:
        lacks = f"lacks {', '.join(missing)}" if missing else "has inputs that nobody knows"
        raise click.ClickException(f"{path}: {lacks}; export it again with export.py")
    kind = facts["modality"]
    given, width = shapes[query_input(kind)][1], blank_query(kind).shape[1]
    width = given if kind == SMILES else width  # any number of tokens
    if [given, shapes["molecule"][1]] != [width, facts["dim"]]:
        raise click.ClickException(
            f"{path}: its inputs or outputs have other widths than this moleclip's; export it again"
        )


def query_input(modality):
    """Return the name of a modality's input."""
    return {PICTURE: "images", SMILES: "tokens"}.get(modality, "spectrum")


def blank_query(modality):
    """Return a query that says nothing, as the model takes it."""
    if modality == PICTURE:
        return np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    if modality == SMILES:
        return padded_tokens([smiles_tokens("C")])
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
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    def run(self, outputs, graphs, query):
        """Return the named outputs of Graphs and of a query, both as the model takes them."""
        given = graphs._asdict() | {query_input(self.modality): query}
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
            batch = join(some)
            found, *told = self.run(outputs, batch, blank_query(self.modality))
            embeddings.append(found)
            for graph, first in zip(some, batch.starts) if told else ():
                atoms = first + graph.alike(self.modality)
                shifts.append(told[0][atoms, list(NMR).index(self.modality)])
        return np.concatenate(embeddings), shifts if self.predicts_shifts else None

    def embed_query(self, given):
        """Return the embedding (dim,) of a Spectrum, a picture (224, 224, 3), or a SMILES."""
        if self.modality == SMILES:
            query = padded_tokens([smiles_tokens(given)])
        else:
            query = (given if self.modality == PICTURE else to_vector(given, self.modality))[None]
        return self.run(["query"], join([BLANK]), query)[0][0]

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
