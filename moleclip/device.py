"""Where and how precisely to compute, what fits in memory, and the processes that work together."""

import os
import resource
import signal
import socket
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import click
import numpy as np
import torch
import torch.distributed as dist

from moleclip.files import one_line

PATIENCE = timedelta(hours=2)  # of those that wait for a download, or for rank 0's baselines
BY_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ


class Leaving(Exception):
    """This process, or another, was told to stop."""


class TooLarge(Exception):
    """This process, or another, ran out of memory."""


class LostProcess(click.ClickException):
    """Another process is gone, and nothing that all have to do can be done any more."""


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
    local, count = local_rank(), torch.cuda.device_count()
    if local_processes() > count:
        raise click.ClickException(f"more processes than GPUs ({count}); lower --nproc_per_node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def local_rank():
    """Return the number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


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


def memory_used(device):
    """Return the most memory this process has held so far, in GB: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def lacks_memory(error):
    """Tell whether an error is of running out of memory, on the GPU or the CPU."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "allocate memory" in str(error)


@contextmanager
def connection():
    """Raise LostProcess for what torch raises when another process is gone."""
    try:
        yield
    except RuntimeError as error:  # "[its file:line] what happened. What that may mean"
        why = one_line(error).partition("] ")[2].partition(". ")[0] or one_line(error)
        raise LostProcess(f"another process is gone ({why})") from None


class AllGather(torch.autograd.Function):
    """Concatenate a tensor over processes.

    Backwards, sum the gradients of all processes and take this one's part.
    """

    @staticmethod
    def forward(context, tensor, world):
        context.world = world
        parts = [torch.empty_like(tensor) for _ in range(world.size)]
        with connection():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        with connection():
            dist.all_reduce(gradient)
        return gradient.chunk(context.world.size)[context.world.rank], None


class Distributed:
    """This process, number `rank` among `size` that work together, on one node or several.

    What a process tells the others in words goes by way of the CPU, and waits for long.
    """

    def __init__(self, size=1, rank=0):
        self.size, self.rank, self.patient, self.quick = size, rank, None, None
        self.nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))

    @classmethod
    def start(cls, device):
        """Return this process among those that torchrun started, connected to them."""
        world = cls(int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)))
        if world.size > 1:
            on_gpu = device.type == "cuda"
            own = {"backend": "nccl", "device_id": device} if on_gpu else {"backend": "gloo"}
            dist.init_process_group(**own)
            world.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
            # What is asked in every step goes by way of the CPU: no GPU has to be waited for.
            world.quick = dist.new_group(backend="gloo") if on_gpu else None
        host = socket.gethostname()
        world.places = [f"rank {i} on {host}" for i, host in enumerate(world.gather_objects(host))]
        return world

    def stop(self):
        """Part from the other processes."""
        if self.size > 1:
            dist.destroy_process_group()

    def gather_objects(self, item):
        """Return the items of all processes, in rank order."""
        items = [item] * self.size
        if self.size > 1:
            with connection():
                dist.all_gather_object(items, item, self.patient)
        return items

    def print0(self, text):
        """Print a line once, whatever the number of processes."""
        if self.rank == 0:
            click.echo(text)

    def barrier(self):
        """Wait for the other processes."""
        self.gather_objects(None)

    def together(self, work, mine=True):
        """Return work(), None where it is not `mine`; if it fails anywhere, it does everywhere.

        The click.ClickException says on which node it failed, if there are several.
        """
        result = problem = None
        try:
            result = work() if mine else None
        except click.ClickException as error:
            if self.size == 1:
                raise
            problem = error.message
        problems = self.gather_objects(problem)
        if any(problems):
            said, place = next(pair for pair in zip(problems, self.places) if pair[0])
            here = self.nodes > 1 and len(set(problems)) > 1
            raise click.ClickException(f"{place}: {said}" if here else said)
        return result

    def local0_first(self, work):
        """Return work(), done by one process of each node before the others: it may download."""
        first = not local_rank()
        results = self.together(work, first), self.together(work, not first)
        return results[0] if first else results[1]

    def from_rank0(self, work):
        """Return on every process what work() returns on rank 0."""
        found = [self.together(work, not self.rank)]
        if self.size > 1:
            with connection():
                dist.broadcast_object_list(found, group=self.patient)
        return found[0]

    def compare(self, facts):
        """Raise click.ClickException where {name: value} are not the same on all processes."""
        everyone = self.gather_objects(facts)
        common = max(everyone, key=everyone.count)
        for place, other in zip(self.places, everyone):
            names = [name for name in common if other[name] != common[name]]
            if names:
                raise click.ClickException(
                    f"{place} has other {', '.join(names)} than "
                    f"{self.places[everyone.index(common)]}; all need the same files and options"
                )

    @contextmanager
    def agree(self):
        """Let a stretch that asks nothing of other processes end on all of them alike.

        Raises on all what was raised on one: Leaving, or TooLarge where memory ran out.
        """
        verdict = 0
        try:
            yield
        except Leaving:
            verdict = 2
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            verdict = 1
        verdict = self.largest(verdict)
        if verdict:
            raise Leaving if verdict == 2 else TooLarge

    def largest(self, number):
        """Return the largest of all processes' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(float(number))
        with connection():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, self.quick)
        return tensor.item()

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
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values):
        """Return the mean over processes of a tensor, which is overwritten."""
        if self.size > 1:
            with connection():
                dist.all_reduce(values)
        return values.div_(self.size)


class Notice:
    """SIGTERM, noted when it comes, or that the torchrun is gone that started this process."""

    def __init__(self):
        self.signals, self.parent = [], os.getppid()
        signal.signal(signal.SIGTERM, lambda *_: self.signals.append(True))

    def check(self):
        """Raise Leaving if it has come."""
        if self.signals or (BY_TORCHRUN and os.getppid() != self.parent):
            raise Leaving


@contextmanager
def report_once():
    """Let one process of each node tell of a user's mistake, which all processes find."""
    try:
        yield
    except click.ClickException:
        if local_rank():
            time.sleep(30)  # torchrun ends the others when one has left
        raise


ALONE = Distributed()  # for what every process computes alike, whatever torchrun started
