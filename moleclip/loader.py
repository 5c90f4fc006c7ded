"""Stored drawings, inflated ahead of training: by a thread, or by processes into shared memory.

A GPU looks at 7,000 to 17,000 drawings a second, more than a thread inflates beside a busy one.
"""

import mmap
import os
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import NamedTuple

import click
import numpy as np

from moleclip.molecules import Rejected
from moleclip.movement import moved_ink
from moleclip.pixels import SIZE
from moleclip.shards import open_shards, picture, places_of
from moleclip.workers import parallel

PIECES = 16, 256  # molecules that a process inflates at once, at least and at most
AHEAD = 3  # batches that are being inflated
# Besides those: the batch that is looked at, the one before, which may still be on its way to the
# GPU, and three between the two ends.
SLOTS = AHEAD + 5


class Look(NamedTuple):
    """How drawings are going to be looked at, from which follows how much ink they will have."""

    level: str = "none"  # of augmentation
    patch: int = 0  # pixels; 0: where ink is doesn't matter
    numbers: Callable | None = None  # step -> what augmentation follows from, (2n, N_UNIFORMS)

    def random(self, step):
        """Return the uniform numbers of a step: of the plain views, then of the styled ones."""
        return self.numbers(step) if self.numbers else None


UNMOVED = Look()


class Loaded(NamedTuple):
    """The two views of some molecules, and what is known of them."""

    views: np.ndarray  # plain, styled: palette indices, uint8 (2, n, 224, 224)
    places: list | None  # for each view of each molecule where its atoms lie, float16 (atoms, 2)
    ink: np.ndarray | None  # inked patches, at most, int (2, n)


class Piece(NamedTuple):
    """A part of a batch, in the form in which `parallel` takes molecules."""

    row: int  # the first of its molecules in the batch
    smiles: tuple  # the other words of `inflate_piece`
    problem: str | None = None


class Memory:
    """Bytes that this process shares with others that know its name (Linux)."""

    def __init__(self, size):
        self.file = os.memfd_create("drawings")
        os.ftruncate(self.file, size)
        self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)
        self.name = f"/proc/{os.getpid()}/fd/{self.file}"

    def __del__(self):
        os.close(self.file)


@cache
def shared(name):
    """Return the bytes of another process's Memory."""
    with open(name, "r+b") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0), np.uint8)


@cache
def shards_of(folder):
    """Return the shards of a folder; opened once."""
    return open_shards(folder)[0]


def inflate(shards, where, views, look, random, atoms, out=None):
    """Return what is Loaded of molecules. Raises click.ClickException for a damaged picture.

    where: shard and number of each, int (n, 2); views: which two; random: float64 (2n, 16) or
    None; atoms: whether to tell where they lie; out: where to put the pictures.
    """
    if out is None:
        out = np.empty((2, len(where), SIZE, SIZE), np.uint8)
    places = [[None] * len(where) for _ in views] if atoms else None
    for i in np.lexsort(where.T[::-1]):  # as they lie on the disk
        shard, number = shards[where[i, 0]], where[i, 1]
        for which, view in enumerate(views):
            out[which, i] = picture(shard, number, view)
            if atoms:
                places[which][i] = places_of(shard, number, view)
    return Loaded(out, places, ink_of(out, look, random))


def ink_of(views, look, random):
    """Return how much ink will be in both views, int (2, n), or None."""
    if not look.patch:
        return None
    level = look.level if random is not None else "none"
    flat = views.reshape(-1, SIZE, SIZE)
    return moved_ink(flat, level, random, look.patch).reshape(2, -1)


def inflate_piece(first, words, folder, name, atoms, level, patch):
    """Inflate a part of a batch into shared memory; return its places and ink. A task."""
    slot, batch, where, views, random = words
    size = 2 * batch * SIZE * SIZE
    whole = shared(name)[slot * size : (slot + 1) * size].reshape(2, batch, SIZE, SIZE)
    out = whole[:, first : first + len(where)]
    found = inflate(shards_of(folder), where, views, Look(level, patch), random, atoms, out)
    return found.places, found.ink


def by_thread(shards, plan, look, atoms):
    """Yield (step, members, random, Loaded) for a plan of (step, members, where, views)."""
    for step, members, where, views in plan:
        random = look.random(step)
        found = inflate(shards, where, views, look, random, atoms)
        yield step, members, random, found


def by_processes(folder, plan, look, atoms, workers):
    """Yield what `by_thread` does, inflated by worker processes several batches ahead.

    Pictures lie in memory that is used again: after SLOTS - AHEAD further batches at the earliest.
    """
    plan = iter(plan)
    head = next(plan, None)
    if head is None:
        return
    batch = len(head[1])
    size = 2 * batch * SIZE * SIZE
    memory, waiting = Memory(SLOTS * size), deque()
    # Few pieces: each is asked for and taken by this process, whose main thread may be busy.
    length = int(np.clip(-(-batch // workers), *PIECES))

    def pieces():
        for count, (step, members, where, views) in enumerate(chain([head], plan)):
            slot, random = count % SLOTS, look.random(step)
            waiting.append((step, members, random, slot))
            for first in range(0, batch, length):
                part = slice(first, first + length)
                numbers = None
                if random is not None:
                    numbers = np.concatenate([half[part] for half in np.split(random, 2)])
                yield Piece(first, (slot, batch, where[part], views, numbers))

    cuts = -(-batch // length)
    options = {"folder": str(folder), "name": memory.name, "atoms": atoms}
    options |= {"level": look.level, "patch": look.patch}
    room = -(-AHEAD * cuts // workers)
    results = parallel(inflate_piece, pieces(), workers, 1, None, room, **options)
    for first in results:  # they are in the order of the pieces
        told = [first[1]] + [next(results)[1] for _ in range(cuts - 1)]
        for each in told:
            if isinstance(each, Rejected):
                raise click.ClickException(f"{folder}/: a process that reads drawings {each}")
        step, members, random, slot = waiting.popleft()
        views = memory.bytes[slot * size : (slot + 1) * size].reshape(2, batch, SIZE, SIZE)
        yield step, members, random, Loaded(views, *joined(told))


def joined(told):
    """Return (places, ink) of a batch from those of its pieces."""
    places, ink = zip(*told)
    if places[0] is not None:
        places = [[each for piece in places for each in piece[which]] for which in (0, 1)]
    else:
        places = None
    return places, None if ink[0] is None else np.concatenate(ink, 1)
