import json
import shutil
import signal
import subprocess
import sys
import time

import clip
import numpy as np
import pytest
import torch
from conftest import mistake, small_molecules
from ranks import play
from views import index_pictures

import pretrain
from moleclip.device import ALONE
from moleclip.embedder import Embedder
from moleclip.losses import MACCS_PACKED
from moleclip.movement import N_UNIFORMS
from moleclip.pairs import Batch
from moleclip.trainstate import PACE, WARM_UP, TrainState
from moleclip.weights import load_encoder

NANO = "python pretrain.py --init scratch:nano --batch 32 --precision fp32 "
TENSORS = ("encoder", "heads")


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(path):
    return torch.load(path, weights_only=True)


def nano_state(micro_batch=64, tokens="inked", level="none", **weights):
    """A run of the smallest encoder with one head, of 5 classes."""
    encoder, heads = load_encoder("scratch:nano"), {"k5": torch.nn.Linear(512, 5)}
    encoder.arch["tokens"] = tokens
    embedder = Embedder(encoder, torch.device("cpu"), None, level, micro_batch)
    config = {"temperature": 1 / 15, "loss": {"contrastive": 1, "classes": 1} | weights}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    heads = torch.nn.ModuleDict(heads)
    return TrainState("encoder.pt", config, ALONE, embedder, heads, [], scaler)


def parameters(state):
    return [*state.embedder.encoder.parameters(), *state.heads.parameters()]


def test_the_run_leaves_a_whole_checkpoint(road):
    checkpoint = load(road / "encoder.pt")
    keys = {"encoder", "arch", "step", "config", "metrics", "optimizer", "heads"}
    assert keys | {"scaler", "rng", "sampler"} == set(checkpoint) and checkpoint["step"] == 3
    tower = clip.model.VisionTransformer(**checkpoint["arch"]["args"])
    tower.load_state_dict(checkpoint["encoder"])
    assert all(value.dtype == torch.float32 for value in checkpoint["encoder"].values())
    heads = {name: tuple(value.shape) for name, value in checkpoint["heads"].items()}
    assert heads["k4.weight"] == (4, 512) and heads["k12.weight"] == (12, 512) and len(heads) == 4
    first = read_log(road / "encoder.log.jsonl")[0]
    # ln 8 would mean negatives of one process only
    assert first["contrastive"] == pytest.approx(np.log(32), abs=0.02)
    whole = first["contrastive"] + first["k4"] + first["k12"]
    assert first["loss"] == pytest.approx(whole, rel=1e-5)
    assert json.loads((road / "encoder.json").read_text())["arch"]["tokens"] == "inked"
    assert (road / "encoder.curves.png").stat().st_size > 5000
    said = road.said["pretrain"]
    assert "32 held out" in said and "4 processes on cpu in fp32" in said


def test_1_2_and_4_processes_compute_the_same(road, desk):
    desk.take(road, "shards", "labels.npz")
    command = "--init scratch:nano --batch 32 --epochs 5 --log-every 1 --precision fp32 --lr 1e-4"
    command += " --micro-batch 24 --augment default"
    counts = (1, 2, 4)
    runs = [
        {
            "folders": n * [desk.folder],
            "words": f"{command} --steps {steps} -o {n}-{steps}.pt".split(),
        }
        for n in counts
        for steps in (1, 5)
    ]
    assert not any(code for ranks in play(*runs) for code, _ in ranks)
    logs = [read_log(desk / f"{count}-5.log.jsonl") for count in counts]
    assert len(logs[0]) == 6  # five steps and the held-out evaluation
    for one, *others in zip(*logs, strict=True):
        names = [name for name in one if name not in PACE]
        for other in others:
            wanted = pytest.approx([other[name] for name in names], abs=1e-5)
            assert [one[name] for name in names] == wanted
    one, *others = [first_moments(load(desk / f"{count}-1.pt")) for count in counts]
    for other in others:
        assert (other - one).norm() < 1e-5 * one.norm() and (other - one).abs().max() < 1e-5


def take_atoms(road, desk):
    """Lay drawings with places into shards/, and labels of all tasks; some electrons are known."""
    desk.take(road, "molecules.smi")
    desk.run("python render.py molecules.smi --atoms --workers 1")
    desk.run("python cluster.py molecules.smi --k 4 --k 12 --atoms --descriptors --workers 1")
    random, arrays = np.random.default_rng(0), dict(np.load(desk / "labels.npz"))
    arrays["electronic"] = random.normal(size=(96, 4)).astype(np.float32)
    arrays["electronic"][::3] = np.nan
    known = np.repeat(np.isfinite(arrays["electronic"][:, 0]), np.diff(arrays["atom_offsets"]))
    for name in ("atom_charge", "atom_charge_h"):
        charges = random.normal(size=len(known)).astype(np.float16)
        arrays[name] = np.where(known, charges, np.float16(np.nan))
    np.savez(desk / "labels.npz", **arrays)


ALL_TASKS = "contrastive=0.3,classes=0.1,descriptors=5,fingerprint=0.05,atoms=1,electronic=1"


def test_all_tasks_are_learned_alike_by_any_number_of_processes(road, desk):
    take_atoms(road, desk)
    command = "--init scratch:nano --batch 32 --epochs 9 --log-every 1 --precision fp32 --lr 1e-4"
    command += f" --pool cls+mean --decay 0.5 --loss {ALL_TASKS} --micro-batch 24"
    runs = [
        {"folders": n * [desk.folder], "words": f"{command} --steps {k} -o {n}-{k}.pt".split()}
        for n in (1, 2)
        for k in (1, 4)
    ]
    assert not any(code for ranks in play(*runs) for code, _ in ranks)
    logs = [read_log(desk / f"{count}-4.log.jsonl") for count in (1, 2)]
    names = ["fingerprint", "electronic", "atom_r1", "atom_r1_accuracy", "atom_charges"]
    assert set(names) < set(logs[0][0]) and f"held_out_{names[-1]}" in logs[0][-1]
    for one, other in zip(*logs, strict=True):
        names = [name for name in one if name not in PACE]
        wanted = pytest.approx([other[name] for name in names], rel=1e-5, abs=1e-5)
        assert [one[name] for name in names] == wanted
    one, other = (first_moments(load(desk / f"{count}-1.pt")) for count in (1, 2))
    assert (other - one).norm() < 1e-5 * one.norm()
    third = 1e-4 / 3  # warming up; the rate falls over the last two of four steps
    rates = [entry["lr"] for entry in logs[0] if "lr" in entry]
    assert rates == pytest.approx([third, third, third, third / 2])
    checkpoint = load(desk / "1-4.pt")
    assert checkpoint["arch"]["pool"] == "cls+mean"
    assert checkpoint["encoder"]["pool"].shape == (128, 512)
    again = load_encoder(str(desk / "1-4.pt"))
    assert torch.equal(again.visual.pool, checkpoint["encoder"]["pool"])
    # which compares the file with PyTorch, and ends with an error where they differ
    said = desk.run("python export.py 1-4.pt --encoder-only -o pool.onnx")
    assert "embeddings by a cosine of" in said
    files = "--shards", desk / "shards", "--labels", desk / "labels.npz", "-o", desk / "less.pt"
    said = mistake(pretrain.main, "--init", desk / "1-4.pt", "--pool", "cls", "--batch", 32, *files)
    assert "1-4.pt: learned with --pool cls+mean" in said


def test_places_of_atoms_are_asked_for(road, desk):
    desk.take(road, "shards", "molecules.smi")
    desk.run("python cluster.py molecules.smi --k 4 --k 12 --atoms --workers 1")
    files = "--shards", desk / "shards", "--labels", desk / "labels.npz"
    said = mistake(pretrain.main, *NANO.split()[2:], "--loss", "atoms=1", *files)
    assert "shards/: doesn't say where atoms lie" in said and "render.py --atoms" in said


def first_moments(checkpoint):
    """Adam's after one step are a tenth of the gradient: it is compared whole, not its effect."""
    states = [entry for part in checkpoint["optimizer"] for entry in part["state"].values()]
    return torch.cat([entry["exp_avg"].flatten() for entry in states])


@pytest.mark.parametrize("tokens", ["all", "inked"])
@pytest.mark.parametrize("level", ["none", "intense"])
def test_slices_give_the_gradient_of_one_pass(tokens, level):
    views, random = index_pictures(12), np.random.default_rng(0).random((24, N_UNIFORMS))
    targets = {"k5": torch.arange(12) % 5}
    found = []
    for micro_batch in (24, 5):
        state = nano_state(micro_batch, tokens, level)
        pretrain.backward(state, Batch(np.stack(views), targets, random=random))
        found.append([p.grad for p in parameters(state)])
    for whole, sliced in zip(*found, strict=True):
        assert torch.allclose(whole, sliced, atol=2e-6 * max(1, whole.abs().max()))


@pytest.mark.parametrize("contrastive, classes", [(1, 0), (0, 1)])
def test_a_weight_of_0_switches_a_task_off(contrastive, classes):
    state = nano_state(contrastive=contrastive, classes=classes)
    random, targets = np.zeros((12, N_UNIFORMS)), {"k5": torch.arange(6) % 5}
    parts = pretrain.backward(state, Batch(np.stack(index_pictures(6)), targets, random=random))
    wanted = contrastive * parts["contrastive"].item() + classes * parts["k5"].item()
    assert parts["loss"].item() == pytest.approx(wanted)
    assert (state.heads["k5"].weight.grad.abs().sum() == 0) == (classes == 0)


def test_the_heads_have_a_rate_of_their_own(road, desk):
    desk.take(road, "shards", "labels.npz")
    for rates in ("1e-5", "1e-5,1e-3"):
        desk.run(NANO + f"--steps 1 --epochs 1 --lr {rates} -o {rates.count(',')}.pt")
    for path, heads in (("0.pt", 0.01), ("1.pt", 1e-3)):
        checkpoint = load(desk / path)
        rates = [state["param_groups"][0]["lr"] for state in checkpoint["optimizer"]]
        assert rates == pytest.approx([1e-5 / 3, heads / 3])  # warming up
        assert checkpoint["config"]["lr"] == [1e-5, heads]


def test_the_third_task_regresses_descriptors(road, desk):
    desk.take(road, "shards", "molecules.smi")
    desk.run("python cluster.py molecules.smi --k 4 --k 12 --descriptors")
    weights = "contrastive=0.5,classes=0,descriptors=2"
    rest = "--epochs 18 --lr 1e-3 --log-every 3 --augment none"
    desk.run(NANO + f"{rest} --loss {weights}")
    log = read_log(desk / "encoder.log.jsonl")
    steps, held = [entry for entry in log if "loss" in entry], log[-1]
    for entry in steps:
        whole = 0.5 * entry["contrastive"] + 2 * (entry["descriptors"] + entry["maccs"])
        assert entry["loss"] == pytest.approx(whole, rel=1e-5)
    first, last = steps[0], steps[-1]
    assert last["descriptors"] < 0.9 * first["descriptors"]
    assert last["maccs"] < 0.8 * first["maccs"] and held["held_out_maccs"] > 0
    heads = load(desk / "encoder.pt")["heads"]
    assert heads["descriptors.weight"].shape == (64 + MACCS_PACKED, 512)


def test_a_run_in_two_parts_ends_with_the_same_weights(road, desk):
    desk.take(road, "shards", "labels.npz")
    command = NANO + "--lr 1e-3 --epochs 9 --steps 9 "
    desk.run(command + "-o whole.pt")
    parts = (command + "-o parts.pt --save-every 2").split()
    kill_when(desk, parts, "parts.pt", signal.SIGKILL)
    assert load(desk / "parts.pt")["step"] < 9
    desk.run(command + "-o parts.pt --resume")
    whole, parts = load(desk / "whole.pt"), load(desk / "parts.pt")
    for part in TENSORS:
        assert all((whole[part][name] == parts[part][name]).all() for name in whole[part])


def test_a_run_may_end_at_a_lower_rate(road, desk):
    desk.take(road, "shards", "labels.npz")
    command = NANO + "--log-every 1 --epochs 9 --resume "
    desk.run(command + "--steps 6 --lr 1e-3")
    lower = "--lr 1e-4,1e-3 --loss contrastive=1,classes=0.5"
    said = desk.run(command + "--steps 8 " + lower)
    settings = '{"lr": [0.0001, 0.001], "loss": {"contrastive": 1.0, "classes": 0.5}}'
    assert f"from step 6 with other settings: {settings}" in said
    log = read_log(desk / "encoder.log.jsonl")
    warm = [1e-3 / 3 if step < WARM_UP else 1e-3 for step in (4, 5)]
    rates = [entry["lr"] for entry in log if "loss" in entry]
    assert rates[-4:] == pytest.approx([*warm, 1e-4, 1e-4])
    assert [entry["changed"]["lr"] for entry in log if "changed" in entry] == [[1e-4, 1e-3]]
    assert "goes on" not in desk.run(command + "--steps 9 " + lower)


def kill_when(desk, words, name, how):
    """Start a run, send it a signal as soon as a file is there; return exit code and output."""
    words[0] = sys.executable
    with subprocess.Popen(
        words, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not (desk / name).exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(how)
        said = process.communicate(timeout=120)[0]
    return process.returncode, said


def test_sigterm_saves_and_leaves(road, desk):
    desk.take(road, "shards", "labels.npz")
    command = NANO + "--epochs 400 "
    words = (command + "--steps 400 --save-every 2").split()
    code, said = kill_when(desk, words, "encoder.pt", signal.SIGTERM)
    step = load(desk / "encoder.pt")["step"]
    assert code == 0 and 2 <= step < 400 and "Traceback" not in said
    assert f"saved step {step} in encoder.pt" in said
    said = desk.run(command + f"--resume --log-every 1 --steps {step + 1}")
    assert f"step {step + 1}" in said.replace("  ", " ")


def test_a_power_cut_between_its_files_costs_no_log(road, desk):
    desk.take(road, "shards", "labels.npz")
    words = f"{NANO}--epochs 9 --log-every 1 --save-every 2 --steps 4".split()[2:]
    run = {"folders": [desk.folder], "words": words}
    cut = {0: "import os, moleclip.trainstate as s; s.save_json = lambda *_: os._exit(9)"}
    ((died, _),), ((ended, _),) = play(run | {"before": cut}, run | {"words": [*words, "--resume"]})
    assert (died, ended) == (9, 0)
    log = read_log(desk / "encoder.log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]


def test_a_nan_loss_ends_the_run_and_keeps_the_checkpoint(road, desk):
    desk.take(road, "shards", "labels.npz")
    said = desk.run(NANO + "--steps 30 --epochs 30 --lr 1e6", code=1)
    assert "the loss is not a number any more" in said and not (desk / "encoder.pt").exists()


def test_smiles_are_drawn_while_training(road, desk):
    """The first epoch draws what the shards hold."""
    desk.take(road, "shards", "labels.npz", "molecules.smi")
    desk.run(NANO + "--smiles molecules.smi --steps 3 --log-every 1")
    desk.run(NANO + "--steps 3 --log-every 1 -o stored.pt")
    logs = [read_log(desk / f"{name}.log.jsonl") for name in ("encoder", "stored")]
    assert logs[0][0]["contrastive"] == logs[1][0]["contrastive"]


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
    said = mistake(pretrain.main, "--batch", 32, "--init", "scratch:nano")
    assert "manifest.json: damaged" in said


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
    said = mistake(pretrain.main, "--batch", 32, "--init", "scratch:nano")
    assert "labels.npz: damaged" in said


OTHER_TEMPERATURE = "--resume -o ../road.pt --init scratch:nano --temperature 0.5 --steps 9"


@pytest.mark.parametrize(
    "words, says",
    [
        ("--shards nowhere", "holds no shards"),
        ("--labels nowhere.npz", "no such file"),
        ("--batch 48", "--batch 48"),
        ("--batch 64", "too few"),
        ("--init nowhere.pt --batch 32", "nowhere.pt"),
        ("--init scratch:huge --batch 32", "scratch:nano"),
        ("--init labels.npz --batch 32", "not a PyTorch checkpoint"),
        ("-o there.pt --batch 32", "--resume"),
        ("--loss contrastive=0,classes=0", "above 0"),
        ("--loss colour=1", "is not TASK=WEIGHT"),
        ("--styles wide", "--styles goes with --smiles"),
        ("--loss descriptors=1 --batch 32", "make it again with cluster.py --descriptors"),
        ("--lr 1e-5,1e-3,1e-3", "or two: that of the encoder and that of the heads"),
        ("--lr 1e-5,", "is not a valid float range"),
        ("-o encoder.json --batch 32", "ends in .pt"),
        (f"{OTHER_TEMPERATURE} --batch 32", "made with temperature"),
    ],
)
def test_mistakes(road, monkeypatch, words, says, tmp_path):
    for name in ("shards", "labels.npz"):
        (tmp_path / name).symlink_to(road / name)
    (tmp_path / "there.pt").touch()
    (tmp_path.parent / "road.pt").write_bytes((road / "encoder.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    of_usage = words.startswith(("--loss", "--lr", "--styles")) and "--batch" not in words
    assert says in mistake(pretrain.main, *words.split(), code=2 if of_usage else 1)
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


def test_labels_of_another_file(road, desk):
    desk.write("other.smi", small_molecules(60))
    desk.run("python cluster.py other.smi --k 4")
    desk.take(road, "shards")
    command = "torchrun --nproc_per_node=2 pretrain.py --batch 32 --init scratch:nano"
    said = desk.run(command, code=1)
    made = "labels.npz: made from other.smi (60 rows), but shards/ from another file, molecules.smi"
    assert said.count(made) == 1
    assert 'pretrain.py", line' not in said and not (desk / "encoder.pt").exists()
