"""Make the README's pictures: python benchmarks/pictures.py writes benchmarks/results/*.png."""

import numpy as np
from PIL import Image
from record import ROOT

import render

DRUGS = {"acetaminophen": "CC(=O)Nc1ccc(O)cc1", "haloperidol": "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c3ccc(Cl)cc3", "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@]34C)[C@@H]1CC[C@@H]2O"}


def rgb(smiles, style=render.Style(), r_groups=False):
    molecule = render.parse(smiles)
    return render.to_rgb(render.draw(render.layout(render.replace_terminals(molecule) if r_groups else molecule), style))


def save(name, rows):
    path = ROOT / "benchmarks" / "results" / name
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows])).quantize(64).save(path, optimize=True)
    print(path.relative_to(ROOT))


save("views.png", [[rgb(smiles, render.random_style(3, row, view) if view else render.Style()) for view in range(4)]
                   for row, smiles in enumerate(DRUGS.values())])
save("r_groups.png", [[rgb(DRUGS["haloperidol"]), rgb(DRUGS["haloperidol"], r_groups=True)]])
