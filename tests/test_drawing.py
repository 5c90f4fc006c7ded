import hashlib
import itertools

import numpy as np
import pytest
from conftest import ROOT, first_lines, small_molecules
from drawn import ASPIRIN, DRUG, picture_of, rdkit_picture
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from moleclip.drawing import draw, draw_all, draw_views, draw_with_places, layout
from moleclip.molecules import Rejected, parse, read_molecules, replace_terminals
from moleclip.pixels import ATOM_COLOURS, inflate, to_rgb
from moleclip.styles import PLAIN, Layout, Style, random_style


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


STYLES = [PLAIN] + [random_style(0, row, 1) for row in range(8)]  # all turned, of all widths
STYLES += [
    PLAIN._replace(bond_length=20.0, margin=0.15, rotation=30.0, layout=Layout(mirrored=True)),
    Style(line_share=0.042, font_share=0.694, layout=Layout(coordgen=True), rotation=200.0),
    Style(line_share=0.13, font_share=0.5, layout=Layout(True, True), label_padding=0.1),
]


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_the_ends_of_a_chain_lie_where_its_ink_ends(style):
    index, places = draw_with_places(layout(parse("CCCCCCC"), style.layout), style, 7)
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
        index, places = draw_with_places(
            layout(molecule, style.layout), style, molecule.GetNumAtoms()
        )
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


def test_atoms_in_an_abbreviation_have_no_place():
    molecule = parse("COC(=O)[C@@H]1CC[C@H](C(F)(F)F)N1")
    style = PLAIN._replace(layout=Layout(abbreviated=True))
    drawn = layout(molecule, style.layout)
    index, places = draw_with_places(drawn, style, molecule.GetNumAtoms())
    labels = {a.GetProp("_displayLabel") for a in drawn.GetAtoms() if a.HasProp("_displayLabel")}
    assert labels == {"OMe", "CF<sub>3</sub>"} and drawn.GetNumHeavyAtoms() < 13
    hidden = molecule.GetSubstructMatches(Chem.MolFromSmarts("[$([CH3]O),$(O[CH3]),$(C(F)F),F]"))
    assert sorted(np.flatnonzero(np.isnan(places[:, 0]))) == sorted(i for (i,) in hidden)
    rgb = to_rgb(index).astype(int)  # the other atoms are where they are drawn
    for symbol, colour in (("O", ATOM_COLOURS[8]), ("N", ATOM_COLOURS[7])):
        ink = np.argwhere(np.abs(rgb - colour).max(-1) < 64) + 0.5
        for atom in molecule.GetAtoms():
            if atom.GetSymbol() == symbol and np.isfinite(places[atom.GetIdx(), 0]):
                assert np.hypot(*(ink - places[atom.GetIdx(), ::-1]).T).min() < 8


def chirality(drawn):
    """The SMILES that a drawing's wedges tell."""
    drawn = Chem.Mol(drawn)
    for atom in drawn.GetAtoms():
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    Chem.AssignChiralTypesFromBondDirs(drawn)
    for bond in drawn.GetBonds():
        bond.SetStereo(Chem.BondStereo.STEREONONE)
        bond.SetBondDir(Chem.BondDir.NONE)
    return Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(drawn)))


def test_wedges_tell_the_same_molecule_in_every_layout():
    checked = 0
    for smiles in small_molecules(150):
        if "@" in smiles and not set(smiles) & set("/\\"):
            molecule = parse(smiles)
            for wanted in (Layout(mirrored=True), Layout(coordgen=True), Layout(True, True)):
                told = chirality(layout(molecule, wanted))
                assert told == Chem.MolToSmiles(molecule), wanted
            assert "@" not in chirality(layout(molecule, Layout(wedges=False)))
            checked += 1
    assert checked > 20


def test_coordgen_is_kept_from_molecules_on_which_it_may_never_end():
    ring = parse("C1" + "C" * 10 + "C1N")  # 12 atoms
    places = [
        layout(ring, wanted).GetConformer().GetPositions() for wanted in (Layout(), Layout(True))
    ]
    assert (places[0] == places[1]).all()
    cubane = parse("C12C3C4C1C5C2C3C45")
    crossed = layout(cubane, Layout(True)).GetConformer().GetPositions()
    distances = np.linalg.norm(crossed[:, None] - crossed[None], axis=-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 0.4  # RDKit puts atoms on top of each other


def test_wide_views_begin_with_the_plain_one_and_are_told_by_seed_and_row():
    kind = {"views": 4, "styles": "wide", "atoms": True}
    streams, places = draw_views(3, DRUG, seed=1, **kind)
    paper = draw_views(3, DRUG, views=4, seed=1)
    assert streams[0] == paper[0] and streams[1:] != paper[1:]
    again, same = draw_views(3, DRUG, seed=1, **kind)
    assert again == streams and (same == places)[np.isfinite(places)].all()
    assert draw_views(3, DRUG, views=4, seed=1, styles="wide") == streams
    assert draw_views(4, DRUG, seed=1, **kind)[0][1:] != streams[1:]
    assert np.nanmin(places) >= 0 and np.nanmax(places) <= 224
