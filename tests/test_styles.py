import itertools

import numpy as np
import pytest
from conftest import small_molecules
from drawn import DRUG, picture_of

from moleclip.drawing import draw, layout
from moleclip.molecules import parse
from moleclip.pixels import to_rgb
from moleclip.styles import COLOURS, FONTS, PLAIN, Layout, Style, random_style, wide_style


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


def test_wide_styles_have_everything_in_their_shares():
    styles = [wide_style(7, row, 1) for row in range(600)]
    assert styles[:20] == [wide_style(7, row, 1) for row in range(20)]
    share = lambda test: np.mean([bool(test(style)) for style in styles])
    assert 0.6 < share(lambda s: s.font_share) < 0.8  # the others are the paper's
    assert all(
        random_style(7, row, 1)._replace(layout=s.layout) == s
        for row, s in enumerate(styles)
        if not s.font_share
    )
    assert 0.18 < share(lambda s: s.line_share == 0.6 / 14.4) < 0.32  # ACS 1996
    assert {s.colours for s in styles} == {*COLOURS}
    shares = np.mean([style.layout for style in styles], 0)  # coordgen, mirrored, wedges, abbr.
    assert (np.abs(shares - (0.3, 0.5, 0.96, 0.14)) < 0.06).all()
    assert len({wide_style(*key) for key in ((7, 0, 1), (7, 0, 2), (7, 1, 1), (8, 0, 1))}) == 4


def coloured(index):
    """How many pixels of a drawing have a colour."""
    return int((np.ptp(to_rgb(index).astype(int), -1) > 60).sum())


def test_colours_of_labels_and_bonds():
    drawn = {name: picture_of(DRUG, Style(colours=name)) for name in COLOURS}
    assert coloured(drawn["black"]) == coloured(drawn["gray"]) == 0
    assert to_rgb(drawn["black"]).min() == 0 and 90 < to_rgb(drawn["gray"]).min() < 115
    assert len({index.tobytes() for index in drawn.values()}) == len(COLOURS)
    for name in ("default", "cdk", "avalon"):
        labels = coloured(picture_of(DRUG, Style(colours=name, black_bonds=True)))
        assert 0 < labels < coloured(drawn[name])


def test_proportions_hold_at_every_size():
    """ACS lines are 0.042 of a bond: 3 times the bond, 3 times the line."""
    ink = {}
    for length, share in itertools.product((15, 45), (0.042, 0.126)):
        style = Style(bond_length=length, line_share=share, font_share=10 / 14.4)
        ink[length, share] = (255 - to_rgb(picture_of("CCCC", style)).astype(int)).sum()
    assert ink[45, 0.042] / ink[15, 0.042] == pytest.approx(9, rel=0.1)
    assert ink[45, 0.126] / ink[45, 0.042] == pytest.approx(3, rel=0.15)
    plain, font = (picture_of("N", Style(bond_length=30, font_share=s)) for s in (0.4, 0.8))
    assert (font > 0).sum() > 2 * (plain > 0).sum()


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.15},
        {"methyls": True},
        {"label_padding": 0.3},
        {"layout": Layout(mirrored=True)},
        {"layout": Layout(coordgen=True)},
        {"layout": Layout(abbreviated=True)},
    ],
    ids=str,
)
def test_each_option_of_wide_styles_changes_the_picture(change):
    style = PLAIN._replace(**change)
    molecule = parse("COc1ccccc1C(=O)N1CCCC1C")
    plain, styled = draw(layout(molecule)), draw(layout(molecule, style.layout), style)
    assert (plain != styled).sum() > 20
    if change == {"layout": Layout(mirrored=True)}:
        assert abs(int((plain > 0).sum()) - int((styled[:, ::-1] > 0).sum())) < 60


def test_wide_pictures_keep_their_labels_whole():
    """Nothing is cut off at the edge where fonts grow with the bonds."""
    for row, smiles in enumerate(small_molecules(40)):
        style = wide_style(0, row, 1)
        index = draw(layout(parse(smiles), style.layout), style)
        edges = index[0].any() or index[-1].any() or index[:, 0].any() or index[:, -1].any()
        assert (index > 0).sum() > 50 and not (edges and style.font_share)
