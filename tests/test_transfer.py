"""Nothing in a step of training waits for the GPU, as far as that can be told without one."""

import pytest
import scale
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from moleclip.transfer import Verdict


def test_a_step_waits_for_the_gpu_once():
    assert scale.waits() == [("waits a step", 1)]


def test_what_waits_is_seen():
    with FakeTensorMode(allow_non_fake_inputs=True), scale.Uploads() as uploads:
        there = torch.zeros(3).to("cuda")
        assert uploads.waited == ["copy of (3,)"]
        torch.zeros(3).to("cuda", non_blocking=True)
        assert len(uploads.waited) == 1
        with pytest.raises(DataDependentOutputException):
            there.sum().item()


def test_a_verdict_on_the_cpu_is_known_at_once():
    verdict = Verdict()
    assert verdict.settle() and verdict.add(torch.tensor(True))
    assert not verdict.add(torch.tensor(False))
