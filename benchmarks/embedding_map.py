"""Does pretraining draw like molecules together? t-SNE of the eight sets, coloured by scaffold.

    python benchmarks/embedding_map.py dinov2-small.safetensors bundled
    python benchmarks/embedding_map.py dinov2-small.safetensors bundled --sets esol

The figure of the paper's notebook, of an encoder before and after pretraining, both frozen and on
plain drawings. Of each set the ten most frequent Bemis-Murcko scaffolds that ten different
molecules or more have, at most a hundred of each at random; molecules without a ring have none, and
sets with one such scaffold or none are left out. Davies-Bouldin's index (lower: the scaffolds lie
further apart, for their width) is of the embeddings themselves, not of the picture. Writes
benchmarks/results/embedding_map.csv and .png.
"""

from pathlib import Path

import click
import numpy as np
import torch
from accuracy import SETS
from record import RESULTS, ROOT, record
from sklearn.manifold import TSNE
from sklearn.metrics import davies_bouldin_score

from moleclip.device import pick_device
from moleclip.drawing import draw, layout
from moleclip.embedder import Embedder
from moleclip.files import save_whole
from moleclip.molecules import canonical, parse, scaffold
from moleclip.table import Data
from moleclip.weights import load_encoder

SCAFFOLDS, FEWEST, MOST = 10, 10, 100  # of a set; molecules of each, at least and at most
COLUMNS = 4  # of the figure: two sets beside each other, before and after


def chosen(name):
    """Return (SMILES, the number of each one's scaffold, int (n,)) of a set's frequent ones."""
    data, groups = Data(str(ROOT / "data" / f"{name}.csv")), {}
    readable = [one for one, problem in zip(data.smiles, data.problems) if not problem]
    for smiles in dict.fromkeys(map(canonical, readable)):
        groups.setdefault(scaffold(smiles), []).append(smiles)
    groups.pop("", None)
    order = sorted(groups.values(), key=len, reverse=True)[:SCAFFOLDS]
    order = [np.array(group) for group in order if len(group) >= FEWEST]
    random = np.random.default_rng(0)
    picked = [random.permutation(group)[:MOST].tolist() for group in order]
    numbers = np.repeat(np.arange(len(picked)), [len(group) for group in picked])
    return sum(picked, []), numbers


def embedded(encoder, drawn):
    """Return the embeddings, float32 (n, 512), of index pictures, uint8 (n, 224, 224)."""
    device = pick_device()
    with torch.no_grad():
        found = Embedder(encoder.to(device), device, None).embed_batch(drawn, None)
    return found.float().cpu().numpy()


def draw_panels(path, panels):
    """Write the figure: of each panel (title, places (n, 2), scaffold of each)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 3.7 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, places, numbers) in zip(axes, panels):
        axis.scatter(*places.T, c=numbers, cmap="tab10", vmin=0, vmax=9, s=9, linewidths=0)
        axis.set_title(title, fontsize=9)
    save_whole(path, lambda name: figure.savefig(name, dpi=100, format="png"))


@click.command()
@click.argument("before")
@click.argument("after")
@click.option("--sets", default=",".join(SETS), help="Data sets.  [default: all]")
def main(before, after, sets):
    """Show how the sets' scaffolds lie in the eyes of two encoders, as --init takes them."""
    encoders = {Path(init).stem: load_encoder(init).eval() for init in (before, after)}
    rows, panels = [], []
    for name in sets.split(","):
        smiles, numbers = chosen(name)
        if len(set(numbers)) < 2:
            print(f"{name}: fewer than two scaffolds of {FEWEST} molecules")
            continue
        drawn = np.stack([draw(layout(parse(one))) for one in smiles])
        for encoder, network in encoders.items():
            found = embedded(network, drawn)
            index = float(davies_bouldin_score(found, numbers))
            spread = min(30, len(found) // 4)
            places = TSNE(random_state=42, perplexity=spread, init="pca").fit_transform(found)
            panels.append((f"{name}, {encoder}: {index:.2f}", places, numbers))
            row = {"set": name, "encoder": encoder, "scaffolds": len(set(numbers))}
            rows.append(row | {"molecules": len(found), "Davies-Bouldin": f"{index:.4g}"})
    draw_panels(RESULTS / "embedding_map.png", panels)
    record("embedding_map", rows, ("torch", "rdkit", "scikit-learn"))


if __name__ == "__main__":
    main()
