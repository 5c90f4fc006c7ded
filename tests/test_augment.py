import numpy as np
import torch
from views import index_pictures

from moleclip.augment import N_UNIFORMS, augment, moved_ink
from moleclip.encoder import to_pixels
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


def test_ink_is_counted_where_augmentation_moves_it():
    encoder, index = load_encoder("scratch:nano"), np.concatenate(index_pictures(24))
    random = np.random.default_rng(0).random((48, N_UNIFORMS))
    for level in ("none", "default", "intense"):  # shrinking moves ink from patch to patch
        clean = augment(to_pixels(index, "cpu"), level, random)[1]
        counts = encoder.ink_mask(clean).sum(1).numpy()
        assert np.abs(moved_ink(index, level, random, encoder) - counts).max() <= 2
