"""What is computed of a molecule."""

import numpy as np
import pytest
from conftest import small_molecules
from drawn import DRUG, picture_of
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from moleclip.features import (
    featurize,
    fingerprints,
    max_similarity,
    pack_fingerprint,
    pack_text,
    unpack_text,
)
from moleclip.molecules import Rejected, parse
from moleclip.pixels import inflate

SMILES = [line.split()[0] for line in small_molecules(20)]


def test_fingerprints_are_ecfp4():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    molecules = [Chem.MolFromSmiles(smiles) for smiles in SMILES]
    wanted = np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules])
    assert (fingerprints(SMILES) == wanted).all()
    packed = np.stack([pack_fingerprint(molecule) for molecule in molecules])
    assert (np.unpackbits(packed, axis=1, bitorder="little") == wanted).all()


def test_training_fingerprints_are_packed_and_compared(tmp_path):
    packed = np.stack([pack_fingerprint(parse(smiles)) for smiles in SMILES])
    assert (unpack_text(pack_text(packed)) == packed).all()
    np.save(tmp_path / "training.npy", packed)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    known = [generator.GetFingerprint(parse(smiles)) for smiles in SMILES]
    for smiles in (SMILES[3], DRUG, "C[Si](C)(C)C#C[Ge]"):
        fingerprint = generator.GetFingerprint(parse(smiles))
        wanted = max(DataStructs.TanimotoSimilarity(fingerprint, other) for other in known)
        assert max_similarity(parse(smiles), str(tmp_path / "training.npy")) == wanted
    assert max_similarity(parse(SMILES[3]), str(tmp_path / "training.npy")) == 1


def test_a_model_is_given_drawings_and_their_ink():
    plain = picture_of(DRUG)
    given = featurize(5, DRUG, views=2, patch=14)
    assert (inflate(given.streams[0]) == plain).all() and len(given.streams) == 2
    assert (inflate(given.streams[1]) != plain).any() and given.nearest is None
    patches = plain.reshape(16, 14, 16, 14).any((1, 3)).sum()
    assert given.ink[0] == patches and featurize(5, DRUG).ink == [0]
    with pytest.raises(Rejected, match="more than --max-atoms 5"):
        featurize(0, DRUG, max_atoms=5)
    with pytest.raises(Rejected, match="no such file"):
        featurize(0, "nowhere.png", pictures=True)
