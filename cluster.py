"""Give unlabelled molecules pseudo-labels: K-means clusters of their MACCS keys, one label set for each K.

    python cluster.py data/chembl_3000.smi --k 30 --k 300     # labels.npz
    python cluster.py data/druglike_20000.smi.gz -o labels.npz
"""

import json

import click
import numpy as np
import sklearn
from rdkit import rdBase
from rdkit.Chem import MACCSkeys
from tqdm import tqdm

import render

KEYS = 167              # bits of RDKit's MACCS keys; bit 0 is never set
MINIBATCH_FROM = 20_000  # rows from which MiniBatchKMeans is used, in batches of as many (MoleCLIP's own switch)


def maccs_keys(item, max_atoms=render.MAX_ATOMS):
    """Return the MACCS keys of (row, SMILES, problem) as 21 packed bytes, or the reason for which it can't."""
    row, smiles, problem = item
    try:
        if problem:
            raise render.Rejected(problem)
        bits = np.zeros(KEYS, np.uint8)
        bits[list(MACCSkeys.GenMACCSKeys(render.parse(smiles, max_atoms)).GetOnBits())] = 1
        return np.packbits(bits).tobytes()
    except render.Rejected as reason:
        return str(reason)


def all_keys(path, rows, smiles_column=None, workers=None, max_atoms=render.MAX_ATOMS):
    """Return packed MACCS keys, uint8 (rows, 21), and bool (rows,): which rows were readable."""
    packed, readable = np.zeros((rows, (KEYS + 7) // 8), np.uint8), np.zeros(rows, bool)
    results = render.parallel("cluster:maccs_keys", render.read_molecules(path, smiles_column), workers, group=256, max_atoms=max_atoms)
    for molecule, result in tqdm(results, total=rows, unit=" molecules", desc="MACCS keys", disable=None):
        readable[molecule.row] = isinstance(result, bytes)
        if readable[molecule.row]:
            packed[molecule.row] = np.frombuffer(result, np.uint8)
    return packed, readable


def cluster(bits, k, seed):
    """Cluster bits, float32 (n, 167), into k. Returns labels int32 (n,), centroids float32 (k, 167) and inertia."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    if len(bits) < MINIBATCH_FROM:
        model = KMeans(k, n_init=1, random_state=seed)
    else:
        model = MiniBatchKMeans(k, n_init=1, random_state=seed, batch_size=MINIBATCH_FROM, max_iter=10)
    labels = model.fit_predict(bits).astype(np.int32)
    return labels, model.cluster_centers_.astype(np.float32), float(model.inertia_)


@click.command()
@click.argument("source")
@click.option("-o", "--out", default="labels.npz", show_default=True, help="File for labels and centroids.")
@click.option("--k", "ks", multiple=True, default=(300, 3000), show_default=True, type=click.IntRange(2), help="Number of clusters; repeat for several label sets.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of K-means.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Processes that compute keys.  [default: one a core]")
@click.option("--max-atoms", default=render.MAX_ATOMS, show_default=True, type=click.IntRange(1), help="Reject larger molecules, as render.py does.")
@click.option("--smiles-column", help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]")
def main(source, out, ks, seed, workers, max_atoms, smiles_column):
    """Cluster the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not), the same file that was drawn."""
    source = render.find_input(source)
    if source == "-":
        raise click.UsageError("cluster.py reads its input twice; give a file, not standard input")
    render.check_output(out, source)
    facts = render.input_facts(source, smiles_column)
    packed, readable = all_keys(source, facts["rows"], smiles_column, workers, max_atoms)
    if not readable.any():
        raise click.ClickException(f"{source}: none of its {len(readable)} rows is a readable molecule")
    distinct = len(np.unique(packed[readable], axis=0))
    if max(ks) > distinct:
        raise click.ClickException(f"{source}: --k {max(ks)} is more than its {distinct} distinct MACCS keys; lower --k")
    bits = np.unpackbits(packed[readable], axis=1, count=KEYS).astype(np.float32)
    arrays, sets = {}, {}
    for k in sorted(set(ks)):
        labels = np.full(len(readable), -1, np.int32)
        labels[readable], arrays[f"centroids_k{k}"], inertia = cluster(bits, k, seed)
        arrays[f"k{k}"] = labels
        sizes = np.bincount(labels[readable], minlength=k)
        sets[f"k{k}"] = {"inertia": inertia, "empty": int((sizes == 0).sum()), "largest": int(sizes.max())}
        click.echo(f"k = {k}: {sets[f'k{k}']['empty']} clusters empty, the largest holds {sizes.max()} of {readable.sum()} molecules")
    meta = facts | {"readable": int(readable.sum()), "seed": seed, "max_atoms": max_atoms, "label_sets": sets,
                    "rdkit": rdBase.rdkitVersion, "scikit-learn": sklearn.__version__}
    render.save_arrays(out, **arrays, meta=np.array(json.dumps(meta)))
    click.echo(f"{out}: labels of {readable.sum()} molecules" + (f", -1 for {(~readable).sum()} rejected rows" if not readable.all() else ""))


if __name__ == "__main__":
    main()
