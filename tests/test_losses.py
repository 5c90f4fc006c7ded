import numpy as np
import pytest
import torch

from moleclip.device import ALONE
from moleclip.losses import AtomHead, atom_parts, known_mean, loss_parts, weighted_loss

UNKNOWN = float("nan")


def test_what_is_not_known_counts_for_nothing():
    values = torch.tensor([[1.0, UNKNOWN], [3.0, 5.0]], requires_grad=True)
    mean = known_mean(values, ALONE)
    mean.backward()
    assert mean.item() == 3 and values.grad[1].tolist() == pytest.approx([1 / 3] * 2)
    nothing = known_mean(torch.full((2,), UNKNOWN, requires_grad=True), ALONE)
    assert nothing.item() == 0


def test_pictures_tell_counts_and_electrons_in_both_views():
    plain, styled = torch.randn(3, 8), torch.randn(3, 8)
    heads = torch.nn.ModuleDict(
        {"fingerprint": torch.nn.Linear(8, 6), "electronic": torch.nn.Linear(8, 4)}
    )
    truth = torch.randn(3, 4)
    truth[1] = UNKNOWN
    targets = {"fingerprint": torch.rand(3, 6), "electronic": truth}
    parts = loss_parts(plain, styled, heads, targets, ALONE, 15)
    both = [heads["fingerprint"](view) - targets["fingerprint"] for view in (plain, styled)]
    wanted = torch.stack(both).square().sum(2).mean().item()
    assert parts["fingerprint"].item() == pytest.approx(wanted, rel=1e-5)
    error = [(heads["electronic"](view) - truth)[[0, 2]].abs() for view in (plain, styled)]
    error = torch.stack(error).detach().numpy()
    huber = np.where(error < 1, error**2 / 2, error - 0.5).mean()
    assert parts["electronic"].item() == pytest.approx(huber, rel=1e-5)
    loss = weighted_loss(parts, targets, {"contrastive": 0, "fingerprint": 2, "electronic": 3})
    assert loss.item() == pytest.approx(2 * wanted + 3 * huber, rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())


def test_atoms_tell_what_is_known_of_them_where_they_are_seen():
    head = AtomHead(8 + 32, {"r1": 5, "r2": 7, "numbers": 10, "charges": 2})
    read, shown = torch.randn(8, 8 + 32, requires_grad=True), torch.ones(8, dtype=torch.bool)
    shown[[0, 7]] = False  # the first atom of the plain view, the last of the styled one
    numbers, charges = torch.randn(4, 10), torch.randn(4, 2)
    numbers[2, 0], charges[:3] = UNKNOWN, UNKNOWN  # a metal has no Gasteiger charge
    targets = {"r1": torch.tensor([0, 4, -100, 2]), "r2": torch.tensor([6, -100, 3, 1])}
    targets |= {"numbers": numbers, "charges": charges}
    parts, told = atom_parts(read, shown, head, targets, ALONE), head(read)
    pairs = [(i, t) for i, t in enumerate([0, 4, -100, 2] * 2) if t >= 0 and i not in (0, 7)]
    odds = torch.log_softmax(told["r1"], 1)
    wanted = -sum(odds[i, t] for i, t in pairs) / len(pairs)
    assert len(pairs) == 4 and parts["atom_r1"].item() == pytest.approx(wanted.item(), rel=1e-5)
    right = sum(odds[i].argmax().item() == t for i, t in pairs) / len(pairs)
    assert parts["atom_r1_accuracy"].item() == pytest.approx(right)
    error = (told["charges"][3] - charges[3]).abs().detach().numpy()
    huber = np.where(error < 1, error**2 / 2, error - 0.5).mean()
    assert parts["atom_charges"].item() == pytest.approx(huber, rel=1e-5)
    assert parts["atoms_hidden"].item() == 0.25
    weights = {"contrastive": 0, "atoms": 2, "electronic": 3}
    loss = weighted_loss(parts | {"contrastive": 0}, {}, weights, targets)
    wanted = parts["atom_r1"] + 0.5 * parts["atom_r2"] + 3 * parts["atom_numbers"]
    assert loss.item() == pytest.approx((2 * wanted + 3 * parts["atom_charges"]).item())
    loss.backward()
    assert read.grad.isfinite().all() and not read.grad[[0, 7]].any()
