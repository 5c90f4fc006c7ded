"""Give unlabelled molecules pseudo-labels: K-means clusters of their keys, a set for each K.

    python cluster.py data/chembl_3000.smi --k 30 --k 300       # labels.npz
    python cluster.py data/druglike_20000.smi.gz                # K = 300 and 3000
    python cluster.py data/druglike_20000.smi.gz --sweep        # which K? sweep.csv and sweep.png
    python cluster.py data/dhbd.csv --assign labels.npz -o dhbd_labels.npz     # the same clusters

With --descriptors, --atoms and --electronic the file also holds what pretraining's optional tasks
are to tell: RDKit descriptors and the keys, each atom's surroundings, orbitals and charges.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import click
import numpy as np
import sklearn
from rdkit import rdBase
from tqdm import tqdm

from moleclip import options
from moleclip.blocks import compute_blocks, gather, prepare
from moleclip.electronic import METHODS
from moleclip.features import ATOM, atom_targets, descriptors, most_frequent, numbers_in, overlap
from moleclip.files import check_output, save_arrays, save_table
from moleclip.keys import (
    KINDS,
    distinct_keys,
    packed_keys,
    read_centroids,
    scale_keys,
    scale_of,
    scaled,
    unpack_keys,
)
from moleclip.molecules import Rejected, find_input, input_facts, read_molecules
from moleclip.plots import plot_sweep
from moleclip.targets import UNKNOWN, read_vocabularies
from moleclip.workers import parallel

DEFAULT_KS = (300, 3000)
MINIBATCH_FROM = 20_000  # rows: MiniBatchKMeans, in batches of as many (MoleCLIP's own switch)
PASSES = 10  # of MiniBatchKMeans over all molecules
CHUNK = 2048  # molecules whose distances to all centroids are in memory at once
VOCABULARY = (512, 2048)  # environments of radius 1 and 2 that an atom has to tell
SWEEP_FROM, SWEEP_TO, SWEEP_STEPS, SWEEP_ROWS = 3, 3000, 12, 20_000


def computed(function, source, facts, workers, what, **how):
    """Yield (row, result) of a task of `parallel` for each readable row, with a bar."""
    molecules = read_molecules(source, facts["smiles_column"])
    limit = {"group": 256, "max_atoms": facts["max_atoms"], **how}
    results = parallel(function, molecules, workers, **limit)
    bar = tqdm(results, total=facts["rows"], unit=" molecules", desc=what, disable=None)
    for molecule, result in bar:
        if not isinstance(result, Rejected):
            yield molecule.row, result


def all_keys(source, facts, workers=None, kind="maccs"):
    """Return packed keys, uint8 (readable rows, bytes), and bool (rows,): which were readable.

    facts: rows, smiles_column, max_atoms. Raises click.ClickException if no row is readable.
    """
    rows, count, packed = facts["rows"], 0, None
    readable, title = np.zeros(rows, bool), KINDS[kind].title
    for row, keys in computed(packed_keys, source, facts, workers, title, kind=kind):
        packed = np.zeros((rows, len(keys)), np.uint8) if packed is None else packed
        packed[count], readable[row] = np.frombuffer(keys, np.uint8), True
        count += 1
    if not count:
        raise click.ClickException(f"{source}: none of its {rows} rows is a readable molecule")
    return packed[:count], readable


def all_descriptors(source, facts, workers=None):
    """Return the standardised descriptors of all rows, float16 (rows, 64) in -5..5.

    0, the mean, where there is none. facts: see `all_keys`.
    """
    values = None  # float32 (rows, 64): 0.5 GB for 2 million molecules
    for row, numbers in computed(descriptors, source, facts, workers, "descriptors"):
        found = np.frombuffer(numbers, np.float32)
        if values is None:
            values = np.full((facts["rows"], len(found)), np.nan, np.float32)
        values[row] = found
    return scaled(values, scale_of(values))


def all_atoms(source, facts, workers=None, vocabularies=None):
    """Return the arrays of --atoms by name, as labels.npz has them: see docs/files.md.

    vocabularies: two uint32 (n,) of Morgan ids; without them the most frequent ones of all rows.
    facts: see `all_keys`.
    """
    counts, found = np.zeros(facts["rows"], np.int64), bytearray()
    for row, targets in computed(atom_targets, source, facts, workers, "atoms"):
        counts[row] = len(targets) // ATOM.itemsize
        found += targets
    atoms = np.frombuffer(found, ATOM)
    arrays = {"atom_offsets": np.concatenate([[0], np.cumsum(counts)])}
    for i, name in enumerate(("r1", "r2")):
        ids = np.ascontiguousarray(atoms[name])
        vocabulary = vocabularies[i] if vocabularies else most_frequent(ids, VOCABULARY[i])
        arrays[f"atom_{name}"] = numbers = numbers_in(ids, vocabulary)
        arrays[f"vocabulary_{name}"] = vocabulary
        share = (numbers != UNKNOWN).mean()
        click.echo(f"radius {i + 1}: {len(vocabulary)} environments, of {share:.1%} of the atoms")
    return arrays | {"atom_numbers": np.ascontiguousarray(atoms["numbers"])}


def kmeans(packed, k, seed, kind="maccs"):
    """Return the centroids, float32 (k, width), of packed keys, uint8 (n, bytes).

    At least k of the keys have to be distinct.
    """
    from sklearn.cluster import KMeans

    if len(packed) >= MINIBATCH_FROM:
        return kmeans_in_batches(packed, k, seed, kind)
    model = KMeans(k, n_init=1, random_state=seed).fit(unpack_keys(packed, kind))
    return model.cluster_centers_.astype(np.float32)


def kmeans_in_batches(packed, k, seed, kind):
    """As `kmeans`, but only one batch, and the sample for the start, are ever unpacked."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    random, batch, keys = np.random.default_rng(seed), max(MINIBATCH_FROM, k), distinct_keys(packed)
    # Out of distinct keys: a sample of molecules may hold fewer than k, and two centroids on one
    # spot leave one empty. Many of them: a start from 3 k, as scikit-learn takes, is twice as fast
    # but ends with an inertia 1% higher.
    sample = random.choice(keys, min(len(keys), max(MINIBATCH_FROM, 3 * k)), replace=False)
    start, _ = kmeans_plusplus(unpack_keys(sample, kind), k, random_state=seed)
    # No reassignment: it would throw small clusters, of which chemistry has many, at random
    # molecules again and again.
    how = {"n_init": 1, "random_state": seed, "compute_labels": False, "reassignment_ratio": 0}
    model = MiniBatchKMeans(k, init=start, batch_size=batch, **how)
    batches = len(packed) // batch  # cut evenly, so none is smaller than `batch`
    total = PASSES * batches
    with tqdm(total=total, unit=" batches", desc=f"k = {k}", disable=None, leave=False) as bar:
        for _ in range(PASSES):
            for members in np.array_split(random.permutation(len(packed)), batches):
                model.partial_fit(unpack_keys(packed[members], kind))
                bar.update()
    return model.cluster_centers_.astype(np.float32)


def assign(packed, centroids, kind="maccs"):
    """Return (labels, inertia) of packed keys, uint8 (n, bytes).

    labels: the nearest centroid's number, int32 (n,); inertia: the sum of squared distances to it.
    All labels come from here, so that --assign gives a molecule the label that it had.
    """
    # In float64 the sums over bits of these float32 numbers are exact, so neither chunks nor
    # threads decide between near ties.
    centroids = centroids.astype(np.float64)
    norms, labels, inertia = np.square(centroids).sum(1), np.empty(len(packed), np.int32), 0.0
    starts = range(0, len(packed), CHUNK)
    for first in tqdm(starts, desc=f"labels, k = {len(centroids)}", disable=None, leave=False):
        numbers = unpack_keys(packed[first : first + CHUNK], kind).astype(np.float64)
        # Without the molecule's own norm, which decides nothing.
        distances = norms - 2 * numbers @ centroids.T
        labels[first : first + CHUNK] = chosen = distances.argmin(1)
        nearest = distances[np.arange(len(numbers)), chosen]
        inertia += float(nearest.sum() + np.square(numbers).sum())
    return labels, max(inertia, 0.0)


def save_labels(out, packed, readable, left, sets, meta, more):
    """Label packed keys by the centroids of sets, {k: float32 (k, width)}, and write labels.npz.

    packed: of the readable rows; those that are left out, bool (rows,), have no label either.
    more: arrays that are saved along.
    """
    arrays, facts, labelled = {**more}, {}, readable & ~left
    kept, kind = packed[labelled[readable]], meta.get("keys", "maccs")
    for k in sorted(sets):
        labels = np.full(len(readable), -1, np.int32)
        labels[labelled], inertia = assign(kept, sets[k], kind)
        arrays |= {f"k{k}": labels, f"centroids_k{k}": sets[k]}
        sizes = np.bincount(labels[labelled], minlength=k)
        empty, largest = int((sizes == 0).sum()), int(sizes.max())
        facts[f"k{k}"] = {"inertia": inertia, "empty": empty, "largest": largest}
        holds = f"the largest holds {largest} of {len(kept)} molecules"
        click.echo(f"k = {k}: {empty} clusters empty, {holds}")
    versions = {"rdkit": rdBase.rdkitVersion, "scikit-learn": sklearn.__version__}
    meta = meta | {"readable": len(packed), "label_sets": facts} | versions
    save_arrays(out, **arrays, meta=np.array(json.dumps(meta)))
    none = {"rejected rows": (~readable).sum(), "left out": (readable & left).sum()}
    none = "".join(f", -1 for {count} {what}" for what, count in none.items() if count)
    click.echo(f"{out}: labels of {len(kept)} molecules{none}")


def at_rows(packed, readable):
    """Return packed keys of the readable rows as those of all rows, 0 where there are none."""
    table = np.zeros((len(readable), packed.shape[1]), np.uint8)
    table[readable] = packed
    return table


def find_left_out(source, facts, others, workers=None):
    """Return (which rows of source stand in other files, bool (rows,), what meta says of it)."""
    if not others:
        return np.zeros(facts["rows"], bool), {}
    left = overlap(source, facts["smiles_column"], others, workers)
    names = [input_facts(other) for other in others]
    files = [{key: each[key] for key in ("input", "sha256", "rows")} for each in names]
    click.echo(f"--leave-out: {left.sum()} of {len(left)} rows stand in {', '.join(others)}")
    return left, {"left_out": {"molecules": int(left.sum()), "files": files}}


def fit_all(source, packed, ks, seed, kind):
    """Return {k: centroids float32 (k, width)}.

    Raises click.ClickException if there are fewer distinct keys than a k.
    """
    distinct = len(distinct_keys(packed))
    if max(ks) > distinct:
        says = f"is more than its {distinct} distinct {KINDS[kind].title}; lower --k"
        raise click.ClickException(f"{source}: --k {max(ks)} {says}")
    return {k: kmeans(packed, k, seed, kind) for k in sorted(set(ks))}


def sweep_all(packed, seed, kind):
    """Return (number of molecules, [(k, inertia, empty clusters), ...]) for K from 3 to 3000.

    The molecules are a random sample if there are many.
    """
    if len(packed) > SWEEP_ROWS:
        chosen = np.random.default_rng(seed).choice(len(packed), SWEEP_ROWS, replace=False)
        packed = packed[np.sort(chosen)]
    distinct, table = len(distinct_keys(packed)), []
    ks = sorted({round(k) for k in np.geomspace(SWEEP_FROM, min(SWEEP_TO, distinct), SWEEP_STEPS)})
    for k in tqdm(ks, desc="sweep", unit=" K", disable=None):
        labels, inertia = assign(packed, kmeans(packed, k, seed, kind), kind)
        table.append((k, inertia, k - len(np.unique(labels))))
    return len(packed), table


def check_kneed():
    """Refuse --sweep, before any work, where the optional library is missing that it needs."""
    if importlib.util.find_spec("kneed") is None:
        raise click.ClickException(
            "--sweep finds the knee by kneed, which is not installed; "
            "pip install -r requirements-extra.txt"
        )


def find_knee(table):
    """Return the K of (k, inertia, ...) rows where the curve bends most, or None without a bend."""
    from kneed import KneeLocator

    ks, inertias = zip(*(row[:2] for row in table))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kneed's way to say that there is none
        # Along K, not log K: what counts is the gain of one more cluster.
        knee = KneeLocator(ks, inertias, curve="convex", direction="decreasing").knee
    return None if knee is None else int(knee)


def sweep_to(folder, source, packed, seed, kind):
    """Write sweep.csv and sweep.png into a folder.

    Raises click.ClickException if the molecules are too alike.
    """
    title = KINDS[kind].title
    if len(distinct_keys(packed)) < SWEEP_STEPS:
        raise click.ClickException(
            f"{source}: too few distinct {title} for --sweep; at least {SWEEP_STEPS} are needed"
        )
    count, table = sweep_all(packed, seed, kind)
    knee = find_knee(table)
    picture, csv = folder / "sweep.png", folder / "sweep.csv"
    save_sweep(csv, count, table, knee)
    sample = f"{count:,} molecules"
    if count < len(packed):
        sample = f"a random sample (seed {seed}) of {count:,} of {len(packed):,} molecules"
    subject = f"K-means on {title}, {sample}, {Path(source).name}"
    plot_sweep(picture, [(k, inertia / count) for k, inertia, _ in table], knee, subject)
    found = f"knee at --k {knee}" if knee else "no knee"
    click.echo(f"{csv}, {picture}: K from {table[0][0]} to {table[-1][0]}, of {sample}; {found}")


def save_sweep(path, count, table, knee):
    """Write sweep.csv: the table of `sweep_all`, and at which K is the knee."""
    header = ["k", "inertia", "inertia_per_molecule", "empty_clusters", "molecules", "knee"]
    lines = []
    for k, inertia, empty in table:
        numbers = [f"{inertia:.6g}", f"{inertia / count:.6g}", empty, count]
        lines.append([k, *numbers, "yes" if k == knee else "no"])
    save_table(path, header, lines)


@click.command()
@click.argument("source")
@options.out("labels.npz", "File for labels and centroids; --sweep writes into its folder.")
@click.option(
    "--k",
    "ks",
    multiple=True,
    type=click.IntRange(2),
    help="Number of clusters; repeat for several label sets.  [default: 300 and 3000]",
)
@click.option(
    "--keys",
    type=click.Choice(list(KINDS)),
    help="What molecules are grouped by: MACCS keys, ECFP4, paths, descriptors.  [default: maccs]",
)
@click.option(
    "--assign",
    "labels",
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
    "--atoms",
    is_flag=True,
    help="Save each atom's surroundings and numbers, for pretrain.py --loss atoms=1,fingerprint=1.",
)
@click.option(
    "--electronic",
    metavar="FOLDER",
    help="Save what this folder's blocks know of orbitals and charges, for pretrain.py --loss "
    "electronic=1; needs --atoms.",
)
@options.resume("First compute the blocks that the folder of --electronic lacks.")
@options.part("I/N: compute every N-th block for --electronic from the I-th, and no labels.")
@click.option(
    "--method",
    default="gfn2",
    show_default=True,
    type=click.Choice(METHODS),
    help="Of --electronic: GFN2-xTB by tblite, or RDKit's extended Hueckel.",
)
@click.option(
    "--leave-out",
    "others",
    multiple=True,
    help="Give no label to molecules that also stand in this file; repeat for several.",
)
@options.seed("Seed of K-means and of the sweep's sample.")
@options.workers("Processes that compute keys.")
@options.max_atoms("Reject larger molecules, as render.py does.")
@options.smiles_column()
def main(source, out, ks, labels, sweep, others, workers, max_atoms, smiles_column, **more):
    """Cluster the molecules of SOURCE, the same file that was drawn.

    SOURCE: .smi, .txt, .csv, .tsv, gzipped or not.
    """
    check_words(ks, labels, sweep, others, more)
    source, folder = find_input(source), Path(out).parent
    others = [find_input(other) for other in others]
    if "-" in (source, *others):
        raise click.UsageError("cluster.py reads its input twice; give a file, not standard input")
    for path in (folder / "sweep.csv", folder / "sweep.png") if sweep else (out,):
        check_output(path, source, *others, *filter(None, [labels]))
    sets, kind, scale, origin = None, more["keys"] or "maccs", None, {"seed": more["seed"]}
    if labels:
        sets, kind, scale, origin = read_centroids(labels)
    more["vocabularies"] = read_vocabularies(labels) if labels and more["atoms"] else None
    facts = input_facts(source, smiles_column)
    facts |= {"seed": origin["seed"], "max_atoms": max_atoms}
    facts |= {} if kind == "maccs" else {"keys": kind}
    blocks = more["electronic"], more["method"], more["part"]
    if more["electronic"]:
        prepare(source, facts, *blocks, more["resume"])
    if more["part"].count > 1:
        return compute_blocks(source, facts, *blocks, workers)
    left, told = find_left_out(source, facts, others, workers)
    packed, readable = all_keys(source, facts, workers, kind)
    members = ~left[readable]
    if not members.any():
        raise click.ClickException(f"{source}: --leave-out leaves none of its molecules")
    keys, scale = scale_keys(packed, kind, members, scale)
    if sweep:
        return sweep_to(folder, source, keys, facts["seed"], kind)
    if labels:
        facts["assigned_from"] = origin
    sets = sets or fit_all(source, keys[members], ks or DEFAULT_KS, facts["seed"], kind)
    arrays, known = all_more(source, facts, workers, **more)
    if more["describe"]:
        maccs = (packed, readable) if kind == "maccs" else all_keys(source, facts, workers)
        arrays["maccs"] = at_rows(*maccs)
    save_labels(out, keys, readable, left, sets, facts | told | known, arrays | scale)


def check_words(ks, labels, sweep, others, more):
    """Refuse options that don't go together, before anything is read."""
    if bool(ks) + bool(labels) + sweep > 1:
        raise click.UsageError("--k, --assign and --sweep exclude each other; give one of them")
    if labels and more["keys"]:
        raise click.UsageError("--assign takes the keys of its labels.npz; leave out --keys")
    if sweep and (more["describe"] or more["atoms"] or more["electronic"] or others):
        raise click.UsageError(
            "--sweep writes no labels, so no --descriptors, --atoms, --electronic or --leave-out "
            "either; leave it out"
        )
    if sweep:
        check_kneed()
    if (more["resume"] or more["part"].count > 1) and not more["electronic"]:
        raise click.UsageError("--resume and --part go with --electronic FOLDER; give it too")
    if more["electronic"] and not more["atoms"] and more["part"].count == 1:
        raise click.UsageError("--electronic needs --atoms, since charges are of atoms; give both")


def all_more(source, facts, workers, describe, atoms, vocabularies, electronic, method, **rest):
    """Return (arrays of --descriptors, --atoms, --electronic, what meta says of them)."""
    arrays = {"descriptors": all_descriptors(source, facts, workers)} if describe else {}
    arrays |= all_atoms(source, facts, workers, vocabularies) if atoms else {}
    if not electronic:
        return arrays, {}
    if rest["resume"]:
        compute_blocks(source, facts, electronic, method, rest["part"], workers)
    offsets = arrays["atom_offsets"]
    found, known = gather(source, facts, electronic, method, offsets, workers)
    return arrays | found, {"electronic": known}


if __name__ == "__main__":
    main()
