"""Write a benchmark's rows to benchmarks/results/NAME.csv, with what made them.

Each row says on what machine it was measured, with which versions, and by which command. Importing
this puts the project's folder on sys.path, where the stations and moleclip/ are found.
"""

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "runs"
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def machine():
    """Return the processor's name, the cores this process may use, and what makes bf16 fast."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extras = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return ", ".join([(names or [platform.processor()])[0], cores, *extras])


def commit():
    """Return the short hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def surroundings(packages):
    """Return what every result says of its making, but for the command, as a dict of text."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {"machine": machine(), "versions": versions, "commit": commit()}


def command_line():
    """Return the command of this run, without the folders of files that lie elsewhere."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *words])


def record(name, rows, packages):
    """Write rows, a list of dicts with the same keys, and print them.

    Rows of an earlier run keep the facts they have.
    """
    facts = surroundings(packages) | {"command": command_line()}
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[-1] | facts))  # a row of before has the facts already
    table.writeheader()
    table.writerows(facts | row for row in rows)
    path.write_text(text.getvalue(), newline="")
    for row in rows:
        print_row({key: value for key, value in row.items() if key not in facts})
    print(f"-> {os.path.relpath(path)}")


def print_row(row):
    """Print the values of a dict on one line."""
    values = row.values()
    print("   ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))


def read_csv(path):
    """Return the lines of a CSV as dicts of text; none where there is no such file."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))
