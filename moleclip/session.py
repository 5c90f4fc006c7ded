"""onnxruntime's sessions: where a model runs, GPU or CPU, and which inputs it may have."""

import os
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime

from moleclip.features import BITS
from moleclip.files import one_line
from moleclip.graphs import ATOM_SIZES, BLANK, Graphs, join
from moleclip.pixels import SIZE, inflate, to_rgb
from moleclip.workers import default_workers

INPUTS = {  # type, and shape but for the first axis, of all that a model of ours may be given
    "images": ("tensor(uint8)", [SIZE, SIZE, 3]),
    "atoms": ("tensor(uint8)", [len(ATOM_SIZES)]),
    "bonds": ("tensor(int64)", [2]),
    "kinds": ("tensor(uint8)", []),
    "owner": ("tensor(int64)", []),
    "counts": ("tensor(int64)", []),
    "fingerprint": ("tensor(uint8)", [BITS]),
    "protein": ("tensor(float)", None),  # as many numbers as the proteins' features have
}


def are_known(inputs):
    """Tell whether a model has inputs, all among INPUTS, and all or none of a graph's."""
    names = {given.name for given in inputs}
    if not names or len(names.intersection(Graphs._fields)) not in (0, len(Graphs._fields)):
        return False
    return all(is_known(given) for given in inputs)


def is_known(given):
    """Tell whether an input is among INPUTS."""
    kind, shape = INPUTS.get(given.name, ("", []))
    if shape is None:
        return given.type == kind and len(given.shape) == 2 and type(given.shape[1]) is int
    return (given.type, given.shape[1:]) == (kind, shape)


def feed(names, streams, counts, graphs, proteins=None):
    """Return {name: array} of those inputs of some molecules that a model has.

    streams: the zlib stream of each one's picture; counts: of ECFP, uint8 (n, 2048); graphs: a list
    of Graph; proteins: features of the protein beside each, float32 (n, width).
    """
    given = {}
    if "images" in names:
        given["images"] = to_rgb(np.stack([inflate(stream) for stream in streams]))
    if "atoms" in names:
        given |= join(graphs)._asdict()
    if "fingerprint" in names:
        given["fingerprint"] = counts
    if "protein" in names:
        given["protein"] = proteins
    return given


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
    if not has_vnni():  # without, the quicker product of int8 lets sums overflow, by 1 to 3%
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def has_vnni():
    """Tell whether this processor is known to sum products of int8 without overflow."""
    with suppress(OSError):
        return "vnni" in Path("/proc/cpuinfo").read_text()
    return False


def try_out(session):
    """Run two blank molecules, if that is what it takes, and return the session.

    Some sessions fail only when they run.
    """
    inputs = session.get_inputs()
    if are_known(inputs):
        shapes = {name: shape for name, (_, shape) in INPUTS.items() if shape is not None}
        blank = {name: np.full((2, *shape), 255, np.uint8) for name, shape in shapes.items()}
        blank |= join([BLANK, BLANK])._asdict()
        widths = [given.shape[1] for given in inputs if given.name == "protein"]
        blank["protein"] = np.zeros((2, *widths), np.float32)
        session.run(None, {each.name: blank[each.name] for each in inputs})
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
