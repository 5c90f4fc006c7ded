"""Run pretrain.py as torchrun does, but with processes forked after the slow imports.

Standard input: one run a line, the number of processes and then the words of the command.
"""

import os
import socket
import sys

import torch

import pretrain


def start(rank, count, port, words):
    """Run one process of a command in a fork, and return its id."""
    child = os.fork()
    if child:
        return child
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        pretrain.main(words, standalone_mode=False)
        os._exit(0)
    except BaseException as error:
        print(f"rank {rank}: {error!r}", flush=True)
        os._exit(1)


for line in sys.stdin:
    count, *words = line.split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [start(rank, int(count), port, words) for rank in range(int(count))]
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(1)
