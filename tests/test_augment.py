import numpy as np
import pytest
import torch
from views import index_pictures

from moleclip.augment import augment
from moleclip.embedder import to_pixels
from moleclip.movement import N_UNIFORMS, moved_ink
from moleclip.weights import load_encoder


def test_augmentation_has_the_papers_meaning():
    pixels = to_pixels(np.concatenate(index_pictures(30)), "cpu").repeat(4, 1, 1, 1)
    random = np.random.default_rng(1).random((len(pixels), N_UNIFORMS))
    same, _ = augment(pixels, "none", None)
    assert same is pixels
    for level, gray, small in (("default", 0.25, 0.6), ("intense", 0.25, 0.5)):
        result, clean = augment(pixels, level, random)
        assert result.shape == pixels.shape and result.min() >= 0 and result.max() <= 1
        again, _ = augment(pixels[7:9], level, random[7:9])
        # an image's own numbers decide, not the slice it is in
        assert torch.equal(again, result[7:9])
        colours = (result.max(1).values - result.min(1).values).amax((1, 2))
        assert abs((colours < 1e-4).float().mean() - gray) < 0.13
        assert (result == 0).all(1).float().mean() > 0.0003
        assert (clean - pixels).abs().mean() > 0.005
        width = lambda x: (x < 0.9).any(1).any(1).float().sum(1)
        shrunk = (width(clean) / width(pixels))[torch.from_numpy(random[:, 6]) > 0.5]
        assert shrunk.min() > small - 0.08 and shrunk.max() < 1.25


@pytest.mark.parametrize("turned", [False, True])
def test_beyond_the_edge_of_a_picture_all_is_white(turned):
    """Ink that touches the edge ends there when the picture is made smaller, or turned."""
    index = np.full((4, 224, 224), 1, np.uint8)
    random = np.full((4, N_UNIFORMS), 0.99)  # chances that are not met
    random[:, 2:6], random[:, 6:8] = (0, 0.2, 0.4, 0.6), (0, 1 / 8) if turned else (0.99, 0)
    pixels = to_pixels(index, "cpu")
    clean = augment(pixels, "intense", random)[1]
    dark = (clean < 1).any(1).float().sum((1, 2))
    # a square of 224 pixels at the smallest size of 0.5 and a fifth of the way up, and its edge
    assert ((dark >= 134**2) & (dark <= 136**2)).all() or turned
    assert (dark <= 136**2).all() and (clean[:, :, 0] == 1).all() and (clean[:, :, -1] == 1).all()
    encoder = load_encoder("scratch:nano")
    counts = encoder.ink_mask(clean).sum(1).numpy()
    assert (moved_ink(index, "intense", random, 16) >= counts).all() and counts.max() < 110


def test_pictures_that_stay_are_not_changed_at_their_edge():
    index = np.random.default_rng(0).integers(0, 200, (3, 224, 224), dtype=np.uint8)
    random, pixels = np.full((3, N_UNIFORMS), 0.99), to_pixels(index, "cpu")
    assert torch.allclose(augment(pixels, "intense", random)[1], pixels, atol=2e-5)
    random[:, 0], black = 0, torch.zeros(3, 3, 224, 224)
    assert augment(black, "default", random)[1].max() < 1e-4  # seen in coarser pixels


def test_white_stays_white():
    random = np.random.default_rng(0).random((64, N_UNIFORMS))
    white = torch.ones(64, 3, 224, 224)
    for level in ("default", "intense"):
        assert (augment(white, level, random)[1] == 1).all()


def test_ink_is_counted_where_augmentation_moves_it():
    encoder, index = load_encoder("scratch:nano"), np.concatenate(index_pictures(24))
    random = np.random.default_rng(0).random((48, N_UNIFORMS))
    for level in ("none", "default", "intense"):  # shrinking moves ink from patch to patch
        clean = augment(to_pixels(index, "cpu"), level, random)[1]
        counts = encoder.ink_mask(clean).sum(1).numpy()
        more = moved_ink(index, level, random, 16) - counts
        assert more.min() == 0 and more.max() <= 4 and more.mean() < 0.015 * counts.mean()
