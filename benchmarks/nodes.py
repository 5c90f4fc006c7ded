"""Two torchrun agents on this machine, as two nodes: the same numbers, and what a loss costs.

    python benchmarks/nodes.py       # 5 minutes on 2 cores; writes results/nodes.csv
    python benchmarks/nodes.py equality second-node-killed      # some of it; other rows stay

Each agent has a folder of its own for a disk, with shards, labels and a table. Pretraining and
finetuning by two agents are compared with one process. Then a node is killed in the middle, first
or second, or its agent alone, or told to leave; the other's time to its end is taken, and the
command that it names last is started on both nodes.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import RESULTS, ROOT, read_csv, record

BIN = Path(sys.executable).parent
NANO = "--init scratch:nano --batch 32 --precision fp32 --log-every 1 --save-every 4 --lr 1e-4"
STEPS = 24
TABLE = "--data esol.csv --head mlp --init start.pt --epochs 2 --batch 32 --precision fp32"
TABLE += " --augment none"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}


def start(words, disk):
    """Start a command on a disk; its words go into a file there."""
    with open(disk / "said.txt", "w") as said:
        return subprocess.Popen(words, cwd=disk, env=ENVIRONMENT, stdout=said, stderr=said)


def run(words, disk):
    """Run a command on a disk to a good end."""
    end_well(start(words, disk), disk)


def end_well(process, disk):
    """Wait for the good end of a process."""
    code = process.wait(3000)
    assert code == 0, f"{process.args}: {code}\n{(disk / 'said.txt').read_text()}"


def torchrun(station, words):
    """Return the words of an agent of two nodes, with a free port to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = "torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d "
    agent += f"--rdzv-endpoint=127.0.0.1:{port} {ROOT / station}"
    return [*agent.split(), *words]


def start_both(words, disks):
    """Start an agent on each disk; the first becomes node 0, as nodes go by their process's id."""
    first = start(words, disks[0])
    return first, start(words, disks[1])


def run_both(words, disks):
    """Run an agent on each disk to a good end."""
    for process, disk in zip(start_both(words, disks), disks):
        end_well(process, disk)


def lay_out(folder):
    """Return two disks with the same drawings, labels, table and encoder."""
    disks = [folder / "a", folder / "b"]
    disks[0].mkdir()
    lines = (ROOT / "data" / "chembl_3000.smi").read_text().splitlines()
    (disks[0] / "molecules.smi").write_text("\n".join(lines[:200]) + "\n")
    table = (ROOT / "data" / "esol.csv").read_text().splitlines()[:121]
    (disks[0] / "esol.csv").write_text("\n".join(table) + "\n")
    python = [str(BIN / "python")]
    run([*python, str(ROOT / "render.py"), "molecules.smi"], disks[0])
    run([*python, str(ROOT / "cluster.py"), "molecules.smi", "--k", "4", "--k", "12"], disks[0])
    words = f"{NANO} --epochs 99 --steps {STEPS} -o start.pt".split()
    run([*python, str(ROOT / "pretrain.py"), *words], disks[0])
    shutil.copytree(disks[0], disks[1])
    return disks


def weights(path):
    """Return all weights of an encoder.pt or model.pt in one vector."""
    states = torch.load(path, weights_only=True)
    parts = [states["encoder"], states.get("heads") or states["head"]]
    return torch.cat([value.flatten() for part in parts for value in part.values()])


def losses(path):
    """Return the losses of a pretraining log."""
    lines = path.with_suffix(".log.jsonl").read_text().splitlines()
    return torch.tensor([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])


def epochs(path):
    """Return both losses of the epochs of a finetuning history after the head's."""
    lines = [line for line in read_csv(path) if float(line["epoch"])]
    return torch.tensor(
        [float(line[f"{part}_loss"]) for line in lines for part in ("train", "val")]
    )


def difference(found, wanted, of=1):
    """Return how far two tensors are apart at most, as a part of `of`."""
    return ((found - wanted) / of).abs().max().item()


def equality(disks):
    """Return the rows that compare two agents with one process."""
    words = f"{NANO} --epochs 99 --steps {STEPS} -o two.pt".split()
    began = time.time()
    run_both(torchrun("pretrain.py", words), disks)
    seconds, disk = time.time() - began, disks[0]
    moved, apart = from_one_process(disk / "two.pt")
    rows = [row(f"pretraining, {STEPS} steps", seconds, moved, apart)]
    run([str(BIN / "python"), str(ROOT / "finetune.py"), *TABLE.split(), "-o", "one"], disk)
    began = time.time()
    run_both(torchrun("finetune.py", [*TABLE.split(), "-o", "two"]), disks)
    seconds = time.time() - began
    one, two = (epochs(disk / folder / "history.csv") for folder in ("one", "two"))
    apart = difference(weights(disk / "two/model.pt"), weights(disk / "one/model.pt"))
    return [*rows, row("finetuning, 2 epochs", seconds, difference(two, one, one), apart)]


def from_one_process(path):
    """Return how far losses, as a part of them, and weights are from one process's."""
    one = path.with_name("start.pt")
    moved = difference(losses(path), losses(one), losses(one))
    return moved, difference(weights(path), weights(one))


def row(what, seconds, moved, apart):
    """Return a row of the results."""
    facts = {"what": what, "seconds": round(seconds, 1)}
    return facts | {"losses, relative": moved, "weights, absolute": apart}


def children(process):
    """Return the ids of a process's children."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()]


def kill_node(agent):
    """End an agent and its workers at once, as a power cut does."""
    for pid in [*children(agent), agent.pid]:
        os.kill(pid, signal.SIGKILL)


ENDS = {  # which of the two is lost, and how
    "second-node-killed": (1, kill_node),
    "first-node-killed": (0, kill_node),
    "second-agent-killed": (1, lambda agent: agent.kill()),
    "second-node-told": (1, lambda agent: agent.terminate()),
}


def loss_of(name, which, end, disks):
    """Return the row of a run that loses a node by end(agent), and of how it goes on."""
    words = f"{NANO} --epochs 99 --steps {STEPS} -o {name}.pt".split()
    agents = start_both(torchrun("pretrain.py", words), disks)
    while not (disks[0] / f"{name}.pt").exists():
        assert agents[0].poll() is None, (disks[0] / "said.txt").read_text()
        time.sleep(0.01)
    began = time.time()
    end(agents[which])
    code = agents[1 - which].wait(600)
    seconds = time.time() - began
    agents[which].wait(600)
    said = (disks[1 - which] / "said.txt").read_text().splitlines()
    lines = [line for line in said if "go on with: " in line]
    assert code == 1 and len(lines) == 1, said
    print(f"{name}: {lines[0]}")
    begun = torch.load(disks[0] / f"{name}.pt", weights_only=True)["step"]
    assert 4 <= begun < STEPS
    run_both(shlex.split(lines[0].partition("go on with: ")[2]), disks)
    moved, apart = from_one_process(disks[0] / f"{name}.pt")
    return row(f"until the other ends: {name}", seconds, moved, apart)


def keep(rows):
    """Write rows into the results, in the place of those of the same names."""
    names = [row["what"] for row in rows]
    before = read_csv(RESULTS / "nodes.csv")
    record("nodes", [row for row in before if row["what"] not in names] + rows, ("torch",))


def main():
    trials = sys.argv[1:] or ["equality", *ENDS]
    with tempfile.TemporaryDirectory() as folder:
        disks = lay_out(Path(folder))
        for name in trials:
            keep(equality(disks) if name == "equality" else [loss_of(name, *ENDS[name], disks)])


if __name__ == "__main__":
    main()
