import json
import shutil
import urllib.error

import clip
import numpy as np
import pytest
import torch
from conftest import mistake, small_molecules

import pretrain
import render


def small_clip():
    """A CLIP of OpenAI's architecture with random weights: a vision transformer of 2 layers, a text tower of 1."""
    return clip.model.CLIP(embed_dim=512, image_resolution=224, vision_layers=2, vision_width=64, vision_patch_size=16,
                           context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1).eval()


def real_pixels(count):
    drawn = [render.draw(render.layout(render.parse(smiles))) for smiles in small_molecules(count)]
    return pretrain.to_pixels(np.stack(drawn), "cpu")


def test_the_contrastive_loss_is_the_papers():
    a, b = torch.randn(6, 8).double(), torch.randn(6, 8).double()
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    similar = 15 * (u @ v.T).numpy()
    both = [-np.log(np.exp(m.diagonal()) / np.exp(m).sum(1)).mean() for m in (similar, similar.T)]
    loss, _ = pretrain.contrastive_loss(a, b, 15)
    assert loss.item() == pytest.approx(0.5 * sum(both))


def test_a_batch_is_made_of_runs_of_cluster_mates():
    labels = np.stack([np.arange(1000) % 7, np.arange(1000) * 37 % 40], 1)
    order, held = pretrain.split_held_out(labels, 64)
    assert len(held) == 64 and not set(order) & set(held) and len(order) + len(held) == 1000
    seen = pretrain.epoch_batches(order, 64, 0, 0)
    assert len(np.unique(seen)) == seen.size == len(order) // 64 * 64
    place = {member: i for i, member in enumerate(order)}
    for batch in seen:
        for run in batch.reshape(-1, 32):
            assert [place[m] for m in run] == list(range(place[run[0]], place[run[0]] + 32))
    assert (seen != pretrain.epoch_batches(order, 64, 0, 1)).any() and (seen == pretrain.epoch_batches(order, 64, 0, 0)).all()


def test_the_run_leaves_a_whole_checkpoint(road):
    checkpoint = torch.load(road / "encoder.pt", weights_only=True)
    assert {"encoder", "arch", "step", "config", "metrics", "optimizer", "heads"} <= set(checkpoint) and checkpoint["step"] == 3
    clip.model.VisionTransformer(**checkpoint["arch"]["args"]).load_state_dict(checkpoint["encoder"])
    assert all(value.dtype == torch.float32 for value in checkpoint["encoder"].values())
    assert {name: tuple(value.shape) for name, value in checkpoint["heads"].items() if "weight" in name} == {"k4.weight": (4, 512), "k12.weight": (12, 512)}
    log = [json.loads(line) for line in (road / "encoder.log.jsonl").read_text().splitlines()]
    first = log[0]
    assert first["contrastive"] == pytest.approx(np.log(32), abs=0.02)          # ln 8 would mean negatives of one process only
    assert first["loss"] == pytest.approx(first["contrastive"] + first["k4"] + first["k12"], rel=1e-5)
    assert json.loads((road / "encoder.json").read_text())["arch"]["tokens"] == "all" and (road / "encoder.curves.png").stat().st_size > 5000
    assert "32 held out" in road.said["pretrain"] and "4 processes on cpu in fp32" in road.said["pretrain"]


def test_one_process_computes_what_four_do(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    desk.run("python pretrain.py --init scratch:nano --batch 32 --steps 3 --log-every 1 --precision fp32 --micro-batch 24")
    one, four = ([json.loads(line) for line in (folder / "encoder.log.jsonl").read_text().splitlines()] for folder in (desk, road))
    for a, b in zip(one, four, strict=True):
        assert {name: a[name] for name in a if name not in ("images/s", "left")} == pytest.approx(
            {name: b[name] for name in b if name not in ("images/s", "left")}, abs=1e-5)


def test_slices_give_the_gradient_of_one_pass():
    encoder, heads = pretrain.load_encoder("scratch:nano"), torch.nn.ModuleDict({"k5": torch.nn.Linear(512, 5)})
    views = [np.random.default_rng(v).integers(0, 2, (12, 224, 224)).astype(np.uint8) for v in (0, 1)]
    found = []
    for micro in (24, 5):
        encoder.zero_grad(), heads.zero_grad()
        pretrain.backward(encoder, heads, views, torch.arange(12)[:, None] % 5, pretrain.World(), 15, torch.device("cpu"), None, micro,
                          torch.amp.GradScaler("cpu", enabled=False))
        found.append([p.grad.clone() for p in [*encoder.parameters(), *heads.parameters()]])
    for whole, sliced in zip(*found):
        assert torch.allclose(whole, sliced, atol=1e-6 * max(1, whole.abs().max()))


def test_a_run_in_two_parts_ends_with_the_same_weights(road, desk):
    for name in ("shards", "labels.npz"):
        (desk / name).symlink_to(road / name)
    command = "python pretrain.py --init scratch:nano --batch 32 --precision fp32 --lr 1e-3 --steps "
    desk.run(command + "4 -o whole.pt")
    desk.run(command + "2 -o parts.pt")
    desk.run(command + "4 -o parts.pt --resume")
    whole, parts = (torch.load(desk / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    for part in ("encoder", "heads"):
        assert all((whole[part][name] == parts[part][name]).all() for name in whole[part])


def test_a_scratch_encoder_tells_molecules_apart():
    """With CLIP's pixel statistics a random encoder sees white paper alone: 0.02 here, and no loss ever falls."""
    with torch.no_grad():
        features = pretrain.load_encoder("scratch:tiny")(real_pixels(8))
    assert (features - features.mean(0)).norm() / features.norm() > 0.05


@pytest.mark.parametrize("damage", [lambda m: [], lambda m: m | {"views": "2"}, lambda m: {k: v for k, v in m.items() if k != "sha256"}])
def test_a_damaged_manifest(road, tmp_path, monkeypatch, damage):
    shutil.copytree(road / "shards", tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(json.dumps(damage(json.loads(manifest.read_text()))))
    monkeypatch.chdir(tmp_path)
    assert "manifest.json: damaged" in mistake(pretrain.main, "--batch", 32, "--init", "scratch:nano")


@pytest.mark.parametrize("damage", [{"k12": np.zeros(3, np.int32)}, {"k12": np.zeros((96, 1), np.int32)}, {"meta": np.array("{}")},
                                    {"k12": np.full(96, 10**9, np.int32)}])
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
    encoder, pixels = pretrain.load_encoder(str(path)).eval(), real_pixels(5)
    assert encoder.arch["args"] == {"input_resolution": 224, "patch_size": 16, "width": 64, "layers": 2, "heads": 1, "output_dim": 512}
    reference = clip.load(str(path), device="cpu", jit=False)[0] if form == "archive" else model
    with torch.no_grad():
        wanted = reference.encode_image((pixels - torch.tensor(pretrain.CLIP_MEAN).view(3, 1, 1)) / torch.tensor(pretrain.CLIP_STD).view(3, 1, 1))
        assert torch.allclose(encoder(pixels), wanted, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_a_named_model_that_cannot_be_downloaded_names_the_ways_out(monkeypatch):
    def offline(*words, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(clip, "load", offline)
    with pytest.raises(pretrain.click.ClickException) as error:
        pretrain.load_encoder("ViT-B/16")
    message = error.value.message
    assert "ViT-B/16" in message and "scratch:tiny" in message and "local file" in message and "\n" not in message


def test_a_named_model_goes_through_clip_load(monkeypatch):
    asked = []

    def load(name, device, jit):
        asked.append((name, device, jit))
        return small_clip().half(), None

    monkeypatch.setattr(clip, "load", load)
    assert pretrain.load_encoder("ViT-B/16").arch["args"]["width"] == 64 and asked == [("ViT-B/16", "cpu", False)]


def test_the_saved_encoder_loads_to_the_same_function(road, tmp_path):
    encoder = pretrain.load_encoder(str(road / "encoder.pt"))
    pixels = real_pixels(3)
    pretrain.save_checkpoint(tmp_path / "again.pt", encoder=encoder.visual.half().state_dict(), arch=encoder.arch, step=0, config={}, metrics={})
    again = pretrain.load_encoder(str(tmp_path / "again.pt"))                    # released files may hold fp16; loading gives fp32
    with torch.no_grad():
        assert torch.allclose(again(pixels), pretrain.load_encoder(str(road / "encoder.pt"))(pixels), atol=0.02)


@pytest.mark.parametrize("words, says", [
    (["--shards", "nowhere"], "holds no shards"),
    (["--labels", "nowhere.npz"], "no such file"),
    (["--batch", "48"], "--batch 48"),
    (["--batch", "64"], "too few"),
    (["--init", "nowhere.pt", "--batch", "32"], "nowhere.pt"),
    (["--init", "scratch:huge", "--batch", "32"], "scratch:nano"),
    (["--init", "labels.npz", "--batch", "32"], "not a PyTorch checkpoint"),
    (["-o", "there.pt", "--batch", "32"], "--resume"),
    (["--resume", "--batch", "32"], "nothing to resume"),
    (["-o", "encoder.json", "--batch", "32"], "ends in .pt"),
    (["--resume", "-o", "../road.pt", "--batch", "32", "--init", "scratch:nano", "--lr", "1e-3", "--steps", "9"], "made with lr"),
])
def test_mistakes(road, monkeypatch, words, says, tmp_path):
    for name in ("shards", "labels.npz"):
        (tmp_path / name).symlink_to(road / name)
    (tmp_path / "there.pt").touch()
    (tmp_path.parent / "road.pt").write_bytes((road / "encoder.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert says in mistake(pretrain.main, *words)
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize("damage, says", [
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), "truncated"),
    (lambda path: np.savez(path, data=np.zeros(3)), "shard-00000.npz"),
    (lambda path: path.unlink(), "no such file"),
])
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
        pretrain.load_encoder(str(tmp_path / "cut.pt"))


def test_labels_of_another_file(road, desk):
    desk.write("other.smi", small_molecules(60))
    desk.run("python cluster.py other.smi --k 4")
    (desk / "shards").symlink_to(road / "shards")
    said = desk.run("torchrun --nproc_per_node=2 pretrain.py --batch 32 --init scratch:nano", code=1)
    assert said.count("labels.npz: made from other.smi (60 rows), but shards/ from another file, molecules.smi") == 1
    assert "pretrain.py\", line" not in said and not (desk / "encoder.pt").exists()
