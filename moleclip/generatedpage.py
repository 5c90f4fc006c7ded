"""The page of generated molecules: each beside the most alike of the library, with its scores."""

import re
from pathlib import Path

import numpy as np

from moleclip.files import save_whole
from moleclip.hitspage import told
from moleclip.molecules import Molecule
from moleclip.reportpage import draw_molecules

HEADS = ("rank", "made", "smiles", "score", "second score", "SA", "generation")
BESIDE = ("most alike in the library", "similarity", "row", "name")


def write_page(path, text, chosen, nearest, workers=None):
    """Write one page that needs no other file, and no script.

    text: what was asked for; chosen: a list of Made (generate.py); nearest: of each (Molecule,
    similarity).
    """
    smiles = [made.smiles for made in chosen] + [molecule.smiles for molecule, _ in nearest]
    molecules = [Molecule(i, 0, each) for i, each in enumerate(smiles)]
    images = draw_molecules(molecules, workers)
    heads = "".join(f"<th>{head}</th>" for head in (*HEADS, *BESIDE))
    rows = [
        row_of(rank, made, *near, images[rank - 1], images[len(chosen) + rank - 1])
        for rank, (made, near) in enumerate(zip(chosen, nearest), 1)
    ]
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    page = Path(__file__).with_name("hits.html").read_text(encoding="utf-8")
    facts = f"{len(chosen)} molecules that are in no row of the library, made of others of it"
    parts = {"TITLE": told(text), "FACTS": facts, "BODY": f'<div class="scroll">{body}</div>'}
    page = re.sub("|".join(parts), lambda found: parts[found[0]], page)
    save_whole(path, lambda name: name.write_text(page, encoding="utf-8"))


def row_of(rank, made, molecule, like, image, other):
    """Return the HTML of one molecule."""
    second = "" if np.isnan(made.second) else f"{made.second:.3f}"
    numbers = (f"{made.score:.3f}", second, f"{made.sa:.1f}", made.generation)
    cells = [f'<td class="number">{rank}</td>', f"<td>{picture(image, made.smiles)}</td>"]
    cells.append(f'<td class="smiles">{told(made.smiles)}</td>')
    cells += [f'<td class="number">{number}</td>' for number in numbers]
    cells.append(f"<td>{picture(other, molecule.smiles)}</td>")
    cells += [f'<td class="number">{like:.2f}</td>', f'<td class="number">{molecule.row}</td>']
    return f"<tr>{''.join(cells)}<td>{told(molecule.name)}</td></tr>"


def picture(image, smiles):
    """Return the HTML of a drawing, "" where there is none."""
    source = f"data:image/png;base64,{image}"
    return f'<img alt="{told(smiles)}" src="{source}">' if image else ""
