"""Write a benchmark's rows to benchmarks/results/NAME.csv, each with what it was measured on and by which command."""

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def machine():
    """Return the processor's name, the number of cores this process may use, and the GPU if there is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    features = next((line for line in lines if line.startswith("flags")), "")
    extras = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in features]
    return f"{name}, {len(os.sched_getaffinity(0))} cores{''.join(', ' + flag for flag in extras)}"


def commit():
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def surroundings(packages):
    """Return what every result says of how it was made, but for the command: {"machine", "versions", "commit"}."""
    return {
        "machine": machine(),
        "versions": " ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
        "commit": commit(),
    }


def record(name, rows, packages):
    """Write rows, a list of dicts with the same keys, and print them. Rows of an earlier run keep the facts they have."""
    facts = {
        **surroundings(packages),
        "command": "python "
        + " ".join(
            [
                os.path.relpath(sys.argv[0], ROOT),
                *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]),
            ]
        ),
    }
    path = ROOT / "benchmarks" / "results" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*rows[-1], *facts])
    table.writeheader()
    table.writerows(facts | row for row in rows)
    path.write_text(text.getvalue(), newline="")
    for row in rows:
        print(
            "   ".join(
                f"{value:.4g}" if isinstance(value, float) else str(value)
                for key, value in row.items()
                if key not in facts
            )
        )
    print(f"-> {os.path.relpath(path)}")
