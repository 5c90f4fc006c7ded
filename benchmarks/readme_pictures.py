"""Make the pictures of README.md and docs/: benchmarks/results/*.png.

python benchmarks/readme_pictures.py      # seconds
"""

import numpy as np
import torch
from PIL import Image
from record import RESULTS, ROOT

from moleclip.augment import augment
from moleclip.drawing import draw, layout
from moleclip.encoder import Encoder, new_arch
from moleclip.molecules import parse, replace_terminals
from moleclip.movement import N_UNIFORMS
from moleclip.pixels import SIZE, to_rgb
from moleclip.styles import Style, random_style

DRUGS = {
    "acetaminophen": "CC(=O)Nc1ccc(O)cc1",
    "haloperidol": "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O",
}
PLAIN = Style()
UNSEEN, GRID = np.uint8([188, 196, 208]), np.uint8([172, 181, 194])


def rgb(smiles, style=PLAIN, r_groups=False):
    """Return a drawing, uint8 (224, 224, 3)."""
    molecule = parse(smiles)
    molecule = replace_terminals(molecule) if r_groups else molecule
    return to_rgb(draw(layout(molecule), style))


def as_pixels(picture):
    """Return an RGB picture as a batch of float pixels, (1, 3, 224, 224) in 0..1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def save(name, rows):
    """Write rows of pictures as one PNG."""
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows]))
    path = RESULTS / name
    sheet.quantize(48).save(path, optimize=True)
    print(path.relative_to(ROOT))


def views(row, smiles, count=4):
    """Return a plain drawing and others in random styles."""
    styles = [PLAIN] + [random_style(3, row, view) for view in range(1, count)]
    return [rgb(smiles, style) for style in styles]


def augmented(smiles, level, count=4):
    """Return `count` augmentations of one drawing, each uint8 (224, 224, 3)."""
    pixels = as_pixels(rgb(smiles)).expand(count, -1, -1, -1)
    result, _ = augment(pixels, level, np.random.default_rng(1).random((count, N_UNIFORMS)))
    return list((255 * result).round().byte().permute(0, 2, 3, 1).numpy())


def kept_patches(smiles, size=16):
    """Return a drawing whose patches without ink, which are never looked at, are shaded."""
    picture = rgb(smiles)
    inked = Encoder(new_arch(64, 1, 1)).ink_mask(as_pixels(picture))
    inked = inked.view(SIZE // size, -1).numpy()
    cells = np.kron(inked, np.ones((size, size), bool))[..., None]
    edge = np.arange(SIZE) % size == 0
    lines = (edge[:, None] | edge[None])[..., None]
    print(f"{smiles}: {inked.sum()} of {inked.size} patches have ink")
    shaded = np.where(cells, picture, UNSEEN)
    return np.where(lines & ~cells, GRID, shaded).astype(np.uint8)


def main():
    haloperidol = DRUGS["haloperidol"]
    save("views.png", [views(row, smiles) for row, smiles in enumerate(DRUGS.values())])
    save("r_groups.png", [[rgb(haloperidol), rgb(haloperidol, r_groups=True)]])
    levels = ("none", "default", "intense")
    save("augment.png", [augmented(haloperidol, level) for level in levels])
    save("tokens.png", [[kept_patches(smiles) for smiles in DRUGS.values()]])


if __name__ == "__main__":
    main()
