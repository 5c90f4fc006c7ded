import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import click
import faulty
import pytest
from conftest import ROOT, small_molecules

from moleclip.drawing import draw_all
from moleclip.molecules import Molecule, Rejected
from moleclip.workers import parallel, prefetch

PARENT = """
import sys
sys.path.insert(0, ROOT)
import faulty
from moleclip.molecules import Molecule, read_molecules
from moleclip.workers import parallel, prefetch
words = sys.argv[1:]
rows = [Molecule(row, row, word) for row, word in enumerate(words)] or read_molecules("-")
for molecule, _ in prefetch(parallel(faulty.draw, rows, 1, group=1), 4):
    print(molecule.smiles, flush=True)
"""


def parent(*words):
    """Start a process that has the words as molecules, or standard input, after its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("ROOT", repr(str(ROOT))), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if not words:
        process.stdin.write(b"CCO\n" * 100)
        process.stdin.flush()
    process.stdout.readline()
    return process


def test_a_crash_or_a_stall_costs_one_row(monkeypatch):
    items = [Molecule(row, row + 1, smiles) for row, smiles in enumerate(small_molecules(10))]
    items[3], items[6] = Molecule(3, 4, "die"), Molecule(6, 7, "sleep")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    results = [result for _, result in parallel(faulty.draw, items, 2, group=4, limit=3)]
    assert "crashed" in str(results[3]) and "longer than 3 s" in str(results[6])
    assert isinstance(results[3], Rejected) and isinstance(results[6], Rejected)
    assert all(result == "drawn" for row, result in enumerate(results) if row not in (3, 6))


def test_no_more_is_read_than_the_workers_need():
    taken = []

    def endless():
        for row in itertools.count():
            taken.append(row)
            yield Molecule(row, row + 1, "CCO")

    results = draw_all(endless(), 2)
    for _ in range(100):
        next(results)
    results.close()
    assert len(taken) <= 100 + 2 * 3 * 32 + 32


def test_closing_does_not_wait_for_a_slow_molecule(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    rows = [Molecule(0, 1, "CCO"), Molecule(1, 2, "sleep")]
    with closing(prefetch(parallel(faulty.draw, rows, 1, group=1), 4)) as ahead:
        assert next(ahead)[1] == "drawn"
        began = time.time()
    assert time.time() - began < 1


@pytest.mark.parametrize("words", [["CCO", "sleep"], []], ids=["slow", "waiting for input"])
def test_ctrl_c_ends_at_once(words):
    process = parent(*words)
    began = time.time()
    process.send_signal(signal.SIGINT)
    process.wait()
    assert time.time() - began < 2
    said = process.communicate()[1].decode()
    assert "Fatal" not in said and said.strip().splitlines()[-1] == "KeyboardInterrupt"


def test_workers_whose_parent_has_gone_are_silent():
    process = parent("CCO", "nap", "nap")
    process.kill()
    assert process.communicate()[1] == b""  # it reads until the worker has ended too


def test_a_file_that_all_rows_need_is_one_line(monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    with pytest.raises(click.ClickException, match="No such file.*training.npy"):
        list(parallel(faulty.draw, [Molecule(0, 1, "CCO"), Molecule(1, 2, "read")], 1))
    assert "Traceback" not in capfd.readouterr().err
