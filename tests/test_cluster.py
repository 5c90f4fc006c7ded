"""cluster.py: labels, --assign and --sweep."""

import gzip
import json
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, first_lines, invoke, mistake, rows_of, small_molecules
from PIL import Image
from rdkit import Chem
from rdkit.Chem import Descriptors, MACCSkeys, rdFingerprintGenerator, rdMolDescriptors
from rdkit.Chem.rdMolDescriptors import _CalcCrippenContribs

import cluster
from moleclip.features import DESCRIPTORS, descriptors
from moleclip.files import read_arrays, save_arrays
from moleclip.keys import KINDS, packed_keys, unpack_keys
from moleclip.molecules import input_facts, parse
from moleclip.plots import plot_sweep
from moleclip.targets import ATOMS, Labels


def labels_of(path, *names):
    arrays = read_arrays(path, (*names, "meta"))
    return [arrays[name] for name in names], json.loads(str(arrays["meta"]))


def keys_of(lines):
    keys = [packed_keys(0, line.split()[0]) for line in lines]
    return np.stack([np.frombuffer(packed, np.uint8) for packed in keys])


@pytest.fixture
def molecules(tmp_path):
    """300 ChEMBL molecules of which one is broken."""
    lines = small_molecules(300)
    lines[7] = "C1CC broken"
    (tmp_path / "a.smi").write_text("\n".join(lines) + "\n")
    return tmp_path / "a.smi"


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """A folder with molecules.smi and its labels.npz of 4 and 12 clusters.

    It has 96 ChEMBL molecules, of which row 7 is broken.
    """
    folder = tmp_path_factory.mktemp("clustered")
    lines = small_molecules(96)
    lines[7] = "C1CC broken"
    (folder / "molecules.smi").write_text("\n".join(lines) + "\n")
    invoke(cluster.main, folder / "molecules.smi", "--k", 4, "--k", 12, "-o", folder / "labels.npz")
    return folder


@pytest.fixture
def minibatch(monkeypatch):
    monkeypatch.setattr(cluster, "MINIBATCH_FROM", 64)


# ----------------------------------------------------------------------------------------------
# Clusters


def test_labels_hold_what_the_design_says(road):
    names = ("k4", "k12", "centroids_k4", "centroids_k12")
    (k4, k12, _, centroids), meta = labels_of(road / "labels.npz", *names)
    assert k4.dtype == k12.dtype == np.int32 and k12.shape == (96,)
    assert centroids.dtype == np.float32 and centroids.shape == (12, 167)
    assert k12[7] == -1 and (np.delete(k12, 7) >= 0).all()
    manifest = json.loads((road / "shards" / "manifest.json").read_text())
    assert (meta["sha256"], meta["rows"], meta["readable"]) == (manifest["sha256"], 96, 95)
    assert meta["label_sets"]["k4"]["largest"] == np.bincount(np.delete(k4, 7)).max()


def test_each_molecule_has_the_nearest_centroid(road):
    (labels, centroids), meta = labels_of(road / "labels.npz", "k12", "centroids_k12")
    inertia = 0
    for row, line in enumerate((road / "molecules.smi").read_text().splitlines()):
        if row != 7:
            bits = np.array(MACCSkeys.GenMACCSKeys(Chem.MolFromSmiles(line.split()[0])), float)
            distances = np.square(centroids - bits).sum(1)
            assert distances[labels[row]] <= distances.min() + 1e-4
            inertia += distances.min()
    assert meta["label_sets"]["k12"]["inertia"] == pytest.approx(inertia, rel=1e-5)


def test_the_seed_decides_not_the_workers(desk):
    desk.write("a.smi", small_molecules(60))
    for name, workers in (("one", 1), ("two", 2)):
        desk.run(f"python cluster.py a.smi --k 5 -o {name}.npz --workers {workers}")
    assert (desk / "one.npz").read_bytes() == (desk / "two.npz").read_bytes()


def test_the_seed_decides_not_the_workers_in_batches(molecules, tmp_path, minibatch):
    for name, *words in (("one", "--workers", 1), ("two", "--workers", 2), ("other", "--seed", 1)):
        invoke(cluster.main, molecules, "--k", 30, "-o", tmp_path / f"{name}.npz", *words)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    (one,), _ = labels_of(tmp_path / "one.npz", "k30")
    (other,), meta = labels_of(tmp_path / "other.npz", "k30")
    assert (one != other).any() and meta["seed"] == 1


def test_batches_cluster_nearly_as_well_as_all_at_once(monkeypatch):
    packed = keys_of(small_molecules(600))
    whole = cluster.assign(packed, cluster.kmeans(packed, 40, 0))[1]
    monkeypatch.setattr(cluster, "MINIBATCH_FROM", 100)
    labels, inertia = cluster.assign(packed, cluster.kmeans(packed, 40, 0))
    assert inertia < 1.1 * whole and len(np.unique(labels)) == 40


def test_batches_never_unpack_all_molecules(monkeypatch, minibatch):
    packed, seen = keys_of(small_molecules(500)), []

    def counted(some, kind):
        seen.append(len(some))
        return unpack_keys(some, kind)

    monkeypatch.setattr(cluster, "CHUNK", 64)
    monkeypatch.setattr(cluster, "unpack_keys", counted)
    labels, _ = cluster.assign(packed, cluster.kmeans(packed, 20, 0))
    assert len(labels) == 500 and 0 < max(seen) < 2 * 64


def test_more_clusters_than_a_batch_holds(minibatch):
    packed = keys_of(small_molecules(300))
    distinct = len(cluster.distinct_keys(packed))
    labels, inertia = cluster.assign(packed, cluster.kmeans(packed, distinct, 0))
    assert distinct > 200 and inertia < 1e-6 and len(np.unique(labels)) == distinct


def test_distinct_keys_are_those_of_the_rows():
    packed = keys_of(small_molecules(200))
    packed[:50] = packed[50:100]
    assert (cluster.distinct_keys(packed) == np.unique(packed, axis=0)).all()
    assert (np.packbits(unpack_keys(packed).astype(np.uint8), axis=1) == packed).all()


# 224 have more than 150 heavy atoms.
@pytest.mark.parametrize("words, distinct", [((), 2649), (("--max-atoms", 10000), 2826)])
def test_the_default_is_too_many_for_the_chembl_sample(tmp_path, words, distinct):
    source, out = ROOT / "data" / "chembl_3000.smi", tmp_path / "labels.npz"
    says = mistake(cluster.main, source, "-o", out, *words)
    assert f"--k 3000 is more than its {distinct} distinct MACCS keys; lower --k" in says


@pytest.mark.parametrize(
    "lines, says",
    [(["CCO"] * 9, "1 distinct MACCS keys; lower --k"), (["C1CC", "?"], "none of its 2 rows")],
)
def test_mistakes(tmp_path, lines, says):
    source, out = tmp_path / "a.smi", tmp_path / "labels.npz"
    source.write_text("\n".join(lines))
    assert says in mistake(cluster.main, source, "--k", 3, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--k", 3, "--sweep"),
        ("--sweep", "--assign", "labels.npz"),
        ("--assign", "labels.npz", "--k", 3),
    ],
)
def test_one_thing_at_a_time(molecules, words):
    line = mistake(cluster.main, molecules, *words, code=2)
    assert "--k, --assign and --sweep exclude each other" in line


def numbers_of(kind, smiles):
    """The numbers that K-means sees of each SMILES, by RDKit's other ways to them."""
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    if kind == "ecfp":
        found = [rdMolDescriptors.GetMorganFingerprintAsBitVect(m, 2, 1024) for m in molecules]
        return np.array([list(bits) for bits in found], float)
    if kind == "rdkit":
        found = [Chem.RDKFingerprint(m, minPath=1, maxPath=7, fpSize=2048) for m in molecules]
        return np.array([list(bits) for bits in found], float)
    found = np.array([np.frombuffer(descriptors(0, text), np.float32) for text in smiles], float)
    return ((found - found.mean(0)) / (found.std(0) + 1e-9)).clip(-5, 5)


@pytest.mark.parametrize("kind", ["ecfp", "rdkit", "descriptors"])
def test_clusters_of_other_keys(clustered, tmp_path, kind):
    source, out, again = clustered / "molecules.smi", tmp_path / "labels.npz", tmp_path / "new.npz"
    words = ["--k", 4, "--keys", kind, "--workers", 1]
    invoke(cluster.main, source, *words, *["--descriptors"] * (kind == "ecfp"), "-o", out)
    (labels, centroids), meta = labels_of(out, "k4", "centroids_k4")
    smiles, good = [line.split()[0] for line in source.read_text().splitlines()], np.arange(96) != 7
    numbers = numbers_of(kind, np.array(smiles)[good])
    assert centroids.shape == (4, KINDS[kind].width) and meta["keys"] == kind
    distances = np.square(centroids - numbers[:, None]).sum(2)
    chosen = distances[np.arange(95), labels[good]]
    assert (chosen <= distances.min(1) * 1.001).all() and len(np.unique(labels)) == 5
    assert meta["label_sets"]["k4"]["inertia"] == pytest.approx(chosen.sum(), rel=1e-3)
    if kind == "ecfp":  # what pretraining learns to tell are MACCS keys all the same
        (maccs,), _ = labels_of(out, "maccs")
        assert (maccs[good] == keys_of(np.array(smiles)[good])).all()
    # some of the molecules alone keep their labels, though their own mean is another
    (tmp_path / "some.smi").write_text("\n".join(smiles[40:60]))
    invoke(cluster.main, tmp_path / "some.smi", "--assign", out, "-o", again, "--workers", 1)
    (after,), told = labels_of(again, "k4")
    assert (after == labels[40:60]).all() and told["keys"] == kind
    line = mistake(cluster.main, source, "--assign", out, "--keys", kind, code=2)
    assert "--assign takes the keys of its labels.npz; leave out --keys" in line


def test_descriptors_are_rdkits_standardised(clustered, tmp_path):
    source, out = clustered / "molecules.smi", tmp_path / "labels.npz"
    invoke(cluster.main, source, "--assign", clustered / "labels.npz", "--descriptors", "-o", out)
    (table, maccs), _ = labels_of(out, "descriptors", "maccs")
    assert table.dtype == np.float16 and len(table) == len(maccs) == 96
    assert (table[7] == 0).all() and (maccs[7] == 0).all()
    assert np.abs(table).max() <= 5 and np.isfinite(table).all()
    lines = [line.split()[0] for line in source.read_text().splitlines() if "broken" not in line]
    molecules, good = [Chem.MolFromSmiles(smiles) for smiles in lines], np.arange(96) != 7
    for name, function in (("CalcTPSA", Descriptors.TPSA), ("CalcNumRings", Descriptors.RingCount)):
        place = DESCRIPTORS.index(name) + 1  # behind Crippen's two numbers
        values = np.array([function(molecule) for molecule in molecules])
        scaled = ((values - values.mean()) / values.std()).clip(-5, 5)
        assert np.allclose(table[good, place], scaled, atol=5e-3)
    for row, molecule in zip(np.unpackbits(maccs[good], axis=1)[:, :167], molecules):
        wanted = MACCSkeys.GenMACCSKeys(molecule).GetOnBits()
        assert list(np.flatnonzero(row)) == list(wanted)
    line = mistake(cluster.main, source, "--sweep", "--descriptors", code=2)
    assert "--sweep writes no labels" in line


def test_atoms_are_those_of_rdkit(tmp_path, monkeypatch):
    """Each atom's environment, number by number, and what RDKit says of it; a metal has NaN."""
    monkeypatch.setattr(cluster, "VOCABULARY", (3, 4))
    lines = ["OCC", "C1=CC=CC1[Fe]C1C=CC=C1", "broken", "[Na+].[Cl-]", "c1ccncc1", "CCCO", "[2H]C"]
    source, out = tmp_path / "a.smi", tmp_path / "labels.npz"
    source.write_text("\n".join(lines))
    said = invoke(cluster.main, source, "--k", 2, "--atoms", "-o", out)
    (offsets, r1, r2, numbers, v1, v2), _ = labels_of(out, *ATOMS)
    assert [a.dtype for a in (offsets, r1, numbers, v1)] == ["i8", "u2", "f2", "u4"]
    assert np.diff(offsets).tolist() == [3, 11, 0, 2, 6, 4, 2]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    ids, properties = [], []
    for smiles in lines[:2] + lines[3:]:
        molecule, found = parse(smiles), rdFingerprintGenerator.AdditionalOutput()
        found.AllocateAtomToBits()
        counts = generator.GetSparseCountFingerprint(molecule, additionalOutput=found)
        bits = found.GetAtomToBits()
        ids += [(each[1] if len(each) > 1 else each[0], each[-1]) for each in bits]
        assert {i for i, _ in ids[-len(bits) :]} <= set(counts.GetNonzeroElements())
        for atom, (logp, mr) in zip(molecule.GetAtoms(), _CalcCrippenContribs(molecule)):
            ring, aromatic = 2 * atom.IsInRing() - 1, 2 * atom.GetIsAromatic() - 1
            hydrogens, degree = atom.GetTotalNumHs(), atom.GetDegree() - 2
            rest = [hydrogens, degree, ring, aromatic, atom.GetFormalCharge()]
            properties.append([logp / 0.4, (mr - 3) / 1.5, *rest])
    for numbered, vocabulary, size, column in ((r1, v1, 3, 0), (r2, v2, 4, 1)):
        often = Counter(each[column] for each in ids)
        wanted = sorted(often, key=lambda each: (-often[each], each))[:size]
        assert vocabulary.tolist() == wanted
        known = [wanted.index(each[column]) if each[column] in wanted else 65535 for each in ids]
        assert numbered.tolist() == known
    shares = [f"{(numbered != 65535).mean():.1%}" for numbered in (r1, r2)]
    assert f"radius 1: 3 environments, of {shares[0]} of the atoms" in said and shares[1] in said
    assert np.allclose(numbers[:, [1, 2, 5, 6, 7, 8, 9]], np.clip(properties, -5, 5), atol=2e-3)
    # Gasteiger charge of ethanol's C, C, O; TPSA and area of its O; none in a molecule with iron
    assert np.allclose(numbers[:3, 0] * 0.2, [-0.0420, 0.0402, -0.3966], atol=1e-3)
    assert np.allclose(numbers[2, 3:5] * [8, 2.5] + [0, 6], [20.23, 5.11], atol=2e-2)
    assert np.isnan(numbers[3:14, 0]).all() and np.isfinite(numbers[3:14, 1:]).all()
    assert np.isfinite(numbers[14:]).all()


def test_the_workers_do_not_change_the_atoms_nor_does_assigning(clustered, tmp_path):
    source, one, two = clustered / "molecules.smi", tmp_path / "one.npz", tmp_path / "two.npz"
    for out, workers in ((one, 1), (two, 2)):
        invoke(cluster.main, source, "--k", 4, "--atoms", "-o", out, "--workers", workers)
    assert one.read_bytes() == two.read_bytes()
    # rows 40 to 49 alone keep the numbers they had among all
    lines = (clustered / "molecules.smi").read_text().splitlines()[40:50]
    (tmp_path / "some.smi").write_text("\n".join(lines))
    out, what = tmp_path / "some.npz", ("--assign", one, "--atoms")
    invoke(cluster.main, tmp_path / "some.smi", *what, "-o", out)
    (before, _), (after, _) = labels_of(one, *ATOMS), labels_of(out, *ATOMS)
    first, last = before[0][[40, 50]]
    assert (after[0] == before[0][40:51] - first).all()
    for i in (1, 2, 3):
        assert np.array_equal(after[i], before[i][first:last], equal_nan=i == 3)
    assert (after[4] == before[4]).all() and (after[5] == before[5]).all()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"vocabulary_r2": None}, "has no atoms, so --assign can't take their vocabularies"),
        ({"vocabulary_r1": np.zeros(5, np.uint32)}, "its vocabularies are damaged"),
        ({"vocabulary_r1": np.arange(5.0)}, "its vocabularies are damaged"),
    ],
)
def test_assign_takes_vocabularies_from_a_whole_file_alone(clustered, tmp_path, change, says):
    arrays = dict(np.load(clustered / "labels.npz"))
    arrays |= {"vocabulary_r1": np.arange(5, dtype=np.uint32)}
    arrays |= {"vocabulary_r2": arrays["vocabulary_r1"]} | change
    bad, out = tmp_path / "bad.npz", tmp_path / "out.npz"
    save_arrays(bad, **{name: array for name, array in arrays.items() if array is not None})
    source = clustered / "molecules.smi"
    line = mistake(cluster.main, source, "--assign", bad, "--atoms", "-o", out)
    assert f"{bad}: {says}" in line and not out.exists()


def test_what_is_left_out_has_no_label_and_makes_none(clustered, tmp_path):
    lines = (clustered / "molecules.smi").read_text().splitlines()
    others = tmp_path / "others.csv", tmp_path / "more.smi"
    picked = {row: Chem.MolFromSmiles(lines[row].split()[0]) for row in (3, 50, 51)}
    for atom in picked[50].GetAtoms():  # as a stranger may write it
        atom.SetAtomMapNum(atom.GetIdx() + 1)
    written = [Chem.MolToSmiles(picked[row], doRandom=row == 3) for row in (3, 50)]
    others[0].write_text("id,smiles\n1,{}\n2,{}\n3,C1CC\n4,CCCCCCCCO\n".format(*written))
    others[1].write_text(Chem.MolToSmiles(picked[51], isomericSmiles=False))
    out, bare = tmp_path / "labels.npz", tmp_path / "bare.smi"
    words = "--k", 12, "--descriptors", "--leave-out", others[0], "--leave-out", others[1]
    said = invoke(cluster.main, clustered / "molecules.smi", *words, "-o", out)
    (k12, maccs, centroids), meta = labels_of(out, "k12", "maccs", "centroids_k12")
    assert np.flatnonzero(k12 < 0).tolist() == [3, 7, 50, 51]
    assert "--leave-out: 3 of 96 rows stand in" in said
    assert "labels of 92 molecules, -1 for 1 rejected rows, -1 for 3 left out" in said
    assert maccs[[3, 50, 51]].any(1).all() and meta["readable"] == 95
    told = meta["left_out"]
    assert told["molecules"] == 3 and [f["input"] for f in told["files"]] == [
        o.name for o in others
    ]
    assert told["files"][0]["sha256"] == input_facts(str(others[0]))["sha256"]
    # the centroids are those of a file that never had them
    bare.write_text("\n".join(line for row, line in enumerate(lines) if row not in (3, 50, 51)))
    invoke(cluster.main, bare, "--k", 12, "-o", tmp_path / "bare.npz")
    assert (labels_of(tmp_path / "bare.npz", "centroids_k12")[0][0] == centroids).all()
    words = "--k", 2, "--leave-out", clustered / "molecules.smi"
    line = mistake(cluster.main, clustered / "molecules.smi", *words, "-o", tmp_path / "no.npz")
    assert "--leave-out leaves none of its molecules" in line


def test_the_bundled_encoder_sees_no_molecule_of_left_out(tmp_path):
    """Each stands among those that the encoder is made of, and has no label there."""
    read = {}
    for name in ("left_out", "druglike_100000"):
        with gzip.open(ROOT / "data" / f"{name}.smi.gz", "rt") as stream:
            read[name] = stream.read().splitlines()
    assert len(read["left_out"]) == 5023 and set(read["left_out"]) <= set(read["druglike_100000"])
    first = read["druglike_100000"].index(read["left_out"][5])
    source, out = tmp_path / "some.smi", tmp_path / "labels.npz"
    some = read["druglike_100000"][first : first + 60]
    source.write_text("\n".join(some))
    invoke(cluster.main, source, "--k", 3, "--leave-out", "left_out.smi.gz", "-o", out)
    (k3,), _ = labels_of(out, "k3")
    named = np.isin(some, read["left_out"])
    assert named[0] and not named.all() and ((k3 == -1) == named).all()


# ----------------------------------------------------------------------------------------------
# --assign


def test_assigning_the_same_file_gives_the_same_labels(molecules, tmp_path, minibatch):
    first, second = tmp_path / "labels.npz", tmp_path / "again.npz"
    invoke(cluster.main, molecules, "--k", 12, "--k", 40, "-o", first, "--seed", 3)
    invoke(cluster.main, molecules, "--assign", first, "-o", second)
    names = ("k12", "k40", "centroids_k12", "centroids_k40")
    (before, meta), (after, again) = labels_of(first, *names), labels_of(second, *names)
    assert all(a.dtype == b.dtype and (a == b).all() for a, b in zip(before, after))
    origin = {key: meta[key] for key in ("input", "sha256", "seed", "rdkit")}
    assert again.pop("assigned_from") == origin and again == meta


def test_other_molecules_get_the_labels_they_would_have_had(clustered, tmp_path):
    (before,), _ = labels_of(clustered / "labels.npz", "k12")
    lines = (clustered / "molecules.smi").read_text().splitlines()
    order, source, out = [50, 7, 3, 20, 3], tmp_path / "new.csv", tmp_path / "new.npz"
    records = [f"{row},{lines[row].split()[0]}\n" for row in order]
    source.write_text("name,smiles\n" + "".join(records))
    said = invoke(cluster.main, source, "--assign", clustered / "labels.npz", "-o", out)
    (after,), meta = labels_of(out, "k12")
    assert after.tolist() == before[order].tolist() and after[1] == -1
    empty = 12 - len(set(after.tolist()) - {-1})
    assert meta["label_sets"]["k12"]["empty"] == empty
    assert f"k = 12: {empty} clusters empty" in said and "-1 for 1 rejected rows" in said
    labels = Labels(out, tmp_path, input_facts(str(source)))
    assert list(labels.outputs) == ["k4", "k12"]


@pytest.mark.parametrize(
    "change, says",
    [
        (None, "no such file"),
        ("text", "not a file that numpy can read"),
        ({"meta": None}, "has no array 'meta'"),
        ({"meta": np.array("{")}, "damaged or of another kind; --assign takes a labels.npz"),
        ({"meta": np.array("[]")}, "damaged or of another kind"),
        ({"meta": np.array('{"keys": "colour"}')}, "damaged or of another kind"),
        ({"k4": None, "k12": None}, "damaged or of another kind"),
        ({"centroids_k12": None}, "damaged or of another kind"),
        ({"centroids_k12": np.zeros((12, 166), np.float32)}, "damaged or of another kind"),
        ({"centroids_k4": np.full((4, 167), np.nan, np.float32)}, "damaged or of another kind"),
    ],
)
def test_assign_refuses_what_cluster_did_not_write(clustered, tmp_path, change, says):
    bad = tmp_path / "bad.npz"
    if change == "text":
        bad.write_text("k4")
    elif change:
        arrays = read_arrays(clustered / "labels.npz", ()) | change
        save_arrays(bad, **{name: array for name, array in arrays.items() if array is not None})
    out = tmp_path / "out.npz"
    line = mistake(cluster.main, clustered / "molecules.smi", "--assign", bad, "-o", out)
    assert f"{bad}: " in line and says in line and not out.exists()


def test_assign_does_not_overwrite_its_centroids(clustered, monkeypatch):
    monkeypatch.chdir(clustered)
    line = mistake(cluster.main, "molecules.smi", "--assign", "labels.npz")
    assert "-o labels.npz: is the input itself" in line


# ----------------------------------------------------------------------------------------------
# --sweep


def test_sweep(molecules, tmp_path):
    pytest.importorskip("kneed")
    (tmp_path / "out").mkdir()
    said = invoke(cluster.main, molecules, "--sweep", "-o", tmp_path / "out" / "labels.npz")
    table = rows_of(tmp_path / "out" / "sweep.csv")
    ks, inertias = [int(row["k"]) for row in table], [float(row["inertia"]) for row in table]
    packed = keys_of(line for row, line in enumerate(small_molecules(300)) if row != 7)
    assert len(ks) == 12 and ks[0] == 3 and ks[-1] == len(cluster.distinct_keys(packed))
    assert all(more > fewer for more, fewer in zip(inertias, inertias[1:])) and inertias[-1] < 1e-3
    _, wanted = cluster.assign(packed, cluster.kmeans(packed, 3, 0))
    assert inertias[0] == pytest.approx(wanted, rel=1e-5)
    assert {(row["molecules"], row["empty_clusters"]) for row in table} == {("299", "0")}
    (knee,) = [row["k"] for row in table if row["knee"] == "yes"]
    assert 3 < int(knee) < ks[-1] and f"knee at --k {knee}" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.png"]
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.size[0] >= 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_sweep_of_many_molecules_takes_a_sample(molecules, tmp_path, monkeypatch):
    pytest.importorskip("kneed")
    monkeypatch.setattr(cluster, "SWEEP_ROWS", 100)
    tables = []
    for workers, seed in ((1, 0), (2, 0), (1, 5)):
        words = "-o", tmp_path / "labels.npz", "--workers", workers, "--seed", seed
        said = invoke(cluster.main, molecules, "--sweep", *words)
        tables.append(rows_of(tmp_path / "sweep.csv"))
        assert f"a random sample (seed {seed}) of 100 of 299 molecules" in said
        assert tables[-1][0]["molecules"] == "100"
    assert tables[0] == tables[1] != tables[2]


def test_the_knee_is_where_the_curve_bends():
    pytest.importorskip("kneed")
    assert cluster.find_knee([(k, max(100 - 10 * k, 52 - 2 * k)) for k in range(1, 13)]) == 6
    assert cluster.find_knee([(k, 100 - 5 * k) for k in range(1, 13)]) is None


def test_a_sweep_without_a_knee_is_drawn(tmp_path):
    table = [(3, 5.0), (30, 4.0), (300, 3.0)]
    plot_sweep(tmp_path / "a.png", table, None, "molecules of $a_b$.smi")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_sweep_without_kneed_says_how_to_get_it(molecules, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kneed", None)
    said = mistake(cluster.main, molecules, "--sweep", "-o", tmp_path / "labels.npz")
    assert "--sweep" in said and "requirements-extra.txt" in said
    assert not list(tmp_path.glob("sweep.*"))


def test_sweep_mistakes(tmp_path):
    pytest.importorskip("kneed")
    source, out = tmp_path / "sweep.csv", tmp_path / "labels.npz"
    source.write_text("smiles\n" + "\n".join(["CCO", "CCC"] * 9))
    line = mistake(cluster.main, source, "--sweep", "-o", out)
    assert "sweep.csv: is the input itself" in line
    lines = [line.split()[0] for line in first_lines("chembl_3000.smi", 5)]
    (tmp_path / "a.smi").write_text("\n".join(lines))
    line = mistake(cluster.main, tmp_path / "a.smi", "--sweep", "-o", out)
    assert "a.smi: too few distinct MACCS keys for --sweep; at least 12" in line
