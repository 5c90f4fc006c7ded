"""labels.npz, as pretraining reads it."""

import numpy as np

from moleclip.shards import read_manifest
from moleclip.targets import Labels


def test_targets_by_name(road, tmp_path):
    """Clusters by label set, descriptors and unpacked keys if asked, all of the rows asked for."""
    manifest, arrays = read_manifest(road / "shards"), dict(np.load(road / "labels.npz"))
    plain = Labels(road / "labels.npz", "shards", manifest)
    assert plain.outputs == {"k4": 4, "k12": 12} and list(plain.targets([5, 2])) == ["k4", "k12"]
    random = np.random.default_rng(0)
    arrays["descriptors"] = random.random((96, 64)).astype(np.float16)
    arrays["maccs"] = random.integers(0, 256, (96, 21)).astype(np.uint8)
    np.savez(tmp_path / "labels.npz", **arrays)
    labels = Labels(tmp_path / "labels.npz", "shards", manifest, describe=True)
    rows = np.array([5, 2, 90])
    targets = labels.targets(rows)
    assert labels.outputs == {"k4": 4, "k12": 12, "descriptors": 64 + 168}
    assert list(targets) == ["k4", "k12", "descriptors", "maccs"]
    for name in ("k4", "k12"):
        assert targets[name].dtype == np.int32 and (targets[name] == arrays[name][rows]).all()
    assert targets["descriptors"].dtype == targets["maccs"].dtype == np.float32
    assert (targets["descriptors"] == arrays["descriptors"][rows]).all()
    assert (targets["maccs"] == np.unpackbits(arrays["maccs"][rows], axis=1)).all()
    assert targets["maccs"].shape == (3, 168)
