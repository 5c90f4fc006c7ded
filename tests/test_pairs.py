import numpy as np
import pytest
import torch

from moleclip.device import ALONE
from moleclip.losses import MACCS_PACKED, contrastive_loss, loss_parts, weighted_loss
from moleclip.pairs import DrawnPairs, ShardPairs, epoch_batches, split_held_out

MEMBERS = np.array([3, 50, 9])


def unpacked(keys):
    return torch.from_numpy(np.unpackbits(keys, axis=1)).float()


def same(targets, others):
    return list(targets) == list(others) and all(
        torch.equal(targets[name], others[name]) for name in targets
    )


def test_the_contrastive_loss_is_the_papers():
    a, b = torch.randn(6, 8).double(), torch.randn(6, 8).double()
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    similar = 15 * (u @ v.T).numpy()
    both = [-np.log(np.exp(m.diagonal()) / np.exp(m).sum(1)).mean() for m in (similar, similar.T)]
    loss, _ = contrastive_loss(a, b, 15)
    assert loss.item() == pytest.approx(0.5 * sum(both))


def test_each_target_has_its_loss():
    plain, styled, n = torch.randn(5, 8), torch.randn(5, 8), 5
    heads = torch.nn.ModuleDict(
        {"k4": torch.nn.Linear(8, 4), "descriptors": torch.nn.Linear(8, 3 + MACCS_PACKED)}
    )
    targets = {
        "k4": torch.tensor([0, 3, 1, 1, 2]),
        "descriptors": torch.randn(n, 3),
        "maccs": (torch.rand(n, MACCS_PACKED) < 0.3).float(),
    }
    with torch.no_grad():
        parts = loss_parts(plain, styled, heads, targets, ALONE, 15)
        logits, told = heads["k4"](plain).numpy(), heads["descriptors"](plain).numpy()
    names = ["contrastive", "retrieval", "k4", "k4_accuracy", "descriptors", "maccs"]
    assert list(parts) == names  # their order in the log
    classes = targets["k4"].numpy()
    chosen = np.exp(logits[range(n), classes]) / np.exp(logits).sum(1)
    error = np.abs(told[:, :3] - targets["descriptors"].numpy())
    huber = np.where(error < 1, error**2 / 2, error - 0.5)
    odds, bits = 1 / (1 + np.exp(-told[:, 3:])), targets["maccs"].numpy()
    entropy = -np.log(np.where(bits > 0, odds, 1 - odds))
    wanted = [-np.log(chosen).mean(), (logits.argmax(1) == classes).mean()]
    wanted += [huber.mean(), entropy.mean()]
    assert [parts[name].item() for name in names[2:]] == pytest.approx(wanted, rel=1e-4)
    weights = {"contrastive": 0.5, "classes": 3, "descriptors": 2}
    third = parts["descriptors"] + parts["maccs"]
    loss = 0.5 * parts["contrastive"] + 3 * parts["k4"] + 2 * third
    assert weighted_loss(parts, targets, weights).item() == pytest.approx(loss.item())


def test_a_batch_is_made_of_runs_of_cluster_mates():
    labels = np.stack([np.arange(1000) % 7, np.arange(1000) * 37 % 40], 1)
    order, held = split_held_out(labels, 64)
    assert len(held) == 64 and not set(order) & set(held) and len(order) + len(held) == 1000
    # cluster mates, whose class stays in training
    assert set(labels[held, 1]) <= set(labels[order, 1]) and len(set(labels[held, 1])) <= 8
    seen = epoch_batches(order, labels, 64, 0, 0)
    assert len(np.unique(seen)) == seen.size == len(order) // 64 * 64
    for run in labels[seen.reshape(-1, 32), 1]:  # of classes of 12 to 25, each beside the next
        places = np.unique((run - run[0]) % 40)
        assert len(places) <= 4 and (np.diff(places) == 1).all()
    assert (seen != epoch_batches(order, labels, 64, 0, 1)).any()
    assert (seen == epoch_batches(order, labels, 64, 0, 0)).all()


def test_a_molecule_meets_most_of_its_class_over_epochs():
    labels = np.arange(2000)[:, None] % 8
    order, _ = split_held_out(labels, 64)
    mates = order[labels[order, 0] == 3]
    met, seen = {mate: set() for mate in mates[::25]}, np.zeros(2000, int)
    for epoch in range(8):
        batches = epoch_batches(order, labels, 64, 0, epoch)
        seen[batches] += 1
        for run in batches.reshape(-1, 32):
            for mate in met.keys() & {*run}:
                met[mate] |= {*run} & {*mates}
    assert len(mates) > 240 and min(map(len, met.values())) > 0.5 * len(mates)
    # 16 of the 1936 are left out of an epoch, others each time
    assert seen[order].min() >= 6 and (seen[order] < 8).sum() > 100


def test_pairs_from_smiles_are_drawn_anew_every_epoch(road):
    fresh = DrawnPairs(road / "molecules.smi", road / "labels.npz", 0)
    stored = ShardPairs(road / "shards", road / "labels.npz")
    (plain, first), targets, *_ = fresh.load(MEMBERS, 0)
    (again, second), *_ = fresh.load(MEMBERS, 1)
    (shard_plain, shard_styled), shard_targets, *_ = stored.load(MEMBERS, 0)
    assert (plain == again).all() and (plain == shard_plain).all()
    assert (first == shard_styled).all() and same(targets, shard_targets)
    assert all((a != b).any() for a, b in zip(first, second))


def test_descriptors_are_targets_beside_the_clusters(road, tmp_path):
    random = np.random.default_rng(0)
    arrays = dict(np.load(road / "labels.npz"))
    arrays["descriptors"] = random.normal(size=(96, 64)).astype(np.float16)
    arrays["maccs"] = random.integers(256, size=(96, MACCS_PACKED // 8), dtype=np.uint8)
    np.savez(tmp_path / "labels.npz", **arrays)
    targets = ShardPairs(road / "shards", tmp_path / "labels.npz", ["descriptors"]).load(
        MEMBERS, 0
    )[1]
    drawn = DrawnPairs(road / "molecules.smi", tmp_path / "labels.npz", 0, ["descriptors"])
    assert same(targets, drawn.load(MEMBERS, 0).targets)
    rows = [3, 51, 10]  # row 7 is broken
    assert list(targets) == ["k4", "k12", "descriptors", "maccs"]
    assert targets["k4"].tolist() == arrays["k4"][rows].tolist()
    assert targets["k12"].tolist() == arrays["k12"][rows].tolist()
    described = torch.from_numpy(arrays["descriptors"][rows]).float()
    assert torch.equal(targets["descriptors"], described) and described.shape == (3, 64)
    assert torch.equal(targets["maccs"], unpacked(arrays["maccs"][rows]))
    assert targets["k4"].dtype == torch.int64 and targets["maccs"].dtype == torch.float32
