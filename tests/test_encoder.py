import functools

import click
import numpy as np
import pytest
import torch
from views import index_pictures, real_pixels

from moleclip.augment import augment
from moleclip.device import ALONE
from moleclip.embedder import Embedder, Places, to_pixels
from moleclip.movement import N_UNIFORMS
from moleclip.weights import load_encoder

CPU = torch.device("cpu")


def test_an_images_features_do_not_depend_on_its_neighbours():
    encoder = load_encoder("scratch:tiny").eval()
    drawn = index_pictures(6)[0]
    little, much, empty = drawn[0] * (np.arange(224) < 60), drawn.max(0), np.zeros_like(drawn[0])
    batch = np.stack([little, much, empty, drawn[1]])
    with torch.no_grad():
        together = encoder(to_pixels(batch, "cpu"))
        alone = torch.cat([encoder(to_pixels(one[None], "cpu")) for one in batch])
    assert torch.isfinite(together).all() and torch.allclose(together, alone, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_both_modes_are_the_towers_own_when_all_is_inked():
    """On a CPU both modes attend in another way than clip's tower."""
    encoder = load_encoder("scratch:nano").eval()
    pixels, ink = real_pixels(2), torch.ones(2, 196, dtype=torch.bool)
    tower = features_and_gradients(
        lambda pixels, ink: encoder.visual((pixels - encoder.mean) / encoder.std),
        *(encoder, pixels, ink),
    )
    for tokens in ("inked", "all"):
        encoder.arch["tokens"] = tokens
        mode = features_and_gradients(encoder, encoder, pixels, ink)
        for ours, whole in zip(mode, tower, strict=True):
            assert torch.allclose(ours, whole, atol=1e-5 * max(1, whole.abs().max()))


def features_and_gradients(see, encoder, pixels, ink):
    encoder.zero_grad()
    features = see(pixels, ink)
    features.square().sum().backward()
    with torch.no_grad():
        assert torch.allclose(see(pixels, ink), features, atol=1e-5)
    return [features.detach(), *(p.grad.clone() for p in encoder.parameters())]


def test_a_scratch_encoder_tells_molecules_apart():
    """With CLIP's pixel statistics it sees white paper alone: 0.02 here, and no loss ever falls."""
    with torch.no_grad():
        features = load_encoder("scratch:tiny")(real_pixels(8))
    assert (features - features.mean(0)).norm() / features.norm() > 0.05


@pytest.mark.parametrize("level", ["none", "default", "intense"])
def test_slices_hold_pictures_of_like_ink_after_augmentation(level):
    encoder, index = load_encoder("scratch:nano"), np.concatenate(index_pictures(24))
    random = np.random.default_rng(0).random((48, N_UNIFORMS))
    clean = augment(to_pixels(index, "cpu"), level, random)[1]
    counts = encoder.ink_mask(clean).sum(1).numpy()
    slices = Embedder(encoder, CPU, None, level, 8).micro_batches(index, random)
    assert sorted(np.concatenate(slices)) == list(range(48)) and max(map(len, slices)) == 8
    padded = sum(len(part) * counts[part].max() for part in slices)
    assert padded <= 1.02 * np.sort(counts).reshape(-1, 8).max(1).sum() * 8


def running_out(most):
    """An Embedder that runs out of memory with more pictures than `most`."""
    embedder = Embedder(load_encoder("scratch:nano"), CPU, None, "default", 24)
    embed = embedder.embed

    def limited(pictures, *words):
        if len(pictures) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return embed(pictures, *words)

    embedder.embed = limited
    return embedder


def gradient(embedder, index, random):
    embedder.encoder.zero_grad()
    with ALONE.agree():
        features, slices = embedder.embed_cached(index, random)
    features.square().sum().backward()
    with ALONE.agree():
        embedder.backward(index, random, features, slices)
    return torch.cat([p.grad.flatten() for p in embedder.encoder.parameters()])


def test_slices_get_smaller_while_memory_runs_out(capsys):
    index, random = np.concatenate(index_pictures(12)), np.random.default_rng(0).random((24, 16))
    whole, few = running_out(24), running_out(4)
    wanted = gradient(whole, index, random)
    found = few.fitting(ALONE, gradient, few, index, random)
    assert torch.allclose(found, wanted, atol=2e-6 * wanted.abs().max())
    assert whole.micro_batch == 24 and few.micro_batch == 3
    said = capsys.readouterr().out.splitlines()
    assert said == [f"out of memory: goes on with --micro-batch {n}" for n in (12, 6, 3)]


def test_no_memory_for_one_picture_is_said_in_a_line():
    none, index = running_out(0), index_pictures(2)[0]
    with pytest.raises(click.ClickException, match="out of memory even for one picture"):
        none.fitting(ALONE, gradient, none, index, np.zeros((2, N_UNIFORMS)))


def test_an_encoder_that_cant_be_compiled_is_used_as_it_is(monkeypatch, capsys):
    def failing(graph, inputs):
        raise OSError("no compiler here\nand more")

    compile_by = functools.partialmethod(torch.nn.Module.compile, backend=failing)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_by)
    monkeypatch.setattr("moleclip.encoder.unfused", lambda tensor: False)  # as on a GPU
    encoder, index = load_encoder("scratch:nano"), index_pictures(2)[0]
    encoder.arch["tokens"], embedder = "all", Embedder(encoder, CPU, None)
    with torch.no_grad():
        wanted = embedder.embed(index, None)
    try:
        embedder.compile(ALONE)
        with torch.no_grad():
            assert torch.equal(embedder.embed(index, None), wanted)
    finally:
        torch.compiler.set_stance("default")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "goes on without compiling" in said and "no compiler" in said
    assert all(p.grad is None for p in encoder.parameters())


def test_cached_features_give_the_gradient_of_one_pass():
    encoder = load_encoder("scratch:nano")
    index, random = np.concatenate(index_pictures(6)), np.random.default_rng(0).random((12, 16))
    found = []
    for micro_batch in (12, 5):
        encoder.zero_grad()
        embedder = Embedder(encoder, CPU, None, "default", micro_batch)
        features, slices = embedder.embed_cached(index, random)
        assert features.is_leaf and len(slices) == {12: 1, 5: 3}[micro_batch]
        assert {known.requires_grad for _, known in slices} == {micro_batch == 12}
        features.square().sum().backward()
        embedder.backward(index, random, features, slices)
        found.append([p.grad.clone() for p in encoder.parameters()])
    for whole, sliced in zip(*found, strict=True):
        assert torch.allclose(whole, sliced, atol=2e-6 * max(1, whole.abs().max()))


def test_atoms_are_read_where_they_are_drawn():
    """The four patches around a place, by their nearness, as in a grid of all patches."""
    encoder = load_encoder("scratch:nano").eval()
    encoder.add_pool()
    pixels, random = real_pixels(3), np.random.default_rng(0)
    xy = torch.from_numpy(random.uniform(0, 224, (40, 2))).float()
    xy[:3], owner = torch.nan, torch.arange(40) % 3
    with torch.no_grad():
        ink = encoder.ink_mask(pixels)
        features, told = encoder(pixels, None, xy, owner)
        first, patches, kept = encoder.encode_inked((pixels - encoder.mean) / encoder.std, ink)
        words = encoder.visual.ln_post(patches)
    grid = torch.zeros(3, 196, 64)
    for i in range(3):
        for patch, word in zip(kept[i], words[i]):
            grid[i, patch] = word * ink[i, patch]
    mean, total = grid.sum(1) / ink.sum(1, keepdim=True), grid.sum(1) / 64
    wanted = encoder.visual.ln_post(first) @ encoder.visual.proj
    wanted = wanted + torch.cat([mean, total], 1) @ encoder.visual.pool
    assert torch.allclose(features, wanted, atol=1e-4) and not told[:3].any()
    grid = grid.view(3, 14, 14, 64).permute(0, 3, 1, 2)
    for place, i, words in zip(xy[3:], owner[3:], told[3:]):
        at = (place / 112 - 1).view(1, 1, 1, 2)
        told = torch.nn.functional.grid_sample(
            grid[i : i + 1], at, "bilinear", "border", align_corners=False
        )
        assert torch.allclose(words[:64], told.flatten(), atol=1e-4)
        assert words[64].item() == pytest.approx(
            np.sin(np.pi * (place[0].item() / 16 % 1)), abs=1e-4
        )


@pytest.mark.parametrize("level", ["default", "intense"])
def test_atoms_move_with_their_pictures(level):
    """A dot on a sheet is found again where its place has moved to."""
    random = np.random.default_rng(1).random((24, N_UNIFORMS))
    random[:, 8:] = 0.999  # neither noise nor blur
    xy = np.random.default_rng(2).uniform(60, 164, (24, 2)).round().astype(np.float32)
    index = np.zeros((24, 224, 224), np.uint8)
    for picture, (x, y) in zip(index, xy.astype(int)):
        picture[y - 3 : y + 3, x - 3 : x + 3] = 18
    pixels = 1 - augment(to_pixels(index, "cpu"), level, random)[0][:, 0]
    places, owner = Places(np.ones(24, int), xy).moved(CPU, level, random)
    assert owner.tolist() == list(range(24)) and (places - torch.from_numpy(xy)).abs().max() > 5
    steps = torch.arange(224) + 0.5
    for sheet, place in zip(pixels, places):
        if place.isfinite().all() and sheet.sum() > 12:
            found = torch.stack([sheet.sum(0) @ steps, sheet.sum(1) @ steps]) / sheet.sum()
            assert (found - place).abs().max() < 1.5


def test_cached_atoms_give_the_gradient_of_one_pass():
    encoder = load_encoder("scratch:nano")
    index, random = np.concatenate(index_pictures(6)), np.random.default_rng(0).random((12, 16))
    counts = np.arange(12) % 5 + 1
    xy = np.random.default_rng(1).uniform(20, 200, (counts.sum(), 2)).astype(np.float32)
    found, places = [], Places(counts, xy)
    weight = torch.randn(counts.sum(), 96)
    for micro_batch in (12, 5):
        encoder.zero_grad()
        embedder = Embedder(encoder, CPU, None, "default", micro_batch)
        (features, told), slices = embedder.embed_cached(index, random, places)
        (features.square().sum() + (told * weight).sum()).backward()
        embedder.backward(index, random, (features, told), slices, places)
        found.append([told.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for whole, sliced in zip(*found, strict=True):
        assert torch.allclose(whole, sliced, atol=2e-6 * max(1, whole.abs().max()))
