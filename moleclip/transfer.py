"""What passes between the CPU's memory and a GPU's without one of them waiting for the other."""

from functools import cache

import torch


def upload(array, device):
    """Return an array, numpy's or a tensor of the CPU, as a tensor on a device.

    To a GPU it goes by way of pinned memory, unawaited; on the CPU both share their memory.
    """
    tensor = array if torch.is_tensor(array) else torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


@cache
def constant(values, device):
    """Return a tuple of numbers, or of tuples of them, as a float tensor; uploaded once."""
    return torch.tensor(values, device=device)


class Verdict:
    """Whether all of a row of flags are true. A GPU's are read one late, so nobody waits for it."""

    def __init__(self):
        self.waiting = None  # the last flag, on its way, and what tells that it has come

    def add(self, flag):
        """Take a bool scalar; return whether all that are known by now are true."""
        if not flag.is_cuda:
            return bool(flag)
        known = self.settle()
        self.waiting = flag.to("cpu", non_blocking=True), torch.cuda.Event()
        self.waiting[1].record()
        return known

    def settle(self):
        """Return whether the last flag is true, when it has come."""
        if self.waiting is None:
            return True
        flag, come = self.waiting
        come.synchronize()
        return bool(flag)
