"""Molecules: the rows of an input, numbered here and nowhere else, and what RDKit makes of them."""

import csv
import gzip
import hashlib
import os
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from moleclip.files import ROOT
from moleclip.formats import input_kind, open_bytes, open_text, read_lines, read_table

BLOCK = 1024  # consecutive rows that belong together: to one shard, and to one part of --part
MAX_ATOMS = 150  # heavy atoms; beyond it bonds are thinner than a pixel, layout takes seconds
R_GROUPS = (6, 8, 7, 16, 9, 17, 35, 53)  # R1..R8 of --r-groups, by atomic number


class Rejected(Exception):
    """A molecule or picture that can't be used; the message is the reason given to the user."""


class Molecule(NamedTuple):
    """One row of an input, unreadable ones included."""

    row: int  # 0-based position among the input's data rows
    line: int  # 1-based line of the file, for messages
    smiles: str  # as written
    name: str = ""  # what follows the SMILES in .smi and .txt
    fields: dict = {}  # every column of a table's record
    problem: str = ""  # why the row can't be used, if that shows while reading


class Part(NamedTuple):
    """Part I of N of an input (--part I/N): every N-th block of 1024 rows from the I-th."""

    index: int = 1
    count: int = 1

    def has(self, row):
        """Tell whether a row belongs to this part."""
        return self.has_block(row // BLOCK)

    def has_block(self, number):
        """Tell whether the block with this number, from 0, belongs to this part."""
        return number % self.count == self.index - 1

    def blocks(self, rows):
        """Return the numbers of this part's blocks in an input of so many rows."""
        return [number for number in range(-(-rows // BLOCK)) if self.has_block(number)]

    def size(self, rows):
        """Return how many of an input's rows belong to this part; None if that isn't known."""
        if rows is None:
            return None
        return sum(min(BLOCK, rows - number * BLOCK) for number in self.blocks(rows))

    def named(self, path):
        """Return the name of this part's own file: predictions-2-of-8.csv."""
        tail = f"-{self.index}-of-{self.count}" if self.count > 1 else ""
        return path.with_name(f"{path.stem}{tail}{path.suffix}")


def find_input(path):
    """Return `path` if it exists (or is `-`), else the file of that name in data/, saying so.

    Raises click.ClickException if there is none.
    """
    try:
        if str(path) == "-" or Path(path).is_file():
            return str(path)
        if Path(path).is_dir():
            raise click.ClickException(f"{path}: is a folder; give a file of molecules")
        for candidate in (ROOT / "data" / path, ROOT / "data" / f"{path}.gz"):
            if candidate.is_file():
                found = os.path.relpath(candidate)
                click.echo(f"{path} is not here; taking {found}", err=True)
                return found
    except (OSError, ValueError):  # a name too long, or one that holds a NUL
        pass
    raise click.ClickException(f"{str(path)[:200]}: no such file, here or in data/")


def read_molecules(path, smiles_column=None):
    """Yield every row of a file of molecules, or of standard input (`-`), streaming.

    Raises click.ClickException for a file that can't be read, is empty or has no SMILES column.
    A row that can't be used is yielded all the same, with its `problem`: rows never shift.
    """
    count, table = 0, input_kind(path, smiles_column) == "table"
    try:
        with open_text(path) as stream:
            records = (read_table if table else read_lines)(path, stream, smiles_column)
            for count, record in enumerate(records, 1):
                yield Molecule(count - 1, *record)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise click.ClickException(
            f"{path}: the gzip file is truncated or damaged (after {count} good rows)"
        ) from None
    except csv.Error as error:
        raise click.ClickException(
            f"{path}: not a readable table after {count} good rows: {error}"
        ) from None
    if not count:
        raise click.ClickException(f"{path}: is empty" + (" but for its header" if table else ""))


def input_facts(path, smiles_column=None):
    """Return {"input": name, "sha256": of the inflated bytes, "rows": count, "smiles_column"}.

    Files made from the same input agree in these: that is how a later station knows it.
    """
    digest, rows = hashlib.sha256(), sum(1 for _ in read_molecules(path, smiles_column))
    with open_bytes(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {
        "input": Path(path).name,
        "sha256": digest.hexdigest(),
        "rows": rows,
        "smiles_column": smiles_column,
    }


def parse(smiles, max_atoms=MAX_ATOMS):
    """Return RDKit's molecule for a SMILES, its atoms in canonical order. Raises Rejected."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise Rejected(why_unreadable(smiles))
    if not molecule.GetNumAtoms():
        raise Rejected("no atoms")
    heavy = molecule.GetNumHeavyAtoms()
    if heavy > max_atoms:
        raise Rejected(f"{heavy} heavy atoms, more than --max-atoms {max_atoms}")
    # Layout depends on the order of atoms; the canonical one makes two spellings one picture.
    molecule = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
    if molecule is None:
        raise Rejected("RDKit can't read its own canonical SMILES of this molecule")
    return molecule


def why_unreadable(smiles):
    """Return one line that says why RDKit refuses a SMILES."""
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return "not a valid SMILES (syntax)"
    problems = Chem.DetectChemistryProblems(molecule)
    return f"not a valid molecule: {problems[0].Message()}" if problems else "not a valid SMILES"


def replace_terminals(molecule):
    """Return the molecule with its terminal, singly bonded atoms of R_GROUPS as R1..R8.

    They become xenon, which RDKit draws black, under a label of their own (MoleCLIP's test of
    distribution shift, "R-replacement").
    """
    changed = Chem.RWMol(molecule)
    for atom in changed.GetAtoms():
        bonds, element = atom.GetBonds(), atom.GetAtomicNum()
        if element not in R_GROUPS or len(bonds) != 1:
            continue
        if bonds[0].GetBondType() == Chem.BondType.SINGLE:
            atom.SetProp("_displayLabel", f"R{R_GROUPS.index(element) + 1}")
            atom.SetAtomicNum(54)
            atom.SetNoImplicit(True)
            for reset in (
                atom.SetNumExplicitHs,
                atom.SetFormalCharge,
                atom.SetIsotope,
                atom.SetAtomMapNum,
                atom.SetNumRadicalElectrons,
            ):
                reset(0)
    # RDKit would find radicals and draw a dot beside each label.
    Chem.SanitizeMol(changed, Chem.SANITIZE_ALL ^ Chem.SANITIZE_FINDRADICALS)
    return changed.GetMol()


@cache
def scaffold(smiles):
    """Return the Bemis-Murcko scaffold of a SMILES, with chirality (the paper's splits)."""
    molecule = Chem.MolFromSmiles(smiles)
    return MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=True)


@cache
def canonical(smiles):
    """Return RDKit's canonical SMILES."""
    return Chem.CanonSmiles(smiles)
