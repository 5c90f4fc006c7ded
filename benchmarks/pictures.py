"""How well are pictures by other programs read? ESOL's test molecules, drawn by six of them.

    python benchmarks/pictures.py               # 10 minutes on 2 cores; writes results/pictures.csv
    python benchmarks/pictures.py --seeds 1

The MLP on the bundled encoder's pictures alone, by the runs of benchmarks/accuracy.py (frozen),
which are made where they are not there. Each seed's model is exported, and predict.py asked for the
test molecules by SMILES and by pictures: RDKit's own plain drawing, in black and white, and in ACS
style; Indigo, with rings as it has them of SMILES (circles) and as single and double bonds; Open
Babel; PIKAChU. These have an environment of their own, benchmarks/runs/pictures/venv, which this
makes. MAE against the measured values, the mean over seeds; and how far the prediction by picture
is from that by SMILES, the median over molecules. What a program can't draw, or predict.py refuses,
is counted and left out. Beside them pieces of two photographs (scikit-learn's), plots and pages of
text: of all, which part predict.py notes as unlike a drawing of a molecule.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import accuracy
import click
import numpy as np
from likeness import INIT, encoder
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D
from record import ROOT, RUNS, read_csv, record
from sklearn.datasets import load_sample_images

import export
import predict
from moleclip.files import save_table
from moleclip.molecules import parse

FOLDER = RUNS / "pictures"
OTHERS = ("epam.indigo==1.46.0", "openbabel-wheel==3.1.1.23", "pikachu-chem==1.1.6", "cairosvg")
SIDE = 600  # pixels
ACS = "RDKit, ACS style"
OURS = ("RDKit, as render.py", "RDKit, black and white", ACS)
THEIRS = ("Indigo, circles", "Indigo", "Open Babel", "PIKAChU")
NONE = ("photographs", "plots", "text")  # no drawings
PIECES = 80  # of each of these
# What draws with the others: in their environment, the molecules from a JSON file.
DRAW = """
import json, sys
import cairosvg
from indigo import Indigo
from indigo.renderer import IndigoRenderer
from openbabel import pybel
from pikachu.general import png_from_smiles

folder, side = sys.argv[1], int(sys.argv[2])
indigo = Indigo()
renderer = IndigoRenderer(indigo)
indigo.setOption("render-output-format", "png")
indigo.setOption("render-image-width", side)
indigo.setOption("render-image-height", side)
indigo.setOption("render-background-color", 1.0, 1.0, 1.0)

def by_indigo(smiles, path, circles=False):
    molecule = indigo.loadMolecule(smiles)
    if not circles:
        molecule.dearomatize()
    molecule.layout()
    renderer.renderToFile(molecule, path)

def by_open_babel(smiles, path):
    svg = pybel.readstring("smi", smiles).write("svg").encode()
    cairosvg.svg2png(svg, write_to=path, output_width=side)

ways = {"Indigo, circles": lambda *given: by_indigo(*given, circles=True), "Indigo": by_indigo}
ways |= {"Open Babel": by_open_babel, "PIKAChU": png_from_smiles}
for i, (smiles, kekule) in enumerate(json.load(open(f"{folder}/smiles.json"))):
    for name, way in ways.items():
        try:
            way(kekule if name == "PIKAChU" else smiles, f"{folder}/{name}/{i}.png")
        except Exception as error:
            print(f"{name}: {smiles}: {str(error)[:80]}", file=sys.stderr)
"""


def environment():
    """Return the Python of the other programs' environment, made if it isn't there."""
    venv, ready = FOLDER / "venv", FOLDER / "venv" / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "--quiet", *OTHERS], check=True)
        ready.touch()
    return venv / "bin" / "python"


def draw_by_rdkit(path, smiles, how):
    """Write RDKit's drawing of a SMILES, in one of the ways of OURS, as a PNG."""
    molecule = rdMolDraw2D.PrepareMolForDrawing(parse(smiles))
    drawer = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    if how == OURS[1]:
        drawer.drawOptions().useBWAtomPalette()
    if how == ACS:
        drawer = rdMolDraw2D.MolDraw2DCairo(-1, -1)
        rdMolDraw2D.DrawMoleculeACS1996(drawer, molecule)
    else:
        drawer.DrawMolecule(molecule)
    drawer.FinishDrawing()
    path.write_bytes(drawer.GetDrawingText())


def draw_all(folder, smiles):
    """Write each program's drawings of some SMILES into a folder of its name, 0.png and so on."""
    for name in (*OURS, *THEIRS):
        (folder / name).mkdir(exist_ok=True)
    for how in OURS:
        for i, each in enumerate(smiles):
            draw_by_rdkit(folder / how / f"{i}.png", each, how)
    # PIKAChU takes no aromatic letters beside single bonds, as in biphenyls
    kekule = [Chem.MolToSmiles(parse(each), kekuleSmiles=True) for each in smiles]
    (folder / "smiles.json").write_text(json.dumps(list(zip(smiles, kekule))))
    words = [environment(), "-c", DRAW, folder, SIDE]
    subprocess.run([*map(str, words)], check=True, stdout=subprocess.DEVNULL)


def write_others(folder):
    """Write PIECES of photographs, plots and pages of text, what is no drawing, into folders."""
    random, words = np.random.default_rng(0), (ROOT / "docs" / "method.md").read_text().split()
    photographs = load_sample_images().images
    for name in NONE:
        (folder / name).mkdir()
    for i in range(PIECES):
        whole, side = photographs[i % 2], random.integers(150, 400)
        top, left = (random.integers(length - side) for length in whole.shape[:2])
        piece = Image.fromarray(whole[top : top + side, left : left + side])
        piece.save(folder / NONE[0] / f"{i}.png")
        plot(folder / NONE[1] / f"{i}.png", i, random)
        page, font = Image.new("RGB", (400, 300), "white"), ImageFont.load_default(size=14 + i % 20)
        start = random.integers(len(words) - 40)
        lines = [" ".join(words[start + 5 * k : start + 5 * k + 5]) for k in range(1 + i % 8)]
        ImageDraw.Draw(page).text((8, 8), "\n".join(lines), fill="black", font=font)
        page.save(folder / NONE[2] / f"{i}.png")


def plot(path, i, random):
    """Write a plot of one of four kinds: lines, points, bars, a line without axes."""
    figure = Figure(figsize=(4, 3))
    axes, x = figure.subplots(), np.linspace(0, 10, 100)
    if i % 4 == 0:
        axes.plot(x, np.sin(3 * x * random.random()))
        axes.set(title="signal", xlabel="time (s)")
    elif i % 4 == 1:
        axes.scatter(*random.normal(size=(2, 50)))
    elif i % 4 == 2:
        axes.bar(range(5), random.random(5))
    else:
        axes.plot(x, random.random(100).cumsum(), color="black")
        axes.axis("off")
    figure.savefig(path)


def predicted(model, source, target, count):
    """Return (numbers, notes) of predict.py for a file or a folder of 0.png and so on, (count,).

    NaN where it has an error, or where there is no picture.
    """
    out, found = Path(f"{source}.predicted.csv"), np.full((2, count), np.nan)
    words = [str(model), str(source), "-o", str(out), "--provider", "cpu"]
    predict.main.main(words, standalone_mode=False)
    for line in read_csv(out):
        place = int(Path(line["name"]).stem if source.is_dir() else line["row"])
        found[:, place] = float(line[target] or "nan"), "unlike a drawing" in line["note"]
    return found


def told(folder, run):
    """Return ({program: (numbers, notes)}, truth (n,)) of one seed's test molecules.

    Among them "SMILES", and what is no drawing.
    """
    lines = [line for line in read_csv(run / "predictions.csv") if line["split"] == "test"]
    smiles, target = [line["smiles"] for line in lines], "log_solubility"
    save_table(folder / "SMILES.csv", ["smiles"], [[each] for each in smiles])
    draw_all(folder, smiles)
    write_others(folder)
    model, names = folder / "model.onnx", (*OURS, *THEIRS)
    export.main.main([str(run), "-o", str(model)], standalone_mode=False)
    found = {"SMILES": predicted(model, folder / "SMILES.csv", target, len(lines))}
    found |= {name: predicted(model, folder / name, target, len(lines)) for name in names}
    found |= {name: predicted(model, folder / name, target, PIECES) for name in NONE}
    return found, np.array([float(line[f"true_{target}"]) for line in lines])


def row_of(name, seeds):
    """Return the table's row of a program, or of what is no drawing. seeds: of `told`."""
    errors, away, noted, left = [], [], [], []
    for found, truth in seeds:
        (values, unlike), plain = found[name], found["SMILES"][0]
        known = ~np.isnan(values)
        left.append((~known).sum())
        noted.append(unlike[known].mean())
        if name not in NONE:
            errors.append(np.abs(values - truth)[known].mean())
            away.append(np.abs(values - plain)[known])
    row = {"drawn by": name, "MAE": "", "from SMILES, median": ""}
    if name not in NONE:
        row |= {"MAE": f"{np.mean(errors):.4g}"}
        row |= {"from SMILES, median": f"{np.median(np.concatenate(away)):.4g}"}
    row |= {"unlike": f"{np.mean(noted):.4g}", "left out": int(max(left))}
    return row | {"seeds": len(seeds), "pictures": len(values), "init": encoder()}


@click.command(help=__doc__)
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds of training.")
def main(seeds):
    cell = accuracy.Cell("sets", "esol", "", "frozen", INIT, INIT, seeds, "1e-5", False)
    accuracy.finetuned(cell)
    found = []
    for seed in seeds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found.append(told(Path(folder), cell.folder / f"seed-{seed}"))
    names = ("SMILES", *OURS, *THEIRS, *NONE)
    record("pictures", [row_of(name, found) for name in names], ("torch", "rdkit"))


if __name__ == "__main__":
    main()
