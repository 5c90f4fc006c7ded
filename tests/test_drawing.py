import hashlib
import itertools

import numpy as np
import pytest
from conftest import ROOT, first_lines, small_molecules
from drawn import ASPIRIN, DRUG, picture_of, rdkit_picture
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.drawing import (
    FONTS,
    PLAIN,
    Style,
    draw,
    draw_all,
    draw_views,
    draw_with_places,
    layout,
    random_style,
)
from moleclip.molecules import Rejected, parse, read_molecules, replace_terminals
from moleclip.pixels import ATOM_COLOURS, inflate, to_rgb


# 300 molecules in plain drawings, 26 of them too large; 100 in three views each: of RDKit 2026.9.1.
@pytest.mark.parametrize(
    "count, views, pictures, sha256",
    [
        (300, 1, 274, "ed27ba3798fd26e9ef4c5be86ec6c8117b0c3d8fef31f97034c483b9a0daedd5"),
        (100, 3, 267, "8f723e383dfc900b2541cfab2aeb66a3435b1d91c06c25740bceef577cee2b70"),
    ],
    ids=["plain", "styled"],
)
def test_drawings_stay_as_they_are_to_the_byte(count, views, pictures, sha256):
    molecules = itertools.islice(read_molecules(str(ROOT / "data" / "chembl_3000.smi")), count)
    digest, drawn = hashlib.sha256(), 0
    for _, result in draw_all(molecules, views=views, seed=5):
        for stream in [] if isinstance(result, Rejected) else result:
            digest.update(inflate(stream).tobytes())
            drawn += 1
    assert (drawn, digest.hexdigest()) == (pictures, sha256)


@pytest.mark.parametrize(
    "change",
    [
        {"line_width": 5},
        {"font_size": 24},
        {"bond_length": 20.0},
        {"multiple_bond_offset": 0.4},
        {"rotation": 75.0},
        {"font": "cmtt10.ttf"},
    ],
)
def test_each_of_the_six_options_changes_the_picture(change):
    plain, styled = picture_of(ASPIRIN), picture_of(ASPIRIN, PLAIN._replace(**change))
    assert (plain != styled).sum() > 50
    if "line_width" in change:
        assert (styled > 0).sum() > 1.3 * (plain > 0).sum()
    if "bond_length" in change:
        assert np.ptp(np.nonzero(styled)[1]) < 0.8 * np.ptp(np.nonzero(plain)[1])


def test_the_21_fonts_draw_21_pictures():
    pictures = {picture_of("NC(=O)CCl", Style(font_size=24, font=font)).tobytes() for font in FONTS}
    assert len(FONTS) == len(pictures) == 21


def test_random_styles_cover_their_ranges():
    styles = [random_style(7, row, 1) for row in range(400)]
    assert {s.line_width for s in styles} == {2, 3, 4, 5}
    assert {s.font_size for s in styles} == set(range(14, 25))
    assert {s.font for s in styles} == set(FONTS)
    for name, low, high in (
        ("bond_length", 20, 100),
        ("multiple_bond_offset", 0.1, 0.4),
        ("rotation", 0, 360),
    ):
        values = [getattr(s, name) for s in styles]
        edge = 0.05 * (high - low)
        assert low <= min(values) < low + edge and high - edge < max(values) <= high
    keys = ((7, 0, 1), (7, 0, 2), (7, 1, 1), (8, 0, 1))
    assert len({random_style(*key) for key in keys}) == 4


def test_r_groups_are_black_labels_where_colours_were():
    plain = layout(parse("OCC(F)(Cl)C(Br)(I)CS"))
    replaced = layout(replace_terminals(parse("OCC(F)(Cl)C(Br)(I)CS")))
    labels = sorted(
        atom.GetProp("_displayLabel")
        for atom in replaced.GetAtoms()
        if atom.HasProp("_displayLabel")
    )
    assert labels == ["R2", "R4", "R5", "R6", "R7", "R8"]
    colourful, black = (to_rgb(draw(molecule)).astype(int) for molecule in (plain, replaced))
    assert (np.ptp(colourful, -1) > 60).sum() > 200 and np.ptp(black, -1).max() <= 16
    canvas = rdMolDraw2D.MolDraw2DCairo(224, 224)
    canvas.drawOptions().prepareMolsBeforeDrawing = False
    canvas.DrawMolecule(replaced)
    for atom in replaced.GetAtoms():  # each label stands where its atom is
        if atom.GetAtomicNum() == 54:
            at = canvas.GetDrawCoords(atom.GetIdx())
            y, x = int(at.y), int(at.x)
            assert (black[y - 7 : y + 8, x - 7 : x + 8] < 128).sum() > 20


@pytest.mark.parametrize(
    "smiles",
    [
        "[Na+].[Cl-]",
        "C[N+](C)(C)C.[I-]",
        "[CH3]",
        "C[O]",
        "[O-][n+]1ccccc1",
        "Cl[Pt](Cl)(N)N",
        "C1=CC=C[CH-]1.C1=CC=C[CH-]1.[Fe+2]",
        "*c1ccccc1",
        "[Xe]",
        "[U]",
        "[2H]C",
        "[H][H]",
        "F[P-](F)(F)(F)(F)F",
        "CC(=O)O[Hg]c1ccccc1",
        "[13CH4]",
    ],
)
def test_salts_radicals_metals_and_rarities_are_drawn(smiles):
    off = np.abs(to_rgb(picture_of(smiles)).astype(int) - rdkit_picture(smiles))
    assert (picture_of(smiles) > 0).sum() > 10 and off.mean() <= 0.2


def test_two_spellings_one_picture():
    for smiles in small_molecules(12):
        plain = picture_of(smiles)
        for seed in range(3):
            molecule = Chem.MolFromSmiles(smiles)
            (other,) = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)
            assert (picture_of(other) == plain).all(), (smiles, other)


def test_a_large_molecule_costs_its_row(tmp_path):
    (tmp_path / "a.smi").write_text("C" * 151 + "\n" + "C" * 150 + "\n")
    first, second = [result for _, result in draw_all(read_molecules(str(tmp_path / "a.smi")), 1)]
    assert isinstance(first, Rejected) and isinstance(second, list)
    assert str(first) == "151 heavy atoms, more than --max-atoms 150"


@pytest.mark.parametrize("smiles", [b"[#119]", b"C\xe9C", b"CC>>CC", b"c1ccccc1" * 40])
def test_odd_smiles_cost_their_own_row(tmp_path, smiles):
    (tmp_path / "a.smi").write_bytes(b"CCO\n" + smiles + b"\nCCN\n")
    results = [result for _, result in draw_all(read_molecules(str(tmp_path / "a.smi")), 1)]
    assert isinstance(results[1], Rejected) and "crashed" not in str(results[1])
    assert isinstance(results[0], list) and isinstance(results[2], list)


STYLES = [PLAIN] + [random_style(0, row, 1) for row in range(12)]  # all turned, of all widths


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_the_ends_of_a_chain_lie_where_its_ink_ends(style):
    index, places = draw_with_places(layout(parse("CCCCCCC")), style, 7)
    y, x = np.nonzero(index)
    assert places.dtype == np.float16 and places.shape == (7, 2)
    for ink, there in ((x + 0.5, places[:, 0]), (y + 0.5, places[:, 1])):
        assert abs(ink.min() - there.min()) < 4 and abs(ink.max() - there.max()) < 4
    lengths = np.hypot(*np.diff(places.astype(float), axis=0).T)
    assert np.ptp(lengths) < 0.5 and lengths.min() > 15


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_each_heteroatom_lies_in_ink_of_its_colour(style):
    for smiles in (DRUG, "OCC(F)(Cl)C(Br)(I)CSCN", "CC1CCN(C2CCSCC2)CC1"):
        molecule = parse(smiles)
        index, places = draw_with_places(layout(molecule), style, molecule.GetNumAtoms())
        rgb = to_rgb(index).astype(int)
        for atom, (x, y) in zip(molecule.GetAtoms(), places.astype(float)):
            colour = ATOM_COLOURS[atom.GetAtomicNum()]
            ink = np.argwhere(np.abs(rgb - colour).max(-1) < 64) + 0.5  # y, x
            if atom.GetAtomicNum() != 6:
                assert np.hypot(*(ink - (y, x)).T).min() < 8, (smiles, atom.GetSymbol())
            if atom.GetSymbol() == "N" and atom.GetDegree() == 3:  # half bonds on all sides
                assert np.hypot(*(ink.mean(0) - (y, x))) < 4


def test_layout_only_appends_hydrogens():
    appended = 0
    for smiles in first_lines("chembl_3000.smi", 150):
        molecule = parse(smiles, 1000)
        drawn, count = layout(molecule), molecule.GetNumAtoms()
        numbers = [atom.GetAtomicNum() for atom in drawn.GetAtoms()]
        assert numbers[:count] == [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
        assert set(numbers[count:]) <= {1}
        for bond in molecule.GetBonds():
            assert drawn.GetBondBetweenAtoms(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        appended += len(numbers) - count
    assert appended > 20


def test_places_come_with_the_same_drawings():
    streams, places = draw_views(3, DRUG, views=3, seed=1, atoms=True)
    assert streams == draw_views(3, DRUG, views=3, seed=1)
    assert places.shape == (3, 26, 2) and places.dtype == np.float16
    assert np.isfinite(places).all() and places.min() > 0 and places.max() < 224
    # Another spelling: the atoms are those of `parse`.
    assert (draw_views(3, Chem.MolToSmiles(parse(DRUG)), 3, 1, atoms=True)[1] == places).all()


def test_atoms_hidden_under_a_label_have_no_place():
    smiles = Chem.CanonSmiles("OCC(F)(Cl)C(=O)CS")
    atoms = parse(smiles).GetAtoms()
    hidden = [atom.GetExplicitValence() == 1 for atom in atoms]  # not the ketone's oxygen
    _, places = draw_views(0, smiles, 2, r_groups=True, atoms=True)
    assert sum(hidden) == 4 and (np.isnan(places) == np.array(hidden)[:, None]).all()
