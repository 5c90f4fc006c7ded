"""Shards of drawings, written and read."""

import json
import zlib
from pathlib import Path

import click
import numpy as np

from moleclip.files import read_arrays, save_arrays
from moleclip.molecules import BLOCK, Part
from moleclip.pixels import inflate, palette

INPUT_KEYS = ("sha256", "rows", "smiles_column")
DRAWING_KEYS = ("views", "seed", "max_atoms", "r_groups", "rdkit", "parts")
# Later options: a manifest has them only where they are not these.
DRAWING_DEFAULTS = {"atoms": False, "styles": "paper"}
MANIFEST_KEYS = INPUT_KEYS + DRAWING_KEYS  # equal in all manifests of a folder


def shard_path(folder, number):
    """Return the path of a folder's shard: its number is that of its block of rows."""
    return Path(folder) / f"shard-{number:05d}.npz"


def write_shard(path, rows, smiles, streams, rejected, views, places=None):
    """Write one shard.

    streams: views * len(rows) zlib streams. rejected: [row, line, smiles, reason] lists.
    places: for each molecule where its atoms lie in its views, float16 (views, atoms, 2).
    """
    lengths, extra = [len(stream) for stream in streams], {}
    if places is not None:
        counts = [each.shape[1] for each in places]
        extra["atom_offsets"] = np.cumsum([0] + counts, dtype=np.int64)
        flat = [each.reshape(-1, 2) for each in places]
        extra["places"] = np.concatenate([np.zeros((0, 2), np.float16), *flat])
    save_arrays(
        path,
        data=np.frombuffer(b"".join(streams), np.uint8),
        offsets=np.cumsum([0] + lengths, dtype=np.int64),
        palette=palette(),
        row=np.array(rows, np.int64),
        views=np.int64(views),
        smiles=np.array([text.encode("utf-8", "surrogateescape") for text in smiles], "S"),
        rejected=np.frombuffer(json.dumps(rejected).encode(), np.uint8),
        **extra,
    )


def read_shard(path):
    """Return a shard as a dict: data, offsets, palette, row, views, smiles, path.

    With render.py --atoms also atom_offsets and places. `picture` reads its pictures,
    `places_of` their atoms' places, `smiles_of` a SMILES; what is large is mapped, not read.
    Raises click.ClickException if the arrays don't fit together.
    """
    names = ("data", "offsets", "palette", "row", "views", "smiles")
    shard = read_arrays(path, names, ("data", "offsets", "smiles", "places"))
    row, offsets = shard["row"], shard["offsets"]
    number = int(Path(path).stem.rpartition("-")[2])
    if not (
        shard["data"].dtype == np.uint8
        and shard["data"].ndim == 1
        and shard["views"].ndim == 0
        and row.dtype == offsets.dtype == np.int64
        and offsets.shape == (len(row) * int(shard["views"]) + 1,)
        and offsets[-1] == len(shard["data"])
        and (np.diff(offsets) > 0).all()
        and (row // BLOCK == number).all()
        and atoms_fit(shard)
    ):
        raise click.ClickException(
            f"{path}: its arrays don't fit together; "
            "draw it again with render.py --resume after deleting it"
        )
    return shard | {"path": path}


def smiles_of(shard, molecule):
    """Return the SMILES of the shard's `molecule`-th molecule."""
    return shard["smiles"][molecule].decode("utf-8", "surrogateescape")


def atoms_fit(shard):
    """Tell whether a shard has a place for each atom in each view, or no places at all."""
    if "places" not in shard and "atom_offsets" not in shard:
        return True
    places, offsets = shard.get("places"), shard.get("atom_offsets")
    return (
        places is not None
        and offsets is not None
        and (places.dtype, offsets.dtype) == (np.float16, np.int64)
        and offsets.shape == (len(shard["row"]) + 1,)
        and offsets[0] == 0
        and (np.diff(offsets) > 0).all()
        and places.shape == (offsets[-1] * int(shard["views"]), 2)
    )


def places_of(shard, molecule, view=0):
    """Return where the atoms of the shard's `molecule`-th molecule lie in a view, float16 (n, 2).

    x and y in pixels, in the order of `parse`'s atoms; NaN where that isn't known. Raises
    KeyError if the shard was drawn without --atoms.
    """
    begin, end = shard["atom_offsets"][molecule : molecule + 2]
    first = begin * int(shard["views"]) + view * (end - begin)
    return shard["places"][first : first + end - begin]


def picture(shard, molecule, view=0):
    """Return a view of the shard's `molecule`-th molecule, palette indices, uint8 (224, 224).

    Raises click.ClickException if it is damaged.
    """
    number = molecule * int(shard["views"]) + view
    begin, end = shard["offsets"][number : number + 2]
    try:
        return inflate(shard["data"][begin:end])
    except (ValueError, zlib.error):
        raise click.ClickException(
            f"{shard['path']}: the picture of row {shard['row'][molecule]} is damaged; "
            "delete the shard and draw it again with render.py --resume"
        ) from None


def load_manifest(path):
    """Return a manifest, with later options' defaults. Raises click.ClickException if damaged."""
    try:
        manifest = json.loads(path.read_text())
        counts = ["views", "part", "parts"]
        if manifest["complete"]:
            counts += ["rows", "drawn", "rejected"]
        numbers = [manifest[key] for key in counts]
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if whole and all(key in manifest for key in MANIFEST_KEYS):
            return DRAWING_DEFAULTS | manifest
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise click.ClickException(
        f"{path}: damaged or of another kind; draw the shards again into another folder"
    )


def read_manifest(folder):
    """Return what made a folder of shards, the manifests of all parts merged.

    Raises click.ClickException if the folder holds no shards, or not all of them yet.
    """
    folder = Path(folder)
    manifests = [load_manifest(path) for path in sorted(folder.glob("manifest*.json"))]
    if not manifests:
        raise click.ClickException(
            f"{folder}/: holds no shards; "
            f"draw them first: python render.py data/chembl_3000.smi -o {folder}"
        )
    parts = manifests[0]["parts"]
    missing = set(range(1, parts + 1)) - {m["part"] for m in manifests if m["complete"]}
    if missing:
        which = f" --part {min(missing)}/{parts}" if parts > 1 else ""
        raise click.ClickException(
            f"{folder}/: the drawing was not finished; go on with render.py{which} --resume"
        )
    drawn, rejected = (sum(m[count] for m in manifests) for count in ("drawn", "rejected"))
    return manifests[0] | {"drawn": drawn, "rejected": rejected}


def open_shards(folder):
    """Return (shards, manifest) of a folder that render.py filled.

    Raises click.ClickException if it is not whole, or has one view of each molecule.
    """
    manifest = read_manifest(folder)
    if manifest["views"] < 2:
        raise click.ClickException(
            f"{folder}/: has one view of each molecule; "
            "the contrastive loss needs two: render.py --views 2"
        )
    blocks = Part().blocks(manifest["rows"])
    shards = [read_shard(shard_path(folder, number)) for number in blocks]
    return [shard for shard in shards if len(shard["row"])], manifest
