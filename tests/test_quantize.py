"""int8: the turned encoder is the same, the rounding is fitted, and no neighbour has a say."""

import click
import int8
import numpy as np
import onnx
import pytest
import torch
from conftest import small_molecules

import export
from moleclip.deploy import Deployed
from moleclip.encoder import Encoder, new_arch
from moleclip.quantize import gptq, linear_layers, turn_around_mean, turned

KINDS = {  # of encoders: those of CLIP and MoleCLIP, ours from scratch, and those of DINOv2's kind
    "all tokens": {"tokens": "all"},
    "inked": {"tokens": "inked"},
    "DINOv2": {"tokens": "inked", "gelu": "exact", "ln_pre": False, "ln_eps": 1e-6, "patch": 14},
    "pooled": {"tokens": "inked", "gelu": "exact", "ln_pre": False, "pool": "cls+mean"},
}


def lively(kind):
    """An encoder of two layers whose LayerNorms and biases do something, with outlier channels."""
    torch.manual_seed(0)
    white = {"mean": (1.0, 1.0, 1.0), "std": (0.25, 0.25, 0.25)}
    encoder = Encoder(new_arch(64, 2, 2, **white | KINDS[kind])).eval()
    with torch.no_grad():
        for weight in encoder.visual.parameters():
            if weight.dim() == 1:
                weight += 0.2 * torch.randn_like(weight)
        for block in encoder.visual.transformer.resblocks:
            block.mlp.c_proj.bias[3] += 20
    return Deployed([encoder]).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_turned_encoder_computes_the_same(kind):
    deployed, images = lively(kind), torch.from_numpy(export.probe_pictures()[:6])
    before = {name: value.clone() for name, value in deployed.state_dict().items()}
    with torch.no_grad():
        (wanted,), (got,) = deployed(images), turned(deployed)(images)
    assert torch.allclose(got, wanted, atol=1e-4 * wanted.abs().max())
    assert all(torch.equal(before[name], value) for name, value in deployed.state_dict().items())


def test_outliers_are_turned_away():
    turn = turn_around_mean(64, np.random.default_rng(0))
    assert turn @ turn.T == pytest.approx(np.eye(64)) and turn.sum(1) == pytest.approx(np.ones(64))
    token = np.random.default_rng(1).normal(size=64)
    token[3] = 40
    assert np.abs(turn @ token).max() < 0.5 * 40


def embeddings(session, images, batch):
    parts = [images[begin : begin + batch] for begin in range(0, len(images), batch)]
    return np.concatenate([session.run(["embedding"], {"images": part})[0] for part in parts])


@pytest.mark.parametrize("kind", ["all tokens", "pooled"])
def test_int8_is_close_and_no_neighbour_has_a_say(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION", 32)
    deployed, images = lively(kind), export.probe_pictures(small_molecules(64))
    model = export.to_onnx(deployed, "int8")
    export.save_onnx(model, tmp_path / "m.onnx", {})
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMulInteger") == operators.count("QuantizeLinear") == 8
    zeros = [each for each in model.graph.initializer if each.name.endswith("_zero")]
    zeros = sorted(int(onnx.numpy_helper.to_array(each)) for each in zeros)
    assert zeros == [32, 32, *[128] * 6]  # GELUs have steps for what is above 0
    session = export.new_session(tmp_path / "m.onnx", "CPUExecutionProvider")
    together = embeddings(session, images, 64)
    # To the bit; but the order of the sum over patches, in fp32 too, depends on how many there are.
    order = 1e-6 * np.abs(together).max() if kind == "pooled" else 0
    for batch in (1, 8):
        assert np.abs(embeddings(session, images, batch) - together).max() <= order
    with torch.no_grad():
        wanted = deployed(torch.from_numpy(images))[0].numpy()
    far = np.linalg.norm(together - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 0 < far.max() < 0.02


def test_gptq_makes_good_what_rounding_did_wrong():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 8)) @ random.normal(size=(8, 96))  # channels that go together
    inputs += 0.1 * random.normal(size=inputs.shape)
    weight, moments = random.normal(size=(96, 64)), (inputs.T @ inputs).astype(np.float32)
    plain, scales = gptq(weight, np.eye(96, dtype=np.float32))
    assert (plain == np.round(weight / scales)).all() and np.abs(plain).max() == 127
    fitted, scales = gptq(weight, moments)
    assert fitted.dtype == np.int8 and scales == pytest.approx(np.abs(weight).max(0) / 127)
    wrong = [np.abs(inputs @ (whole * scales - weight)).mean() for whole in (plain, fitted)]
    assert wrong[1] < 0.5 * wrong[0]


def product(weight_is_known):
    """A graph with a layer that has the name of a block's."""
    known = ["w"] if weight_is_known else []
    values = {name: onnx.helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xwy"}
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["minus"]),
        onnx.helper.make_node("MatMul", ["minus", "w"], ["xw"]),
        onnx.helper.make_node("Add", ["xw", "a.mlp.c_fc.bias"], ["y"]),
    ]
    arrays = {"w": np.eye(4, dtype=np.float32), "a.mlp.c_fc.bias": np.ones(4, np.float32)}
    arrays = {name: array for name, array in arrays.items() if name in (*known, "a.mlp.c_fc.bias")}
    given = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    inputs = [values["x"]] + [values["w"]] * (not weight_is_known)
    return onnx.helper.make_graph(nodes, "g", inputs, [values["y"]], given)


def test_a_layer_that_hides_is_no_silent_fp32():
    (layer,) = linear_layers(product(True))
    assert (layer.x, layer.out, layer.zero) == ("minus", "y", 128)
    with pytest.raises(click.ClickException, match="this PyTorch.*c_fc.bias"):
        linear_layers(product(False))


def test_the_benchmark_measures_the_forms_that_it_names(monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION", 4)
    deployed = lively("pooled")
    images = export.probe_pictures(("CCO", "CC(=O)Oc1ccccc1C(=O)O", "BrC(Br)Br"))
    sizes, known, gaps = {}, None, {}
    for name, model in int8.forms(deployed).items():
        sizes[name] = model.ByteSize()
        session = int8.open_on_one_core(model)
        told = session.run(["embedding"], {"images": images})[0]
        known = told if known is None else known
        gaps[name] = float(np.abs(told - known).mean())
    assert len(gaps) == 8 and gaps.pop("fp32") == 0 and min(gaps.values()) > 0
    assert len(set(gaps.values())) == 7  # each step changes something
    assert gaps["and fitted weights: int8"] < gaps["one scale a token"]
    assert max(size for name, size in sizes.items() if name != "fp32") < sizes["fp32"]
