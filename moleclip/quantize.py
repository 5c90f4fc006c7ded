"""int8 for export.py: an encoder turned so that it rounds well, its linear layers in whole numbers.

The graph has plain ONNX operators alone. Each token has a scale of its own, so that a picture's
result does not depend on the others in the batch.
"""

import copy
from typing import NamedTuple

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnx.helper import make_node, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array

from moleclip.encoder import Encoder
from moleclip.encoders import parts_of

# The linear layers of a transformer's block, by the names of their biases.
BIASES = ("attn.in_proj_bias", "attn.out_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias")
# What stands for 0 in uint8: the middle; behind a GELU, of which no value is below LOWEST, less,
# so that its largest has more steps.
MIDDLE, LOW, LOWEST = 128, 32, -0.17
REACH = (255 - LOW) * -LOWEST / LOW  # what all rows behind a GELU have steps for, 1.2
TINY = 1e-9  # instead of a scale of 0
DAMPING = 0.01  # of GPTQ, of the mean square input
BLOCK = 64  # rows of weights after which GPTQ corrects all others


class Turn(torch.nn.Module):
    """x @ weight + bias."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.float())
        self.bias = torch.nn.Parameter(bias.float())

    def forward(self, x):
        """Return the turned x, float32 (..., width)."""
        return x @ self.weight + self.bias


def turned(deployed):
    """Return a copy of a Deployed that computes the same along other axes.

    A few channels of a transformer are far larger than the rest and leave it no steps of int8. But
    what passes from block to block may be turned by any orthogonal matrix that leaves alone its
    mean, which LayerNorm takes away; the weights before and after take the matrix up (Ashkboos et
    al., arXiv:2404.00456). So may each head's values, which attention only mixes. At random axes
    all channels are alike.
    """
    deployed = copy.deepcopy(deployed)
    parts = [part for encoder in deployed.encoders for part in parts_of(encoder)]
    with torch.no_grad():
        for part in parts:
            if isinstance(part, Encoder):
                turn_tower(part.visual)
    return deployed


def turn_tower(tower):
    """Turn a VisionTransformer in place."""
    random, width = np.random.default_rng(0), tower.conv1.weight.shape[0]
    turn = torch.from_numpy(turn_around_mean(width, random))
    tower.ln_pre = torch.nn.Sequential(tower.ln_pre, Turn(turn.T, torch.zeros(width)))
    for block in tower.transformer.resblocks:
        attention, mlp = block.attn, block.mlp
        turn_input(block.ln_1, attention.in_proj_weight, attention.in_proj_bias, turn)
        turn_input(block.ln_2, mlp.c_fc.weight, mlp.c_fc.bias, turn)
        turn_values(attention, random)
        for layer in (attention.out_proj, mlp.c_proj):
            layer.weight.copy_(turn @ layer.weight.double())
            layer.bias.copy_(turn @ layer.bias.double())
    back = Turn(turn * tower.ln_post.weight.double(), tower.ln_post.bias.clone())
    tower.ln_post = torch.nn.Sequential(plain(tower.ln_post), back)


def turn_around_mean(width, random):
    """Return a random orthogonal matrix that maps ones to ones, float64 (width, width)."""
    ones = np.ones((width, 1))
    others = (random.standard_normal((width, width - 1)) for _ in range(2))
    one, other = (np.linalg.qr(np.hstack([ones, each]))[0][:, 1:] for each in others)
    return one @ other.T + 1 / width


def turn_input(norm, weight, bias, turn):
    """Let a linear layer take what its LayerNorm, made plain, gives of a turned token."""
    bias.copy_(bias.double() + weight.double() @ norm.bias.double())
    weight.copy_(weight.double() * norm.weight.double() @ turn.T)
    plain(norm)


def plain(norm):
    """Return a LayerNorm whose weight was made 1, and its bias 0."""
    norm.weight.fill_(1)
    norm.bias.zero_()
    return norm


def turn_values(attention, random):
    """Turn the values of each head of an nn.MultiheadAttention, and back in its last layer."""
    width, size = attention.embed_dim, attention.embed_dim // attention.num_heads
    for start in range(0, width, size):
        turn = torch.from_numpy(np.linalg.qr(random.standard_normal((size, size)))[0])
        own, value = slice(start, start + size), slice(2 * width + start, 2 * width + start + size)
        for rows in (attention.in_proj_weight[value], attention.in_proj_bias[value]):
            rows.copy_(turn @ rows.double())
        columns = attention.out_proj.weight[:, own]
        columns.copy_(columns.double() @ turn.T)


class Layer(NamedTuple):
    """A linear layer of a graph, x @ weight + bias, and the nodes that it is made of."""

    nodes: list
    x: str
    weight: np.ndarray  # float64 (inputs, outputs)
    bias: str
    out: str
    zero: int  # what stands for 0 among its inputs, MIDDLE or LOW


def to_int8(model, given):
    """Return an ONNX model with the linear layers of its encoders' blocks in int8.

    given: what the model takes of some molecules at a time, a list of {input: array}, to fit the
    rounding to. Other layers stay as they are: convolutions would be slower, the rest takes no
    time.
    """
    graph, layers = model.graph, linear_layers(model.graph)
    known = calibrate(model, layers, given) if layers else []
    made = {}
    for number, (layer, (largest, moments)) in enumerate(zip(layers, known)):
        shrink = shrunk_by(layer, largest)
        rounded = gptq(layer.weight * shrink[:, None], moments / np.outer(shrink, shrink))
        nodes, arrays = whole_numbers(layer, shrink, *rounded, f"int8_{number}")
        made[layer.out] = nodes
        graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    gone = [node.output[0] for layer in layers for node in layer.nodes[:-1]]
    kept = [made.get(node.output[0], [node]) for node in graph.node if node.output[0] not in gone]
    replace(graph.node, [node for nodes in kept for node in nodes])
    used = {name for node in graph.node for name in node.input}
    replace(graph.initializer, [each for each in graph.initializer if each.name in used])
    del graph.value_info[:]  # of tensors that are no more
    return model


def replace(field, entries):
    """Replace the entries of a graph's field."""
    del field[:]
    field.extend(entries)


def linear_layers(graph):
    """Return the Layers of the encoders' blocks. Raises click.ClickException if one hides."""
    arrays = {each.name: each for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    layers = []
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(BIASES)), None)
        if bias is None:
            continue
        nodes = [node]
        if node.op_type == "Add":
            nodes.insert(0, makers[next(name for name in node.input if name != bias)])
        x, name = nodes[0].input[:2]
        if nodes[0].op_type not in ("MatMul", "Gemm") or name not in arrays:
            raise click.ClickException(
                f"int8: this PyTorch, {torch.__version__}, writes the layer of {bias} in a way "
                "that is not known; take the version of requirements.txt"
            )
        turn = any(each.name == "transB" and each.i for each in nodes[0].attribute)
        weight = to_array(arrays[name]).astype(np.float64)
        zero = LOW if is_gelu(makers[x], makers) else MIDDLE
        layers.append(Layer(nodes, x, weight.T if turn else weight, bias, node.output[0], zero))
    return layers


def is_gelu(node, makers):
    """Tell whether a node gives a GELU or QuickGELU, which is x * sigmoid(1.702 x)."""
    before = [makers[name].op_type for name in node.input if name in makers]
    return node.op_type == "Gelu" or (node.op_type == "Mul" and "Sigmoid" in before)


def calibrate(model, layers, given):
    """Return (largest, moments) of each layer's inputs.

    largest: of each channel, without sign, float32 (inputs,); moments: sums over tokens of the
    products of two channels, float32 (inputs, inputs).
    """
    asked, names = copy.deepcopy(model), [layer.x for layer in layers]
    replace(asked.graph.value_info, [])
    outputs = [make_tensor_value_info(x, onnx.TensorProto.FLOAT, None) for x in names]
    replace(asked.graph.output, outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        asked.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [(0, 0)] * len(layers)
    taken = [each.name for each in session.get_inputs()]
    for part in given:
        told = session.run(names, {name: part[name] for name in taken})
        for i, x in enumerate(told):
            rows = np.nan_to_num(x.reshape(-1, x.shape[-1]))
            largest, moments = found[i]
            found[i] = np.maximum(largest, np.abs(rows).max(0)), moments + rows.T @ rows
    return found


def shrunk_by(layer, largest):
    """Return what a layer's inputs are divided by, and its weights multiplied, float64 (inputs,).

    Behind a GELU axes can't be turned, and channels are less alike. The large ones are brought
    halfway towards the others (Xiao et al., arXiv:2211.10438).
    """
    if layer.zero == MIDDLE:
        return np.ones(len(largest))
    usual = max(REACH, float(np.median(largest)))
    return np.sqrt(np.maximum(largest.astype(np.float64) / usual, 1))


def gptq(weight, moments):
    """Return (whole weights, int8 (inputs, outputs), scales of the outputs, float32 (outputs,)).

    GPTQ (Frantar et al., arXiv:2210.17323): what rounding an input's weights did wrong, the inputs
    that come after it make good, as far as they go with it. moments: as of `calibrate`.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    weight, inverse = weight[order], moments[np.ix_(order, order)].astype(np.float64)
    inverse[np.diag_indices(len(order))] += DAMPING * np.diag(inverse).mean() + TINY
    factor = np.linalg.cholesky(np.linalg.inv(inverse)).T
    scales = np.maximum(np.abs(weight).max(0) / 127, TINY)
    whole = np.zeros(weight.shape, np.int8)
    for begin in range(0, len(order), BLOCK):
        end = min(begin + BLOCK, len(order))
        wrong = np.zeros((end - begin, weight.shape[1]))
        for i in range(begin, end):
            steps = np.clip(np.round(weight[i] / scales), -127, 127)
            whole[order[i]] = steps
            wrong[i - begin] = (weight[i] - steps * scales) / factor[i, i]
            weight[i + 1 : end] -= np.outer(factor[i, i + 1 : end], wrong[i - begin])
        weight[end:] -= factor[begin:end, end:].T @ wrong
    return whole, scales.astype(np.float32)


def whole_numbers(layer, shrink, weight, scales, name):
    """Return (nodes, {name: array}) of a layer in whole numbers, each token at its own scale."""
    nodes, arrays = [], {}

    def constant(what, array):
        arrays[f"{name}_{what}"] = np.asarray(array)
        return f"{name}_{what}"

    def add(operator, *inputs, out=None, **attributes):
        out = out or f"{name}_{len(nodes)}"
        nodes.append(make_node(operator, inputs, [out], **attributes))
        return out

    zero = constant("zero", np.uint8(layer.zero))
    x = add("Reshape", layer.x, constant("tokens", np.array([-1, len(weight)])))
    if layer.zero == MIDDLE:
        size, least = add("Abs", x), TINY
    else:
        x = add("Mul", x, constant("shrunk", (1 / shrink).astype(np.float32)))
        size, least = x, -LOWEST / layer.zero
    largest = add("ReduceMax", size, constant("last", np.array([-1])), keepdims=0)
    scale = add("Mul", largest, constant("steps", np.float32(1 / (255 - layer.zero))))
    scale = add("Max", scale, constant("least", np.float32(least)))
    zeros = add("Expand", zero, add("Shape", scale))
    whole = add("QuantizeLinear", x, scale, zeros, axis=0)
    sums = add("MatMulInteger", whole, constant("weight", weight), zero)
    product = add("DequantizeLinear", sums, scale, axis=0)
    product = add("Mul", product, constant("scales", scales))
    product = add("Add", product, layer.bias)
    width = constant("width", np.array([weight.shape[1]]))
    shape = add("Concat", add("Shape", layer.x, end=-1), width, axis=0)
    add("Reshape", product, shape, out=layer.out)
    return nodes, arrays
