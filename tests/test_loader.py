"""Shards inflated by a thread and by processes: the same batches, in the same order."""

import shutil

import click
import numpy as np
import pytest

from moleclip.loader import AHEAD, PIECES, SLOTS, Look
from moleclip.movement import N_UNIFORMS, moved_ink
from moleclip.pairs import ShardPairs


def plan_of(pairs, batch, steps):
    order = np.random.default_rng(0).permutation(len(pairs))
    for step in range(steps):
        yield step, np.take(order, range(step * 7, step * 7 + batch), mode="wrap"), step // 3


def numbers(step):
    return np.random.default_rng(step).random((140, N_UNIFORMS))


def test_processes_give_what_a_thread_does(road, monkeypatch):
    """Pieces of several sizes, over more steps than there are slots in the shared memory."""
    assert PIECES[0] < 24 < PIECES[1] and SLOTS > AHEAD
    look, found = Look("intense", 16, numbers), []
    for workers in (0, 3):  # 24, 24 and 22 molecules
        pairs = ShardPairs(road / "shards", road / "labels.npz", workers=workers)
        batches = pairs.batches(plan_of(pairs, 70, SLOTS + 3), look)
        found.append([(step, batch._replace(views=batch.views.copy())) for step, batch in batches])
    for (step, mine), (other, theirs) in zip(*found, strict=True):
        assert step == other and (mine.views == theirs.views).all()
        assert (mine.random == theirs.random).all() and (mine.ink == theirs.ink).all()
        assert (mine.targets["k4"] == theirs.targets["k4"]).all()
        assert (mine.ink == moved_ink(mine.both, "intense", numbers(step), 16)).all()
    assert [step for step, _ in found[0]] == list(range(SLOTS + 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named(road, tmp_path, workers):
    shutil.copytree(road / "shards", tmp_path / "shards")
    path = tmp_path / "shards" / "shard-00000.npz"
    arrays = dict(np.load(path))
    arrays["data"][arrays["offsets"][8] : arrays["offsets"][10]] = 0
    np.savez(path, **arrays)
    pairs = ShardPairs(tmp_path / "shards", road / "labels.npz", workers=workers)
    with pytest.raises(click.ClickException, match="the picture of row 4 is damaged"):
        list(pairs.batches([(0, np.arange(32), 0)]))
