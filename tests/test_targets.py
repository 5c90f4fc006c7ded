"""labels.npz, as pretraining reads it."""

import click
import numpy as np
import pytest
from conftest import invoke, small_molecules
from rdkit import Chem

import cluster
from moleclip.features import ATOM_NUMBERS
from moleclip.files import read_arrays, save_arrays
from moleclip.molecules import input_facts, parse
from moleclip.targets import NUMBERS, Labels

ROWS = np.array([5, 7, 2, 90, 2])  # row 7 is broken


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with molecules.smi, of 96 molecules, and their labels.npz with all of it."""
    folder = tmp_path_factory.mktemp("made")
    lines = small_molecules(96)
    lines[7] = "C1CC broken"
    (folder / "molecules.smi").write_text("\n".join(lines) + "\n")
    what = "--k", 4, "--k", 12, "--descriptors", "--atoms", "-o", folder / "labels.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "VOCABULARY", (20, 30))
        invoke(cluster.main, folder / "molecules.smi", *what)
    return folder


def read(folder, path, *tasks):
    return Labels(path, folder, input_facts(str(folder / "molecules.smi")), tasks)


def test_targets_by_name(made):
    """Clusters by label set, descriptors and unpacked keys if asked, all of the rows asked for."""
    arrays = dict(np.load(made / "labels.npz"))
    plain = read(made, made / "labels.npz")
    assert plain.outputs == {"k4": 4, "k12": 12} and list(plain.targets([5, 2])) == ["k4", "k12"]
    assert plain.atoms(ROWS) == plain.atom_outputs == {} and list(plain.arrays) == ["k4", "k12"]
    labels = read(made, made / "labels.npz", "descriptors", "contrastive")
    targets = labels.targets(ROWS)
    assert labels.outputs == {"k4": 4, "k12": 12, "descriptors": 64 + 168}
    assert list(targets) == ["k4", "k12", "descriptors", "maccs"]
    for name in ("k4", "k12"):
        assert targets[name].dtype == np.int32 and (targets[name] == arrays[name][ROWS]).all()
    assert targets["descriptors"].dtype == targets["maccs"].dtype == np.float32
    assert (targets["descriptors"] == arrays["descriptors"][ROWS]).all()
    assert (targets["maccs"] == np.unpackbits(arrays["maccs"][ROWS], axis=1)).all()
    assert targets["maccs"].shape == (5, 168)


def test_each_atom_has_its_targets(made):
    labels = read(made, made / "labels.npz", "atoms", "fingerprint")
    assert labels.atom_outputs == {"r1": 20, "r2": 30, "numbers": len(ATOM_NUMBERS)}
    assert labels.outputs["fingerprint"] == 50 and len(ATOM_NUMBERS) == NUMBERS
    lines = [line.split()[0] for line in (made / "molecules.smi").read_text().splitlines()]
    sizes = [0 if row == 7 else Chem.MolFromSmiles(lines[row]).GetNumAtoms() for row in ROWS]
    atoms, told = labels.atoms(ROWS), labels.targets(ROWS)["fingerprint"]
    assert list(atoms) == ["counts", "r1", "r2", "numbers"]
    assert atoms["counts"].dtype == np.int64 and atoms["counts"].tolist() == sizes
    assert atoms["numbers"].shape == (sum(sizes), NUMBERS)
    assert atoms["numbers"].dtype == told.dtype == np.float32
    assert atoms["r1"].dtype == atoms["r2"].dtype == np.int64
    assert atoms["r1"].min() == atoms["r2"].min() == -100 and atoms["r2"].max() < 30
    charges = [
        a.GetFormalCharge() for row in ROWS if row != 7 for a in parse(lines[row]).GetAtoms()
    ]
    assert atoms["numbers"][:, list(ATOM_NUMBERS).index("formal_charge")].tolist() == charges
    owner, counts = np.repeat(np.arange(5), sizes), np.zeros((5, 50))
    for name, first in (("r1", 0), ("r2", 20)):
        for i, number in zip(owner, atoms[name]):
            if number >= 0:
                counts[i, first + number] += 1
    assert np.allclose(told, np.log1p(counts)) and not told[1].any() and counts.max() > 2


def test_a_task_names_what_its_labels_lack(made, tmp_path):
    bare = tmp_path / "bare.npz"
    arrays = dict(np.load(made / "labels.npz"))
    save_arrays(bare, **{name: arrays[name] for name in ("k4", "k12", "meta")})
    for task, option in (
        ("descriptors", "descriptors"),
        ("atoms", "atoms"),
        ("fingerprint", "atoms"),
    ):
        says = f"has no {option}, which --loss {task}=... needs; make it again with cluster.py"
        with pytest.raises(click.ClickException, match=f"{says} --{option}$"):
            read(made, bare, task)


@pytest.mark.parametrize(
    "change",
    [
        {"k4": np.zeros(95, np.int32)},
        {"k4": np.zeros(96, np.int64)},
        {"k12": np.full(96, 12, np.int32)},
        {"k4": np.zeros(0, np.int32), "k12": np.zeros(0, np.int32)},
        {"maccs": np.zeros((95, 21), np.uint8)},
        {"descriptors": np.zeros(96, np.float16)},
        {"atom_offsets": np.zeros(97, np.int64)},
        {"atom_offsets": np.zeros(97, np.int32)},
        {"atom_offsets": lambda old: old[:-1]},
        {"atom_offsets": lambda old: old - 1},
        {"atom_offsets": lambda old: np.r_[old[:50], 10**15, old[51:]]},
        {"atom_r1": lambda old: old[:-1]},
        {"atom_r2": lambda old: np.where(old == 3, np.uint16(30), old)},
        {"atom_r2": lambda old: old.astype(np.int16)},
        {"atom_numbers": lambda old: old[:, :9].copy()},
        {"vocabulary_r1": np.zeros(20, np.uint32)},
        {"vocabulary_r2": np.zeros((30, 1), np.uint32)},
        {"vocabulary_r2": np.zeros(0, np.uint32)},
        {"atom_numbers": np.array(5.0)},
        {"meta": np.array("[]")},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(made, tmp_path, change):
    bad, arrays = tmp_path / "bad.npz", dict(np.load(made / "labels.npz"))
    for name, new in change.items():
        arrays[name] = new(arrays[name]) if callable(new) else new
    save_arrays(bad, **arrays)
    with pytest.raises(click.ClickException, match=f"^{bad}: damaged or of another kind"):
        read(made, bad, "descriptors", "atoms", "fingerprint")


def test_large_arrays_are_mapped_and_a_stored_one_alone(made, tmp_path):
    arrays = read_arrays(made / "labels.npz", (), ("atom_numbers", "k4"))
    assert isinstance(arrays["atom_numbers"], np.memmap) and isinstance(arrays["k4"], np.memmap)
    plain = dict(np.load(made / "labels.npz"))
    assert all(np.array_equal(plain[n], arrays[n], equal_nan=n[0] == "a") for n in plain)
    folded = {"atom_numbers": np.asfortranarray(plain["atom_numbers"])}
    np.savez_compressed(tmp_path / "packed.npz", **plain)
    np.savez(tmp_path / "folded.npz", **plain | folded)
    np.savez(tmp_path / "object.npz", atom_numbers=np.array([None]))
    for name in ("packed", "folded", "object"):
        with pytest.raises(click.ClickException, match=f"{name}.npz: truncated, or not a file"):
            read_arrays(tmp_path / f"{name}.npz", (), ("atom_numbers",))
