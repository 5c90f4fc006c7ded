"""Give unlabelled molecules pseudo-labels: K-means clusters of their MACCS keys, one label set for each K.

    python cluster.py data/chembl_3000.smi --k 30 --k 300                  # labels.npz
    python cluster.py data/druglike_20000.smi.gz                           # K = 300 and 3000
    python cluster.py data/druglike_20000.smi.gz --sweep                   # which K? sweep.csv and sweep.png
    python cluster.py data/dhbd.csv --assign labels.npz -o dhbd_labels.npz  # the same clusters for other molecules

With --descriptors the file also holds what pretraining's optional third task regresses: RDKit descriptors and the keys.
"""

import json
import warnings
from pathlib import Path

import click
import numpy as np
import sklearn
from rdkit import rdBase
from tqdm import tqdm

from moleclip.features import MACCS_BITS, MACCS_BYTES, MAX_SD, descriptors, maccs_keys, unpack
from moleclip.files import check_output, read_arrays, save_arrays, save_table
from moleclip.molecules import MAX_ATOMS, find_input, input_facts, read_molecules
from moleclip.plots import plot_sweep
from moleclip.workers import parallel

DEFAULT_KS = (300, 3000)
MINIBATCH_FROM = (
    20_000  # rows from which MiniBatchKMeans is used, in batches of as many (MoleCLIP's own switch)
)
PASSES = 10  # of MiniBatchKMeans over all molecules
CHUNK = 2048  # molecules whose distances to all centroids are in memory at once
SWEEP_FROM, SWEEP_TO, SWEEP_STEPS, SWEEP_ROWS = 3, 3000, 12, 20_000


def all_keys(path, rows, smiles_column=None, workers=None, max_atoms=MAX_ATOMS):
    """Return packed MACCS keys, uint8 (readable rows, 21), and bool (rows,): which rows were readable.

    Raises click.ClickException if none is.
    """
    packed, readable, count = np.zeros((rows, MACCS_BYTES), np.uint8), np.zeros(rows, bool), 0
    results = parallel(
        maccs_keys, read_molecules(path, smiles_column), workers, group=256, max_atoms=max_atoms
    )
    for molecule, result in tqdm(
        results, total=rows, unit=" molecules", desc="MACCS keys", disable=None
    ):
        if isinstance(result, bytes):
            packed[count], readable[molecule.row] = np.frombuffer(result, np.uint8), True
            count += 1
    if not count:
        raise click.ClickException(f"{path}: none of its {rows} rows is a readable molecule")
    return packed[:count], readable


def all_descriptors(path, readable, smiles_column=None, workers=None, max_atoms=MAX_ATOMS):
    """Return the standardised descriptors, float16 (rows, 64) in -5..5, of all rows; 0, the mean, where there is none."""
    values = None  # float32 (rows, 64): 0.5 GB for 2 million molecules
    results = parallel(
        descriptors, read_molecules(path, smiles_column), workers, group=256, max_atoms=max_atoms
    )
    for molecule, result in tqdm(
        results, total=len(readable), unit=" molecules", desc="descriptors", disable=None
    ):
        if isinstance(result, bytes):
            found = np.frombuffer(result, np.float32)
            values = (
                np.full((len(readable), len(found)), np.nan, np.float32)
                if values is None
                else values
            )
            values[molecule.row] = np.where(np.isfinite(found), found, np.nan)
    table = np.zeros(values.shape, np.float16)
    for i, column in enumerate(values.T):
        column = column.astype(np.float64)
        table[:, i] = np.nan_to_num(
            ((column - np.nanmean(column)) / (np.nanstd(column) + 1e-9)).clip(-MAX_SD, MAX_SD)
        )
    return table


def distinct_keys(packed):
    """Return the distinct rows, sorted, of packed keys, uint8 (n, 21)."""
    # As byte strings: numpy sorts these many times faster than rows, and keys of one length differ as strings do.
    return (
        np.unique(np.ascontiguousarray(packed).view(f"S{MACCS_BYTES}"))
        .view(np.uint8)
        .reshape(-1, MACCS_BYTES)
    )


def kmeans(packed, k, seed):
    """Return the centroids, float32 (k, 167), of packed keys, uint8 (n, 21), at least k of them distinct."""
    from sklearn.cluster import KMeans

    if len(packed) >= MINIBATCH_FROM:
        return kmeans_in_batches(packed, k, seed)
    return (
        KMeans(k, n_init=1, random_state=seed)
        .fit(unpack(packed))
        .cluster_centers_.astype(np.float32)
    )


def kmeans_in_batches(packed, k, seed):
    """As `fit`, by MiniBatchKMeans: only one batch, and the sample for the start, are ever unpacked."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    random, batch, keys = np.random.default_rng(seed), max(MINIBATCH_FROM, k), distinct_keys(packed)
    # Out of distinct keys: a sample of molecules may hold fewer than k, and two centroids on one spot leave one empty.
    # Many of them: a start from 3 k, as scikit-learn takes, is twice as fast but ends with an inertia 1% higher.
    sample = random.choice(keys, min(len(keys), max(MINIBATCH_FROM, 3 * k)), replace=False)
    start, _ = kmeans_plusplus(unpack(sample), k, random_state=seed)
    # No reassignment: it would throw small clusters, of which chemistry has many, at random molecules again and again.
    model = MiniBatchKMeans(
        k,
        init=start,
        n_init=1,
        random_state=seed,
        batch_size=batch,
        compute_labels=False,
        reassignment_ratio=0,
    )
    batches = len(packed) // batch  # cut evenly, so none is smaller than `batch`
    with tqdm(
        total=PASSES * batches, unit=" batches", desc=f"k = {k}", disable=None, leave=False
    ) as bar:
        for _ in range(PASSES):
            for members in np.array_split(random.permutation(len(packed)), batches):
                model.partial_fit(unpack(packed[members]))
                bar.update()
    return model.cluster_centers_.astype(np.float32)


def assign(packed, centroids):
    """Return (labels, inertia) of packed keys, uint8 (n, 21): the nearest centroid's number, int32 (n,), and the sum of
    squared distances to it. All labels come from here, so that --assign gives a molecule the label that it had."""
    # In float64 the sums of these float32 numbers are exact, so neither chunks nor threads decide between near ties.
    centroids = centroids.astype(np.float64)
    norms, labels, inertia = np.square(centroids).sum(1), np.empty(len(packed), np.int32), 0.0
    for first in tqdm(
        range(0, len(packed), CHUNK),
        desc=f"labels, k = {len(centroids)}",
        disable=None,
        leave=False,
    ):
        bits = unpack(packed[first : first + CHUNK]).astype(np.float64)
        distances = (
            norms - 2 * bits @ centroids.T
        )  # without the molecule's own norm, which decides nothing
        labels[first : first + CHUNK] = chosen = distances.argmin(1)
        inertia += float(distances[np.arange(len(bits)), chosen].sum() + bits.sum())
    return labels, max(inertia, 0.0)


def save_labels(out, packed, readable, sets, meta, table=None):
    """Label packed keys by the centroids of sets, {k: float32 (k, 167)}, and write labels.npz as the README has it.

    table: standardised descriptors, float16 (rows, n), which are then saved along with the keys.
    """
    arrays, facts = {}, {}
    if table is not None:
        arrays = {"descriptors": table, "maccs": np.zeros((len(readable), MACCS_BYTES), np.uint8)}
        arrays["maccs"][readable] = packed
    for k in sorted(sets):
        labels = np.full(len(readable), -1, np.int32)
        labels[readable], inertia = assign(packed, sets[k])
        arrays |= {f"k{k}": labels, f"centroids_k{k}": sets[k]}
        sizes = np.bincount(labels[readable], minlength=k)
        facts[f"k{k}"] = {
            "inertia": inertia,
            "empty": int((sizes == 0).sum()),
            "largest": int(sizes.max()),
        }
        click.echo(
            f"k = {k}: {facts[f'k{k}']['empty']} clusters empty, the largest holds {sizes.max()} of {len(packed)} molecules"
        )
    meta = meta | {
        "readable": len(packed),
        "label_sets": facts,
        "rdkit": rdBase.rdkitVersion,
        "scikit-learn": sklearn.__version__,
    }
    save_arrays(out, **arrays, meta=np.array(json.dumps(meta)))
    click.echo(
        f"{out}: labels of {len(packed)} molecules"
        + (f", -1 for {(~readable).sum()} rejected rows" if not readable.all() else "")
    )


def fit_all(source, packed, ks, seed):
    """Return {k: centroids float32 (k, 167)}. Raises click.ClickException if there are fewer distinct keys than a k."""
    distinct = len(distinct_keys(packed))
    if max(ks) > distinct:
        raise click.ClickException(
            f"{source}: --k {max(ks)} is more than its {distinct} distinct MACCS keys; lower --k"
        )
    return {k: kmeans(packed, k, seed) for k in sorted(set(ks))}


def read_centroids(path):
    """Return ({k: centroids float32 (k, 167)}, meta) of a labels.npz. Raises click.ClickException if it is none."""
    arrays = read_arrays(path, ("meta",))
    try:
        meta = json.loads(str(arrays["meta"]))
        sets = {
            int(name[1:]): arrays[f"centroids_{name}"]
            for name in arrays
            if name[:1] == "k" and name[1:].isdigit()
        }
        whole = sets and all(
            c.shape == (k, MACCS_BITS) and c.dtype == np.float32 and np.isfinite(c).all()
            for k, c in sets.items()
        )
        origin = {key: meta[key] for key in ("input", "sha256", "seed", "rdkit")}
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise click.ClickException(
            f"{path}: damaged or of another kind; --assign takes a labels.npz that cluster.py made"
        )
    return sets, origin


def sweep_all(packed, seed):
    """Return (number of molecules, [(k, inertia, empty clusters), ...]) for K from 3 to 3000, of a sample if there are many."""
    if len(packed) > SWEEP_ROWS:
        packed = packed[
            np.sort(np.random.default_rng(seed).choice(len(packed), SWEEP_ROWS, replace=False))
        ]
    distinct, table = len(distinct_keys(packed)), []
    ks = sorted({round(k) for k in np.geomspace(SWEEP_FROM, min(SWEEP_TO, distinct), SWEEP_STEPS)})
    for k in tqdm(ks, desc="sweep", unit=" K", disable=None):
        labels, inertia = assign(packed, kmeans(packed, k, seed))
        table.append((k, inertia, k - len(np.unique(labels))))
    return len(packed), table


def find_knee(table):
    """Return the K of (k, inertia, ...) rows at which the curve bends most, or None if it does not bend."""
    from kneed import KneeLocator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kneed's way to say that there is none
        # Along K, not log K: what counts is the gain of one more cluster.
        knee = KneeLocator(
            *zip(*(row[:2] for row in table)), curve="convex", direction="decreasing"
        ).knee
    return None if knee is None else int(knee)


def sweep_to(folder, source, packed, seed):
    """Write sweep.csv and sweep.png into a folder. Raises click.ClickException if the molecules are too alike."""
    if len(distinct_keys(packed)) < SWEEP_STEPS:
        raise click.ClickException(
            f"{source}: too few distinct MACCS keys for --sweep; at least {SWEEP_STEPS} are needed"
        )
    count, table = sweep_all(packed, seed)
    knee = find_knee(table)
    save_table(
        folder / "sweep.csv",
        ["k", "inertia", "inertia_per_molecule", "empty_clusters", "molecules", "knee"],
        (
            (
                k,
                f"{inertia:.6g}",
                f"{inertia / count:.6g}",
                empty,
                count,
                "yes" if k == knee else "no",
            )
            for k, inertia, empty in table
        ),
    )
    sample = (
        f"{count:,} molecules"
        if count == len(packed)
        else f"a random sample (seed {seed}) of {count:,} of {len(packed):,} molecules"
    )
    plot_sweep(
        folder / "sweep.png",
        [(k, inertia / count) for k, inertia, _ in table],
        knee,
        f"K-means on MACCS keys, {sample}, {Path(source).name}",
    )
    click.echo(
        f"{folder / 'sweep.csv'}, {folder / 'sweep.png'}: K from {table[0][0]} to {table[-1][0]}, of {sample}; "
        + (f"knee at --k {knee}" if knee else "no knee")
    )


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--out",
    default="labels.npz",
    show_default=True,
    help="File for labels and centroids; --sweep writes into its folder.",
)
@click.option(
    "--k",
    "ks",
    multiple=True,
    type=click.IntRange(2),
    help="Number of clusters; repeat for several label sets.  [default: 300 and 3000]",
)
@click.option(
    "--assign",
    default=None,
    help="Label SOURCE by the centroids of this labels.npz, all its label sets.",
)
@click.option(
    "--sweep", is_flag=True, help="Only try K from 3 to 3000, and write sweep.csv and sweep.png."
)
@click.option(
    "--descriptors",
    "describe",
    is_flag=True,
    help="Save RDKit descriptors and MACCS keys too, for pretrain.py --loss descriptors=1.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of K-means and of the sweep's sample.",
)
@click.option(
    "--workers",
    default=None,
    type=click.IntRange(1),
    help="Processes that compute keys.  [default: one a core]",
)
@click.option(
    "--max-atoms",
    default=MAX_ATOMS,
    show_default=True,
    type=click.IntRange(1),
    help="Reject larger molecules, as render.py does.",
)
@click.option(
    "--smiles-column",
    help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]",
)
def main(source, out, ks, assign, sweep, describe, seed, workers, max_atoms, smiles_column):
    """Cluster the molecules of SOURCE (.smi, .txt, .csv, .tsv, gzipped or not), the same file that was drawn."""
    if bool(ks) + bool(assign) + sweep > 1:
        raise click.UsageError("--k, --assign and --sweep exclude each other; give one of them")
    if sweep and describe:
        raise click.UsageError(
            "--sweep writes no labels, so no --descriptors either; leave one of them out"
        )
    source, folder = find_input(source), Path(out).parent
    if source == "-":
        raise click.UsageError("cluster.py reads its input twice; give a file, not standard input")
    for path in (folder / "sweep.csv", folder / "sweep.png") if sweep else (out,):
        check_output(path, source, *[assign] if assign else [])
    sets, origin = read_centroids(assign) if assign else (None, None)
    facts = input_facts(source, smiles_column)
    packed, readable = all_keys(source, facts["rows"], smiles_column, workers, max_atoms)
    if sweep:
        return sweep_to(folder, source, packed, seed)
    meta = (
        facts
        | {"seed": origin["seed"] if assign else seed, "max_atoms": max_atoms}
        | ({"assigned_from": origin} if assign else {})
    )
    sets = sets or fit_all(source, packed, ks or DEFAULT_KS, seed)
    save_labels(
        out,
        packed,
        readable,
        sets,
        meta,
        all_descriptors(source, readable, smiles_column, workers, max_atoms) if describe else None,
    )


if __name__ == "__main__":
    main()
