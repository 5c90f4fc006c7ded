"""What electrons do in a molecule: orbital energies, dipole and charges of one conformer."""

import importlib.util
import os
from contextlib import contextmanager

import click
import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem

from moleclip.files import one_line
from moleclip.molecules import MAX_ATOMS, Rejected, parse, read_smiles

LARGEST = 60  # heavy atoms: the time grows with their cube
TRIALS, STEPS = 30, 100  # of embedding, and of the force field
EV, BOHR, DEBYE = 27.211386, 1.8897261, 2.5417464  # of a hartree; in an angstrom; of an atomic unit
DEBYE_EA = 4.8032047  # debye of an electron charge times an angstrom
METHODS = ("gfn2", "huckel")


def conformer(smiles, seed):
    """Return (RDKit's molecule, how many atoms of the SMILES it has) with one conformer.

    Hydrogens stand behind the atoms of the SMILES. ETKDGv3, then 100 steps of MMFF94, else of UFF
    where that has all parameters. Raises Rejected.
    """
    molecule = read_smiles(smiles)
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise Rejected("several fragments")
    heavy = molecule.GetNumAtoms()
    if not 2 <= heavy <= LARGEST:
        raise Rejected(f"{heavy} heavy atoms, not 2 to {LARGEST}")
    molecule = Chem.AddHs(molecule)
    how = AllChem.ETKDGv3()
    how.randomSeed, how.maxIterations = seed, TRIALS
    if AllChem.EmbedMolecule(molecule, how) < 0:
        raise Rejected("RDKit finds no conformer")
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=STEPS)
    elif AllChem.UFFHasAllMoleculeParams(molecule):
        AllChem.UFFOptimizeMolecule(molecule, maxIters=STEPS)
    return molecule, heavy


def gfn2(molecule):
    """Return (HOMO, LUMO, eV, dipole, debye, Mulliken charges, e (all atoms,)) by GFN2-xTB.

    Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 2019, 15, 1652. Raises Rejected where the
    self-consistent field doesn't converge.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # before tblite reads it: there is a worker for each core
    from tblite import interface

    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    places, charge = molecule.GetConformer().GetPositions() * BOHR, Chem.GetFormalCharge(molecule)
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    try:
        what = interface.Calculator("GFN2-xTB", numbers, places, float(charge), unpaired)
        what.set("verbosity", 0)
        found = what.singlepoint()
    except (RuntimeError, ValueError) as error:
        raise Rejected(f"GFN2-xTB failed: {one_line(error)}") from None
    energies, filled = found.get("orbital-energies"), found.get("orbital-occupations")
    if energies.ndim > 1:  # of two spins
        energies, filled = energies[0], filled[0]
    top = int((filled > (0.5 if filled.max() < 1.5 else 1.0)).sum()) - 1
    dipole = np.linalg.norm(found.get("dipole")) * DEBYE
    return energies[top] * EV, energies[top + 1] * EV, dipole, found.get("charges")


def huckel(molecule):
    """Return the same as `gfn2` by RDKit's extended Hückel: no iteration, and far less exact."""
    from rdkit.Chem import rdEHTTools

    with quiet():
        whole, found = rdEHTTools.RunMol(molecule)
    if not whole:
        raise Rejected("extended Hückel failed")
    energies, charges = np.array(found.GetOrbitalEnergies()), np.array(found.GetAtomicCharges())
    top = (found.numElectrons + 1) // 2 - 1
    places = molecule.GetConformer().GetPositions()
    dipole = np.linalg.norm(charges @ (places - places.mean(0))) * DEBYE_EA
    return energies[top], energies[top + 1], dipole, charges


@contextmanager
def quiet():
    """Send away what a C++ library prints meanwhile."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for stream, copy in enumerate(kept, 1):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def electronic_targets(row, smiles, method="gfn2"):
    """Return (HOMO, LUMO, eV, dipole, debye, charge, charge_h, e, float16 (heavy atoms,)).

    charge_h: that of the hydrogens that an atom carries. In the order of the SMILES. method: of
    METHODS. A task of `parallel`. Raises Rejected.
    """
    molecule, heavy = conformer(smiles, row)
    homo, lumo, dipole, charges = {"gfn2": gfn2, "huckel": huckel}[method](molecule)
    on_hydrogens = np.zeros(heavy)
    for atom in list(molecule.GetAtoms())[heavy:]:
        on_hydrogens[atom.GetNeighbors()[0].GetIdx()] += charges[atom.GetIdx()]
    values = np.array([homo, lumo, dipole, *charges])
    if not np.isfinite(values).all():
        raise Rejected("values that are no numbers")
    charge, charge_h = charges[:heavy].astype(np.float16), on_hydrogens.astype(np.float16)
    return homo, lumo, dipole, charge, charge_h


def written_order(row, smiles, max_atoms=MAX_ATOMS):
    """Return where each atom of `parse` stands in the SMILES as written, int32, as bytes.

    A task of `parallel`. Raises Rejected if the two don't have the same atoms.
    """
    drawn, written = parse(smiles, max_atoms), read_smiles(smiles)
    Chem.MolToSmiles(written)
    order = written.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
    elements = [atom.GetAtomicNum() for atom in written.GetAtoms()]
    if [elements[i] for i in order] != [atom.GetAtomicNum() for atom in drawn.GetAtoms()]:
        raise Rejected("its drawing has other atoms than its SMILES")
    return np.array(order, np.int32).tobytes()


def check_method(method):
    """Refuse, before any work, a method whose library is missing."""
    if method == "gfn2" and importlib.util.find_spec("tblite") is None:
        raise click.ClickException(
            "--method gfn2 needs tblite, which is not installed: "
            "pip install -r requirements-extra.txt; or take --method huckel, which is RDKit's"
        )
