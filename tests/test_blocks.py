"""Electronic targets in a folder, by cluster.py --electronic."""

import json

import numpy as np
import pytest
from conftest import invoke, mistake

import cluster
from moleclip import blocks
from moleclip.electronic import electronic_targets
from moleclip.files import read_arrays, save_arrays
from moleclip.molecules import input_facts, parse
from moleclip.targets import Labels

LINES = ["OCC", "CC=O", "broken", "CCN", "[Na+].[Cl-]", "NC(C)=O", "COC", "C", "FC=C", "OC#C", "CC"]
FAILED = {2: "not a valid SMILES", 4: "several fragments", 7: "1 heavy atoms, not 2 to 60"}
METHOD = "--method", "huckel"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 4)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with a.smi and its blocks, of 4 rows each, in e/, by extended Hueckel."""
    folder = tmp_path_factory.mktemp("computed")
    (folder / "a.smi").write_text("\n".join(LINES) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ROWS", 4)
        said = cluster_with(folder, folder / "labels.npz", "--resume", "--workers", 1)
    assert "e: computed 3 blocks, 11 molecules, of which 3 failed" in said
    assert "e: 3 of 3 blocks; electronic targets of 8 molecules, none of 3 that failed\n" in said
    return folder


def cluster_with(folder, out, *words):
    what = "--k", 2, "--atoms", "--electronic", folder / "e", *METHOD
    return invoke(cluster.main, folder / "a.smi", *what, "-o", out, *words)


def test_each_atom_has_its_charge(computed):
    arrays = read_arrays(computed / "labels.npz", ("electronic", "atom_charge", "atom_charge_h"))
    offsets, table = arrays["atom_offsets"], arrays["electronic"]
    assert table.dtype == np.float32 and arrays["atom_charge"].dtype == np.float16
    for row, smiles in enumerate(LINES):
        atoms = slice(*offsets[row : row + 2])
        charge, charge_h = arrays["atom_charge"][atoms], arrays["atom_charge_h"][atoms]
        if row in FAILED:
            assert np.isnan(table[row]).all() and np.isnan(charge).all()
            continue
        homo, lumo, dipole, on_atom, on_h = electronic_targets(row, smiles, "huckel")
        assert table[row] == pytest.approx([homo, lumo, lumo - homo, dipole], rel=1e-5)
        assert sorted(charge) == sorted(on_atom) and sorted(charge_h) == sorted(on_h)
        molecule = parse(smiles)
        if any(atom.GetSymbol() == "O" for atom in molecule.GetAtoms()):
            assert molecule.GetAtomWithIdx(int(charge.argmin())).GetSymbol() == "O"
    meta = json.loads(str(arrays["meta"]))
    counts = {"blocks": 3, "known": 8, "failed": 3, "other_atoms": 0}
    assert meta["electronic"] == {"method": "huckel"} | counts


def test_failed_rows_are_named(computed):
    block = read_arrays(computed / "e" / "huckel-00001.npz", blocks.ARRAYS)
    assert block["row"].tolist() == [5, 6] and block["smiles"].tolist() == LINES[5:7]
    assert block["failed"].tolist() == [4, 7] and block["offsets"].tolist() == [0, 4, 7]
    assert block["reason"].tolist() == [FAILED[4], FAILED[7]]


def test_parts_and_interrupted_runs_give_the_same(computed, tmp_path):
    (tmp_path / "a.smi").write_text("\n".join(LINES) + "\n")
    words = tmp_path / "a.smi", "--electronic", tmp_path / "e", *METHOD, "--part"
    said = invoke(cluster.main, *words, "2/2", "--workers", 2)
    assert "computed 1 blocks, 4 molecules, of which 2 failed" in said
    line = mistake(cluster.main, *words, "2/2")
    assert "has blocks of this part already; compute the others with --resume" in line
    # what is there is taken, and nothing computed
    said = cluster_with(tmp_path, tmp_path / "some.npz")
    assert "1 of 3 blocks; electronic targets of 2 molecules, none of 2" in said
    some = read_arrays(tmp_path / "some.npz", ())["electronic"]
    assert np.isfinite(some).all(1).nonzero()[0].tolist() == [5, 6]
    invoke(cluster.main, *words, "1/2", "--resume")
    cluster_with(tmp_path, tmp_path / "labels.npz")
    for name in ("labels.npz", *(f"e/huckel-{number:05d}.npz" for number in range(3))):
        assert (tmp_path / name).read_bytes() == (computed / name).read_bytes()


def test_a_block_of_another_file_is_refused(computed, tmp_path):
    (tmp_path / "b.smi").write_text("\n".join([*LINES[:5], "CCC", *LINES[6:]]))
    words = tmp_path / "b.smi", "--atoms", "--electronic", computed / "e", *METHOD
    for more in ((), ("--resume",), ("--part", "1/4", "--resume")):
        line = mistake(cluster.main, *words, "-o", tmp_path / "out.npz", *more)
        assert "huckel-00001.npz: was made of another file: its row 5 is NC(C)=O, in" in line
        assert "b.smi CCC; give that file, or another folder" in line
    (tmp_path / "b.smi").write_text("\n".join(LINES[:10]))
    line = mistake(cluster.main, *words, "-o", tmp_path / "out.npz")
    assert "its row 10 is CC, in" in line and "b.smi no row; give" in line


@pytest.mark.parametrize(
    "change",
    [
        {"row": lambda old: old + 4},
        {"row": lambda old: old[::-1]},
        {"row": lambda old: old.astype(np.int64)},
        {"homo": lambda old: old[:1]},
        {"smiles": lambda old: np.array([b"CC", b"C"])},
        {"offsets": lambda old: old + 1},
        {"offsets": lambda old: old[:-1]},
        {"offsets": lambda old: np.array([0, 9, 7], np.int32)},
        {"charge": lambda old: old[:, None]},
        {"charge_h": lambda old: old.astype(np.float64)},
    ],
)
def test_a_damaged_block_is_refused(computed, tmp_path, change):
    block = read_arrays(computed / "e" / "huckel-00001.npz", blocks.ARRAYS)
    bad = {name: change[name](array) if name in change else array for name, array in block.items()}
    save_arrays(tmp_path / "huckel-00001.npz", **bad)
    words = computed / "a.smi", "--atoms", "--electronic", tmp_path, *METHOD
    line = mistake(cluster.main, *words, "-o", tmp_path / "out.npz")
    assert "huckel-00001.npz: its arrays don't fit together; delete it" in line


def test_values_that_are_no_numbers_or_of_other_atoms_are_left_out(computed, tmp_path):
    for name in ("huckel-00000.npz", "huckel-00001.npz"):
        block = read_arrays(computed / "e" / name, blocks.ARRAYS)
        if name == "huckel-00000.npz":
            block["homo"][0], block["charge"][4] = np.nan, np.inf  # ethanol, acetaldehyde
        else:  # of acetamide's 4 atoms one goes over to ether
            block["offsets"][1] = 3
        save_arrays(tmp_path / "e" / name, **block)
    (tmp_path / "a.smi").write_text("\n".join(LINES) + "\n")
    said = cluster_with(tmp_path, tmp_path / "labels.npz")
    assert "of 1 molecules, none of 3 that failed, nor of 4 whose atoms are not those" in said


def test_mistakes(computed, tmp_path):
    source, empty = computed / "a.smi", tmp_path / "empty"
    line = mistake(cluster.main, source, "--atoms", "--electronic", empty)
    assert f"--electronic {empty}: has no gfn2-00000.npz or other block; --resume" in line
    line = mistake(cluster.main, source, "--electronic", empty, code=2)
    assert "--electronic needs --atoms" in line
    for words in (("--resume",), ("--part", "1/2")):
        assert "give it too" in mistake(cluster.main, source, "--atoms", *words, code=2)
    line = mistake(cluster.main, source, "--sweep", "--atoms", "--electronic", empty, code=2)
    assert "--sweep writes no labels" in line


def test_labels_give_electronic_targets(computed):
    facts = input_facts(str(computed / "a.smi"))
    labels = Labels(computed / "labels.npz", computed, facts, ("electronic",))
    assert labels.outputs["electronic"] == 4 and labels.atom_outputs == {"charges": 2}
    arrays, rows = read_arrays(computed / "labels.npz", ()), np.arange(len(LINES))
    known, table = np.delete(rows, list(FAILED)), arrays["electronic"]
    told = labels.targets(rows)["electronic"]
    assert told.dtype == np.float32 and np.isnan(told[list(FAILED)]).all()
    wanted = (table[known] - table[known].mean(0)) / table[known].std(0)
    assert np.allclose(told[known], wanted, atol=1e-4)
    atoms = labels.atoms([8, 4, 0])
    assert list(atoms) == ["counts", "charges"] and atoms["counts"].tolist() == [3, 2, 3]
    assert atoms["charges"].dtype == np.float32 and np.isnan(atoms["charges"][3:5]).all()
    spread = np.nanstd(arrays["atom_charge"].astype(float))
    first = arrays["atom_offsets"][0]
    ethanol = arrays["atom_charge"][first : first + 3].astype(float)
    assert np.allclose(atoms["charges"][5:, 0], ethanol / spread, atol=1e-4)
