"""Run pretrain.py as torchrun does, but with processes forked after the slow imports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

import pretrain


def play(*runs):
    """Return, for each run, [exit code, what it said] of each rank; -9 if it had to be killed.

    A run is a dict: `words` of the command; `folders`, where each rank works; `nodes`: each rank
    is a node of its own; `more`: {rank: further words}; `before`: {rank: Python to execute first,
    to bring a fault about}. They are played one after the other.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        input="\n".join(json.dumps(run, default=str) for run in runs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=280,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def start(rank, run, port):
    """Run one process of a command in a fork, and return its id."""
    child = os.fork()
    if child:
        return child
    count = len(run["folders"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if run.get("nodes"):
        os.environ |= {"GROUP_WORLD_SIZE": str(count)}
        socket.gethostname = lambda: f"node-{rank}"
    else:
        os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    os.chdir(run["folders"][rank])
    said = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1), os.dup2(said, 2)
    torch.set_num_threads(1)
    try:
        exec(run.get("before", {}).get(str(rank), ""), {"pretrain": pretrain})
        pretrain.main(run["words"] + run.get("more", {}).get(str(rank), []), "pretrain.py")
    except SystemExit as left:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(left.code or 0)
    except BaseException as error:
        print(f"{error!r}", flush=True)
        os._exit(99)


def wait(children, patience=100):
    """Return the exit codes of processes; those that don't end are killed: -9."""
    codes, until = {}, time.time() + patience
    while len(codes) < len(children):
        for child in children:
            ended, status = os.waitpid(child, os.WNOHANG) if child not in codes else (0, 0)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.time() > until:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def play_one(run):
    """Run all ranks of a run to their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = run["folders"]
    codes = wait([start(rank, run, port) for rank in range(len(folders))])
    return [
        (code, Path(folder, f"said-{rank}").read_text())
        for rank, (code, folder) in enumerate(zip(codes, folders))
    ]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(play_one(json.loads(line))), flush=True)
