"""What int8 costs in accuracy and gives in speed, step by step, and what a batch has to say in it.

    python finetune.py --data esol.csv --freeze --epochs 50    # an MLP on the frozen encoder
    python benchmarks/int8.py runs/esol                        # 10 minutes on 2 cores

500 molecules of data/dhbd.csv at random, unlike ESOL's and of all sizes, through one model in fp32,
in int8 as export.py writes it, and in forms that lack something of that. Differences are in units
of the label's scale. Speed is that of onnxruntime on one core, in batches of 8; the forms take
turns. Writes benchmarks/results/int8.csv.
"""

import copy
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from record import ROOT, record

import export
from moleclip import quantize
from moleclip.deploy import as_tensors, combine
from moleclip.molecules import read_molecules

MOLECULES, BATCHES, WHOLE = 500, (1, 8), 64
TIMED, TURNS = 48, 7  # pictures, and how often
GPTQ = quantize.gptq  # which `rounded` stands in for


def by_the_batch(model):
    """Return an ONNX model whose products in int8 scale their inputs by the whole batch."""
    model = copy.deepcopy(model)
    del model.graph.value_info[:]  # quantize_dynamic takes its own and refuses these
    heads = [node.name for node in model.graph.node if any("head." in i for i in node.input)]
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            model,
            Path(folder) / "m.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=heads + [f"{name}_MatMul" for name in heads],
        )
        return onnx.load(Path(folder) / "m.onnx")


def rounded(weight, moments):
    """Return what `gptq` does, of weights that are rounded each for itself."""
    return GPTQ(weight, np.eye(len(moments), dtype=np.float32))


# Stand-ins, where a form lacks a step.
SAME = {"is_gelu": lambda node, makers: False}
EVEN = {"shrunk_by": lambda layer, largest: np.ones(len(largest))}
ROUND = {"gptq": rounded}


def forms(deployed):
    """Return {name: ONNX model} of each form."""
    plain, turned = (export.to_onnx(each, "fp32") for each in (deployed, quantize.turned(deployed)))
    fitted = export.calibration(deployed)

    def without(model, **stand_ins):
        with patch.multiple(quantize, **stand_ins) if stand_ins else nullcontext():
            return quantize.to_int8(copy.deepcopy(model), fitted)

    return {
        "fp32": plain,
        "one scale a batch, as until now": by_the_batch(plain),
        "one scale a token": without(plain, **SAME, **EVEN, **ROUND),
        "and turned axes": without(turned, **SAME, **EVEN, **ROUND),
        "and more steps above 0 behind GELUs": without(turned, **EVEN, **ROUND),
        "and large channels halfway": without(turned, **ROUND),
        "and fitted weights: int8": without(turned),
        "int8 on axes as they are": without(plain),
    }


def open_on_one_core(model):
    """Return a session of an ONNX model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    words = model.SerializeToString(), options
    return onnxruntime.InferenceSession(*words, providers=["CPUExecutionProvider"])


def predicted(session, given, batch):
    """Return the predictions in batches of that size, (molecules, targets)."""
    names, parts = [each.name for each in session.get_inputs()], []
    for begin in range(0, len(given["images"]), batch):
        part = {name: given[name][begin : begin + batch] for name in names}
        parts.append(session.run(["prediction"], part)[0])
    return np.concatenate(parts)


def speeds(sessions, given):
    """Return {form: milliseconds a picture and times fp32's speed}, medians over the turns."""
    given = {name: array[:TIMED] for name, array in given.items()}
    took = {name: [] for name in sessions}
    for _ in range(TURNS):
        for name, session in sessions.items():
            began = time.perf_counter()
            predicted(session, given, 8)
            took[name].append(time.perf_counter() - began)
    return {
        name: {
            "ms a picture": float(1000 * np.median(took[name]) / TIMED),
            "times fp32": float(np.median(np.array(took["fp32"]) / took[name])),
        }
        for name in took
    }


def main(run):
    deployed, _ = combine([Path(run) / "model.pt"])
    scale, every = deployed.scale(), list(read_molecules(str(ROOT / "data" / "dhbd.csv")))
    chosen = np.random.default_rng(0).permutation(len(every))[:MOLECULES]
    given = export.probes([every[i].smiles for i in chosen])
    given = export.by_name(deployed, as_tensors(deployed, given))
    sessions = {name: open_on_one_core(model) for name, model in forms(deployed).items()}
    rows, known = [], predicted(sessions["fp32"], given, WHOLE)
    for name, session in sessions.items():
        whole = predicted(session, given, WHOLE)
        gap = np.abs(whole - known) / scale
        row = {"form": name, "molecules": len(given["images"]), "mean": float(gap.mean())}
        row |= {"99th percentile": float(np.percentile(gap, 99)), "worst": float(gap.max())}
        for batch in BATCHES:
            moved = np.abs(predicted(session, given, batch) - whole) / scale
            row[f"largest change, {batch} against {WHOLE}"] = float(moved.max())
        rows.append(row)
    timed = speeds(sessions, given)
    record(
        "int8", [row | timed[row["form"]] for row in rows], ("onnxruntime-gpu", "rdkit", "numpy")
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/esol")
