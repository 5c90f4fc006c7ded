"""Tensors in .safetensors files, without a library: a header in JSON, then the numbers."""

import json
import math
import struct

import click
import torch


def read_safetensors(path, skip=()):
    """Return the tensors of a .safetensors file as fp32, but for the names in skip.

    Raises click.ClickException.
    """
    kinds = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}
    tensors = {}
    try:
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in skip:
                continue
            kind, shape, start = kinds[entry["dtype"]], entry["shape"], entry["data_offsets"][0]
            count, start = math.prod(shape), 8 + length + start
            flat = torch.frombuffer(data, dtype=kind, count=count, offset=start)
            tensors[name] = flat.reshape(shape).float()
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError):
        raise click.ClickException(
            f"{path}: truncated, or not a .safetensors file of float tensors"
        ) from None
    return tensors
