"""What a graph encoder has learned of chemistry: its principal components against descriptors.

    python benchmarks/components.py aligned.pt by-picture.pt none
    python benchmarks/components.py aligned.pt --molecules data/chembl_3000.smi --most 3000

As ACML's interpretability study: embeddings of molecules, their first principal components, and the
correlation (Pearson) of each with molecular weight, Crippen's logP, TPSA, hydrogen bond donors and
acceptors, and rings. "none" is an encoder that nothing was taught. Of a component the sign is
arbitrary: it is turned to grow with weight. Writes results/components.csv and components.png, where
each point is a molecule.
"""

from pathlib import Path

import click
import numpy as np
import torch
from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors
from record import RESULTS, read_csv, record
from sklearn.decomposition import PCA

from moleclip.encoders import GraphEmbedder, load_graph_encoder
from moleclip.molecules import parse
from moleclip.pairtable import read_graphs

SHOWN = ("MW", "logP", "TPSA")  # what the points are coloured by
KEPT = 3  # components
DESCRIPTORS = {
    "MW": Descriptors.MolWt,
    "logP": Crippen.MolLogP,
    "TPSA": rdMolDescriptors.CalcTPSA,
    "donors": rdMolDescriptors.CalcNumHBD,
    "acceptors": rdMolDescriptors.CalcNumHBA,
    "rings": rdMolDescriptors.CalcNumRings,
}


def embedded(path, graphs):
    """Return the embeddings of Graphs, float32 (n, width)."""
    embedder = GraphEmbedder(load_graph_encoder(path), torch.device("cpu"))
    with torch.no_grad():
        return embedder.embed_batch(embedder.batch(graphs), None).numpy()


def components(embeddings, weights):
    """Return (the first components of standardised embeddings, (n, KEPT), their variance's part).

    weights: of the molecules, (n,), with which each component is turned to grow.
    """
    scaled = (embeddings - embeddings.mean(0)) / (embeddings.std(0) + 1e-6)
    found = PCA(KEPT, random_state=0)
    places = found.fit_transform(scaled)
    signs = [np.sign(correlation(places[:, i], weights)) or 1 for i in range(KEPT)]
    return places * signs, found.explained_variance_ratio_


def correlation(one, other):
    """Return Pearson's correlation of two lists of numbers; 0 if one is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) and np.ptp(other) else 0.0


def plot(shown, known):
    """Draw components.png. shown: {name: (n, KEPT)}; known: {descriptor: (n,)}."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.6 * len(SHOWN), 3.2 * len(shown))
    figure, axes = plt.subplots(len(shown), len(SHOWN), figsize=size, squeeze=False)
    for line, (name, places) in zip(axes, shown.items()):
        for axis, descriptor in zip(line, SHOWN):
            values = known[descriptor]
            low, high = np.percentile(values, [2, 98])
            how = {"c": values, "vmin": low, "vmax": high, "s": 3, "cmap": "viridis", "lw": 0}
            points = axis.scatter(places[:, 0], places[:, 1], **how)
            figure.colorbar(points, ax=axis, shrink=0.8)
            axis.set_title(f"{name}: {descriptor}", fontsize=9)
            axis.set(xticks=[], yticks=[], xlabel="PC 1", ylabel="PC 2")
    figure.tight_layout()
    figure.savefig(RESULTS / "components.png", dpi=110)


@click.command()
@click.argument("encoders", nargs=-1, required=True)
@click.option("--molecules", default="data/druglike_20000.smi.gz", help="File of SMILES.")
@click.option("--most", default=5000, show_default=True, help="Of its molecules, the first.")
def main(encoders, molecules, most):
    """Correlate the components of ENCODERS, aligned.pt or none, with descriptors."""
    members = read_graphs(molecules)[0][:most]
    graphs = [graph for _, graph in members]
    parsed = [parse(molecule.smiles) for molecule, _ in members]
    known = {name: np.array([*map(tell, parsed)], float) for name, tell in DESCRIPTORS.items()}
    rows, shown = [], {}
    for path in encoders:
        name = "untrained" if path == "none" else Path(path).stem
        places, parts = components(embedded(path, graphs), known["MW"])
        shown[name] = places
        for i in range(KEPT):
            told = {d: f"{correlation(places[:, i], known[d]):.4f}" for d in DESCRIPTORS}
            facts = {"encoder": name, "component": i + 1, "variance": f"{parts[i]:.4f}"}
            rows.append(facts | told | {"molecules": len(members)})
    before = [row for row in read_csv(RESULTS / "components.csv") if row["encoder"] not in shown]
    record("components", [*before, *rows], ("torch", "rdkit", "scikit-learn"))
    plot(shown, known)


if __name__ == "__main__":
    main()
