"""Molecules and what they are asked for by, in one space: the model that align.py trains."""

import math

import click
import torch
from torch import nn
from torch.nn import functional as F

from moleclip.counted import JOINT, MAPPED, Counted
from moleclip.dense import DenseHeads
from moleclip.files import one_line
from moleclip.gin import Gin, Shifts
from moleclip.graphs import FRAGMENTS, fragment_counts, join
from moleclip.queries import Projection, new_query
from moleclip.spectra import MODALITIES
from moleclip.weights import load_checkpoint

DIM = 256  # of the shared space
CONTRASTS = ("acml", "infonce", "hinge")
COLDEST = 100  # the largest scale that is learned, as CLIP has it
MARGIN = 0.2  # of the hinge (MoMu)


class Aligned(nn.Module):
    """Graph encoder, the modality's encoder, a projection of each, and what else was learned.

    arch: {"modality", "contrast", "graph": of Gin, "shifts": bool, "query": of its encoder,
    "dense": of DenseHeads}; of texts also "beside", see counted.py, and "words", how many. Without
    a contrast, None, it has nothing to be asked by.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch, graph = arch, arch["graph"]
        self.gin = Gin(graph)
        self.shifts = Shifts(graph["width"]) if arch["shifts"] else None
        self.query = self.words = self.fragments = None
        self.dim = DIM
        if arch["contrast"]:
            self.add_query()
        dense = arch.get("dense")
        self.dense = DenseHeads(dense, graph["out"], graph["width"]) if dense else None

    def add_query(self):
        """Make the modality's side, and the space that both share."""
        arch = self.arch
        self.query, width = new_query(arch["modality"], arch.get("query"))
        # What a frozen encoder gives is standardised: pictures' features are nearly all alike.
        self.register_buffer("middle", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        beside = arch.get("beside") or ()
        more = MAPPED if "maps" in beside else 0
        self.of_graph = Projection(arch["graph"]["out"] + more, DIM)
        self.of_query = Projection(width + more, DIM)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if beside:
            self.words = Counted(arch["words"], width, beside)
            self.fragments = Counted(FRAGMENTS, arch["graph"]["out"], beside)
        if "cca" in beside:  # its share of a score
            self.register_buffer("share", torch.tensor(0.5))
            self.dim += JOINT

    def placed(self, features, counts, counted, projection):
        """Return a side's places in the shared space, float32 (n, dim).

        counts: what is counted there, or None; counted, projection: the side's.
        """
        known = features
        if counted is not None and counted.map is not None:
            features = torch.cat([features, counted.mapped(counts)], 1)
        place = projection(features)
        if self.arch["contrast"] != "acml":
            place = F.normalize(place, dim=1)
        if counted is None or counted.cca is None:
            return place
        both = (1 - self.share).sqrt() * place, self.share.sqrt() * counted.placed(counts, known)
        return torch.cat(both, 1)

    def told_apart(self, features):
        """Return what the modality's encoder gave, standardised, (n, width), and words."""
        known, words = features.tensor_split([len(self.middle)], 1)
        return (known - self.middle) / self.spread, words

    def placed_query(self, features):
        """Return the places of what the modality's encoder gave, (n, width), words behind it."""
        return self.placed(*self.told_apart(features), self.words, self.of_query)

    def molecules(self, *batch):
        """Return (places (n, dim), shifts in ppm (atoms, 2)) of a `batch`, either may be None."""
        features, atoms = self.gin(*batch[:5])
        told = self.shifts(atoms) if self.shifts is not None else None
        if self.query is None:
            return None, told
        return self.placed_molecules(features, *batch[5:]), told

    def placed_molecules(self, features, fragments=None):
        """Return the places of what the graph encoder gave, (n, out), and of counted fragments."""
        logs = None if fragments is None else (fragments.float() + 1).log()
        return self.placed(features, logs, self.fragments, self.of_graph)

    def batch(self, graphs, device):
        """Return what `molecules` takes of a list of Graph, a list of tensors."""
        arrays = [*join(graphs)]
        if self.fragments is not None:
            arrays.append(fragment_counts(graphs))
        return [torch.from_numpy(array).to(device) for array in arrays]

    def queries(self, given, words=None):
        """Return the places (n, dim) of what is asked for."""
        features = self.query(given)
        if words is not None:
            features = torch.cat([features, words], 1)
        return self.placed_query(features)

    def forward(self, atoms, bonds, kinds, owner, counts, given, fragments=None, words=None):
        """Return what the ONNX file returns: places of molecules and queries, and the shifts."""
        places, told = self.molecules(atoms, bonds, kinds, owner, counts, fragments)
        found = places, self.queries(given, words)
        return found if told is None else (*found, told)


def acml_loss(asked, molecules, temperature=1.0):
    """Return ACML's contrast of n pairs, (n, d) each, not normalised (JCIM 2025, its code).

    The targets are soft: the softmax of the mean similarity within both sides. They are not
    detached from the gradient.
    """
    logits = asked @ molecules.T / temperature
    alike = (asked @ asked.T + molecules @ molecules.T) / 2 * temperature
    targets = alike.softmax(1)
    rows = -(targets * logits.log_softmax(1)).sum(1)
    columns = -(targets.T * logits.T.log_softmax(1)).sum(1)
    return (rows + columns).mean() / 2


def hinge_loss(asked, molecules, group):
    """Return the hinge of the worst other, both ways, of n pairs, (n, d) each, normalised.

    mean of max(0, MARGIN + s_ij - s_ii) over its largest j, as MoMu finetunes. group: int64 (n,);
    what is of one group is not each other's negative.
    """
    scores = asked @ molecules.T
    right = scores.diagonal()
    others = scores.masked_fill(group[:, None] == group, -torch.inf)
    ways = [(MARGIN + others.max(axis)[0] - right).clamp(min=0).mean() for axis in (0, 1)]
    return sum(ways)


def padded(parts, blank):
    """Return 1-d tensors as the rows of one, float32 (n, longest), filled up with blank."""
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=blank)


def shift_loss(predicted, measured, beta):
    """Return the mean Huber distance, in units of beta, of predicted from measured shifts.

    Both: lists of float32 tensors, one for each molecule; unassigned. In order where their numbers
    agree, else from each to the nearest of the other list, both ways. A molecule that has none in
    one of the lists counts for nothing.
    """
    pairs = [pair for pair in zip(predicted, measured) if len(pair[0]) and len(pair[1])]
    equal = [pair for pair in pairs if len(pair[0]) == len(pair[1])]
    other = [pair for pair in pairs if len(pair[0]) != len(pair[1])]
    losses = []
    if equal:
        mine, theirs = (padded([part.sort()[0] for part in side], 0.0) for side in zip(*equal))
        lengths = torch.tensor([len(mine) for mine, _ in equal]).to(mine.device)
        losses.append(huber(mine - theirs, beta).sum(1) / lengths)
    for mine, theirs in other:
        gaps = (mine[:, None] - theirs).abs()
        nearest = torch.cat([gaps.min(1)[0], gaps.min(0)[0]])
        losses.append(huber(nearest, beta).mean()[None])
    return torch.cat(losses).mean() if losses else torch.zeros(())


def huber(gaps, beta):
    """Return Huber's losses of gaps, in units of beta."""
    return F.smooth_l1_loss(gaps / beta, torch.zeros_like(gaps), reduction="none")


def load_aligned(path):
    """Return (Aligned, checkpoint) of an aligned.pt. Raises click.ClickException."""
    checkpoint = load_checkpoint(path)
    try:
        arch = checkpoint["arch"]
        if arch["contrast"] and arch["modality"] not in MODALITIES:
            raise KeyError("modality")
        model = Aligned(arch)
        model.load_state_dict({name: w.float() for name, w in checkpoint["model"].items()})
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise click.ClickException(
            f"{path}: not an alignment that align.py made ({one_line(error)})"
        ) from None
    return model.eval(), checkpoint
