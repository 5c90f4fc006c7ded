"""What embeds molecules: an encoder of pictures, one of graphs, or both side by side.

All three have `names`, what they look at; `inputs`, as a model.onnx has them; `width`, numbers of
an embedding; `arch`; `facts`, for a model.onnx; and `embed`, of inputs by their names.
"""

from pathlib import Path

import click
import numpy as np
import torch

from moleclip.device import autocast
from moleclip.embedder import Embedder, fitting_batch
from moleclip.encoder import Encoder
from moleclip.files import one_line
from moleclip.gin import LAYERS, OUT, WIDTH, Gin, pool
from moleclip.graphs import Graphs, join
from moleclip.weights import load_checkpoint, load_encoder, restore_encoder

UNTRAINED = {"width": WIDTH, "layers": LAYERS, "out": OUT}  # of --graph none
AT_ONCE = 256  # graphs


class GraphEncoder(torch.nn.Module):
    """Gin's features of molecules, and beside them mean and sum of its atoms' numbers.

    The last layers of an alignment keep what the other modality shows; the atoms' sum is nearer to
    what properties add up from. Its batch statistics stay those it was trained with, and it drops
    nothing: a molecule's embedding does not depend on the others of its batch.
    """

    names, inputs = ("graph",), Graphs._fields

    def __init__(self, arch):
        super().__init__()
        self.arch, self.gin = arch, Gin(arch)
        self.eval()

    def train(self, mode=True):
        """Stay as it is: see above."""
        return super().train(False)

    @property
    def width(self):
        """How many numbers an embedding has."""
        return self.arch["out"] + 2 * self.arch["width"]

    def facts(self):
        """Return what a model.onnx says of it."""
        return {"graph": self.arch}

    def forward(self, atoms, bonds, kinds, owner, counts):
        """Return embeddings, float32 (graphs, out + 2 width), of the arrays of Graphs."""
        pooled = pool(self.gin.read_atoms(atoms, bonds, kinds), owner, counts)
        return torch.cat([self.gin.read_pooled(pooled), pooled], 1)

    def embed(self, given):
        """Return the embeddings of the fields of Graphs, {name: tensor}."""
        return self(*(given[name] for name in self.inputs))


class Both(torch.nn.Module):
    """An encoder of pictures and one of graphs: their embeddings side by side."""

    def __init__(self, parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self.names = sum((part.names for part in parts), ())
        self.inputs = sum((part.inputs for part in parts), ())

    @property
    def arch(self):
        """What makes the function of each."""
        return [part.arch for part in self.parts]

    @property
    def width(self):
        """How many numbers an embedding has."""
        return sum(part.width for part in self.parts)

    def facts(self):
        """Return what a model.onnx says of them."""
        return self.parts[0].facts() | self.parts[1].facts()

    def embed(self, given):
        """Return the embeddings of pictures and graphs, {name: tensor}."""
        return torch.cat([part.embed(given) for part in self.parts], 1)


def joined(parts):
    """Return a list of encoders as one: None of none."""
    return Both(parts) if len(parts) > 1 else next(iter(parts), None)


def parts_of(encoder):
    """Return the encoders, of one kind each, that an encoder is made of."""
    return list(encoder.parts) if isinstance(encoder, Both) else [encoder]


def load_encoders(init, graph, seed=0):
    """Return the encoder of --init ("none": without) and --graph (None: without), or None.

    Raises click.ClickException.
    """
    parts = [] if init == "none" else [load_encoder(init, seed)]
    return joined(parts if graph is None else [*parts, load_graph_encoder(graph, seed)])


def load_graph_encoder(path, seed=0):
    """Return the GraphEncoder of an aligned.pt or of a run's model.pt; "none": an untrained one.

    Raises click.ClickException.
    """
    if path == "none":
        torch.manual_seed(seed)
        return GraphEncoder(UNTRAINED)
    if not Path(path).is_file():
        raise click.ClickException(
            f"--graph {path}: no such file; make one with align.py, or take none, untrained weights"
        )
    checkpoint = load_checkpoint(path)
    if "graph" in checkpoint:
        return restore_graph_encoder(checkpoint["graph"], path)
    arch, weights = checkpoint.get("arch"), checkpoint.get("model")
    if not isinstance(arch, dict) or "graph" not in arch or not isinstance(weights, dict):
        raise click.ClickException(
            f"--graph {path}: holds no graph encoder; give an aligned.pt of align.py, or the "
            "model.pt of a run of finetune.py with --features graph"
        )
    own = {name[4:]: value for name, value in weights.items() if name.startswith("gin.")}
    return restore_graph_encoder({"arch": arch["graph"], "weights": own}, path)


def restore_graph_encoder(entry, path):
    """Return the GraphEncoder of {"arch", "weights"}. Raises click.ClickException."""
    try:
        encoder = GraphEncoder(entry["arch"])
        encoder.gin.load_state_dict({name: w.float() for name, w in entry["weights"].items()})
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise click.ClickException(
            f"{path}: its graph encoder is damaged ({one_line(error)})"
        ) from None
    return encoder


def entries(encoder):
    """Return what model.pt holds of an encoder, as `restore_encoders` reads it; {} of None."""
    found = {}
    for part in parts_of(encoder) if encoder is not None else ():
        if isinstance(part, Encoder):
            found |= {"encoder": part.visual.state_dict(), "arch": part.arch}
        else:
            found["graph"] = {"arch": part.arch, "weights": part.gin.state_dict()}
    return found


def restore_encoders(checkpoint, path):
    """Return the encoder of a model.pt, None of fingerprints alone. Raises click.ClickException."""
    parts = []
    if "encoder" in checkpoint or not checkpoint.keys() & {"graph", "heads"}:
        parts.append(restore_encoder(checkpoint, path))
    if "graph" in checkpoint:
        parts.append(restore_graph_encoder(checkpoint["graph"], path))
    return joined(parts)


class GraphEmbedder:
    """What Embedder is for pictures, for graphs: nothing is random here, and all fits into memory.

    A batch is an array of Graph; features are fp32 (n, width).
    """

    def __init__(self, encoder, device, dtype=None):
        self.encoder, self.device, self.dtype = encoder, device, dtype

    def plain(self):
        """Return one that has all of a GPU's precision."""
        return GraphEmbedder(self.encoder, self.device)

    def batch(self, graphs):
        """Return a batch of a list of Graph."""
        found = np.empty(len(graphs), object)
        for i, graph in enumerate(graphs):
            found[i] = graph
        return found

    def micro_batches(self, batch, random):
        """Return index arrays that cut a batch into slices."""
        return np.array_split(np.arange(len(batch)), -(-len(batch) // AT_ONCE))

    def embed(self, batch, random):
        """Return the features of a batch."""
        arrays = [torch.from_numpy(array).to(self.device) for array in join(list(batch))]
        with autocast(self.device, self.dtype):
            return self.encoder(*arrays).float()

    def embed_batch(self, batch, random):
        """Return the features of a batch of any size."""
        return torch.cat([self.embed(batch[p], None) for p in self.micro_batches(batch, None)])


def embedder_of(encoder, device, dtype=None, level="none", most=1024):
    """Return what embeds batches by an encoder of one kind, `most` pictures at once."""
    if isinstance(encoder, GraphEncoder):
        return GraphEmbedder(encoder, device, dtype)
    micro_batch = min(most, fitting_batch(encoder.arch, device, dtype))
    return Embedder(encoder, device, dtype, level, micro_batch)
