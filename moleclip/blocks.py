"""Electronic targets in a folder, in blocks of 1000 rows: computed, checked, gathered."""

import itertools
from collections import deque
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from moleclip.electronic import check_method, electronic_targets, written_order
from moleclip.files import check_output, read_arrays, save_arrays
from moleclip.molecules import Rejected, read_molecules
from moleclip.workers import parallel

ROWS = 1000  # of a block
LIMIT = 300  # seconds for GROUP molecules
GROUP = 4
PER_MOLECULE = {"row": "i4", "homo": "f4", "lumo": "f4", "dipole": "f4"}
PER_ATOM = {"charge": "f2", "charge_h": "f2"}
ARRAYS = (*PER_MOLECULE, *PER_ATOM, "smiles", "offsets", "failed")


def block_path(folder, method, number):
    """Return the path of a folder's block: the rows number * 1000 and on."""
    return Path(folder) / f"{method}-{number:05d}.npz"


def blocks_there(folder, method, rows):
    """Return the numbers of the blocks that a folder has, in order."""
    numbers = range(-(-rows // ROWS))
    return [number for number in numbers if block_path(folder, method, number).is_file()]


def size_of(numbers, rows):
    """Return how many of an input's rows some blocks have."""
    return sum(min(ROWS, rows - number * ROWS) for number in numbers)


def write_block(path, members):
    """Write a block of (molecule, result of `electronic_targets` or Rejected) pairs."""
    good = [(m, result) for m, result in members if not isinstance(result, Rejected)]
    failed = [(m.row, str(result)) for m, result in members if isinstance(result, Rejected)]
    homo, lumo, dipole, *charges = zip(*[result for _, result in good]) if good else [()] * 5
    columns = {"row": [m.row for m, _ in good], "homo": homo, "lumo": lumo, "dipole": dipole}
    arrays = {name: np.array(columns[name], kind) for name, kind in PER_MOLECULE.items()}
    for (name, kind), of_each in zip(PER_ATOM.items(), charges):
        arrays[name] = np.concatenate([*of_each, np.zeros(0)]).astype(kind)
    lengths = [len(charge) for charge in charges[0]]
    save_arrays(
        path,
        **arrays,
        smiles=np.array([written(m) for m, _ in good], "U"),
        offsets=np.cumsum([0, *lengths], dtype=np.int32),
        failed=np.array([row for row, _ in failed], np.int32),
        reason=np.array([reason for _, reason in failed], "U"),
    )


def read_block(path, number):
    """Return a block's arrays. Raises click.ClickException if they don't fit together."""
    block = read_arrays(path, ARRAYS)
    row, offsets, failed = (block[name] for name in ("row", "offsets", "failed"))
    whole = (
        all(array.ndim == 1 for array in block.values())
        and all(block[name].dtype == kind for name, kind in (PER_MOLECULE | PER_ATOM).items())
        and all(len(block[name]) == len(row) for name in (*PER_MOLECULE, "smiles"))
        and block["smiles"].dtype.kind == "U"
        and offsets.dtype == failed.dtype == np.int32
        and len(offsets) == len(row) + 1
        and offsets[0] == 0
        and (np.diff(offsets) > 0).all()
        and all(len(block[name]) == offsets[-1] for name in PER_ATOM)
        and (np.diff(row) > 0).all()
        and (row // ROWS == number).all()
    )
    if not whole:
        raise click.ClickException(
            f"{path}: its arrays don't fit together; delete it and compute it again with --resume"
        )
    return block


def written(molecule):
    """Return a molecule's SMILES without what follows it."""
    return (molecule.smiles.split() or [""])[0]


def with_values(source, facts, folder, method):
    """Yield (molecule, values) of each row that a folder's blocks have, in order.

    values: as `electronic_targets` returns them. Raises click.ClickException if a block is damaged
    or was made of other molecules than those of source.
    """
    there = set(blocks_there(folder, method, facts["rows"]))
    molecules = read_molecules(source, facts["smiles_column"])
    for number, members in itertools.groupby(molecules, lambda m: m.row // ROWS):
        if number not in there:
            continue
        path = block_path(folder, method, number)
        block, here = read_block(path, number), {m.row: m for m in members}
        for i, (row, smiles) in enumerate(zip(block["row"].tolist(), block["smiles"].tolist())):
            read = written(here[row]) if row in here else "no row"
            if read != smiles:
                raise click.ClickException(
                    f"{path}: was made of another file: its row {row} is {smiles[:60]}, "
                    f"in {source} {read[:60]}; give that file, or another folder"
                )
            atoms = slice(*block["offsets"][i : i + 2])
            numbers = [float(block[name][i]) for name in ("homo", "lumo", "dipole")]
            yield here[row], (*numbers, block["charge"][atoms], block["charge_h"][atoms])


def prepare(source, facts, folder, method, part, resume):
    """Refuse, before long work, a folder that can't be taken or gone on with.

    Computing is asked for by resume or by a part. Raises click.ClickException for a missing
    library, a folder without blocks, one that has some of the part already, damaged blocks, and
    those of other molecules than source's.
    """
    there = blocks_there(folder, method, facts["rows"])
    if resume or part.count > 1:
        check_method(method)
        check_output(block_path(folder, method, 0))
    elif not there:
        raise click.ClickException(
            f"--electronic {folder}: has no {block_path('', method, 0)} or other block; "
            "--resume computes all, --part I/N a part of them"
        )
    if part.count > 1 and not resume and any(part.has_block(number) for number in there):
        raise click.ClickException(
            f"{folder}: has blocks of this part already; compute the others with --resume"
        )
    for _ in with_values(source, facts, folder, method):
        pass


def compute_blocks(source, facts, folder, method, part, workers=None):
    """Compute the blocks of a part that a folder lacks: see `prepare`."""
    there = blocks_there(folder, method, facts["rows"])
    numbers = range(-(-facts["rows"] // ROWS))
    missing = {number for number in numbers if part.has_block(number)} - set(there)
    molecules = read_molecules(source, facts["smiles_column"])
    wanted = (m for m in molecules if m.row // ROWS in missing)
    results = parallel(electronic_targets, wanted, workers, GROUP, LIMIT, method=method)
    total = size_of(missing, facts["rows"])
    bar = tqdm(results, total=total, unit=" molecules", desc=method, disable=None)
    failures = 0
    for number, members in itertools.groupby(bar, lambda pair: pair[0].row // ROWS):
        members = list(members)
        write_block(block_path(folder, method, number), members)
        failures += sum(isinstance(result, Rejected) for _, result in members)
    click.echo(
        f"{folder}: computed {len(missing)} blocks, {total} molecules, of which {failures} failed: "
        "each block names them, `failed` with its `reason`"
    )


def gather(source, facts, folder, method, atom_offsets, workers=None):
    """Return (arrays, counts) of what a folder's blocks have, for labels.npz.

    arrays: electronic, float32 (rows, 4), HOMO, LUMO, gap, eV, dipole, debye; atom_charge and
    atom_charge_h, float16 (atoms,), e; NaN where not known. Raises click.ClickException.
    """
    arrays = {"electronic": np.full((facts["rows"], 4), np.nan, np.float32)}
    arrays |= {f"atom_{name}": np.full(atom_offsets[-1], np.nan, np.float16) for name in PER_ATOM}
    waiting, known, other = deque(), 0, 0
    molecules = noted(with_values(source, facts, folder, method), waiting)
    what = {"group": 256, "max_atoms": facts["max_atoms"]}
    for molecule, order in parallel(written_order, molecules, workers, **what):
        homo, lumo, dipole, *charges = waiting.popleft()
        atoms = slice(*atom_offsets[molecule.row : molecule.row + 2])
        order = np.zeros(0, int) if isinstance(order, Rejected) else np.frombuffer(order, np.int32)
        finite = np.isfinite([homo, lumo, dipole]).all() and np.isfinite(charges).all()
        if not finite or not len(order) == len(charges[0]) == atoms.stop - atoms.start:
            other += 1
            continue
        arrays["electronic"][molecule.row] = homo, lumo, lumo - homo, dipole
        for name, values in zip(PER_ATOM, charges):
            arrays[f"atom_{name}"][atoms] = values[order]
        known += 1
    there = blocks_there(folder, method, facts["rows"])
    failed = size_of(there, facts["rows"]) - known - other
    click.echo(
        f"{folder}: {len(there)} of {-(-facts['rows'] // ROWS)} blocks; electronic targets of "
        f"{known} molecules, none of {failed} that failed"
        + (f", nor of {other} whose atoms are not those drawn" if other else "")
    )
    counts = {"blocks": len(there), "known": known, "failed": failed, "other_atoms": other}
    return arrays, {"method": method} | counts


def noted(pairs, waiting):
    """Yield the molecules of (molecule, values) pairs, noting the values in `waiting`."""
    for molecule, values in pairs:
        waiting.append(values)
        yield molecule
