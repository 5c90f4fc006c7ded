"""A drawing task that crashes or stalls on demand, for the tests."""

import os
import signal
import time


def draw(item):
    if item[1] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item[1] == "sleep":
        time.sleep(60)
    return "drawn"
