"""A task of `parallel` that crashes, stalls or lacks a file on demand, for the tests."""

import os
import signal
import time


def draw(row, smiles):
    if smiles == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if smiles == "sleep":
        time.sleep(60)
    if smiles == "nap":
        time.sleep(1)
    if smiles == "read":
        open("/nowhere/training.npy")
    return "drawn"
