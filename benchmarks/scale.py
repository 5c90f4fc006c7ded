"""What a GPU would wait for, as far as a CPU can tell: tokens, the loader, waits, memory, drawing.

    python benchmarks/scale.py              # 8 minutes on 2 cores; writes results/scale.csv
    python benchmarks/scale.py waits        # one of: tokens, loader, waits, memory, drawing

tokens: computed against inked, of 512 pictures in buckets as on a GPU and in one slice. loader:
drawings a second from shards, by a thread and by processes, beside an idle main thread and a busy
one. waits: how often one step of training makes the CPU wait for the GPU, told by tensors that only
pretend to be on one. memory: of a process that opens shards of 1.87 million molecules. drawing:
how much of it --smiles hides behind steps of 3 s. None of this has run on a GPU.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from record import ROOT, record
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moleclip.device import ALONE
from moleclip.embedder import Embedder, Places
from moleclip.encoder import SCRATCH, Encoder, new_arch
from moleclip.files import save_json
from moleclip.loader import Look
from moleclip.losses import new_heads
from moleclip.molecules import BLOCK
from moleclip.movement import N_UNIFORMS, moved_ink
from moleclip.pairs import Batch, DrawnPairs, ShardPairs
from moleclip.pixels import deflate
from moleclip.shards import shard_path, write_shard
from moleclip.trainstate import TrainState
from pretrain import backward

MOLECULES, BATCH, GPU = 4096, 256, torch.device("cuda")
MANY = 1_870_000  # molecules: the paper's
PAUSE, STEPS = 3.0, 6
FILE = "data/druglike_20000.smi.gz"


def python(*words):
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def stored(folder, count=MOLECULES):
    """Draw and label the first drug-like molecules in a folder; return its ShardPairs' paths."""
    folder = Path(folder)
    lines = gzip.open(ROOT / FILE, "rt").read().splitlines()[:count]
    (folder / "some.smi").write_text("\n".join(lines) + "\n")
    if not (folder / "labels.npz").exists():
        python("render.py", folder / "some.smi", "-o", folder / "shards")
        python("cluster.py", folder / "some.smi", "--k", 30, "-o", folder / "labels.npz")
    return folder / "shards", folder / "labels.npz"


def numbers(step):
    """Return the uniform numbers of a step."""
    return np.random.default_rng(step).random((2 * BATCH, N_UNIFORMS))


def plan(pairs, steps):
    """Yield (step, members, epoch), members at random."""
    for step in range(steps):
        yield step, np.random.default_rng(step).integers(0, len(pairs), BATCH), 0


def tokens(folder):
    """Return rows: tokens that are computed of a GPU's batch, against those that have ink."""
    pairs = ShardPairs(*stored(folder))
    both = pairs.load(np.arange(0, len(pairs), len(pairs) // BATCH)[:BATCH], 0).both
    random = numbers(0)
    ink = moved_ink(both, "default", random, 16) + 1  # with the class token
    encoder = Encoder(new_arch(*SCRATCH["nano"], tokens="inked"))
    buckets = Embedder(encoder, GPU, None, "default", 512).micro_batches(both, random)
    computed = sum(len(part) * ink[part].max() for part in buckets)
    rows = [("tokens computed / inked, buckets", computed / ink.sum())]
    return [*rows, ("tokens computed / inked, one slice", len(ink) * ink.max() / ink.sum())]


@contextmanager
def busy_thread(wanted):
    """Keep a thread of this process busy with Python, if wanted."""
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin, daemon=True)
    if wanted:
        thread.start()
    yield
    ended.set()


def loader(folder):
    """Return rows: drawings a second that the loader delivers from shards."""
    rows, paths = [], stored(folder)
    for workers in (0, 2):
        pairs = ShardPairs(*paths, workers=workers)
        for busy in (False, True):
            steps, look = (40 if workers else 16), Look("default", 16, numbers)
            batches = pairs.batches(plan(pairs, steps), look)
            with busy_thread(busy):
                for _ in range(4):  # the processes have started
                    next(batches)
                began = time.perf_counter()
                for _ in batches:
                    pass
                rate = 2 * BATCH * (steps - 4) / (time.perf_counter() - began)
            how = f"{workers} processes" if workers else "a thread"
            rows.append((f"drawings/s, {how}, main thread {'busy' if busy else 'idle'}", rate))
    return rows


class Uploads(TorchDispatchMode):
    """Counts copies between the CPU and a GPU that are waited for."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function, types, words=(), named=None):
        named = named or {}
        if function is torch.ops.aten._to_copy.default:
            devices = {words[0].device.type, torch.device(named.get("device") or "cpu").type}
            if named.get("device") and len(devices) > 1 and not named.get("non_blocking"):
                self.waited.append(f"copy of {tuple(words[0].shape)}")
        return function(*words, **named)


@contextmanager
def pretended(embedder):
    """Let torch do without a GPU what it does only with one; gradients are 0."""
    found, embed = [], embedder.embed_cached

    def embed_cached(*words):
        found[:], slices = embed(*words)
        return tuple(found), slices

    def gradients(loss):
        for values in found:
            values.grad = torch.zeros_like(values)

    with (
        mock.patch.object(embedder, "embed_cached", embed_cached),
        mock.patch.object(torch.Tensor, "backward", gradients),
        mock.patch.object(torch.autograd, "backward"),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.cuda, "Event", mock.MagicMock),
        Uploads() as uploads,
    ):
        yield uploads


def waits(folder=None):
    """Return rows: how often the CPU waits for the GPU in a step.

    The step is taken with tensors that pretend to be on a GPU: to read one raises an exception.
    """
    random, n = numbers(0)[:24], 12
    targets = {"k30": torch.arange(n) % 5, "fingerprint": torch.rand(n, 7)}
    atoms = {"r1": torch.arange(3 * n) % 4, "numbers": torch.rand(3 * n, 2)}
    ink, xy = np.full(2 * n, 40), np.random.default_rng(0).uniform(20, 200, (6 * n, 2))
    places = Places(np.full(2 * n, 3), xy.astype(np.float32))
    views = np.zeros((2, n, 224, 224), np.uint8)
    batch = Batch(views, targets, places, atoms, random, ink)
    arch = new_arch(*SCRATCH["nano"], tokens="inked", pool="cls+mean")
    weights = {"contrastive": 1, "classes": 1, "fingerprint": 1, "atoms": 1}
    config = {"temperature": 1 / 15, "loss": weights, "augment": "default"}
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            encoder = Encoder(arch)
            heads = new_heads(arch, {"k30": 5, "fingerprint": 7}, {"r1": 4, "numbers": 2})
        embedder = Embedder(encoder, GPU, torch.bfloat16, "default", 64)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        state = TrainState("", config, ALONE, embedder, heads, [], scaler)
        with pretended(embedder) as uploads:
            backward(state, batch)
            uploads.waited.clear()  # constants have been uploaded
            state.finite.waiting = None  # which is one wait, for a step that has ended
            backward(state, batch)
    return [("waits a step", len(uploads.waited) + 1)]


def fill(folder):
    """Write shards of many molecules with blank pictures, and their labels, into a folder."""
    folder, blank = Path(folder), deflate(np.zeros((224, 224), np.uint8))
    facts = {"input": "many.smi", "sha256": "0" * 64, "rows": MANY, "smiles_column": None}
    for number in range(-(-MANY // BLOCK)):
        rows = range(number * BLOCK, min(MANY, (number + 1) * BLOCK))
        smiles = ["C" * (20 + row % 80) for row in rows]
        write_shard(shard_path(folder, number), rows, smiles, [blank] * 2 * len(rows), [], 2)
    made = {"views": 2, "seed": 0, "max_atoms": 150, "r_groups": False, "rdkit": "", "parts": 1}
    counts = {"part": 1, "complete": True, "drawn": MANY, "rejected": 0}
    save_json(folder / "manifest.json", facts | made | counts)
    random = np.random.default_rng(0)
    sets = {f"k{k}": random.integers(0, k, MANY, np.int32) for k in (300, 3000)}
    np.savez(folder / "labels.npz", **sets, meta=json.dumps(facts))


def memory(folder):
    """Return rows: what opening the shards of many molecules takes of a process's own memory."""
    code = (
        "import sys; sys.path[:0] = ['.']; import moleclip.pairs as pairs\n"
        "def own():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return sum(int(x.split()[1]) for x in lines if x.startswith('RssAnon')) / 1e3\n"
        "before = own()\n"
        f"found = pairs.ShardPairs({folder!r}, {folder!r} + '/labels.npz')\n"
        "order, held = pairs.split_held_out(found.clusters, 256)\n"
        "print(len(found), own() - before)"
    )
    fill(folder)
    words = [sys.executable, "-c", code]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    count, megabytes = told.split()
    assert int(count) == MANY
    return [("MB a process, 1.87 million molecules", float(megabytes))]


def drawing(folder):
    """Return rows: seconds that a step waits for drawings, without and with a pause before it."""
    _, labels = stored(folder)
    pairs, rows = DrawnPairs(f"{folder}/some.smi", labels, 0), []
    for pause in (0.0, PAUSE):
        batches, waited = pairs.batches(plan(pairs, STEPS)), []
        next(batches)
        for _ in range(STEPS - 1):
            time.sleep(pause)
            began = time.perf_counter()
            next(batches)
            waited.append(time.perf_counter() - began)
        rows.append((f"seconds to wait for {BATCH} molecules, pause {pause:g} s", np.mean(waited)))
    return rows


def main(*wanted):
    parts = {"tokens": tokens, "loader": loader, "waits": waits, "drawing": drawing}
    rows = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as many:
        for name, measure in (parts | {"memory": memory}).items():
            if not wanted or name in wanted:
                rows += measure(many if name == "memory" else folder)
    rows = [{"what": what, "value": float(value)} for what, value in rows]
    if not wanted:
        record("scale", rows, ("torch", "numpy", "rdkit"))
    for row in rows if wanted else ():
        print(f"{row['what']}: {row['value']:.4g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
