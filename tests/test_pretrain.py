import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from conftest import ROOT, mistake, small_molecules

import pretrain
from moleclip.augment import N_UNIFORMS, augment, moved_ink
from moleclip.device import Distributed
from moleclip.drawing import Style, draw, layout, random_style
from moleclip.encoder import CLIP_MEAN, CLIP_STD, Embedder, to_pixels
from moleclip.molecules import parse
from moleclip.pairs import (
    MACCS_PACKED,
    DrawnPairs,
    ShardPairs,
    contrastive_loss,
    epoch_batches,
    split_held_out,
)
from moleclip.weights import load_encoder, save_checkpoint


def small_clip():
    """A CLIP of OpenAI's architecture with random weights: a vision transformer of 2 layers, a text tower of 1."""
    return clip.model.CLIP(
        embed_dim=512,
        image_resolution=224,
        vision_layers=2,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    ).eval()


def real_pixels(count):
    drawn = [draw(layout(parse(smiles))) for smiles in small_molecules(count)]
    return to_pixels(np.stack(drawn), "cpu")


def index_pictures(count):
    """Plain and styled drawings of real molecules, two uint8 (count, 224, 224)."""
    molecules = [layout(parse(smiles)) for smiles in small_molecules(count)]
    return [
        np.stack(
            [draw(m, random_style(0, i, 1) if view else Style()) for i, m in enumerate(molecules)]
        )
        for view in (0, 1)
    ]


def test_the_contrastive_loss_is_the_papers():
    a, b = torch.randn(6, 8).double(), torch.randn(6, 8).double()
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    similar = 15 * (u @ v.T).numpy()
    both = [-np.log(np.exp(m.diagonal()) / np.exp(m).sum(1)).mean() for m in (similar, similar.T)]
    loss, _ = contrastive_loss(a, b, 15)
    assert loss.item() == pytest.approx(0.5 * sum(both))


def test_a_batch_is_made_of_runs_of_cluster_mates():
    labels = np.stack([np.arange(1000) % 7, np.arange(1000) * 37 % 40], 1)
    order, held = split_held_out(labels, 64)
    assert len(held) == 64 and not set(order) & set(held) and len(order) + len(held) == 1000
    assert (
        set(labels[held, 1]) <= set(labels[order, 1]) and len(set(labels[held, 1])) <= 8
    )  # cluster mates, whose class stays in training
    seen = epoch_batches(order, 64, 0, 0)
    assert len(np.unique(seen)) == seen.size == len(order) // 64 * 64
    place = {member: i for i, member in enumerate(order)}
    for batch in seen:
        for run in batch.reshape(-1, 32):
            assert [place[m] for m in run] == list(range(place[run[0]], place[run[0]] + 32))
    assert (seen != epoch_batches(order, 64, 0, 1)).any() and (
        seen == epoch_batches(order, 64, 0, 0)
    ).all()


def test_the_run_leaves_a_whole_checkpoint(road):
    checkpoint = torch.load(road / "encoder.pt", weights_only=True)
    assert {"encoder", "arch", "step", "config", "metrics", "optimizer", "heads"} <= set(
        checkpoint
    ) and checkpoint["step"] == 3
    clip.model.VisionTransformer(**checkpoint["arch"]["args"]).load_state_dict(
        checkpoint["encoder"]
    )
    assert all(value.dtype == torch.float32 for value in checkpoint["encoder"].values())
    assert {
        name: tuple(value.shape) for name, value in checkpoint["heads"].items() if "weight" in name
    } == {"k4.weight": (4, 512), "k12.weight": (12, 512)}
    log = [json.loads(line) for line in (road / "encoder.log.jsonl").read_text().splitlines()]
    first = log[0]
    assert first["contrastive"] == pytest.approx(
        np.log(32), abs=0.02
    )  # ln 8 would mean negatives of one process only
    assert first["loss"] == pytest.approx(
        first["contrastive"] + first["k4"] + first["k12"], rel=1e-5
    )
    assert (
        json.loads((road / "encoder.json").read_text())["arch"]["tokens"] == "inked"
        and (road / "encoder.curves.png").stat().st_size > 5000
    )
    assert (
        "32 held out" in road.said["pretrain"]
        and "4 processes on cpu in fp32" in road.said["pretrain"]
    )


def test_1_2_and_4_processes_compute_the_same(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    command = "--init scratch:nano --batch 32 --epochs 5 --log-every 1 --precision fp32 --lr 1e-4 --micro-batch 24 --augment default"
    runs = [
        f"{count} {command} --steps {steps} -o {count}-{steps}.pt"
        for count in (1, 2, 4)
        for steps in (1, 5)
    ]
    subprocess.run(
        [sys.executable, ROOT / "tests" / "ranks.py"],
        cwd=desk.folder,
        input="\n".join(runs),
        text=True,
        check=True,
        timeout=280,
    )
    logs = [
        [json.loads(line) for line in (desk / f"{count}-5.log.jsonl").read_text().splitlines()]
        for count in (1, 2, 4)
    ]
    assert len(logs[0]) == 6  # five steps and the held-out evaluation
    for one, *others in zip(*logs, strict=True):
        for other in others:
            names = [name for name in one if name not in ("images/s", "memory_gb", "left")]
            assert [one[name] for name in names] == pytest.approx(
                [other[name] for name in names], abs=1e-5
            )
    # Adam's first moment after one step is a tenth of the gradient: the whole gradient is compared, not its effect
    states = [
        torch.load(desk / f"{count}-1.pt", weights_only=True)["optimizer"] for count in (1, 2, 4)
    ]
    one, *others = [
        torch.cat(
            [entry["exp_avg"].flatten() for part in state for entry in part["state"].values()]
        )
        for state in states
    ]
    for other in others:
        assert (other - one).norm() < 1e-5 * one.norm() and (other - one).abs().max() < 1e-5


@pytest.mark.parametrize("tokens", ["all", "inked"])
@pytest.mark.parametrize("level", ["none", "intense"])
def test_slices_give_the_gradient_of_one_pass(tokens, level):
    encoder, heads = (
        load_encoder("scratch:nano"),
        torch.nn.ModuleDict({"k5": torch.nn.Linear(512, 5)}),
    )
    encoder.arch["tokens"] = tokens
    views, random = index_pictures(12), np.random.default_rng(0).random((24, N_UNIFORMS))
    found = []
    for micro in (24, 5):
        encoder.zero_grad(), heads.zero_grad()
        eye = Embedder(encoder, torch.device("cpu"), None, level, micro)
        pretrain.backward(
            eye,
            heads,
            views,
            random,
            torch.arange(12)[:, None] % 5,
            Distributed(),
            15,
            {"contrastive": 1, "classes": 1},
            torch.amp.GradScaler("cpu", enabled=False),
        )
        found.append([p.grad.clone() for p in [*encoder.parameters(), *heads.parameters()]])
    for whole, sliced in zip(*found):
        assert torch.allclose(whole, sliced, atol=2e-6 * max(1, whole.abs().max()))


def test_slices_hold_pictures_of_like_ink_after_augmentation():
    encoder, index = load_encoder("scratch:nano"), np.concatenate(index_pictures(24))
    random = np.random.default_rng(0).random((48, N_UNIFORMS))
    for level in ("none", "default", "intense"):  # shrinking moves ink from patch to patch
        counts = encoder.inked(augment(to_pixels(index, "cpu"), level, random)[1]).sum(1).numpy()
        slices = Embedder(encoder, torch.device("cpu"), None, level, 8).micro_batches(index, random)
        assert sorted(np.concatenate(slices)) == list(range(48)) and max(map(len, slices)) == 8
        assert (
            sum(len(part) * counts[part].max() for part in slices)
            <= 1.02 * np.sort(counts).reshape(-1, 8).max(1).sum() * 8
        )
        assert np.abs(moved_ink(index, level, random, encoder) - counts).max() <= 2


def test_the_heads_have_a_rate_of_their_own(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    for rates in ("1e-5", "1e-5,1e-3"):
        desk.run(
            f"python pretrain.py --init scratch:nano --batch 32 --steps 1 --epochs 1 --precision fp32 --lr {rates} -o {rates.count(',')}.pt"
        )
    for path, heads in (("0.pt", 0.01), ("1.pt", 1e-3)):
        checkpoint = torch.load(desk / path, weights_only=True)
        assert [
            state["param_groups"][0]["lr"] for state in checkpoint["optimizer"]
        ] == pytest.approx([1e-5 / 3, heads / 3])  # warming up
        assert checkpoint["config"]["lr"] == [1e-5, heads]


@pytest.mark.parametrize(
    "weights, silent",
    [({"contrastive": 1, "classes": 0}, "heads"), ({"contrastive": 0, "classes": 1}, None)],
)
def test_a_weight_of_0_switches_a_task_off(weights, silent):
    encoder, heads = (
        load_encoder("scratch:nano"),
        torch.nn.ModuleDict({"k5": torch.nn.Linear(512, 5)}),
    )
    eye = Embedder(encoder, torch.device("cpu"), None)
    parts = pretrain.backward(
        eye,
        heads,
        index_pictures(6),
        np.zeros((12, N_UNIFORMS)),
        torch.arange(6)[:, None] % 5,
        Distributed(),
        15,
        weights,
        torch.amp.GradScaler("cpu", enabled=False),
    )
    assert parts["loss"].item() == pytest.approx(
        weights["contrastive"] * parts["contrastive"].item()
        + weights["classes"] * parts["k5"].item()
    )
    assert (heads["k5"].weight.grad.abs().sum() == 0) == (silent == "heads")


def test_the_third_task_regresses_descriptors(road, desk):
    for name in ("shards", "molecules.smi"):
        (desk / name).symlink_to(road / name)
    desk.run("python cluster.py molecules.smi --k 4 --k 12 --descriptors")
    desk.run(
        "python pretrain.py --init scratch:nano --batch 32 --steps 12 --epochs 9 --lr 1e-3 --precision fp32 --log-every 1 --augment none "
        "--loss contrastive=0.5,classes=0,descriptors=2"
    )
    log = [json.loads(line) for line in (desk / "encoder.log.jsonl").read_text().splitlines()]
    steps, held = [entry for entry in log if "loss" in entry], log[-1]
    assert all(
        e["loss"]
        == pytest.approx(0.5 * e["contrastive"] + 2 * (e["descriptors"] + e["maccs"]), rel=1e-5)
        for e in steps
    )
    assert (
        steps[-1]["descriptors"] < 0.9 * steps[0]["descriptors"]
        and steps[-1]["maccs"] < 0.8 * steps[0]["maccs"]
        and held["held_out_maccs"] > 0
    )
    heads = torch.load(desk / "encoder.pt", weights_only=True)["heads"]
    assert heads["descriptors.weight"].shape == (64 + MACCS_PACKED, 512)
    fresh, stored = (
        DrawnPairs(str(desk / "molecules.smi"), str(desk / "labels.npz"), 0, True),
        ShardPairs(desk / "shards", desk / "labels.npz", True),
    )
    labels = stored.load(np.array([3, 50, 9]), 0)[1]
    arrays = np.load(desk / "labels.npz")
    assert (labels == fresh.load(np.array([3, 50, 9]), 0)[1]).all() and (
        labels[1, 2:66] == torch.from_numpy(arrays["descriptors"][51]).float()
    ).all()  # row 7 is broken
    assert (labels[1, :2].tolist() == [arrays["k4"][51], arrays["k12"][51]]) and labels.shape == (
        3,
        2 + 64 + MACCS_PACKED,
    )


def test_an_images_features_do_not_depend_on_its_neighbours():
    encoder = load_encoder("scratch:tiny").eval()
    drawn = index_pictures(6)[0]
    little, much, empty = drawn[0] * (np.arange(224) < 60), drawn.max(0), np.zeros_like(drawn[0])
    batch = np.stack([little, much, empty, drawn[1]])
    with torch.no_grad():
        together = encoder(to_pixels(batch, "cpu"))
        alone = torch.cat([encoder(to_pixels(one[None], "cpu")) for one in batch])
    assert torch.isfinite(together).all() and torch.allclose(together, alone, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_both_modes_are_the_towers_own_when_all_is_inked():
    encoder = load_encoder("scratch:nano").eval()
    pixels, ink, found = real_pixels(2), torch.ones(2, 196, dtype=torch.bool), []
    for tokens in (
        "inked",
        "all",
        "the tower's",
    ):  # on a CPU both modes attend in another way than clip's tower
        encoder.arch["tokens"] = tokens if tokens != "the tower's" else "all"
        see = (
            encoder
            if tokens != "the tower's"
            else lambda pixels, ink: encoder.visual((pixels - encoder.mean) / encoder.std)
        )
        encoder.zero_grad()
        features = see(pixels, ink)
        features.square().sum().backward()
        found.append([features.detach(), *(p.grad.clone() for p in encoder.parameters())])
        with torch.no_grad():
            assert torch.allclose(see(pixels, ink), features, atol=1e-5)
    *modes, tower = found
    assert all(
        torch.allclose(ours, whole, atol=1e-5 * max(1, whole.abs().max()))
        for mode in modes
        for ours, whole in zip(mode, tower)
    )


def test_augmentation_has_the_papers_meaning():
    pixels = to_pixels(np.concatenate(index_pictures(30)), "cpu").repeat(4, 1, 1, 1)
    random = np.random.default_rng(1).random((len(pixels), N_UNIFORMS))
    same, _ = augment(pixels, "none", None)
    assert same is pixels
    for level, gray, small in (("default", 0.25, 0.6), ("intense", 0.25, 0.5)):
        result, clean = augment(pixels, level, random)
        assert result.shape == pixels.shape and result.min() >= 0 and result.max() <= 1
        again, _ = augment(pixels[7:9], level, random[7:9])
        assert torch.equal(
            again, result[7:9]
        )  # an image's own numbers decide, not the slice it is in
        colourless = (
            ((result.max(1).values - result.min(1).values).amax((1, 2)) < 1e-4).float().mean()
        )
        assert abs(colourless - gray) < 0.13
        assert (result == 0).all(1).float().mean() > 0.0003 and (
            clean - pixels
        ).abs().mean() > 0.005
        width = lambda x: (x < 0.9).any(1).any(1).float().sum(1)
        shrunk = (width(clean) / width(pixels))[torch.from_numpy(random[:, 6]) > 0.5]
        assert shrunk.min() > small - 0.08 and shrunk.max() < 1.25


def test_the_published_moleclip_checkpoint(tmp_path):
    """DataParallel names under `model`, beside the text tower and the heads; its pictures were fed blue first."""
    torch.manual_seed(2)
    model = small_clip()
    state = {
        f"model_image.module.model.{name}": value.half()
        for name, value in model.state_dict().items()
    }
    torch.save(
        {
            "model": state
            | {"cls_1.weight": torch.zeros(30, 512), "cls_2.weight": torch.zeros(300, 512)},
            "epoch": 4,
        },
        tmp_path / "MoleCLIP - Primary.pth",
    )
    encoder, pixels = load_encoder(str(tmp_path / "MoleCLIP - Primary.pth")).eval(), real_pixels(3)
    assert encoder.arch["channels"] == "bgr" and encoder.arch["tokens"] == "all"
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        assert torch.allclose(
            encoder(pixels),
            model.half().float().encode_image((pixels[:, [2, 1, 0]] - mean) / std),
            atol=1e-4,
        )


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
    for i in range(layers):
        for name, shape in {
            "norm1": (width,),
            "norm2": (width,),
            "attention.attention.query": (width, width),
            "attention.attention.key": (width, width),
            "attention.attention.value": (width, width),
            "attention.output.dense": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes |= {
                f"encoder.layer.{i}.{name}.weight": shape,
                f"encoder.layer.{i}.{name}.bias": shape[:1],
            }
        shapes |= {f"encoder.layer.{i}.layer_scale{j}.lambda1": (width,) for j in (1, 2)}
    return {
        name: torch.randn(shape) * (0.06 if len(shape) > 1 else 0.5)
        + (1.0 if "norm" in name and "weight" in name else 0.0)
        for name, shape in shapes.items()
    }


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, value in tensors.items():
        raw = value.half().numpy().tobytes()
        header[name] = {
            "dtype": "F16",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def dinov2_class_token(w, pixels, heads):
    """DINOv2's forward pass written anew from its description: pre-norm blocks, LayerScale, exact GELU, eps 1e-6."""
    F, layers = (
        torch.nn.functional,
        len({name.split(".")[2] for name in w if name.startswith("encoder.layer.")}),
    )
    width = w["layernorm.weight"].shape[0]
    norm = lambda x, at: F.layer_norm(x, (width,), w[f"{at}.weight"], w[f"{at}.bias"], 1e-6)
    linear = lambda x, at: F.linear(x, w[f"{at}.weight"], w[f"{at}.bias"])
    x = (
        F.conv2d(
            pixels,
            w["embeddings.patch_embeddings.projection.weight"],
            w["embeddings.patch_embeddings.projection.bias"],
            stride=14,
        )
        .flatten(2)
        .transpose(1, 2)
    )
    grid = w["embeddings.position_embeddings"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + torch.cat(
        [
            w["embeddings.position_embeddings"][:, :1],
            F.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2),
        ],
        1,
    )
    for at in (f"encoder.layer.{i}" for i in range(layers)):
        y = norm(x, f"{at}.norm1")
        q, k, v = (
            linear(y, f"{at}.attention.attention.{name}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(-1, -2)) / (width // heads) ** 0.5).softmax(-1) @ v
        x = x + w[f"{at}.layer_scale1.lambda1"] * linear(
            mixed.transpose(1, 2).flatten(2), f"{at}.attention.output.dense"
        )
        x = x + w[f"{at}.layer_scale2.lambda1"] * linear(
            F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2"
        )
    return norm(x, "layernorm")[:, 0]


def test_dinov2_gives_its_own_class_token(tmp_path):
    torch.manual_seed(3)
    weights = {name: value.half().float() for name, value in random_dinov2().items()}
    write_safetensors(tmp_path / "dinov2.safetensors", weights)
    encoder, pixels = load_encoder(str(tmp_path / "dinov2.safetensors")).eval(), real_pixels(3)
    assert (
        encoder.arch["tokens"] == "inked"
        and encoder.arch["args"]["heads"] == 2
        and encoder.arch["gelu"] == "exact"
    )
    encoder.arch["tokens"] = "all"
    with torch.no_grad():
        token = dinov2_class_token(
            weights,
            (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
            / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
            2,
        )
        factor = (encoder.visual.proj @ encoder.visual.proj.T)[0, 0]
        got = (
            encoder(pixels) @ encoder.visual.proj.T / factor
        )  # the projection is orthonormal but for a factor: its transpose undoes it
    assert torch.allclose(got, token, atol=1e-4) and torch.allclose(
        encoder.visual.proj @ encoder.visual.proj.T / factor, torch.eye(128), atol=1e-5
    )
    (tmp_path / "cut.safetensors").write_bytes(
        (tmp_path / "dinov2.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(pretrain.click.ClickException, match="truncated"):
        load_encoder(str(tmp_path / "cut.safetensors"))
    write_safetensors(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(pretrain.click.ClickException, match="not a DINOv2"):
        load_encoder(str(tmp_path / "other.safetensors"))


def test_a_run_in_two_parts_ends_with_the_same_weights(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    command = "python pretrain.py --init scratch:nano --batch 32 --precision fp32 --lr 1e-3 --epochs 9 --steps "
    desk.run(command + "9 -o whole.pt")
    kill_when(desk, (command + "9 -o parts.pt --save-every 2").split(), "parts.pt", signal.SIGKILL)
    assert torch.load(desk / "parts.pt", weights_only=True)["step"] < 9
    desk.run(command + "9 -o parts.pt --resume")
    whole, parts = (torch.load(desk / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    for part in ("encoder", "heads"):
        assert all((whole[part][name] == parts[part][name]).all() for name in whole[part])


def test_a_run_may_end_at_a_lower_rate(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    command = "python pretrain.py --init scratch:nano --batch 32 --precision fp32 --log-every 1 --epochs 9 --resume "
    desk.run(command + "--steps 6 --lr 1e-3")
    said = desk.run(command + "--steps 8 --lr 1e-4,1e-3 --loss contrastive=1,classes=0.5")
    assert (
        'from step 6 with other settings: {"lr": [0.0001, 0.001], "loss": {"contrastive": 1.0, "classes": 0.5}}'
        in said
    )
    log = [json.loads(line) for line in (desk / "encoder.log.jsonl").read_text().splitlines()]
    assert [entry["lr"] for entry in log if "loss" in entry][-4:] == pytest.approx(
        [1e-3 / 3 if step < pretrain.WARM_UP else 1e-3 for step in (4, 5)] + [1e-4] * 2
    )
    assert [entry["changed"]["lr"] for entry in log if "changed" in entry] == [[1e-4, 1e-3]]
    assert "goes on" not in desk.run(
        command + "--steps 9 --lr 1e-4,1e-3 --loss contrastive=1,classes=0.5"
    )


def kill_when(desk, words, name, how):
    """Start a run, send it a signal as soon as a file is there, and return its exit code and what it printed."""
    words[0] = (
        sys.executable if words[0] == "python" else str(Path(sys.executable).parent / words[0])
    )
    with subprocess.Popen(
        words, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not (desk / name).exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(how)
        said = process.communicate(timeout=120)[0]
    return process.returncode, said


def test_sigterm_saves_and_leaves(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    command = "python pretrain.py --init scratch:nano --batch 32 --precision fp32 --steps 400 --epochs 400 --save-every 2"
    code, said = kill_when(desk, command.split(), "encoder.pt", signal.SIGTERM)
    step = torch.load(desk / "encoder.pt", weights_only=True)["step"]
    assert (
        code == 0
        and 2 <= step < 400
        and f"saved step {step} in encoder.pt" in said
        and "Traceback" not in said
    )
    assert f"step {step + 1}" in desk.run(
        command.replace("400 --save-every 2", "400 --resume --log-every 1").replace(
            "--steps 400", f"--steps {step + 1}"
        )
    ).replace("  ", " ")


def test_a_nan_loss_ends_the_run_and_keeps_the_checkpoint(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    said = desk.run(
        "python pretrain.py --init scratch:nano --batch 32 --precision fp32 --steps 30 --epochs 30 --lr 1e6",
        code=1,
    )
    assert "the loss is not a number any more" in said and not (desk / "encoder.pt").exists()


def test_smiles_are_drawn_anew_every_epoch(road, desk):
    for name in ("shards", "labels.npz", "molecules.smi"):
        (desk / name).symlink_to(road / name)
    fresh = DrawnPairs(str(desk / "molecules.smi"), str(desk / "labels.npz"), 0)
    members = np.array([3, 50, 9])
    (plain, first), labels = fresh.load(members, 0)
    (again, second), _ = fresh.load(members, 1)
    stored = ShardPairs(desk / "shards", desk / "labels.npz")
    (shard_plain, shard_styled), shard_labels = stored.load(members, 0)
    assert (
        (plain == again).all()
        and (plain == shard_plain).all()
        and (first == shard_styled).all()
        and (labels == shard_labels).all()
    )
    assert all((a != b).any() for a, b in zip(first, second))
    desk.run(
        "python pretrain.py --smiles molecules.smi --init scratch:nano --batch 32 --steps 3 --precision fp32 --log-every 1"
    )
    desk.run(
        "python pretrain.py --init scratch:nano --batch 32 --steps 3 --precision fp32 --log-every 1 -o stored.pt"
    )
    logs = [
        [
            json.loads(line)["contrastive"]
            for line in (desk / f"{name}.log.jsonl").read_text().splitlines()[:1]
        ]
        for name in ("encoder", "stored")
    ]
    assert logs[0] == logs[1]  # the first epoch draws what the shards hold


def test_a_scratch_encoder_tells_molecules_apart():
    """With CLIP's pixel statistics a random encoder sees white paper alone: 0.02 here, and no loss ever falls."""
    with torch.no_grad():
        features = load_encoder("scratch:tiny")(real_pixels(8))
    assert (features - features.mean(0)).norm() / features.norm() > 0.05


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: [],
        lambda m: m | {"views": "2"},
        lambda m: {k: v for k, v in m.items() if k != "sha256"},
    ],
)
def test_a_damaged_manifest(road, tmp_path, monkeypatch, damage):
    shutil.copytree(road / "shards", tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(json.dumps(damage(json.loads(manifest.read_text()))))
    monkeypatch.chdir(tmp_path)
    assert "manifest.json: damaged" in mistake(
        pretrain.main, "--batch", 32, "--init", "scratch:nano"
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"k12": np.zeros(3, np.int32)},
        {"k12": np.zeros((96, 1), np.int32)},
        {"meta": np.array("{}")},
        {"k12": np.full(96, 10**9, np.int32)},
    ],
)
def test_damaged_labels(road, tmp_path, monkeypatch, damage):
    (tmp_path / "shards").symlink_to(road / "shards")
    np.savez(tmp_path / "labels.npz", **(dict(np.load(road / "labels.npz")) | damage))
    monkeypatch.chdir(tmp_path)
    assert "labels.npz: damaged" in mistake(pretrain.main, "--batch", 32, "--init", "scratch:nano")


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
    assert encoder.arch["args"] == {
        "input_resolution": 224,
        "patch_size": 16,
        "width": 64,
        "layers": 2,
        "heads": 1,
        "output_dim": 512,
    }
    reference = clip.load(str(path), device="cpu", jit=False)[0] if form == "archive" else model
    with torch.no_grad():
        wanted = reference.encode_image(
            (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
        )
        assert torch.allclose(encoder(pixels), wanted, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_a_named_model_that_cannot_be_downloaded_names_the_ways_out(monkeypatch):
    def offline(*words, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(clip, "load", offline)
    with pytest.raises(pretrain.click.ClickException) as error:
        load_encoder("ViT-B/16")
    message = error.value.message
    assert (
        "ViT-B/16" in message
        and "scratch:tiny" in message
        and "local file" in message
        and "\n" not in message
    )


def test_a_named_model_goes_through_clip_load(monkeypatch):
    asked = []

    def load(name, device, jit):
        asked.append((name, device, jit))
        return small_clip().half(), None

    monkeypatch.setattr(clip, "load", load)
    assert load_encoder("ViT-B/16").arch["args"]["width"] == 64 and asked == [
        ("ViT-B/16", "cpu", False)
    ]


def test_the_saved_encoder_loads_to_the_same_function(road, tmp_path):
    encoder = load_encoder(str(road / "encoder.pt"))
    pixels = real_pixels(3)
    save_checkpoint(
        tmp_path / "again.pt",
        encoder=encoder.visual.half().state_dict(),
        arch=encoder.arch,
        step=0,
        config={},
        metrics={},
    )
    again = load_encoder(
        str(tmp_path / "again.pt")
    )  # released files may hold fp16; loading gives fp32
    with torch.no_grad():
        assert torch.allclose(
            again(pixels), load_encoder(str(road / "encoder.pt"))(pixels), atol=0.02
        )


@pytest.mark.parametrize(
    "words, says",
    [
        (["--shards", "nowhere"], "holds no shards"),
        (["--labels", "nowhere.npz"], "no such file"),
        (["--batch", "48"], "--batch 48"),
        (["--batch", "64"], "too few"),
        (["--init", "nowhere.pt", "--batch", "32"], "nowhere.pt"),
        (["--init", "scratch:huge", "--batch", "32"], "scratch:nano"),
        (["--init", "labels.npz", "--batch", "32"], "not a PyTorch checkpoint"),
        (["-o", "there.pt", "--batch", "32"], "--resume"),
        (["--loss", "contrastive=0,classes=0"], "above 0"),
        (["--loss", "colour=1"], "is not contrastive=WEIGHT"),
        (
            ["--loss", "descriptors=1", "--batch", "32"],
            "make it again with cluster.py --descriptors",
        ),
        (["--lr", "1e-5,1e-3,1e-3"], "or two: that of the encoder and that of the heads"),
        (["--lr", "1e-5,"], "is not a valid float range"),
        (["-o", "encoder.json", "--batch", "32"], "ends in .pt"),
        (
            [
                "--resume",
                "-o",
                "../road.pt",
                "--batch",
                "32",
                "--init",
                "scratch:nano",
                "--temperature",
                "0.5",
                "--steps",
                "9",
            ],
            "made with temperature",
        ),
    ],
)
def test_mistakes(road, monkeypatch, words, says, tmp_path):
    for name in ("shards", "labels.npz"):
        (tmp_path / name).symlink_to(road / name)
    (tmp_path / "there.pt").touch()
    (tmp_path.parent / "road.pt").write_bytes((road / "encoder.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert says in mistake(
        pretrain.main,
        *words,
        code=2 if words[0] in ("--loss", "--lr") and "--batch" not in words else 1,
    )
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "truncated"),
        (lambda path: np.savez(path, data=np.zeros(3)), "shard-00000.npz"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_damaged_shards(road, tmp_path, monkeypatch, damage, says):
    shutil.copytree(road / "shards", tmp_path / "shards")
    (tmp_path / "labels.npz").symlink_to(road / "labels.npz")
    damage(tmp_path / "shards" / "shard-00000.npz")
    monkeypatch.chdir(tmp_path)
    line = mistake(pretrain.main, "--batch", 32, "--init", "scratch:nano")
    assert says in line and "shard-00000.npz" in line


def test_a_truncated_checkpoint(road, tmp_path):
    (tmp_path / "cut.pt").write_bytes((road / "encoder.pt").read_bytes()[:9999])
    with pytest.raises(pretrain.click.ClickException, match="cut.pt: truncated"):
        load_encoder(str(tmp_path / "cut.pt"))


def test_labels_of_another_file(road, desk):
    desk.write("other.smi", small_molecules(60))
    desk.run("python cluster.py other.smi --k 4")
    (desk / "shards").symlink_to(road / "shards")
    said = desk.run(
        "torchrun --nproc_per_node=2 pretrain.py --batch 32 --init scratch:nano", code=1
    )
    assert (
        said.count(
            "labels.npz: made from other.smi (60 rows), but shards/ from another file, molecules.smi"
        )
        == 1
    )
    assert 'pretrain.py", line' not in said and not (desk / "encoder.pt").exists()
