"""onnxruntime's sessions: where a model runs, GPU or CPU, and which inputs it may have."""

import os
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.features import BITS
from moleclip.files import one_line
from moleclip.pixels import SIZE
from moleclip.workers import default_workers

SHAPES = {"images": [SIZE, SIZE, 3], "fingerprint": [BITS]}  # of the inputs, but for the batch


def is_known(given):
    """Tell whether this input of a model is that of the pictures, or that of the fingerprints."""
    shape = SHAPES.get(given.name)
    return bool(shape) and (given.type, given.shape[1:]) == ("tensor(uint8)", shape)


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
    if all(map(is_known, inputs)):
        blank = {each.name: np.full((2, *SHAPES[each.name]), 255, np.uint8) for each in inputs}
        session.run(None, blank)
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
