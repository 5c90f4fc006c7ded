"""Does predict.py stay fast and small over millions of rows, through a kill in the middle?

    python benchmarks/many_rows.py model.onnx                      # 10 million rows
    python benchmarks/many_rows.py model.onnx --rows 1000000

Rows are random spellings of the drug-like molecules, four of each, over and over, every 100,000th
no molecule at all. Half way all processes are killed (SIGKILL); the same command goes on with
--resume. Looked at every five seconds: rows that the journal says are whole, and the memory of all
processes together (each shared page once). Rates are of the second tenth of the rows and of the
last. At the end each row has to be there, in its place, once. Adds to results/many_rows.csv.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from rdkit import Chem
from record import RESULTS, ROOT, read_csv, record

from moleclip.molecules import MAX_ATOMS, read_molecules

FILE = ROOT / "data" / "druglike_100000.smi.gz"
SPELLINGS, WRONG = 4, 100_000  # of a molecule; every so many-th row is none
SECONDS = 5.0  # between two looks
NONE = "no-molecule"
HELD = ("Pss:", "SwapPss:")  # in smaps_rollup


def write_rows(path, count):
    """Write a .smi of so many rows, each named by its number from 0."""
    read = (Chem.MolFromSmiles(molecule.smiles) for molecule in read_molecules(str(FILE)))
    molecules = [each for each in read if each and each.GetNumAtoms() <= MAX_ATOMS]
    spelled = [
        Chem.MolToSmiles(each, doRandom=True) for _ in range(SPELLINGS) for each in molecules
    ]
    with open(path, "w") as stream:
        for row in range(count):
            smiles = NONE if row % WRONG == WRONG - 1 else spelled[row % len(spelled)]
            stream.write(f"{smiles} {row}\n")


def memory(session):
    """Return what the processes of a session hold together, in bytes: a shared page counts once."""
    held = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                held += sum(int(line.split()[1]) for line in lines if line.startswith(HELD))
        except (OSError, ProcessLookupError):
            continue  # it has just ended
    return held * 1024


def watch(command, journal, until):
    """Run a command and return [(seconds, rows that are whole, bytes)]; kill it at `until` rows."""
    seen, began = [], time.monotonic()
    running = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        time.sleep(SECONDS)
        rows = json.loads(journal.read_text())["rows"] if journal.exists() else 0
        seen.append((time.monotonic() - began, rows, memory(running.pid)))
        if rows >= until:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return seen
    if running.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))} ended with {running.returncode}")
    return seen


def rate(seen, first, last):
    """Return molecules a second between two counts of rows."""
    inside = [(at, rows) for at, rows, _ in seen if first <= rows <= last]
    (began, before), (ended, after) = inside[0], inside[-1]
    return (after - before) / max(ended - began, 1e-9) if after > before else np.nan


def check(path, count):
    """Return how many rows have an error. AssertionError: a row is lost, moved or twice."""
    wrong = row = 0
    with open(path, newline="") as stream:
        for row, line in enumerate(csv.DictReader(stream), 1):
            assert line["name"] == str(row - 1), f"row {row} is that of {line['name']}"
            assert (line["smiles"] == NONE) == bool(line["error"]), line
            wrong += bool(line["error"])
    assert row == count, f"{row} rows of {count}"
    return wrong


@click.command(help=__doc__)
@click.argument("model")
@click.option("--rows", default=10_000_000, show_default=True, help="How many.")
def main(model, rows):
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "many.smi", Path(folder) / "predictions.csv"
        write_rows(source, rows)
        command = [sys.executable, ROOT / "predict.py", model, source, "-o", out]
        journal = out.with_name(out.name + ".part.json")
        first = watch(command, journal, rows // 2)
        second = watch([*command, "--resume"], journal, np.inf)
        wrong = check(out, rows)
    again = next(whole for _, whole, _ in second if whole)
    found = {
        "model": Path(model).stem,
        "rows": rows,
        "with an error": wrong,
        "killed after": first[-1][1],
        "first seen again": again,
        "molecules/s, second tenth": rate(first, rows // 10, rows // 5),
        "molecules/s, last tenth": rate(second, rows - rows // 10, rows),
        "peak memory, GB": max(held for _, _, held in first + second) / 1e9,
    }
    print(found)
    record("many_rows", [*read_csv(RESULTS / "many_rows.csv"), found], ("rdkit", "onnxruntime-gpu"))


if __name__ == "__main__":
    main()
