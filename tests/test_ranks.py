"""Several ranks and nodes: nothing is trained that all of them don't train alike."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import mistake
from ranks import play

import pretrain
from moleclip.weights import load_encoder, save_checkpoint

NANO = "--init scratch:nano --batch 32 --precision fp32 --log-every 1 --epochs 9 --lr 1e-3"
AGAIN = ["--init", "scratch:nano", "--batch", "32", "--precision", "fp32", "--resume"]
# `fault(slice, pictures)` is called before each slice; each is counted in what the rank says.
COUNTED = """
import os, signal, torch
from moleclip.embedder import Embedder
embed, calls = Embedder.embed, []
def counted(self, pictures, *words):
    calls.append(len(pictures))
    print("slice", len(calls), flush=True)
    fault(len(calls), len(pictures))
    return embed(self, pictures, *words)
Embedder.embed = counted
"""
SIGNAL = "fault = lambda slice, _: slice != {} or os.kill(os.getpid(), signal.{})"
FULL = """
def fault(slice, pictures):
    if pictures > 4:
        raise torch.OutOfMemoryError("CUDA out of memory")
"""
LOADING = """
import os, time
os.environ["LOCAL_RANK"] = "{}"
load = pretrain.load_encoder
def timed(init, seed):
    began = time.time()
    time.sleep(0.3)
    encoder = load(init, seed)
    print("loading", began, time.time(), flush=True)
    return encoder
pretrain.load_encoder = timed
"""


class Nodes:
    """Two nodes, each with shards and labels on a disk of its own."""

    def __init__(self, folder, road):
        self.folders = [folder / "a", folder / "b"]
        for each in self.folders:
            each.mkdir()
            shutil.copytree(road / "shards", each / "shards")
            shutil.copy(road / "labels.npz", each)

    def run(self, words, **more):
        """A run of both nodes."""
        run = {"folders": self.folders, "nodes": True, "words": f"{NANO} {words}".split()}
        return run | more

    def alone(self, words):
        """A run of one process, on the first node's disk."""
        return {"folders": self.folders[:1], "words": f"{NANO} {words}".split()}


@pytest.fixture
def nodes(road, tmp_path):
    return Nodes(tmp_path, road)


@pytest.fixture
def begun(nodes, road, monkeypatch):
    """The first node's folder, where a run was begun."""
    shutil.copy(road / "encoder.pt", nodes.folders[0])
    shutil.copy(road / "molecules.smi", nodes.folders[0])
    monkeypatch.chdir(nodes.folders[0])
    return nodes.folders[0]


def weights(path):
    states = torch.load(path, weights_only=True)
    parts = [*states["encoder"].values(), *states["heads"].values()]
    return torch.cat([part.flatten() for part in parts])


def read_log(path):
    return [json.loads(line) for line in path.with_suffix(".log.jsonl").read_text().splitlines()]


def same_course(path, other):
    """Tell whether two runs had the same losses, and end with the same weights."""
    logs = [[e["loss"] for e in read_log(each) if "loss" in e] for each in (path, other)]
    assert logs[0] == pytest.approx(logs[1], abs=1e-6)
    return (weights(path) - weights(other)).abs().max() < 1e-6


def went_well(ranks):
    return not any(code for code, _ in ranks)


def refused(ranks):
    """The one line with which all ranks ended."""
    lines = {said.strip().splitlines()[-1] for _, said in ranks}
    assert [code for code, _ in ranks] == [1, 1] and len(lines) == 1, ranks
    assert not any("Traceback" in said for _, said in ranks)
    return lines.pop()


def slices(said):
    return [int(number) for number in re.findall(r"^slice (\d+)$", said, re.M)]


def test_rank_0s_checkpoint_is_everyones(nodes):
    a, b = nodes.folders
    outcome = play(
        nodes.alone("--steps 2 -o parts.pt"),
        nodes.alone("--steps 4 -o whole.pt"),
        nodes.run("--steps 4 -o parts.pt --resume"),
        nodes.run("--steps 4 -o new.pt --resume"),
    )
    assert all(map(went_well, outcome)), outcome
    assert same_course(a / "parts.pt", a / "whole.pt") and same_course(a / "new.pt", a / "whole.pt")
    assert not list(b.glob("*.pt"))


def test_what_differs_between_nodes_is_named(nodes):
    a, b = nodes.folders
    for folder, seed in ((a, 0), (b, 1)):
        start = load_encoder("scratch:nano", seed)
        state = start.visual.state_dict()
        save_checkpoint(folder / "start.pt", arch=start.arch, encoder=state)
    outcome = play(
        nodes.run("--steps 1", more={1: ["--temperature", "0.1", "--lr", "1e-4"]}),
        nodes.run("--steps 1 --init start.pt"),
    )
    arrays = dict(np.load(b / "labels.npz"))
    np.savez(b / "labels.npz", **(arrays | {"k12": np.roll(arrays["k12"], 1)}))
    outcome += play(nodes.run("--steps 1"))
    shutil.copy(a / "labels.npz", b)
    path = b / "shards" / "manifest.json"
    shutil.copy(path, path.with_name("whole.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 5, "r_groups": True}))
    broken = "import os; os.rename('labels.npz', 'labels.bak')"
    mended = "import os; os.rename('labels.bak', 'labels.npz')"
    mended += "; os.rename('shards/whole.json', 'shards/manifest.json')"
    (b / "there.pt").write_bytes(b"")
    outcome += play(
        nodes.run("--steps 1"),
        nodes.run("--steps 1", before={1: broken}),
        nodes.run("--steps 1 --resume -o there.pt", before={1: mended}),
    )
    drawn = "drawings_r_groups, drawings_seed"
    *found, lacking, elsewhere = [refused(ranks) for ranks in outcome]
    for said, names in zip(found, ("lr, temperature", "weights", "labels_sha256, order", drawn)):
        wanted = f"rank 1 on node-1 has other {names} than rank 0 on node-0; all need the same"
        assert wanted in said, said
    assert lacking.startswith("Error: rank 1 on node-1: labels.npz: no such file")
    assert "there.pt: is there for rank 1 on node-1, but not for rank 0 on node-0" in elsewhere
    assert not list(a.glob("encoder.*"))


@pytest.mark.parametrize("change", ["labels", "views", "r_groups", "smiles"])
def test_other_labels_or_drawings_are_not_resumed_with(begun, change):
    more = ["--smiles", "molecules.smi"] if change == "smiles" else []
    if change == "labels":
        arrays = dict(np.load("labels.npz"))
        k12 = np.where(arrays["k12"] < 0, -1, (arrays["k12"] + 1) % 12)
        np.savez("labels.npz", **(arrays | {"k12": k12.astype(np.int32)}))
    elif change != "smiles":
        path = begun / "shards" / "manifest.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {change: {"views": 3, "r_groups": True}[change]}))
    said = mistake(pretrain.main, *AGAIN, *more)
    wanted = {
        "labels": r"labels_sha256 \w{16}, not \w{16}",
        "views": "drawings_views 2, not 3",
        "r_groups": "drawings_r_groups False, not True",
        "smiles": "drawings_views 2, not drawn in training",
    }
    assert re.search(f"encoder.pt: was made with {wanted[change]}; resume with", said), said


def test_a_checkpoint_without_hashes_still_resumes(begun, nodes):
    checkpoint = torch.load("encoder.pt", weights_only=True)
    for key in list(checkpoint["config"]):
        if key.startswith(("labels_sha256", "drawings_")):
            del checkpoint["config"][key]
    torch.save(checkpoint, "encoder.pt")
    ((code, said),) = play(nodes.alone("--steps 4 --resume"))[0]
    assert (
        code == 0 and said.count("warning: encoder.pt: of an earlier version, which kept no") == 1
    )
    assert "labels_sha256" in torch.load("encoder.pt", weights_only=True)["config"]


@pytest.mark.parametrize("several", [True, False], ids=["nodes", "ranks"])
def test_a_lone_sigterm_is_heeded_by_all_between_slices(nodes, several):
    """A step has 4 slices forward and 4 backward; the held-out molecules, after step 2, have 4."""
    cases = [(18, ""), (22, ""), (18, "--save-every 2")]
    runs = []
    for number, (at, more) in enumerate(cases):
        before = {0: COUNTED + "fault = lambda *_: 0", 1: COUNTED + SIGNAL.format(at, "SIGTERM")}
        words = f"--steps 9 --micro-batch 8 {more} -o {number}.pt"
        runs.append(nodes.run(words, before=before, nodes=several))
    for number, ((at, _), (zero, one)) in enumerate(zip(cases, play(*runs))):
        assert slices(one[1])[-1] == at and 20 <= slices(zero[1])[-1] <= 24
        out = nodes.folders[0] / f"{number}.pt"
        assert torch.load(out, weights_only=True)["step"] == 2
        log = read_log(out)
        assert [entry["step"] for entry in log] == [1, 2] and "loss" in log[1]
        said = f"asked to leave: saved step 2 in {number}.pt; "
        if several:  # else torchrun would wait five minutes for the node that was told
            assert zero[0] == one[0] == 1 and zero[1].strip().endswith(" --resume")
            assert f"{said}go on with: " in zero[1]
        else:
            assert zero[0] == one[0] == 0 and f"{said}--resume goes on from there" in zero[1]


def test_who_loses_another_says_how_to_go_on(nodes):
    a, _ = nodes.folders
    runs = [nodes.alone("--steps 5 --micro-batch 8 --save-every 1 -o whole.pt")]
    for lost in (0, 1):
        words = f"--steps 5 --micro-batch 8 --save-every 1 -o {lost}.pt"
        dying = {lost: COUNTED + SIGNAL.format(30, "SIGKILL")}
        runs += [nodes.run(words, before=dying), nodes.run(f"{words} --resume")]
    _, *outcome = play(*runs)
    for lost in (0, 1):
        broken, resumed = outcome[2 * lost : 2 * lost + 2]
        code, said = broken[1 - lost]
        assert broken[lost][0] == -9 and code == 1 and "Traceback" not in said
        where = f"saved step 2 in {lost}.pt" if lost else "step 2"
        last = said.strip().splitlines()[-1]
        wanted = rf"Error: another process is gone \(.*\): {where}; go on with: .* --resume"
        assert re.fullmatch(wanted, last) and went_well(resumed)
        assert same_course(a / f"{lost}.pt", a / "whole.pt")


def test_memory_that_one_rank_lacks_makes_all_slices_smaller(nodes):
    a, _ = nodes.folders
    small = nodes.run("--steps 2 --micro-batch 32", before={1: COUNTED + FULL})
    outcome = play(small, nodes.run("--steps 2 -o whole.pt"))
    assert all(map(went_well, outcome)), outcome
    lines = [line for line in outcome[0][0][1].splitlines() if line.startswith("out of memory")]
    assert lines == [f"out of memory: goes on with --micro-batch {n}" for n in (16, 8, 4)]
    assert same_course(a / "encoder.pt", a / "whole.pt")


def test_one_rank_of_each_node_loads_first(nodes):
    a, b = nodes.folders
    before = {rank: LOADING.format(rank % 2) for rank in range(4)}
    (ranks,) = play(nodes.run("--steps 1", folders=[a, a, b, b], before=before))
    assert went_well(ranks), ranks
    times = [re.search(r"loading (\S+) (\S+)", said).groups() for _, said in ranks]
    began, ended = np.array(times, float).T
    assert min(began[[1, 3]]) >= max(ended[[0, 2]])
