"""A task of `parallel` that crashes or stalls on demand, for the tests."""

import os
import signal
import time


def draw(row, smiles):
    if smiles == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if smiles == "sleep":
        time.sleep(60)
    return "drawn"
