"""TODO"""

import json
import zlib
from pathlib import Path

import click
import numpy as np
import torch

from moleclip.files import read_arrays, save_arrays
from moleclip.molecules import BLOCK
from moleclip.pixels import inflate, palette

MANIFEST_KEYS = (
    "sha256",
    "rows",
    "smiles_column",
    "views",
    "seed",
    "max_atoms",
    "r_groups",
    "rdkit",
    "parts",
)  # equal in all shards of a folder


def read_shard(path):
    """Return a shard as a dict: data (memory map), offsets, palette, row, views, smiles; see `picture`."""
    shard = read_arrays(path, ("data", "offsets", "palette", "row", "views", "smiles"))
    row, offsets, number = shard["row"], shard["offsets"], int(Path(path).stem.rpartition("-")[2])
    if not (
        shard["views"].ndim == 0
        and row.dtype == offsets.dtype == np.int64
        and offsets.shape == (len(row) * int(shard["views"]) + 1,)
        and offsets[-1] == len(shard["data"])
        and (np.diff(offsets) > 0).all()
        and (row // BLOCK == number).all()
    ):
        raise click.ClickException(
            f"{path}: its arrays don't fit together; draw it again with render.py --resume after deleting it"
        )
    return shard | {"smiles": np.char.decode(shard["smiles"], "ascii"), "path": path}


def picture(shard, molecule, view=0):
    """Return view `view` of the shard's `molecule`-th molecule as palette indices, uint8 (224, 224)."""
    number = molecule * int(shard["views"]) + view
    begin, end = shard["offsets"][number : number + 2]
    try:
        return inflate(shard["data"][begin:end])
    except (ValueError, zlib.error):
        raise click.ClickException(
            f"{shard['path']}: the picture of row {shard['row'][molecule]} is damaged; delete the shard and "
            "draw it again with render.py --resume"
        ) from None


def write_shard(path, rows, smiles, streams, rejected, views):
    """Write one shard. streams: views * len(rows) zlib streams. rejected: [row, line, smiles, reason] lists."""
    save_arrays(
        path,
        data=np.frombuffer(b"".join(streams), np.uint8),
        offsets=np.cumsum([0] + [len(stream) for stream in streams], dtype=np.int64),
        palette=palette(),
        row=np.array(rows, np.int64),
        views=np.int64(views),
        smiles=np.array(smiles, "S"),
        rejected=np.frombuffer(json.dumps(rejected).encode(), np.uint8),
    )


def shard_path(folder, number):
    return Path(folder) / f"shard-{number:05d}.npz"


def read_manifest(folder):
    """Return what made a folder of shards, the manifests of all parts merged, once every part is complete.

    Raises click.ClickException if the folder holds no shards, or not all of them.
    """
    folder = Path(folder)
    manifests = [load_json(path) for path in sorted(folder.glob("manifest*.json"))]
    if not manifests:
        raise click.ClickException(
            f"{folder}/: holds no shards; draw them first: python render.py data/chembl_3000.smi -o {folder}"
        )
    first = manifests[0]
    missing = {i + 1 for i in range(first["parts"])} - {
        m["part"] for m in manifests if m["complete"]
    }
    if missing:
        which = f" --part {min(missing)}/{first['parts']}" if first["parts"] > 1 else ""
        raise click.ClickException(
            f"{folder}/: the drawing was not finished; go on with render.py{which} --resume"
        )
    return first | {count: sum(m[count] for m in manifests) for count in ("drawn", "rejected")}


def load_json(path):
    """Return a manifest. Raises click.ClickException if it is damaged."""
    try:
        manifest = json.loads(path.read_text())
        whole = [manifest[key] for key in ("views", "part", "parts")] + [
            manifest[key] for key in ("rows", "drawn", "rejected") if manifest["complete"]
        ]
        if all(type(number) is int and number >= 0 for number in whole) and all(
            key in manifest for key in MANIFEST_KEYS
        ):
            return manifest
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise click.ClickException(
        f"{path}: damaged or of another kind; draw the shards again into another folder"
    )


def open_shards(folder):
    """Return (shards, manifest) of a folder that render.py filled. Raises click.ClickException."""
    manifest = read_manifest(folder)
    if manifest["views"] < 2:
        raise click.ClickException(
            f"{folder}/: has one view of each molecule; the contrastive loss needs two: render.py --views 2"
        )
    shards = [read_shard(shard_path(folder, i)) for i in range(-(-manifest["rows"] // BLOCK))]
    return [shard for shard in shards if len(shard["row"])], manifest


class Labels:
    """What the heads are to tell of each row: its cluster in every label set, coarsest first, and its descriptors if asked.

    Raises click.ClickException if the file is none of cluster.py's, made from another input than the shards, or lacks what is asked.
    """

    def __init__(self, path, folder, manifest, describe=False):
        if not Path(path).is_file():
            raise click.ClickException(
                f"{path}: no such file; make it first: python cluster.py {manifest['input']} -o {path}"
            )
        arrays = read_arrays(path, ("meta",))
        names = sorted(
            (name for name in arrays if name[:1] == "k" and name[1:].isdigit()),
            key=lambda name: int(name[1:]),
        )
        self.descriptors, self.maccs = (
            arrays.get(name) if describe else None for name in ("descriptors", "maccs")
        )
        try:
            meta = json.loads(str(arrays["meta"]))
            facts = {key: meta[key] for key in ("input", "sha256", "rows", "smiles_column")}
            whole = names and all(
                arrays[name].shape == (facts["rows"],)
                and arrays[name].dtype == np.int32
                and arrays[name].max() < int(name[1:])
                for name in names
            )
            whole &= self.maccs is None or len(self.descriptors) == len(self.maccs) == facts["rows"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise click.ClickException(
                f"{path}: damaged or of another kind; make it again with cluster.py"
            )
        compared = (
            ("rows", "smiles_column", "sha256") if manifest["sha256"] else ("rows",)
        )  # drawn from standard input: no hash
        if any(facts[key] != manifest[key] for key in compared):
            raise click.ClickException(
                f"{path}: made from {facts['input']} ({facts['rows']} rows), but {folder}/ from another file, "
                f"{manifest['input']} ({manifest['rows']} rows), or another column; run cluster.py on what was drawn"
            )
        if describe and self.maccs is None:
            raise click.ClickException(
                f"{path}: has no descriptors, which --loss descriptors=... needs; make it again with cluster.py --descriptors"
            )
        self.clusters = np.stack([arrays[name] for name in names], 1)  # int32 (rows, label sets)
        self.outputs = {name: int(arrays[name].max()) + 1 for name in names}  # of each head
        if describe:
            self.outputs["descriptors"] = self.descriptors.shape[1] + 8 * self.maccs.shape[1]

    def of(self, rows):
        """Return a row's clusters, then its standardised descriptors and MACCS bits if asked, float32 (n, label sets + ...)."""
        parts = [self.clusters[rows]]
        if self.maccs is not None:
            parts += [self.descriptors[rows], np.unpackbits(self.maccs[rows], axis=1)]
        return torch.from_numpy(
            np.hstack(parts).astype(np.float32)
        )  # exact for numbers of clusters
