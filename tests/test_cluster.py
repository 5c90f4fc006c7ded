import json

import numpy as np
import pytest
from conftest import mistake, small_molecules
from rdkit import Chem
from rdkit.Chem import MACCSkeys

import cluster
import render


def test_labels_hold_what_the_design_says(road):
    arrays = render.read_arrays(road / "labels.npz", ("k4", "k12", "centroids_k4", "centroids_k12", "meta"))
    assert arrays["k4"].dtype == arrays["k12"].dtype == np.int32 and arrays["k12"].shape == (96,)
    assert arrays["centroids_k12"].dtype == np.float32 and arrays["centroids_k12"].shape == (12, 167)
    assert arrays["k12"][7] == -1 and (np.delete(arrays["k12"], 7) >= 0).all()
    meta, manifest = json.loads(str(arrays["meta"])), json.loads((road / "shards" / "manifest.json").read_text())
    assert (meta["sha256"], meta["rows"]) == (manifest["sha256"], 96)


def test_each_molecule_has_the_nearest_centroid(road):
    arrays = render.read_arrays(road / "labels.npz", ("k12",))
    for row, line in enumerate((road / "molecules.smi").read_text().splitlines()):
        if row != 7:
            bits = np.array(MACCSkeys.GenMACCSKeys(Chem.MolFromSmiles(line.split()[0])), float)
            distances = np.square(arrays["centroids_k12"] - bits).sum(1)
            assert distances[arrays["k12"][row]] <= distances.min() + 1e-4


def test_the_seed_decides_not_the_workers(desk):
    desk.write("a.smi", small_molecules(60))
    for name, workers in (("one", 1), ("two", 2)):
        desk.run(f"python cluster.py a.smi --k 5 -o {name}.npz --workers {workers}")
    assert (desk / "one.npz").read_bytes() == (desk / "two.npz").read_bytes()


@pytest.mark.parametrize("lines, says", [(["CCO"] * 9, "1 distinct MACCS keys; lower --k"), (["C1CC", "?"], "none of its 2 rows")])
def test_mistakes(tmp_path, lines, says):
    (tmp_path / "a.smi").write_text("\n".join(lines))
    assert says in mistake(cluster.main, tmp_path / "a.smi", "--k", 3, "-o", tmp_path / "labels.npz")
    assert not (tmp_path / "labels.npz").exists()
