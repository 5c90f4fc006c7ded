import json
import urllib.error

import click
import clip
import pytest
import torch
from theirs import column, small_clip
from torch.nn import functional as F
from views import real_pixels

from moleclip.encoder import CLIP_MEAN, CLIP_STD
from moleclip.weights import load_encoder, save_checkpoint


def test_the_published_moleclip_checkpoint(tmp_path):
    """Its names are under `model`, beside text tower and heads; its pictures were blue first."""
    torch.manual_seed(2)
    model, path = small_clip(), tmp_path / "MoleCLIP - Primary.pth"
    state = {f"model_image.module.model.{n}": v.half() for n, v in model.state_dict().items()}
    state |= {"cls_1.weight": torch.zeros(30, 512), "cls_2.weight": torch.zeros(300, 512)}
    torch.save({"model": state, "epoch": 4}, path)
    encoder, pixels = load_encoder(str(path)).eval(), real_pixels(3)
    assert encoder.arch["channels"] == "bgr" and encoder.arch["tokens"] == "all"
    blue_first = (pixels[:, [2, 1, 0]] - column(CLIP_MEAN)) / column(CLIP_STD)
    with torch.no_grad():
        wanted = model.half().float().encode_image(blue_first)
        assert torch.allclose(encoder(pixels), wanted, atol=1e-4)


def random_dinov2(width=128, layers=2, grid=37):
    """A DINOv2 vision transformer with random weights, in Hugging Face's names."""
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, grid * grid + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    block = {
        "norm1": (width,),
        "norm2": (width,),
        "attention.attention.query": (width, width),
        "attention.attention.key": (width, width),
        "attention.attention.value": (width, width),
        "attention.output.dense": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for at in (f"encoder.layer.{i}" for i in range(layers)):
        for name, shape in block.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        shapes |= {f"{at}.layer_scale{j}.lambda1": (width,) for j in (1, 2)}
    weights = {}
    for name, shape in shapes.items():
        middle = 1.0 if "norm" in name and "weight" in name else 0.0
        weights[name] = torch.randn(shape) * (0.06 if len(shape) > 1 else 0.5) + middle
    return weights


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, value in tensors.items():
        raw = value.half().numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def dinov2_class_token(w, pixels, heads):
    """DINOv2's forward pass written anew: pre-norm blocks, LayerScale, exact GELU, eps 1e-6."""
    layers = len({name.split(".")[2] for name in w if name.startswith("encoder.layer.")})
    width = w["layernorm.weight"].shape[0]
    norm = lambda x, at: F.layer_norm(x, (width,), w[f"{at}.weight"], w[f"{at}.bias"], 1e-6)
    linear = lambda x, at: F.linear(x, w[f"{at}.weight"], w[f"{at}.bias"])
    at = "embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, w[f"{at}.weight"], w[f"{at}.bias"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    positions = w["embeddings.position_embeddings"]
    grid = positions[:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    x = x + torch.cat([positions[:, :1], grid], 1)
    for at in (f"encoder.layer.{i}" for i in range(layers)):
        y, attention = norm(x, f"{at}.norm1"), f"{at}.attention"
        q, k, v = (
            linear(y, f"{attention}.attention.{name}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(-1, -2)) / (width // heads) ** 0.5).softmax(-1) @ v
        mixed = linear(mixed.transpose(1, 2).flatten(2), f"{attention}.output.dense")
        x = x + w[f"{at}.layer_scale1.lambda1"] * mixed
        y = F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
        x = x + w[f"{at}.layer_scale2.lambda1"] * linear(y, f"{at}.mlp.fc2")
    return norm(x, "layernorm")[:, 0]


def test_dinov2_gives_its_own_class_token(tmp_path):
    torch.manual_seed(3)
    weights = {name: value.half().float() for name, value in random_dinov2().items()}
    write_safetensors(tmp_path / "dinov2.safetensors", weights)
    encoder, pixels = load_encoder(str(tmp_path / "dinov2.safetensors")).eval(), real_pixels(3)
    arch, projection = encoder.arch, encoder.visual.proj
    assert arch["tokens"] == "inked" and arch["args"]["heads"] == 2 and arch["gelu"] == "exact"
    arch["tokens"] = "all"
    normal = (pixels - column([0.485, 0.456, 0.406])) / column([0.229, 0.224, 0.225])
    with torch.no_grad():
        token = dinov2_class_token(weights, normal, 2)
        # the projection is orthonormal but for a factor: its transpose undoes it
        factor = (projection @ projection.T)[0, 0]
        got = encoder(pixels) @ projection.T / factor
    assert torch.allclose(got, token, atol=1e-4)
    assert torch.allclose(projection @ projection.T / factor, torch.eye(128), atol=1e-5)


def test_a_safetensors_file_that_is_no_dinov2(tmp_path):
    write_safetensors(tmp_path / "dinov2.safetensors", random_dinov2(layers=1))
    cut = (tmp_path / "dinov2.safetensors").read_bytes()[:5000]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    with pytest.raises(click.ClickException, match="truncated"):
        load_encoder(str(tmp_path / "cut.safetensors"))
    write_safetensors(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(click.ClickException, match="not a DINOv2"):
        load_encoder(str(tmp_path / "other.safetensors"))


def test_dinov2_with_registers_is_refused(tmp_path):
    weights = random_dinov2(layers=1) | {"embeddings.mask_token": torch.zeros(1, 128)}
    weights |= {"classifier.weight": torch.zeros(2, 256), "classifier.bias": torch.zeros(2)}
    write_safetensors(tmp_path / "whole.safetensors", weights)
    load_encoder(str(tmp_path / "whole.safetensors"))
    for name in ("embeddings.register_tokens", "encoder.layer.0.extra.weight"):
        write_safetensors(tmp_path / "more.safetensors", weights | {name: torch.zeros(1, 4, 128)})
        with pytest.raises(click.ClickException, match=f"{name} has no place.* without registers"):
            load_encoder(str(tmp_path / "more.safetensors"))


@pytest.mark.parametrize("form", ["archive", "state dict"])
def test_openais_format_gives_what_encode_image_gives(tmp_path, form):
    torch.manual_seed(1)
    model, path = small_clip(), tmp_path / "ViT-test.pt"
    if form == "archive":
        example = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.int32)
        torch.jit.trace(model, example, check_trace=False).save(path)
    else:
        torch.save(model.state_dict(), path)
    encoder, pixels = load_encoder(str(path)).eval(), real_pixels(5)
    args = {"input_resolution": 224, "patch_size": 16, "width": 64, "layers": 2, "heads": 1}
    assert encoder.arch["args"] == args | {"output_dim": 512}
    reference = clip.load(str(path), device="cpu", jit=False)[0] if form == "archive" else model
    with torch.no_grad():
        wanted = reference.encode_image((pixels - column(CLIP_MEAN)) / column(CLIP_STD))
        assert torch.allclose(encoder(pixels), wanted, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_a_named_model_that_cannot_be_downloaded_names_the_ways_out(monkeypatch):
    def offline(*words, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(clip, "load", offline)
    with pytest.raises(click.ClickException) as error:
        load_encoder("ViT-B/16")
    message = error.value.message
    assert "ViT-B/16" in message and "scratch:tiny" in message
    assert "local file" in message and "\n" not in message


def test_a_named_model_goes_through_clip_load(monkeypatch):
    asked = []

    def load(name, device, jit):
        asked.append((name, device, jit))
        return small_clip().half(), None

    monkeypatch.setattr(clip, "load", load)
    assert load_encoder("ViT-B/16").arch["args"]["width"] == 64
    assert asked == [("ViT-B/16", "cpu", False)]


def test_the_saved_encoder_loads_to_the_same_function(road, tmp_path):
    """Released files may hold fp16; loading gives fp32."""
    encoder, pixels = load_encoder(str(road / "encoder.pt")), real_pixels(3)
    with torch.no_grad():
        wanted = encoder(pixels)
    state = encoder.visual.half().state_dict()
    rest = {"arch": encoder.arch, "step": 0, "config": {}, "metrics": {}}
    save_checkpoint(tmp_path / "again.pt", encoder=state, **rest)
    again = load_encoder(str(tmp_path / "again.pt"))
    with torch.no_grad():
        assert torch.allclose(again(pixels), wanted, atol=0.02)


def test_a_truncated_checkpoint(road, tmp_path):
    (tmp_path / "cut.pt").write_bytes((road / "encoder.pt").read_bytes()[:9999])
    with pytest.raises(click.ClickException, match="cut.pt: truncated"):
        load_encoder(str(tmp_path / "cut.pt"))
