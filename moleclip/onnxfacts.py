"""What export.py writes into model.onnx beside the graph, and predict.py reads: facts in JSON.

Four texts of metadata: the facts, fingerprints of the training molecules, where they lie, and where
drawings of molecules do.
"""

import json
import zlib

import click
import numpy as np

from moleclip.features import BITS, RADIUS, pack_text, unpack_text
from moleclip.session import are_known

FORMAT = 1  # newest format of metadata that this version understands
# Names of the metadata; a sketch: fingerprints.
FACTS, TRAINING, MAP = "moleclip", "moleclip_sketch", "moleclip_map"
DRAWINGS = "moleclip_drawings"


def metadata_props(facts, training=None, molecules=0, lying=None, drawings=None):
    """Return the metadata of a model.onnx, {name: text}, from plain facts of the model.

    training: fingerprints, uint8 (n, 256), of the distinct ones among so many molecules, or None;
    lying: the text of `principal_axes`, where they lie, or None; drawings: that of `flat_of`.
    """
    said = None
    if training is not None:
        said = {"molecules": len(training), "of": molecules, "bits": BITS, "radius": RADIUS}
    props = {FACTS: json.dumps({"format": FORMAT} | facts | {"sketch": said})}
    props |= {} if training is None else {TRAINING: pack_text(training)}
    props |= {DRAWINGS: drawings} if drawings else {}
    return props | ({MAP: lying} if lying else {})


def read_metadata(path, session):
    """Return (facts, training fingerprints, uint8 (n, 256), or None) of an opened model.

    Raises click.ClickException if export.py did not write it, or a newer one did.
    """
    props = session.get_modelmeta().custom_metadata_map
    outputs = {output.name: output for output in session.get_outputs()}
    check_signature(path, session, props, outputs)
    try:
        facts = json.loads(props[FACTS])
        check_format(path, facts, FORMAT)
        width = outputs["prediction"].shape[1] if "prediction" in outputs else 0
        named = [type(name) for name in facts["targets"]] == [str] * width
        if not named or type(facts["render"]["max_atoms"]) is not int:
            raise ValueError
        units, classes = told_by_runs(facts, "units", ""), told_by_runs(facts, "classes", [])
        if {*map(type, units)} - {str} or {*map(len, classes)} - {0, 2}:
            raise ValueError
        widths = [each.shape[1] for each in session.get_inputs() if each.name == "protein"]
        if widths and (facts["protein"]["width"] != widths[0] or not facts["protein"]["column"]):
            raise ValueError
        return facts, unpack_text(props[TRAINING]) if TRAINING in props else None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, zlib.error):
        raise click.ClickException(
            f"{path}: its metadata {FACTS!r} is damaged or not export.py's; export it again"
        ) from None


def check_format(path, facts, newest):
    """Raise click.ClickException for metadata of a later version than that which is read here."""
    if facts["format"] > newest:
        made = f"format {facts['format']}, this one reads {newest}"
        raise click.ClickException(f"{path}: was exported by a newer moleclip ({made}); update")


def told_by_runs(facts, key, blank):
    """Return what the runs tell of each target under a key, such as its unit.

    `blank` where they tell nothing: older ones do, and an ensemble whose members differ.
    """
    told = [run.get(key) or [blank] * len(run["targets"]) for run in facts.get("runs", [])]
    if facts.get("kind") == "ensemble":
        told = told[:1] if all(each == told[0] for each in told) else []
    told = [each for one in told for each in one]
    return told if len(told) == len(facts["targets"]) else [blank] * len(facts["targets"])


def check_signature(path, session, props, outputs):
    """Raise click.ClickException if a model has not the metadata, inputs and outputs of ours."""
    missing = []
    if FACTS not in props:
        missing.append(f"the metadata {FACTS!r} with target names and drawing options")
    if not are_known(session.get_inputs()):
        missing.append("an input 'images', uint8 (batch, 224, 224, 3)")
    if not {"prediction", "embedding"} & set(outputs):
        missing.append("an output 'prediction' or 'embedding'")
    if missing:
        raise click.ClickException(
            f"{path}: not exported by moleclip: it lacks {' and '.join(missing)}; "
            "export it with export.py"
        )


def means_of(facts):
    """Return the mean label of training for each target, float64 (targets,); NaN where not told."""
    runs = facts.get("runs", [])
    found = [run.get("means") or [np.nan] * len(run["targets"]) for run in runs]
    if facts.get("kind") == "ensemble":
        found = [np.mean(found, 0)]
    means = np.concatenate(found or [[]]).astype(float)
    return means if len(means) == len(facts["targets"]) else np.full(len(facts["targets"]), np.nan)
