"""What the tests share: real molecules, a folder where scripts run as users run them, one road."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from moleclip import trained

ROOT = Path(__file__).resolve().parent.parent
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the numbers the tests hold are the CPU's
trained.DRAWINGS = 60  # fewer, for some fifty files are exported; test_familiar.py takes more
STATIONS = ("render", "cluster", "pretrain", "finetune", "export", "predict")
STATIONS += ("align", "search", "generate")


def first_lines(name, count, start=0):
    """Some lines of a file in data/."""
    return (ROOT / "data" / name).read_text().splitlines()[start : start + count]


def small_molecules(count):
    """The first `count` molecules of at most 60 characters of the ChEMBL sample."""
    return [line for line in first_lines("chembl_3000.smi", 3000) if len(line) <= 60][:count]


def rows_of(path):
    """The records of a CSV file, as dicts."""
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


class Desk:
    """A folder with the scripts in it (as links): commands run as they stand in the README."""

    def __init__(self, folder):
        self.folder = folder
        for station in STATIONS:
            if not (folder / f"{station}.py").is_symlink():
                (folder / f"{station}.py").symlink_to(ROOT / f"{station}.py")

    def __truediv__(self, name):
        return self.folder / name

    def run(self, command, code=0, **environment):
        """Run a command line, check its exit code, and return what it printed, both streams."""
        words = command.split() if isinstance(command, str) else [str(word) for word in command]
        words[0] = str(Path(sys.executable).parent / words[0])
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def take(self, other, *names):
        """Link files of another folder into this one."""
        for name in names:
            (self / name).symlink_to(other / name)

    def write(self, name, lines):
        """Write a file of lines and return its path."""
        (self.folder / name).write_text("\n".join(lines) + "\n")
        return str(self.folder / name)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


ROAD = {
    "render": "python render.py molecules.smi",
    "cluster": "python cluster.py molecules.smi --k 4 --k 12",
    "pretrain": "torchrun --nproc_per_node=4 pretrain.py --init scratch:nano --batch 32 "
    "--steps 3 --log-every 1 --precision fp32",
    "finetune": "python finetune.py --data solubility.csv --head mlp --epochs 3 --lr-encoder 1e-4",
    "export": "python export.py runs/solubility",
    "predict": "python predict.py model.onnx new_molecules.txt",
}


@pytest.fixture(scope="session")
def road(tmp_path_factory):
    """The whole road by the README's commands, with the smallest encoder; tests don't write there.

    It is made of 96 ChEMBL and 80 ESOL molecules, once for all of pytest's processes.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "road"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "said.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            said = go_the_road(Desk(folder))
            (folder / "said.json").write_text(json.dumps(said))
    desk = Desk(folder)
    desk.said = json.loads((folder / "said.json").read_text())
    return desk


def go_the_road(desk):
    """Run the stations one after the other; return what each of them said."""
    lines = small_molecules(96)
    lines[7] = "C1CC broken"
    desk.write("molecules.smi", lines)
    desk.write("solubility.csv", first_lines("esol.csv", 81))
    return {name: desk.run(command, OMP_NUM_THREADS="1") for name, command in ROAD.items()}


@pytest.fixture(scope="session")
def toy(tmp_path_factory, road):
    """A table of 40 molecules, row 4 unreadable, and the finetuning over two seeds that it gave."""
    desk = Desk(tmp_path_factory.mktemp("toy"))
    (desk / "encoder.pt").symlink_to(road / "encoder.pt")
    lines = first_lines("esol.csv", 41)
    lines[5] = lines[5].replace(lines[5].split(",")[1], "C1CC")
    desk.write("toy.csv", lines)
    command = "python finetune.py --data toy.csv --head mlp --epochs 2 --seeds 1,2"
    desk.said = desk.run(command, OMP_NUM_THREADS="1")
    return desk


def table_of(folder, text, **options):
    """The Data of a CSV with this text."""
    from moleclip.table import Data

    (folder / "t.csv").write_text(text, "utf-8", "surrogateescape")
    return Data(str(folder / "t.csv"), **options)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """A file of 600 molecules, three windows of predict.py; rows 3, 256 and 599 are broken."""
    lines = [f"{smiles} m{row}" for row, smiles in enumerate(small_molecules(600))]
    lines[3], lines[256], lines[599] = "C1CC broken", "", "?"
    path = tmp_path_factory.mktemp("library") / "library.smi"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def predicted(road, library):
    """What an uninterrupted predict.py writes for the library; embeddings lie beside it (.npy)."""
    import predict

    out = library.with_name("predicted.csv")
    files = "-o", out, "--embeddings", out.with_suffix(".npy")
    invoke(predict.main, road / "model.onnx", library, *files, "--workers", 1)
    return out


def invoke(command, *words):
    """Run a click command that has to succeed and return what it printed."""
    outcome = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def mistake(command, *words, code=1):
    """Run a click command that has to fail for a user's mistake, and return its one line."""
    outcome = CliRunner().invoke(command, [str(word) for word in words])
    assert outcome.exit_code == code, (outcome.output, outcome.exception)
    lines = outcome.stderr.strip().splitlines()
    assert "Traceback" not in outcome.output and lines[-1].startswith("Error: "), outcome.output
    return lines[-1]


@pytest.fixture(autouse=True)
def steady():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def aligned(tmp_path_factory):
    """A folder with a library of 300 molecules and small aligned.onnx files: see `standin.py`.

    Rows 7 and 299 are broken; `net` is the graph half, `known` the molecules whose predicted
    spectra the 13C model takes to where they are.
    """
    import standin

    desk = Desk(tmp_path_factory.mktemp("aligned"))
    desk.smiles = small_molecules(300)
    desk.smiles[7], desk.smiles[299] = "C1CC broken", "?"
    desk.write("library.smi", [f"{each} m{row}" for row, each in enumerate(desk.smiles)])
    graphs, desk.net = standin.export_graphs(desk.folder)
    desk.known = desk.smiles[20:50]
    weights = standin.query_weights(desk.net, desk.known)
    facts = {"match_weight": 0.05, "true_scores": np.linspace(0.5, 1, 101).tolist()}
    standin.write_aligned(desk / "aligned.onnx", graphs, weights, **facts)
    standin.write_aligned(desk / "other.onnx", graphs, -weights, **facts)
    random = np.random.default_rng(0)
    mass = random.normal(size=(3500, standin.DIM)).astype(np.float32)
    standin.write_aligned(desk / "msms.onnx", graphs, mass, "msms", keep_shifts=False)
    pixels = random.normal(size=(192, standin.DIM)).astype(np.float32)
    standin.write_aligned(desk / "picture.onnx", graphs, pixels, "picture", keep_shifts=False)
    return desk
