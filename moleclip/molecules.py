"""Molecules: the rows of an input, numbered here and nowhere else, and what RDKit makes of them."""

import csv
import gzip
import hashlib
import os
import re
import zlib
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from moleclip.files import ROOT, open_bytes
from moleclip.formats import input_kind, read_records

BLOCK = 1024  # consecutive rows that belong together: to one shard, and to one part of --part
MAX_ATOMS = (
    150  # atoms but hydrogen; beyond it bonds are thinner than a pixel, layout takes seconds
)
R_GROUPS = (6, 8, 7, 16, 9, 17, 35, 53)  # R1..R8 of --r-groups, by atomic number


class Rejected(Exception):
    """A molecule or picture that can't be used; the message is the reason given to the user."""


class Molecule(NamedTuple):
    """One row of an input, unreadable ones included."""

    row: int  # 0-based position among the input's data rows
    line: int  # 1-based line of the file, for messages
    smiles: str  # as written, or RDKit's where the input has an InChI or a structure
    name: str = ""  # what follows the SMILES in .smi and .txt, a column "name", an .sdf's title
    fields: dict = {}  # every column of a table's record, as strings; all rows have the same
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
        suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        return path.with_name(f"{path.name.removesuffix(suffix)}{tail}{suffix}")


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
    for row, record in numbered(path, smiles_column):
        yield Molecule(row, *in_smiles(record))


def molecules_at(path, smiles_column, rows):
    """Return {row: Molecule} of some rows of a file, by one pass that ends with the last."""
    wanted, found = {*map(int, rows)}, {}
    with closing(read_molecules(path, smiles_column)) as molecules:
        for molecule in molecules if wanted else ():
            if molecule.row in wanted:
                found[molecule.row] = molecule
                if len(found) == len(wanted):
                    break
    return found


def numbered(path, smiles_column=None):
    """Yield (row, Record) of every row of a file, as `read_molecules`."""
    count = 0
    try:
        for count, record in enumerate(read_records(path, smiles_column), 1):
            yield count - 1, record
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise click.ClickException(
            f"{path}: the gzip file is truncated or damaged (after {count} good rows)"
        ) from None
    except csv.Error as error:
        raise click.ClickException(
            f"{path}: not a readable table after {count} good rows: {error}"
        ) from None
    if not count:
        header = " but for its header" if input_kind(path, smiles_column) == "table" else ""
        raise click.ClickException(f"{path}: is empty{header}")


def in_smiles(record):
    """Return a Record with its structure as SMILES, where that is an InChI or an .sdf's."""
    text = record.smiles
    inchi = text.startswith("InChI=")
    if record.problem or not (inchi or "\n" in text):
        return record
    with rdBase.BlockLogs():
        # Notes in a structure may be of any encoding.
        read = Chem.MolFromInchi if inchi else Chem.MolFromMolBlock
        molecule = read(text.encode("ascii", "replace").decode())
    problem = "RDKit can't read this InChI" if inchi else "RDKit can't read this structure"
    if molecule is not None:
        problem = why_no_molecule(molecule)
    kept = text if inchi else ""
    smiles = kept if problem else Chem.MolToSmiles(molecule)
    return record._replace(smiles=smiles, problem=problem)


def input_facts(path, smiles_column=None):
    """Return {"input": name, "sha256": of the inflated bytes, "rows": count, "smiles_column"}.

    Files made from the same input agree in these: that is how a later station knows it.
    """
    digest, rows = hashlib.sha256(), sum(1 for _ in numbered(path, smiles_column))
    with open_bytes(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {
        "input": Path(path).name,
        "sha256": digest.hexdigest(),
        "rows": rows,
        "smiles_column": smiles_column,
    }


def read_smiles(text):
    """Return RDKit's molecule for a SMILES, without the atom map, which would be drawn.

    Raises Rejected if it can't be read, or isn't one molecule but a query or a polymer.
    """
    smiles, note, *_ = [*text.split(None, 1), "", ""]
    if not smiles.isascii():  # RDKit can't even be given bytes that are not UTF-8
        raise Rejected("not a valid SMILES (holds what is not ASCII)")
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise Rejected(why_unreadable(smiles))
    if re.search(r"~|\[\d*#", smiles):
        raise Rejected("holds what only a SMARTS query has: ~ or [#6]")
    if note.startswith("|"):
        check_note(smiles, molecule, note)
    if ":" in smiles:
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
        Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)  # of the map's making
    return molecule


def check_note(smiles, molecule, note):
    """Refuse a CXSMILES note that makes another molecule. All others are dropped."""
    noted = Chem.MolFromSmiles(f"{smiles} {note}".encode("ascii", "replace").decode())
    if noted is None:
        raise Rejected(f"RDKit can't read its CXSMILES note {note[:40]}")
    why = why_no_molecule(noted)
    if not why and Chem.MolToSmiles(noted) != Chem.MolToSmiles(molecule):
        why = "another molecule than the SMILES; write it as SMILES"
    if why:
        raise Rejected(f"its CXSMILES note makes it {why}")


def why_no_molecule(molecule):
    """Return what a structure is if it isn't one molecule: a query or a polymer. Else ""."""
    queries = [atom for atom in molecule.GetAtoms() if atom.HasQuery()]
    if any(atom.DescribeQuery().strip() != "AtomNull" for atom in queries):  # a dummy atom
        return "a query (an atom of several kinds)"
    bonds = molecule.GetBonds()
    if any(bond.HasQuery() or bond.HasProp("_MolFileBondEndPts") for bond in bonds):
        return "a query (a bond of several kinds or places)"
    groups = {group.GetProp("TYPE") for group in Chem.GetMolSubstanceGroups(molecule)}
    if groups - {"DAT", "SUP", "MUL", "GEN"} or molecule.HasProp("_molLinkNodes"):
        return "a polymer or another structure with repeated parts"
    return ""


def parse(smiles, max_atoms=MAX_ATOMS):
    """Return RDKit's molecule for a SMILES, its atoms in canonical order. Raises Rejected."""
    molecule = read_smiles(smiles)
    if not molecule.GetNumAtoms():
        raise Rejected("no atoms")
    heavy = molecule.GetNumAtoms()
    if heavy > max_atoms:  # dummy atoms are drawn, hydrogen mostly isn't
        heavy = sum(atom.GetAtomicNum() != 1 for atom in molecule.GetAtoms())
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
    molecule = read_smiles(smiles)
    return MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=True)


@cache
def canonical(smiles):
    """Return RDKit's canonical SMILES."""
    return Chem.MolToSmiles(read_smiles(smiles))


def flat_smiles(row, smiles, max_atoms=MAX_ATOMS):
    """Return RDKit's canonical SMILES without stereo, isotopes and atom maps.

    Equal for molecules that a drawing without wedges can't tell apart. A task of `parallel`.
    Raises Rejected.
    """
    molecule = parse(smiles, max_atoms)
    for atom in molecule.GetAtoms():
        atom.SetIsotope(0)
    return Chem.MolToSmiles(Chem.RemoveHs(molecule), isomericSmiles=False)
