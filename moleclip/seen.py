"""Which molecules weights have seen: known by hashes, so that no test is on what was learned."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from moleclip.files import say_once
from moleclip.molecules import canonical
from moleclip.weights import BUNDLED, is_torchscript, load_checkpoint


def molecule_hashes(smiles):
    """Return the sorted hashes of readable SMILES, one for each molecule, int64 (molecules,)."""
    return torch.tensor(sorted({molecule_hash(text) for text in set(smiles)}), dtype=torch.int64)


def molecule_hash(smiles):
    """Return a molecule's hash, of 64 bits with a sign."""
    digest = hashlib.sha256(canonical(smiles).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Seen(NamedTuple):
    """What weights were trained on, as far as their file says."""

    molecules: torch.Tensor = torch.zeros(0, dtype=torch.int64)  # their hashes
    table: str = ""  # SHA-256 of the table, where the molecules aren't known
    labelled: bool = True  # whether labels were learned; else drawings alone


def seen_by(init):
    """Return the Seen of --init's weights.

    A checkpoint's `seen`, or its configuration's table; of an encoder the list beside it, if any.
    """
    path = BUNDLED if init == "bundled" else Path(init)
    drew = path.with_suffix(".seen.npy")
    if drew.is_file():
        return Seen(torch.from_numpy(np.load(drew, allow_pickle=False)), labelled=False)
    if path.suffix != ".pt" or not path.is_file() or is_torchscript(path):
        return Seen()
    checkpoint = load_checkpoint(path)
    if "seen" in checkpoint:
        return Seen(checkpoint["seen"])
    config = checkpoint.get("config")
    return Seen(table=config.get("data_sha256", "") if isinstance(config, dict) else "")


def refuse_seen(data, splits, config, seen, init):
    """Refuse to test on molecules that weights were trained on; say which else they know.

    splits: {seed: split}; init: the option that names the weights. Raises click.ClickException.
    """
    ways = "take another encoder, or --force to test on them"
    if seen.table == config["data_sha256"]:
        says = "was trained on this table, on rows that it doesn't name"
        raise click.ClickException(f"{init}: {says}; {ways}")
    known, rows = set(seen.molecules.tolist()), set()
    for split in splits.values() if known else ():
        rows.update(*split.values())
    known = {row for row in rows if molecule_hash(data.smiles[row]) in known}
    for seed, split in splits.items() if known else ():
        counts = {part: len(known.intersection(part_rows)) for part, part_rows in split.items()}
        what = ", ".join(f"{count} of {part}" for part, count in counts.items())
        drawn = "was trained on" if seen.labelled else "learned, without labels, from drawings of"
        says = f"{init}: {drawn} molecules of this table, by the split of seed {seed} {what}"
        if counts["test"] and seen.labelled:
            ways = "take another encoder, a split that tests none of them, or --force"
            raise click.ClickException(f"{says}; {ways}")
        if any(counts.values()):
            say_once(says)
