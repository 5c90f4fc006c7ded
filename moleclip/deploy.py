"""The model as one ONNX file has it: one run's or several', in fp32 or with encoders in fp16."""

import copy
import logging
import warnings

import click
import numpy as np
import onnx
import torch

from moleclip.calibration import pooled
from moleclip.encoders import parts_of
from moleclip.model import FrozenModel, load_model, same_encoder, same_weights, why_unlike
from moleclip.molecules import MAX_ATOMS
from moleclip.pixels import SIZE
from moleclip.session import INPUTS, feed

OPSET = 20
BESIDE = {"ecfp": "fingerprint", "protein": "protein"}  # inputs of what heads look at


class Deployed(torch.nn.Module):
    """What molecules are given as, by `inputs`, to the outputs in `names`, float32.

    Inputs: those of the encoders, images, uint8 RGB (n, 224, 224, 3), the fields of Graphs, or
    both; fingerprint, ECFP counts, uint8 (n, 2048), and protein, float32 (n, width), where a head
    looks at them. proteins: examples of those, float32 (k, width). models: a Model or FrozenModel
    each, with one encoder object where their encoders are the same; tasks: one for each model.

    With `ensemble`, prediction (n, targets) is the members' mean; spread (n, targets) their
    standard deviation, with their own spreads in it where they have such (the standard deviation of
    the members' mixture). Otherwise embedding (n, width), and prediction (n, all targets), the
    models' columns side by side, spread likewise, 0 where a model has none; without models the
    embedding alone. prediction_picture and spread_picture are for pictures without a fingerprint.
    """

    def __init__(self, encoders, models=(), tasks=(), ensemble=False):
        super().__init__()
        encoders = [encoder for encoder in encoders if encoder is not None]
        self.encoders, self.models = torch.nn.ModuleList(encoders), torch.nn.ModuleList(models)
        self.tasks, self.ensemble = list(tasks), ensemble
        frozen = [model for model in models if isinstance(model, FrozenModel)]
        uses = {kind for model in frozen for kind in model.head.uses}
        taken = {name for encoder in encoders for name in encoder.inputs}
        taken |= {name for kind, name in BESIDE.items() if kind in uses}
        self.proteins = None
        self.inputs = [name for name in INPUTS if name in taken]
        self.names = ["embedding"] * bool(encoders and not ensemble) + ["prediction"] * bool(models)
        self.names += ["spread"] * bool(ensemble or frozen)
        if self.inputs == ["images", "fingerprint"]:
            self.names += ["prediction_picture", "spread_picture"]

    def forward(self, *tensors):
        """Return one tensor for each of `names`, of one for each of `inputs`."""
        given = dict(zip(self.inputs, tensors))
        embeddings = [encoder.embed(given) for encoder in self.encoders] or [None]
        told = []
        for i, (model, task) in enumerate(zip(self.models, self.tasks)):
            embedding = embeddings[i % len(embeddings)]  # one for all, or one for each
            beside = given.get("fingerprint"), task, given.get("protein")
            told.append(model.told(embedding, *beside))
        found = {"embedding": embeddings[0]}
        for end in ("", "_picture") if told else ():
            means = [each.get(f"prediction{end}", each["prediction"]) for each in told]
            spreads = [each.get(f"spread{end}", each.get("spread")) for each in told]
            found[f"prediction{end}"], found[f"spread{end}"] = self.united(means, spreads)
        return tuple(found[name] for name in self.names)

    def united(self, means, spreads):
        """Return (prediction, spread) of all models', an ensemble's or side by side."""
        if not self.ensemble:
            own = [torch.zeros_like(m) if s is None else s for m, s in zip(means, spreads)]
            return torch.cat(means, 1), torch.cat(own, 1)
        members = torch.stack(means)
        spread = members.std(0, correction=0)
        if all(each is not None for each in spreads):
            spread = (spread**2 + (torch.stack(spreads) ** 2).mean(0)).sqrt()
        return members.mean(0), spread

    def scale(self):
        """Return what differences in each column of `prediction` are measured by, float32."""
        scales = []
        for model, task in zip(self.models, self.tasks):
            std = model.label_std
            scales.append(torch.ones_like(std) if task == "classification" else std)
        if not scales:
            return np.ones(0, np.float32)
        return (torch.stack(scales).mean(0) if self.ensemble else torch.cat(scales)).numpy()


def traced(module, examples, inputs, outputs, sizes):
    """Return the ONNX model of a module, by example tensors.

    inputs, outputs: names; sizes: of each input {axis: torch.export.Dim} of what may be any.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            module,
            tuple(examples),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
            input_names=inputs,
            output_names=[f"output.{name}" for name in outputs],
            dynamic_shapes=sizes,
        )
    return renamed(program.model_proto, outputs)


def renamed(model, outputs):
    """Return an ONNX model whose outputs have their names; a value inside may have had one, too."""
    names = {n: f"inner.{n}" for n in outputs} | {f"output.{n}": n for n in outputs}
    for node in model.graph.node:
        del node.metadata_props[:]  # where the machine's files lie, and who called whom
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    return model


def save_onnx(model, path, props):
    """Write an ONNX model with its metadata, {name: text}, and check the file."""
    onnx.helper.set_model_props(model, props)
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


class CastToHalf(torch.nn.Module):
    """A layer whose input is cast to fp16, as CLIP casts its pixels."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        """Return what the layer makes of x in fp16."""
        return self.inner(x.half())


def to_fp16(deployed):
    """Return a copy with its encoders of pictures in fp16 by CLIP's own rules.

    LayerNorm computes in fp32; the heads stay fp32, for they cost nothing.
    """
    from clip.model import convert_weights  # loaded long since, by encoder.py

    deployed = copy.deepcopy(deployed)
    parts = [part for encoder in deployed.encoders for part in parts_of(encoder)]
    for encoder in (part for part in parts if part.names == ("picture",)):
        convert_weights(encoder)
        visual = encoder.visual
        # CLIP casts it before it adds.
        visual.positional_embedding.data = visual.positional_embedding.data.half()
        visual.conv1 = CastToHalf(visual.conv1)
    return deployed


def combine(paths, force=False):
    """Return (Deployed, [checkpoint, ...]) of model.pt files: heads on one encoder, or an ensemble.

    Raises click.ClickException for models that can't be one file.
    """
    models, checkpoints = zip(*(load_model(path) for path in paths))
    check_drawings(paths, checkpoints)
    check_distinct(paths, models, checkpoints)
    check_alone(paths, models)
    shared = all(same_encoder(model.encoder, models[0].encoder) for model in models)
    for model in models if shared else ():
        model.encoder = models[0].encoder
    predicts = [(checkpoint["targets"], checkpoint["task"]) for checkpoint in checkpoints]
    ensemble = len(models) > 1 and all(what == predicts[0] for what in predicts)
    if ensemble:
        check_ensemble(paths, checkpoints, force)
    else:
        check_heads(checkpoints, shared)
    encoders = [model.encoder for model in models[: 1 if shared else None]]
    tasks = [checkpoint["task"] for checkpoint in checkpoints]
    deployed = Deployed(encoders, models, tasks, ensemble).eval()
    deployed.proteins = checkpoints[0].get("protein", {}).get("examples")
    return deployed, checkpoints


def check_drawings(paths, checkpoints):
    """Raise click.ClickException if the models learned from different drawings or proteins."""
    first, known = drawing(checkpoints[0]), checkpoints[0].get("protein", {}).get("facts")
    for path, checkpoint in zip(paths, checkpoints):
        if checkpoint.get("protein", {}).get("facts") != known:
            says = "look at different features of proteins, or one at none"
            raise click.ClickException(f"{paths[0]} and {path} {says}; export them separately")
        if drawing(checkpoint) != first:
            raise click.ClickException(
                f"{path}: was trained on other drawings ({drawing(checkpoint)}) "
                f"than {paths[0]} ({first}); export them separately"
            )


def check_distinct(paths, models, checkpoints):
    """Raise click.ClickException if a model is given twice."""
    entries = list(zip(paths, models, checkpoints))
    for i, (path, model, checkpoint) in enumerate(entries):
        for before, other, known in entries[:i]:
            if (
                checkpoint["targets"] == known["targets"]
                and same_encoder(model.encoder, other.encoder)
                and same_weights(model, other)
            ):
                raise click.ClickException(
                    f"{path} and {before} hold the same model (a run folder's model.pt is a copy "
                    "of its best seed's); give each once"
                )


def check_alone(paths, models):
    """Raise click.ClickException if some of the models look at fingerprints alone, and not all."""
    alone = [model.encoder is None for model in models]
    if any(alone) and not all(alone):
        one, other = paths[alone.index(True)], paths[alone.index(False)]
        says = f"looks at fingerprints alone, and {other} has an encoder"
        raise click.ClickException(f"{one}: {says}; export them separately")


def check_ensemble(paths, checkpoints, force):
    """Raise click.ClickException if these models predict different things; warn if forced."""
    for path, checkpoint in zip(paths[1:], checkpoints[1:]):
        why = why_unlike(checkpoints[0], checkpoint)
        said = f"{paths[0]} and {path} predict {', '.join(checkpoint['targets'])}, but {why}"
        if why and not force:
            raise click.ClickException(f"{said}; export each alone, or --force to take their mean")
        if why:
            click.echo(f"warning: {said}", err=True)


def check_heads(checkpoints, shared):
    """Raise click.ClickException if these are no heads, of different targets, on one encoder."""
    names = [name for checkpoint in checkpoints for name in checkpoint["targets"]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise click.ClickException(
            f"target {twice!r} stands in several of these runs, beside other targets or with "
            "another task; an ensemble needs the same targets in every run, one file of several "
            "heads each target once"
        )
    if not shared:
        raise click.ClickException(
            "these runs have different targets and different encoders; export them separately "
            "(only heads on one frozen encoder share a file)"
        )


def drawing(checkpoint):
    """Return how a model's molecules were drawn, as predict.py has to draw them."""
    config = checkpoint["config"] if checkpoint else {}
    return {
        "size": SIZE,
        "max_atoms": config.get("max_atoms", MAX_ATOMS),
        "r_groups": config.get("r_groups", False),
    }


def intervals_of(deployed, checkpoints):
    """Return for each target its conformal scores and their unit, or None, as metadata has them.

    An ensemble's are its members' taken together, where each has a spread of its own.
    """
    lists = []
    for checkpoint in checkpoints:
        known, none = checkpoint.get("intervals") or {}, [[]] * len(checkpoint["targets"])
        scores = known.get("scores", none)
        lists.append((scores, known.get("picture", scores), known.get("normalised", False)))
    if deployed.ensemble and checkpoints:
        own = all(normalised for _, _, normalised in lists)
        joined = [pooled([each[i] for each in lists]) for i in (0, 1)] if own else ([], [])
        lists = [(*joined, own)]
    found = []
    for scores, picture, normalised in lists:
        for one, other in zip(scores, picture):
            entry = {"scores": one, "picture": other, "normalised": normalised}
            found.append(entry if one else None)
    return found if any(found) else None


def learned_parts(checkpoint):
    """Return the parts of the split that a model learned from: train, or train and val."""
    kinds = [state["kind"] for state in checkpoint.get("heads", ())]
    return ("train", "val") if kinds and kinds[0] != "mlp" else ("train",)


def as_tensors(deployed, given):
    """Return what a model is given of Features, by its inputs; of proteins its own examples."""
    counts = np.stack([each.counts for each in given])
    graphs = [each.graph for each in given]
    proteins = deployed.proteins
    if proteins is not None:
        proteins = proteins.numpy()[np.arange(len(given)) % len(proteins)]
    arrays = feed(deployed.inputs, [each.streams[0] for each in given], counts, graphs, proteins)
    return [torch.from_numpy(arrays[name]) for name in deployed.inputs]
