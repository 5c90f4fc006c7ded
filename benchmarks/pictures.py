"""Make the README's pictures: python benchmarks/pictures.py writes benchmarks/results/*.png."""

import numpy as np
import torch
from PIL import Image
from record import ROOT

from moleclip.augment import N_UNIFORMS, augment
from moleclip.drawing import Style, draw, layout, random_style
from moleclip.encoder import Encoder, new_arch
from moleclip.molecules import parse, replace_terminals
from moleclip.pixels import SIZE, to_rgb

DRUGS = {
    "acetaminophen": "CC(=O)Nc1ccc(O)cc1",
    "haloperidol": "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O",
}


def rgb(smiles, style=Style(), r_groups=False):
    molecule = parse(smiles)
    return to_rgb(draw(layout(replace_terminals(molecule) if r_groups else molecule), style))


def save(name, rows):
    path = ROOT / "benchmarks" / "results" / name
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows])).quantize(48).save(
        path, optimize=True
    )
    print(path.relative_to(ROOT))


def augmented(smiles, level, count=4):
    """Return `count` augmentations of one drawing, each uint8 (224, 224, 3)."""
    pixels = (
        torch.from_numpy(rgb(smiles)).permute(2, 0, 1)[None].expand(count, -1, -1, -1).float() / 255
    )
    result, _ = augment(pixels, level, np.random.default_rng(1).random((count, N_UNIFORMS)))
    return list((255 * result).round().byte().permute(0, 2, 3, 1).numpy())


def kept_patches(smiles, size=16):
    """Return a drawing with the patches that inked tokens never look at shaded, uint8 (224, 224, 3)."""
    picture = rgb(smiles)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    ink = Encoder(new_arch(64, 1, 1)).inked(pixels).view(SIZE // size, -1).numpy()
    cells = np.kron(ink, np.ones((size, size), bool))[..., None]
    lines = (np.arange(SIZE) % size == 0)[:, None] | (np.arange(SIZE) % size == 0)[None]
    picture = np.where(cells, picture, np.uint8([188, 196, 208]))
    print(f"{smiles}: {ink.sum()} of {ink.size} patches have ink")
    return np.where((lines[..., None] & ~cells), np.uint8([172, 181, 194]), picture).astype(
        np.uint8
    )


save(
    "views.png",
    [
        [rgb(smiles, random_style(3, row, view) if view else Style()) for view in range(4)]
        for row, smiles in enumerate(DRUGS.values())
    ],
)
save("r_groups.png", [[rgb(DRUGS["haloperidol"]), rgb(DRUGS["haloperidol"], r_groups=True)]])
save(
    "augment.png",
    [augmented(DRUGS["haloperidol"], level) for level in ("none", "default", "intense")],
)
save("tokens.png", [[kept_patches(smiles) for smiles in DRUGS.values()]])
