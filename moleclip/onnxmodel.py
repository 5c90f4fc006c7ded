"""model.onnx: its contract, written and read here alone, and the model ready to run.

Inputs, by what the model looks at: `images`, uint8 (batch, 224, 224, 3) RGB; `atoms`, `bonds`,
`kinds`, `owner`, `counts`, the fields of Graphs; `fingerprint`, ECFP counts, uint8 (batch, 2048);
`protein`, float32 (batch, width), the features of a protein beside each molecule.
Outputs `embedding`, `prediction`, `spread`, and `prediction_picture`,
`spread_picture` for pictures without a fingerprint, those that it has. Metadata: onnxfacts.py.
"""

import hashlib
import itertools
import tempfile
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from moleclip.calibration import LEVEL, half_widths
from moleclip.familiar import Familiar
from moleclip.features import BITS, featurize
from moleclip.molecules import Rejected
from moleclip.onnxfacts import DRAWINGS, MAP, means_of, read_metadata, told_by_runs
from moleclip.proteins import paired
from moleclip.session import feed, open_session
from moleclip.workers import try_item

LIKE = ("nearest_training", "picture_like")  # of predictions.csv, as Features.nearest and .like
OWN = ("row", "smiles", "name", *LIKE, "note", "error")  # columns that are no target's
# In one call. A small batch of pictures stays in a CPU's cache, and its pictures have like ink.
BATCH, GRAPHS = {"CPU": 8, "CUDA": 64}, 256


class OnnxModel:
    """An exported file, ready to run.

    facts: its metadata; training: fingerprints of its training molecules, uint8 (n, 256), or None;
    inputs: names; outputs: {name: width}; width: the embedding's, or 0; device: "CPU" or "CUDA";
    batch: molecules in a call; notice: why it runs where it runs, or "". Of each target: units, ""
    where none is known; classes, the words of 0 and 1, or []; means, of training, or NaN. Raises
    click.ClickException.
    """

    def __init__(self, path, provider="auto"):
        if not Path(path).is_file():
            raise click.ClickException(
                f"{path}: no such file; make it with: python export.py runs/NAME -o {path}"
            )
        self.session, self.notice = open_session(path, provider)
        self.facts, self.training = read_metadata(path, self.session)
        texts = self.session.get_modelmeta().custom_metadata_map
        self.map = texts.get(MAP)  # its text, or None
        self.familiar = Familiar(path, texts[DRAWINGS]) if DRAWINGS in texts else None
        self.outputs = {output.name: output.shape[1] for output in self.session.get_outputs()}
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.targets, self.width = self.facts["targets"], self.outputs.get("embedding", 0)
        self.units = told_by_runs(self.facts, "units", "")
        self.classes = told_by_runs(self.facts, "classes", [])
        self.means = means_of(self.facts)
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        self.batch = GRAPHS if self.inputs[0] == "atoms" else BATCH.get(self.device, 64)
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def drawing(self):
        """How its molecules have to be drawn: options of `featurize`."""
        asked = self.facts["render"]
        return {"max_atoms": asked["max_atoms"], "r_groups": asked.get("r_groups", False)}

    @property
    def looks(self):
        """What it looks at: further options of `featurize`."""
        kinds = {"drawn": "images", "graph": "atoms", "counts": "fingerprint"}
        return {kind: name in self.inputs for kind, name in kinds.items()}

    def meanings(self):
        """Return what the numbers of each target are, "probability of active", or ""."""
        tasks = self.facts.get("tasks") or [""] * len(self.targets)
        probable = [f"probability of {words[1] if words else 1}" for words in self.classes]
        return [text * (task == "classification") for task, text in zip(tasks, probable)]

    @property
    def patch(self):
        """The side of its patches if ink decides how long a picture takes, else 0.

        It does where the encoder skips patches without ink.
        """
        encoder = self.facts.get("encoder", {})
        return encoder["patch"] if encoder.get("tokens") == "inked" else 0

    def slow(self):
        """Return a warning if this is not the place for the file's precision, or ""."""
        if self.facts.get("precision") == "fp16" and self.device == "CPU":
            return "fp16 is slow on a CPU; export fp32 or int8 for it"
        return ""

    def spans(self, level, pictures=False):
        """Return how far an interval reaches from a prediction, by target: float64 (targets,).

        In units of the spread, or of the label where the model has none; NaN where there is no
        interval. pictures: of predictions without a fingerprint.
        """
        kind = "picture" if pictures and "prediction_picture" in self.outputs else "scores"
        known = self.facts.get("intervals") or [None] * len(self.targets)
        return half_widths([each[kind] if each else [] for each in known], level)

    def normalised(self):
        """Return for each target whether its interval is in units of its spread."""
        known = self.facts.get("intervals") or [None] * len(self.targets)
        return np.array([bool(each) and each["normalised"] for each in known], bool)

    def run(self, streams, counts=None, graphs=(), proteins=None):
        """Return {output: float32 (n, width)} of molecules: pictures, given as zlib streams.

        counts: their fingerprints, uint8 (n, 2048), for a model that looks at them; None: they are
        not known, and what is for pictures alone takes the place of the predictions. graphs,
        proteins: of a model that looks at those.
        """
        pictures = counts is None and "fingerprint" in self.inputs
        counts = np.zeros((len(streams), BITS), np.uint8) if pictures else counts
        given = feed(self.inputs, streams, counts, graphs, proteins)
        found = dict(zip(self.outputs, self.session.run([*self.outputs], given)))
        for name in ("prediction", "spread") if pictures else ():
            found[name] = found[f"{name}_picture"]
        return found

    def run_on(self, given, views=None):
        """Return `run` of a list of Features: of their plain drawings, or of a view of each."""
        streams, more = [each.streams[v] for each, v in zip(given, views or [0] * len(given))], {}
        if given[0].counts is not None:
            more["counts"] = np.stack([each.counts for each in given])
        if given[0].graph is not None:
            more["graphs"] = [each.graph for each in given]
        if given[0].protein is not None:
            more["proteins"] = np.stack([each.protein for each in given])
        return self.run(streams, **more)

    def predict_window(self, window, batch, level=LEVEL):
        """Return one entry for each (molecule, Features) of a window: see `average_views`.

        Pictures with about the same ink go into one call, since a model that skips white patches
        works as long as its fullest picture takes.
        """
        todo, found = [], {}
        for i, (_, result) in enumerate(window):
            if not isinstance(result, Rejected):
                found[i] = {}
                todo += [(ink, i, view) for view, ink in enumerate(result.ink)]
        todo.sort()
        for start in range(0, len(todo), batch):
            places = todo[start : start + batch]
            given, views = [window[i][1] for _, i, _ in places], [view for *_, view in places]
            outputs = self.run_on(given, views)
            for k, (_, i, view) in enumerate(places):
                found[i][view] = {name: values[k] for name, values in outputs.items()}
        return [
            self.average_views(found[i], level, result.counts is None) if i in found else result
            for i, (_, result) in enumerate(window)
        ]

    def average_views(self, views, level, pictures):
        """Return (values, embedding) of one molecule from {view: {output: values}}.

        values: float32 (columns,), those of `columns`; embedding: float32 (width,). A Rejected
        where they are no finite numbers.
        """
        stacked = {name: np.stack([views[v][name] for v in sorted(views)]) for name in views[0]}
        values = [stacked[name].mean(0) for name in ("prediction", "spread") if name in stacked]
        span = self.spans(level, pictures)
        shown = ~np.isnan(self.spans(level))
        if shown.any():
            unit = np.where(self.normalised(), values[-1], 1.0)
            low, high = values[0] - span * unit, values[0] + span * unit
            values.append(np.stack([low, high], 1)[shown].ravel().astype(np.float32))
        if len(views) > 1 and "prediction" in stacked:
            values.append(stacked["prediction"].std(0))
        values = np.concatenate(values or [np.zeros(0, np.float32)])
        embedding = stacked["embedding"].mean(0) if "embedding" in stacked else np.zeros(0)
        if not (np.isfinite(values).all() and np.isfinite(embedding).all()):
            return Rejected("the model gives no finite number for it")
        return values, embedding

    def judged(self, window, results, pictures):
        """Return a window of (molecule, Features); pictures are compared with drawings."""
        if not (pictures and self.familiar):
            return window
        return [
            (m, given if isinstance(told, Rejected) else self.familiar.judge(given, told[1]))
            for (m, given), told in zip(window, results)
        ]

    def likeness(self, pictures):
        """Return which of LIKE are columns, for pictures or for SMILES."""
        known = self.training is not None, pictures and self.familiar is not None
        return [name for name, there in zip(LIKE, known) if there]

    def columns(self, views=1, level=LEVEL):
        """Return the names, with units, of the numeric columns that `average_views` gives.

        Targets, spreads, ends of intervals, and standard deviations over views.
        """
        units = [unit and f" ({unit})" for unit in self.units]
        names = [f"predicted_{n}{u}" if n in OWN else n + u for n, u in zip(self.targets, units)]
        if "spread" in self.outputs:
            names += [f"{name}_spread{unit}" for name, unit in zip(self.targets, units)]
        names += itertools.chain(*self.ends(level))
        if views > 1:
            names += [f"{name}_view_spread{unit}" for name, unit in zip(self.targets, units)]
        return names

    def ends(self, level=LEVEL):
        """Return the names of the columns (low, high) of each target that has an interval."""
        units = [unit and f" ({unit})" for unit in self.units]
        known = zip(self.targets, units, ~np.isnan(self.spans(level)))
        return [(f"{name}_low{unit}", f"{name}_high{unit}") for name, unit, shown in known if shown]

    @contextmanager
    def saved_training(self):
        """Give the training fingerprints as a .npy file while the block runs, or None."""
        if self.training is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "training.npy"
            np.save(path, self.training)
            yield str(path)

    def predict(self, smiles, level=LEVEL, proteins=None):
        """Return {column: array} of a list of SMILES, the columns of predict.py's table.

        proteins: of each SMILES the sequence, or embedding, of the protein beside it, where the
        model looks at one. Numbers are float64, not-a-number where `error` says why; the rest are
        arrays of str. A pandas.DataFrame takes it as it is.
        """
        names, rows = self.columns(level=level), list(enumerate(smiles))
        with self.saved_training() as training:
            how = self.drawing | self.looks | {"training": training}
            found = [try_item(featurize, row, str(text), "", how) for row, text in rows]
        if "protein" in self.inputs:
            found = paired(found, proteins)
        told = self.predict_window(list(zip(rows, found)), self.batch, level)
        table = {"row": np.arange(len(rows)), "smiles": np.array([str(s) for s in smiles])}
        for i, name in enumerate(names):
            table[name] = np.array([np.nan if isinstance(t, Rejected) else t[0][i] for t in told])
        for name, words, each in zip(self.targets, self.classes, names):
            if words:
                likelier = [words[int(value > 0.5)] for value in np.nan_to_num(table[each])]
                failed = np.isnan(table[each])
                table[f"{name}_class"] = np.where(failed, "", likelier)
        if self.training is not None:
            near = [getattr(each, "nearest", None) for each in found]
            table["nearest_training"] = np.array([np.nan if x is None else x for x in near])
        table["note"] = np.array([getattr(each, "note", "") for each in found])
        table["error"] = np.array([str(t) if isinstance(t, Rejected) else "" for t in told])
        return table
