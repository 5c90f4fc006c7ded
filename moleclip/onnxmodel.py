"""TODO"""

import base64
import binascii
import hashlib
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.features import BITS
from moleclip.files import one_line
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.workers import default_workers

FORMAT = 1  # newest metadata format that this script understands
OWN = ("row", "smiles", "name", "nearest_training", "error")


class OnnxModel:
    """An exported file, ready to run: its session, its metadata `facts`, and `width`, the embedding's length or 0."""

    def __init__(self, path, provider="auto"):
        if not Path(path).is_file():
            raise click.ClickException(
                f"{path}: no such file; make it with: python export.py runs/NAME -o {path}"
            )
        self.session, self.notice = open_session(path, provider)
        self.facts = read_metadata(path, self.session)
        self.outputs = {output.name: output.shape[1] for output in self.session.get_outputs()}
        self.targets, self.width = self.facts["targets"], self.outputs.get("embedding", 0)
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def patch(self):
        """The side of its patches if it skips those without ink, so that ink decides how long a picture takes; else 0."""
        encoder = self.facts.get("encoder", {})
        return encoder["patch"] if encoder.get("tokens") == "inked" else 0

    def columns(self, views):
        """Return the names of the numeric columns: targets, an ensemble's spreads, and with several views theirs."""
        names = [f"predicted_{name}" if name in OWN else name for name in self.targets]
        names += [f"{name}_spread" for name in self.targets if "spread" in self.outputs]
        return names + [f"{name}_view_spread" for name in self.targets if views > 1]

    def slow(self):
        """Return a warning if this is not the place for the file's precision, or ""."""
        return (
            "fp16 is slow on a CPU; export fp32 or int8 for it"
            if self.facts.get("precision") == "fp16" and self.device == "CPU"
            else ""
        )

    def run(self, streams):
        """Return {output: float32 (n, width)} of pictures, given as zlib streams."""
        images = to_rgb(np.stack([inflate(stream) for stream in streams]))
        return dict(zip(self.outputs, self.session.run(list(self.outputs), {"images": images})))


def open_session(path, provider):
    """Return (session, notice in words or ""). auto takes CUDA if it really runs, an explicit cuda that fails is an error."""
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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = default_workers()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # waiting threads leave the cores to the drawing
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def try_out(session):
    """Run two blank pictures, if the model takes pictures, and return the session: some fail only when they run."""
    inputs = session.get_inputs()
    if (
        [i.name for i in inputs] == ["images"]
        and inputs[0].type == "tensor(uint8)"
        and inputs[0].shape[1:] == [SIZE, SIZE, 3]
    ):
        session.run(None, {"images": np.full((2, SIZE, SIZE, 3), 255, np.uint8)})
    return session


def no_cuda():
    """Return why CUDA can't be used, or "" if it is worth a try."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA; pip uninstall onnxruntime, pip install 'onnxruntime-gpu[cuda,cudnn]'"
    if not has_gpu():
        return "onnxruntime can't use a GPU here, there is none"
    with suppress(Exception):  # says on its own what it misses; the session then fails
        onnxruntime.preload_dlls()
    return ""


def has_gpu():
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and (
        Path("/dev/nvidiactl").exists() or os.name == "nt"
    )


def read_metadata(path, session):
    """Return the metadata that export.py wrote into a model, with its sketch, uint8 (n, 256), or None. Raises click.ClickException."""
    given = session.get_modelmeta().custom_metadata_map
    inputs, outputs = (
        {i.name: i for i in session.get_inputs()},
        {o.name: o for o in session.get_outputs()},
    )
    images = inputs.get("images")
    missing = (
        []
        if "moleclip" in given
        else ["the metadata 'moleclip' with target names and drawing options"]
    )
    missing += (
        []
        if images is not None
        and (images.type, images.shape[1:]) == ("tensor(uint8)", [SIZE, SIZE, 3])
        else ["an input 'images', uint8 (batch, 224, 224, 3)"]
    )
    missing += (
        []
        if {"prediction", "embedding"} & set(outputs)
        else ["an output 'prediction' or 'embedding'"]
    )
    if missing:
        raise click.ClickException(
            f"{path}: not exported by moleclip: it lacks {' and '.join(missing)}; export it with export.py"
        )
    try:
        facts = json.loads(given["moleclip"])
        if facts["format"] > FORMAT:
            raise click.ClickException(
                f"{path}: was exported by a newer moleclip (format {facts['format']}, this one reads {FORMAT}); update"
            )
        width = outputs["prediction"].shape[1] if "prediction" in outputs else 0
        if [type(name) for name in facts["targets"]] != [str] * width or type(
            facts["render"]["max_atoms"]
        ) is not int:
            raise ValueError
        packed = (
            zlib.decompress(base64.b64decode(given["moleclip_sketch"]))
            if "moleclip_sketch" in given
            else b""
        )
        return facts | {
            "sketch": np.frombuffer(packed, np.uint8).reshape(-1, BITS // 8) if packed else None
        }
    except (TypeError, ValueError, KeyError, IndexError, zlib.error, binascii.Error):
        raise click.ClickException(
            f"{path}: its metadata 'moleclip' is damaged or not export.py's; export it again"
        ) from None
