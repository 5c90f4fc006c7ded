"""A small aligned.onnx with random weights, whose linear query encoder knows some molecules.

The spectrum that is predicted for one of those, rounded, is embedded where the molecule is.
"""

import logging
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from moleclip.alignedmodel import aligned_props, query_input
from moleclip.gin import Gin, Shifts
from moleclip.graphs import graph_of, join
from moleclip.spectra import NMR, checked, to_vector

DIM, WIDTH = 24, 16


class Graphs(nn.Module):
    """The graph half: normalised features, and shifts."""

    def __init__(self):
        super().__init__()
        self.gin = Gin({"width": WIDTH, "layers": 2, "out": DIM})
        self.shifts = Shifts(WIDTH)

    def forward(self, atoms, bonds, kinds, owner, counts):
        features, x = self.gin(atoms, bonds, kinds, owner, counts)
        return F.normalize(features, dim=1), self.shifts(x)


def export_graphs(folder):
    """Write the graph half, and return (its path, the module)."""
    torch.manual_seed(5)
    net = Graphs().eval()
    names = ["atoms", "bonds", "kinds", "owner", "counts"]
    atoms, bonds, molecules = (torch.export.Dim(n) for n in ("atoms", "bonds", "molecules"))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            net,
            tensors(["CCO", "c1ccccc1O", "CC(=O)N"]),
            dynamo=True,
            external_data=False,
            opset_version=20,
            verbose=False,
            input_names=names,
            output_names=["molecule", "shifts"],
            dynamic_shapes=({0: atoms}, {0: bonds}, {0: bonds}, {0: atoms}, {0: molecules}),
        )
        program.save(str(folder / "graphs.onnx"))
    return folder / "graphs.onnx", net


def tensors(smiles):
    """The arrays of Graphs of some SMILES, as tensors."""
    return tuple(map(torch.from_numpy, join([graph_of(0, text) for text in smiles])))


def told_by(net, smiles, modality="nmr13c"):
    """Return (embedding float32 (dim,), predicted shifts float32 (classes,)) of a SMILES."""
    with torch.no_grad():
        found, shifts = net(*tensors([smiles]))
    alike = graph_of(0, smiles).alike(modality)
    return found[0].numpy(), shifts[alike, list(NMR).index(modality)].numpy()


def spectrum_of(net, smiles, modality="nmr13c"):
    """Return the Spectrum that is predicted for a SMILES, to 0.1 ppm."""
    places = np.round(told_by(net, smiles, modality)[1].astype(float), 1)
    return checked(places, np.ones(len(places)), modality)


def query_weights(net, known, modality="nmr13c"):
    """Return the matrix, float32 (width, dim), that takes the known molecules' spectra to them."""
    vectors = np.stack([to_vector(spectrum_of(net, each, modality), modality) for each in known])
    wanted = np.stack([told_by(net, each, modality)[0] for each in known])
    return (np.linalg.pinv(vectors.astype(float)) @ wanted).astype(np.float32)


def write_aligned(path, graphs, weights, modality="nmr13c", keep_shifts=True, **facts):
    """Write an aligned.onnx: the exported graph half, and the matrix as query encoder."""
    model = onnx.load(graphs)
    if not keep_shifts:
        del model.graph.output[1]
    name, pixels = query_input(modality), modality == "picture"
    shape = ["queries", 224, 224, 3] if pixels else ["queries", len(weights)]
    kind = TensorProto.UINT8 if pixels else TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    given = name
    if pixels:  # the mean colour of each of 8 x 8 fields
        fields = numpy_helper.from_array(np.array([-1, 8, 28, 8, 28, 3]), "fields")
        flat = numpy_helper.from_array(np.array([-1, 192]), "flat")
        axes = numpy_helper.from_array(np.array([2, 4]), "mean_axes")
        model.graph.initializer.extend([fields, flat, axes])
        model.graph.node.extend(
            [
                helper.make_node("Cast", [name], ["q1"], to=TensorProto.FLOAT),
                helper.make_node("Reshape", ["q1", "fields"], ["q2"]),
                helper.make_node("ReduceMean", ["q2", "mean_axes"], ["q3"], keepdims=0),
                helper.make_node("Reshape", ["q3", "flat"], ["q4"]),
            ]
        )
        given = "q4"
    model.graph.initializer.append(numpy_helper.from_array(weights, "query_weights"))
    model.graph.node.append(helper.make_node("MatMul", [given, "query_weights"], ["query"]))
    shape = ["queries", weights.shape[1]]
    model.graph.output.append(helper.make_tensor_value_info("query", TensorProto.FLOAT, shape))
    told = {"modality": modality, "contrast": "infonce", "dim": DIM, "max_atoms": 150} | facts
    del model.metadata_props[:]
    for key, text in aligned_props(told).items():
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
