"""aligned.pt as one ONNX file: both encoders with their projections, checked against PyTorch."""

import zipfile
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from rdkit import rdBase

from moleclip.aligned import load_aligned
from moleclip.alignedmodel import aligned_props, query_input
from moleclip.deploy import save_onnx, traced
from moleclip.files import check_output, save_whole
from moleclip.graphs import fragment_counts, graph_of, join
from moleclip.pixels import SIZE
from moleclip.spectra import vector_width
from moleclip.tokens import LONGEST, padded_tokens, smiles_tokens

PROBES = ("CCO", "CC(=O)Oc1ccccc1C(=O)O", "C", "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3")
MORE = ("CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "BrC(Br)Br", "[Na+].[Cl-]", "c1ccc2c(c1)ccc1ccccc12")
LARGE = 1024  # numbers: tensors of so many are kept in half precision, and computed with in fp32
HUGE = 2**22  # of so many: in bytes, with a scale a row; an encoder of texts' table of words
LISTED = ("CCO", "CC(=O)Oc1ccccc1C(=O)O", *MORE)
BOUND = 1e-4  # of what a shared place, or a hundred ppm, may differ from PyTorch's


def is_aligned(run):
    """Tell whether a path is that of a file of align.py's, without reading its tensors."""
    if not Path(run).is_file() or not zipfile.is_zipfile(run):
        return False
    try:
        return "modality" in torch.load(run, map_location="meta", weights_only=True).get("arch", {})
    except Exception:  # of a dozen kinds: what reads the file as a run says what is wrong
        return False


def examples_of(arch, smiles, queries):
    """Return the inputs of a model, {name: array}, for molecules and so many queries."""
    modality, random = arch["modality"], np.random.default_rng(0)
    if modality == "picture":
        given = random.integers(0, 256, (queries, SIZE, SIZE, 3)).astype(np.uint8)
    elif modality == "smiles":
        given = padded_tokens([smiles_tokens(text) for text in LISTED[:queries]])
    elif modality == "text":
        lengths = random.integers(3, 20, queries)
        given = padded_tokens([random.integers(1, arch["query"]["vocabulary"], n) for n in lengths])
    else:
        given = random.random((queries, vector_width(modality))).astype(np.float32)
    graphs = [graph_of(0, text, fragments=True) for text in smiles]
    inputs = join(graphs)._asdict() | {query_input(modality): given}
    if arch.get("beside"):
        words = random.random((queries, arch["words"])) < 0.01
        inputs |= {"fragments": fragment_counts(graphs), "words": words.astype(np.float32)}
    return inputs


def export_aligned(path, out):
    """Write an aligned.pt as an ONNX file for search.py; return what to say of it.

    Raises click.ClickException if it is not finished, or the file differs from PyTorch.
    """
    check_output(out, path)
    model, checkpoint = load_aligned(path)
    if not model.arch["contrast"]:
        says = "learned without a contrast, and finds nothing; finetune.py --graph takes it"
        raise click.ClickException(f"{path}: {says}")
    if not checkpoint.get("calibration"):
        raise click.ClickException(f"{path}: its run has not ended; align.py --resume goes on")
    modality, names = model.arch["modality"], ["molecule", "query"]
    names += ["shifts"] * model.arch["shifts"]
    atoms, bonds, molecules, queries = map(
        torch.export.Dim, ["atoms", "bonds", "molecules", "queries"]
    )
    inputs = examples_of(model.arch, PROBES, 2)
    sizes = [{0: size} for size in (atoms, bonds, bonds, atoms, molecules, queries)]
    sizes += [{0: molecules}, {0: queries}][: len(inputs) - len(sizes)]
    if modality in LONGEST:
        sizes[5][1] = torch.export.Dim("tokens", max=model.arch["query"]["positions"])
    tensors, found = [torch.from_numpy(array) for array in inputs.values()], []

    round_weights(model)

    def write(name):
        proto = traced(model, tensors, list(inputs), names, tuple(sizes))
        props = aligned_props(describe(model, checkpoint), checkpoint.get("texts"))
        save_onnx(shrunk(proto), name, props)
        found.append(compare(model, name))

    save_whole(out, write)
    size = Path(out).stat().st_size / 1e6
    return (
        f"{out}: {size:.1f} MB, finds molecules by {modality}\n"
        f"differs from PyTorch, its large weights rounded, by at most {found[0]:.1g}"
    )


@torch.no_grad()
def round_weights(model):
    """Round a model's large tensors to what half precision, or bytes, can say, in place."""
    for weights in model.parameters():
        if weights.numel() >= HUGE:
            rows, scales = in_bytes(weights.numpy())
            weights.copy_(torch.from_numpy(rows * scales))
        elif weights.numel() >= LARGE:
            weights.copy_(weights.half().float())


def in_bytes(weights):
    """Return (int8 (rows, n), float32 (rows, 1)), whose product is weights, rounded.

    A scale has so few digits that what is rounded once stays as it is.
    """
    scales = (np.abs(weights).max(1, keepdims=True) / 127).astype(np.float16)
    scales = np.maximum(scales, np.float16(2**-14)).astype(np.float32)
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), scales


def packed(weights):
    """Return (weights in half precision or bytes, scales or None, whether they are the same)."""
    if weights.size < HUGE:
        small = weights.astype(np.float16)
        return small, None, bool((small == weights).all())
    small, scales = in_bytes(weights)
    return small, scales, bool((small * scales == weights).all())


def shrunk(proto):
    """Return an ONNX model with its large weights as round_weights left them, cast when loaded."""
    casts, added, kind = [], [], {"to": onnx.TensorProto.FLOAT}
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LARGE:
            continue
        name = tensor.name
        small, scales, exact = packed(numpy_helper.to_array(tensor))
        if not exact:  # what the exporter has multiplied with others
            continue
        tensor.CopyFrom(numpy_helper.from_array(small, f"{name}_small"))
        whole = name if scales is None else f"{name}_whole"
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [whole], **kind))
        if scales is not None:
            added.append(numpy_helper.from_array(scales, f"{name}_scales"))
            casts.append(onnx.helper.make_node("Mul", [whole, added[-1].name], [name]))
    proto.graph.initializer.extend(added)
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def compare(model, path):
    """Return the largest difference from PyTorch. Raises click.ClickException beyond BOUND."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    gaps = []
    for smiles, queries in ((PROBES[2:3], 1), (MORE, 3), (PROBES + MORE, 5)):
        inputs = examples_of(model.arch, smiles, queries)
        with torch.no_grad():
            wanted = model(*(torch.from_numpy(array) for array in inputs.values()))
        got = session.run(None, inputs)
        scales = (1, 1, 100)
        gaps += [np.abs(g - w.numpy()).max() / s for g, w, s in zip(got, wanted, scales)]
    worst = float(np.max(gaps))
    if not worst <= BOUND:
        raise click.ClickException(f"{path}: differs from PyTorch by {worst:.2g}; not written")
    return worst


def describe(model, checkpoint):
    """Return what search.py, and a stranger, has to know of the model."""
    config, best = checkpoint["config"], checkpoint["best"]
    asked = ("input", "split", "seed", "epochs", "batch", "loss", "unfreeze", "width", "layers")
    asked += ("text_layers",) if "text_layers" in config else ()
    return checkpoint["calibration"] | {
        "modality": model.arch["modality"],
        "contrast": model.arch["contrast"],
        "dim": model.dim,
        "max_atoms": config["max_atoms"],
        **of_texts(model.arch),
        "training": {name: config[name] for name in asked},
        "validation": {name: value for name, value in best.items() if name.startswith("val_")},
        "versions": {"torch": str(torch.__version__), "rdkit": rdBase.rdkitVersion}
        | {"onnx": onnx.__version__},
    }


def of_texts(arch):
    """Return what of a model of texts its file says besides."""
    if arch["modality"] != "text":
        return {}
    return {"beside": arch["beside"], "longest": arch["query"]["positions"]}
