import click
import numpy as np
import pytest
import torch

from moleclip.device import ALONE, Distributed, pick_device, pick_precision, report_once
from moleclip.embedder import fitting_batch
from moleclip.encoder import SCRATCH, new_arch
from moleclip.training import enough_memory

CPU = torch.device("cpu")


def test_no_gpu_is_said_in_one_line():
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(click.ClickException, match="leave the flag out to use the CPU"):
        pick_device("cuda")


def test_the_precision_comes_with_its_reason():
    assert pick_precision("bf16", CPU) == (torch.bfloat16, "as asked")
    assert pick_precision("fp32", CPU) == (None, "as asked")
    dtype, reason = pick_precision("auto", CPU)
    assert dtype in (None, torch.bfloat16) and reason.startswith("this CPU has ")


def test_larger_encoders_fit_fewer_pictures(monkeypatch):
    monkeypatch.setattr("moleclip.embedder.memory_limit", lambda: 16e9)
    fitting = [fitting_batch(new_arch(*SCRATCH[size]), CPU, None) for size in SCRATCH]
    assert fitting == sorted(fitting, reverse=True) and fitting[0] == 512 and fitting[-1] == 29
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert fitting_batch(new_arch(*SCRATCH["base"]), CPU, None) == 14
    assert fitting_batch(new_arch(*SCRATCH["base"]), CPU, torch.bfloat16) == 29
    assert fitting_batch(new_arch(*SCRATCH["base"], tokens="inked"), CPU, None) == 29


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory"), torch.OutOfMemoryError()]
)
def test_out_of_memory_names_the_batch(error):
    said = "out of memory with --batch 64"
    with pytest.raises(click.ClickException, match=said), enough_memory(64):
        raise error


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(64):
        raise RuntimeError("shapes differ")


def test_one_process_of_a_node_tells_of_a_mistake(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(click.ClickException), report_once():
            raise click.ClickException("wrong")
    assert slept == [30]  # until torchrun has ended the other


def test_processes_share_a_batch():
    batch = np.arange(12)
    shares = [Distributed(4, rank).share(batch) for rank in range(4)]
    assert (np.concatenate(shares) == batch).all() and {len(share) for share in shares} == {3}
    assert (ALONE.share(batch) == batch).all()


def test_one_process_needs_no_others():
    tensor = torch.randn(3)
    assert ALONE.gather(tensor) is tensor and torch.equal(ALONE.mean(tensor), tensor)
    assert ALONE.largest(3) == 3 and ALONE.gather_objects("this") == ["this"]
    ALONE.barrier(), ALONE.average_gradients([]), ALONE.stop()


def test_a_batch_of_the_paper_fits_a_gpu_of_80_gb(monkeypatch):
    """By an estimate that was too high gradient caching did a third more work there."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79e9, 80e9))
    arch = new_arch(*SCRATCH["base"])
    assert fitting_batch(arch, torch.device("cuda"), torch.bfloat16) >= 512
    arch["tokens"] = "inked"
    assert fitting_batch(arch, torch.device("cuda"), torch.bfloat16) > 1024
