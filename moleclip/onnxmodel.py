"""model.onnx: its contract, written and read here alone, and the model ready to run.

Input `images`, uint8 (batch, 224, 224, 3) RGB; outputs `embedding`, `prediction`, `spread`, those
that it has. Two texts of metadata: facts in JSON, and fingerprints of the training molecules.
"""

import hashlib
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.features import BITS, RADIUS, pack_text, unpack_text
from moleclip.files import one_line
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.workers import default_workers

FORMAT = 1  # newest format of metadata that this version understands
FACTS, TRAINING = "moleclip", "moleclip_sketch"  # names of the metadata; a sketch: fingerprints


def metadata_props(facts, training=None, molecules=0):
    """Return the metadata of a model.onnx, {name: text}, from plain facts of the model.

    training: fingerprints, uint8 (n, 256), of the distinct ones among so many molecules, or None.
    """
    said = None
    if training is not None:
        said = {"molecules": len(training), "of": molecules, "bits": BITS, "radius": RADIUS}
    props = {FACTS: json.dumps({"format": FORMAT} | facts | {"sketch": said})}
    return props if training is None else props | {TRAINING: pack_text(training)}


def read_metadata(path, session):
    """Return (facts, training fingerprints, uint8 (n, 256), or None) of an opened model.

    Raises click.ClickException if export.py did not write it, or a newer one did.
    """
    props = session.get_modelmeta().custom_metadata_map
    outputs = {output.name: output for output in session.get_outputs()}
    check_signature(path, session, props, outputs)
    try:
        facts = json.loads(props[FACTS])
        if facts["format"] > FORMAT:
            raise click.ClickException(
                f"{path}: was exported by a newer moleclip (format {facts['format']}, "
                f"this one reads {FORMAT}); update"
            )
        width = outputs["prediction"].shape[1] if "prediction" in outputs else 0
        named = [type(name) for name in facts["targets"]] == [str] * width
        if not named or type(facts["render"]["max_atoms"]) is not int:
            raise ValueError
        units, classes = told_by_runs(facts, "units", ""), told_by_runs(facts, "classes", [])
        if {*map(type, units)} - {str} or {*map(len, classes)} - {0, 2}:
            raise ValueError
        return facts, unpack_text(props[TRAINING]) if TRAINING in props else None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, zlib.error):
        raise click.ClickException(
            f"{path}: its metadata {FACTS!r} is damaged or not export.py's; export it again"
        ) from None


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
    if not any(takes_pictures(given) for given in session.get_inputs()):
        missing.append("an input 'images', uint8 (batch, 224, 224, 3)")
    if not {"prediction", "embedding"} & set(outputs):
        missing.append("an output 'prediction' or 'embedding'")
    if missing:
        raise click.ClickException(
            f"{path}: not exported by moleclip: it lacks {' and '.join(missing)}; "
            "export it with export.py"
        )


def takes_pictures(given):
    """Tell whether this input of a model is that of the pictures."""
    kind = (given.name, given.type, given.shape[1:])
    return kind == ("images", "tensor(uint8)", [SIZE, SIZE, 3])


class OnnxModel:
    """An exported file, ready to run.

    facts: its metadata; training: fingerprints of its training molecules, uint8 (n, 256), or None;
    outputs: {name: width}; width: the embedding's, or 0; device: "CPU" or "CUDA"; notice: why
    it runs where it runs, or "". Of each target: units, "" where none is known; classes, the
    words of 0 and 1, or []. Raises click.ClickException.
    """

    def __init__(self, path, provider="auto"):
        if not Path(path).is_file():
            raise click.ClickException(
                f"{path}: no such file; make it with: python export.py runs/NAME -o {path}"
            )
        self.session, self.notice = open_session(path, provider)
        self.facts, self.training = read_metadata(path, self.session)
        self.outputs = {output.name: output.shape[1] for output in self.session.get_outputs()}
        self.targets, self.width = self.facts["targets"], self.outputs.get("embedding", 0)
        self.units = told_by_runs(self.facts, "units", "")
        self.classes = told_by_runs(self.facts, "classes", [])
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def drawing(self):
        """How its molecules have to be drawn: options of `featurize`."""
        asked = self.facts["render"]
        return {"max_atoms": asked["max_atoms"], "r_groups": asked.get("r_groups", False)}

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

    def run(self, streams):
        """Return {output: float32 (n, width)} of pictures, given as zlib streams."""
        images = to_rgb(np.stack([inflate(stream) for stream in streams]))
        return dict(zip(self.outputs, self.session.run(list(self.outputs), {"images": images})))


def open_session(path, provider):
    """Return (session, notice in words or "").

    auto takes CUDA if it really runs; an explicit cuda that fails is an error.
    """
    reason = no_cuda() if provider != "cpu" else "not asked for"
    if not reason:
        try:
            session = new_session(path, "CUDAExecutionProvider")
            if session.get_providers()[0] == "CUDAExecutionProvider":
                return try_out(session), ""
            reason = "onnxruntime could not load its CUDA libraries"
        except Exception as error:  # onnxruntime's own kinds share no base class
            reason = one_line(error)
    if provider == "cuda":
        raise click.ClickException(f"--provider cuda: {reason}; leave the flag out to use the CPU")
    try:
        session = try_out(new_session(path, "CPUExecutionProvider"))
    except Exception as error:
        raise click.ClickException(
            f"{path}: truncated, or not an ONNX file that runs here ({one_line(error)})"
        ) from None
    return session, f"taking the CPU: {reason}" if provider == "auto" and has_gpu() else ""


def new_session(path, provider):
    """Return onnxruntime's session of a file, on one provider."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = default_workers()
    # Threads that wait leave the cores to the drawing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def try_out(session):
    """Run two blank pictures, if that is what it takes, and return the session.

    Some sessions fail only when they run.
    """
    inputs = session.get_inputs()
    if len(inputs) == 1 and takes_pictures(inputs[0]):
        session.run(None, {"images": np.full((2, SIZE, SIZE, 3), 255, np.uint8)})
    return session


def no_cuda():
    """Return why CUDA can't be used, or "" if it is worth a try."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            "this onnxruntime has no CUDA; pip uninstall onnxruntime, "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    if not has_gpu():
        return "onnxruntime can't use a GPU here, there is none"
    with suppress(Exception):  # says on its own what it misses; the session then fails
        onnxruntime.preload_dlls()
    return ""


def has_gpu():
    """Tell whether a GPU of NVIDIA's may be there."""
    there = Path("/dev/nvidiactl").exists() or os.name == "nt"
    return there and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
