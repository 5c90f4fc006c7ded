"""The encoder with all that decides how it sees a batch of drawings, and is trained on one."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from moleclip.augment import augment, moved_places
from moleclip.device import TooLarge, autocast, local_processes
from moleclip.loader import Look
from moleclip.movement import moved_ink
from moleclip.pixels import SIZE, inflate, palette
from moleclip.transfer import upload

# Pictures of like ink that a GPU sees at once: with 512 it would compute twice the tokens that
# have ink. On a CPU a slice should stay in its cache: base is a quarter faster by 16 than by 48.
BUCKETS = {"cuda": 64, "cpu": 16}


@cache
def colours(device):
    """Return the palette as colours in 0..1, float (256, 3), uploaded once."""
    return upload(palette(), device).float() / 255


def to_pixels(index, device):
    """Return index pictures, uint8 (n, 224, 224), as RGB pixels, float (n, 3, 224, 224) in 0..1.

    index: a numpy array, or a tensor that is on the device already.
    """
    index = index if torch.is_tensor(index) else upload(index, device)
    return colours(device)[index.int()].permute(0, 3, 1, 2)


def fitting_batch(arch, device, dtype):
    """Return how many pictures train at once in most of a GPU's free memory, a third of the CPU's.

    Each takes so many bytes for each token, width and layer: what autograd keeps, as counted with
    fused attention, and on a CPU what attention takes unfused.
    """
    args, gpu = arch["args"], device.type == "cuda"
    tokens = (SIZE // args["patch_size"]) ** 2
    if arch["tokens"] != "all":
        tokens //= 3 if gpu else 2  # in buckets of like ink, or slices
    kept = (56 if dtype else 80) if gpu else (50 if dtype else 100)
    each = tokens * args["width"] * args["layers"] * kept
    if gpu:
        return max(8, int(0.7 * torch.cuda.mem_get_info()[0] / each))
    return max(8, min(512, int(0.33 * memory_limit() / local_processes() / each)))


def memory_limit():
    """Return the bytes this process could have: the machine's, or its control group's if less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


class Places(NamedTuple):
    """Where the atoms of a batch of pictures are drawn."""

    counts: np.ndarray  # int64 (n,): atoms of each picture
    xy: np.ndarray  # float32 (m, 2): x and y of all of them, in pixels, NaN where unknown

    def index(self, part):
        """Return which atoms are those of some pictures, in their order."""
        ends = np.cumsum(self.counts)
        return np.concatenate([np.arange(ends[i] - self.counts[i], ends[i]) for i in part])

    def of(self, part):
        """Return the Places of some pictures."""
        return Places(self.counts[part], self.xy[self.index(part)])

    def moved(self, device, level="none", random=None):
        """Return (x and y after augmentation, float (m, 2); each atom's picture, int64 (m,))."""
        owner = upload(np.repeat(np.arange(len(self.counts)), self.counts), device)
        return moved_places(upload(self.xy, device), owner, level, random), owner


class Embedder:
    """The encoder with all that decides how it sees a batch, and how it is trained on one.

    level: of augmentation; micro_batch: the most pictures that are in memory at once;
    before_slice: called before each of them. Pictures are palette indices, uint8 (n, 224, 224);
    random is float64 numpy (n, N_UNIFORMS), or None for no augmentation; features are fp32
    (n, 512).
    """

    def __init__(self, encoder, device, dtype, level="none", micro_batch=64):
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self.level, self.micro_batch, self.before_slice = level, micro_batch, lambda: None

    def plain(self):
        """Return one that has all of a GPU's precision, and doesn't augment."""
        return Embedder(self.encoder, self.device, None)

    def batch(self, streams):
        """Return a batch of pictures given as zlib streams, uint8 (n, 224, 224)."""
        return np.stack([inflate(stream) for stream in streams])

    def look(self, numbers):
        """Return how drawings will be looked at, for those who load them. numbers: see `Look`."""
        inked = self.encoder.arch["tokens"] == "inked"
        return Look(self.level, self.encoder.arch["args"]["patch_size"] if inked else 0, numbers)

    def compile(self, world):
        """Compile the encoder's tower, unless a try fails on some process, which is then said."""
        problem, blank = None, np.zeros((2, SIZE, SIZE), np.uint8)
        self.encoder.compile_blocks()
        try:
            self.embed(blank, None).sum().backward()
        except Exception as error:  # no compiler, no Triton, an old GPU: each raises its own
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        self.encoder.zero_grad()
        problems = [each for each in world.gather_objects(problem) if each]
        if problems:
            torch.compiler.set_stance("force_eager")
            world.print0(f"goes on without compiling, which fails here ({problems[0]})")

    def fitting(self, world, work, *words):
        """Return work(*words), done again with half the micro-batch while memory runs out.

        The result doesn't depend on it. Raises click.ClickException below one picture.
        """
        while True:
            with suppress(TooLarge):
                return work(*words)
            if world.largest(self.micro_batch) == 1:
                raise click.ClickException(
                    "out of memory even for one picture at a time; take a smaller encoder"
                )
            self.micro_batch = max(1, self.micro_batch // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            world.print0(f"out of memory: goes on with --micro-batch {self.micro_batch}")

    def bring(self, pictures):
        """Return pictures where `embed` takes parts of them: a GPU gets all of a batch at once."""
        return upload(pictures, self.device) if self.device.type == "cuda" else pictures

    def part_of(self, pictures, part):
        """Return some of the pictures that `bring` brought."""
        return pictures[upload(part, self.device) if torch.is_tensor(pictures) else part]

    def embed(self, pictures, random, places=None, ink=None):
        """Return the features of pictures that fit into memory; with Places what is there, too.

        Then it is a tuple: features, and fp32 (m, width + 32), see `Encoder.read`. ink: inked
        patches of each, at most, int numpy (n,); if it is known no GPU is asked for it.
        """
        self.before_slice()
        level = self.level if random is not None else "none"
        pixels, clean = augment(to_pixels(pictures, self.device), level, random)
        inked = self.encoder.ink_mask(clean) if self.encoder.arch["tokens"] == "inked" else None
        there = places.moved(self.device, level, random) if places else (None, None)
        longest = max(1, int(ink.max())) if ink is not None and self.device.type == "cuda" else None
        with autocast(self.device, self.dtype):
            found = self.encoder(pixels, inked, *there, longest)
        return tuple(values.float() for values in found) if places else found.float()

    def count_ink(self, pictures, random):
        """Return how many patches of each picture carry ink, at most; None if all are looked at."""
        if self.encoder.arch["tokens"] != "inked":
            return None
        level = self.level if random is not None else "none"
        patch = self.encoder.arch["args"]["patch_size"]
        return moved_ink(pictures, level, random, patch)

    def micro_batches(self, pictures, random, ink=None):
        """Return index arrays that cut a batch into slices with like amounts of ink in each.

        With inked tokens a slice is padded to its fullest picture. ink: see `embed`.
        """
        most, order = self.micro_batch, np.arange(len(pictures))
        if self.device.type == "cpu" or self.encoder.arch["tokens"] == "inked":
            most = min(most, BUCKETS[self.device.type])
        if len(pictures) > most:
            ink = self.count_ink(pictures, random) if ink is None else ink
            order = order if ink is None else np.argsort(ink, kind="stable")
        return np.array_split(order, -(-len(pictures) // most))

    def embed_slices(self, pictures, random, places=None, ink=None):
        """Yield (places in the batch, what `embed` returns) slice by slice."""
        if ink is None and not torch.is_tensor(pictures):
            ink = self.count_ink(pictures, random)
        for part in self.micro_batches(pictures, random, ink):
            yield part, self.embed_part(pictures, random, places, ink, part)

    def embed_part(self, pictures, random, places, ink, part):
        """Return what `embed` does of a part of a batch."""
        numbers, counts = (None if each is None else each[part] for each in (random, ink))
        mine = places and places.of(part)
        return self.embed(self.part_of(pictures, part), numbers, mine, counts)

    def embed_batch(self, pictures, random, places=None, ink=None):
        """Return what `embed` does, of a batch, computed slice by slice without gradient."""
        slices = list(self.embed_slices(pictures, random, places, ink))
        found = self.in_order(slices, places)
        return found if places else found[0]

    def in_order(self, slices, places=None):
        """Return the outputs of slices, without gradient, in the order of their batch: a list."""
        parts, outputs = zip(*slices)
        orders = [np.concatenate(parts)]
        if places:
            orders.append(np.concatenate([places.index(part) for part in parts]))
        columns = zip(*outputs) if places else [outputs]
        return [
            torch.cat(column).detach()[upload(np.argsort(order), self.device)]
            for column, order in zip(columns, orders)
        ]

    def embed_cached(self, pictures, random, places=None, ink=None):
        """Return (what `embed` does, to collect the loss's gradient; the slices for `backward`).

        If all fits into memory the slices keep their way back. Else `backward` computes them
        once more: gradient caching (Gao et al., arXiv:2101.06983), which has the memory of one
        slice and the result of one pass.
        """
        with torch.set_grad_enabled(len(pictures) <= self.micro_batch):
            slices = list(self.embed_slices(pictures, random, places, ink))
        found = tuple(values.requires_grad_() for values in self.in_order(slices, places))
        return found if places else found[0], slices

    def backward(self, pictures, random, found, slices, places=None, ink=None):
        """Carry the gradient of what `embed_cached` found into the encoder, slice by slice."""
        for part, known in slices:
            self.before_slice()
            if not (known[0] if places else known).requires_grad:
                known = self.embed_part(pictures, random, places, ink, part)
            known, grads = (known, found) if places else ((known,), (found,))
            chosen = [part, places.index(part)] if places else [part]
            grads = [values.grad[upload(rows, self.device)] for values, rows in zip(grads, chosen)]
            torch.autograd.backward(known, grads)
