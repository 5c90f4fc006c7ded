"""Where and how precisely to compute, what fits in memory, and the processes that work together."""

import os
import resource
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click
import numpy as np
import torch
import torch.distributed as dist

from moleclip.pixels import SIZE


def pick_device(wanted="auto"):
    """Return the torch.device for --device: auto, cpu or cuda; one GPU a process of torchrun.

    Raises click.ClickException if there is no GPU where one is wanted, or fewer than processes.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise click.ClickException(
            "--device cuda: PyTorch sees no GPU here; leave the flag out to use the CPU"
        )
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_processes() > count:
        raise click.ClickException(f"more processes than GPUs ({count}); lower --nproc_per_node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def local_processes():
    """Return how many processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def pick_precision(wanted, device):
    """Return (autocast dtype or None for fp32, the reason in words) for --precision."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    if wanted in named:
        return named[wanted], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has it"
        return torch.float16, "this GPU has no bf16"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "this CPU has AVX512-BF16"
    return None, "this CPU has no bf16 arithmetic"


def autocast(device, dtype):
    """Return torch's autocast to dtype, or a context that does nothing for None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def fitting_batch(arch, device, dtype):
    """Return how many pictures train at once in half of a GPU's free memory, a third of the CPU's.

    Each takes 100 bytes (fp32; else 50) for each token, width and layer.
    """
    args = arch["args"]
    tokens = (SIZE // args["patch_size"]) ** 2
    if arch["tokens"] != "all":
        tokens //= 2
    each = tokens * args["width"] * args["layers"] * (50 if dtype else 100)
    if device.type == "cuda":
        return max(8, min(1024, int(0.5 * torch.cuda.mem_get_info()[0] / each)))
    return max(8, min(512, int(0.33 * memory_limit() / local_processes() / each)))


def memory_limit():
    """Return the bytes this process could have: the machine's, or its control group's if less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def memory_used(device):
    """Return the most memory this process has held so far, in GB: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@contextmanager
def enough_memory(batch):
    """Turn running out of memory into a click.ClickException of one line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and "allocate memory" not in str(error):
            raise
        raise click.ClickException(
            f"out of memory with --batch {batch}; lower --batch, or take a smaller encoder"
        ) from None


class AllGather(torch.autograd.Function):
    """Concatenate a tensor over processes.

    Backwards, sum the gradients of all processes and take this one's part.
    """

    @staticmethod
    def forward(context, tensor, world):
        context.world = world
        parts = [torch.empty_like(tensor) for _ in range(world.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(context.world.size)[context.world.rank], None


class Distributed:
    """This process, number `rank` among `size` that work together."""

    def __init__(self, size=1, rank=0):
        self.size, self.rank = size, rank

    @classmethod
    def start(cls, device):
        """Return this process among those that torchrun started, connected to them."""
        world = cls(int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)))
        if world.size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return world

    def stop(self):
        """Part from the other processes."""
        if self.size > 1:
            dist.destroy_process_group()

    def barrier(self):
        """Wait for the other processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def rank0_first(self):
        """Let rank 0 go ahead: clip.load's download is not safe for several at once."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def share(self, values):
        """Return this process's share of a batch, an array with the same rows on each."""
        return np.array_split(values, self.size)[self.rank]

    def gather(self, tensor):
        """Return the tensors of all processes in rank order; gradients flow back to each."""
        return AllGather.apply(tensor, self) if self.size > 1 else tensor

    def average_gradients(self, parameters):
        """Give every process the mean of their gradients, in place."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag):
        """Tell whether the flag is up on any process."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(tensor)
        return tensor.item() > 0

    def mean(self, values):
        """Return the mean over processes of a tensor, which is overwritten."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size


@contextmanager
def report_once():
    """Let rank 0 alone tell of a user's mistake, which all processes find."""
    try:
        yield
    except click.ClickException:
        if int(os.environ.get("RANK", 0)):
            time.sleep(30)  # torchrun ends the others when one has left
        raise


ALONE = Distributed()  # for what every process computes alike, whatever torchrun started
