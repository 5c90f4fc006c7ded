"""What electrons do in a molecule."""

import os
import sys

import numpy as np
import pytest

from moleclip.electronic import check_method, conformer, electronic_targets, quiet, written_order
from moleclip.molecules import Rejected, parse, read_smiles

DRUG = "CC(C)Sc1nc2n(-c3ccc(F)cc3)[nH]cc-2c(=O)n1"  # row 0 of druglike_100000


def test_gfn2_gives_what_the_first_blocks_have():
    pytest.importorskip("tblite")
    homo, lumo, dipole, charge, charge_h = electronic_targets(0, DRUG)
    assert [homo, lumo, dipole] == pytest.approx([-9.8148, -8.6655, 8.3027], abs=5e-3)
    assert charge[:3] == pytest.approx([-0.10486, 0.04755, -0.1091], abs=1e-3)
    assert charge_h[:3] == pytest.approx([0.1377, 0.04025, 0.1481], abs=1e-3)
    assert charge.shape == charge_h.shape == (21,) and charge.dtype == np.float16
    assert charge.sum() + charge_h.sum() == pytest.approx(0, abs=5e-3)
    assert (charge_h == 0).sum() == 21 - 9  # atoms without a hydrogen


def test_gfn2_that_does_not_converge_has_its_reason(monkeypatch):
    interface = pytest.importorskip("tblite.interface")

    def fail(self):
        raise RuntimeError("SCF not converged in 250 cycles\n  more")

    monkeypatch.setattr(interface.Calculator, "singlepoint", fail)
    with pytest.raises(Rejected, match="^GFN2-xTB failed: SCF not converged in 250 cycles$"):
        electronic_targets(0, "CCO")


def test_extended_huckel_stands_in(capfd):
    homo, lumo, dipole, charge, charge_h = electronic_targets(0, DRUG, "huckel")
    assert homo < lumo < 0 < dipole and capfd.readouterr() == ("", "")
    assert charge.sum() + charge_h.sum() == pytest.approx(0, abs=5e-3)
    cation = electronic_targets(0, "C[N+](C)(C)CC(=O)O", "huckel")
    assert cation[3].sum() + cation[4].sum() == pytest.approx(1, abs=5e-3)
    pytest.importorskip("tblite")
    wanted = electronic_targets(0, DRUG)
    assert np.corrcoef(charge, wanted[3])[0, 1] > 0.9
    assert np.corrcoef(charge_h, wanted[4])[0, 1] > 0.7


@pytest.mark.parametrize(
    "smiles, says",
    [
        ("CC.CC", "several fragments"),
        ("C", "1 heavy atoms, not 2 to 60"),
        ("C" * 61, "61 heavy atoms, not 2 to 60"),
        ("C1CC", "not a valid SMILES"),
    ],
)
def test_what_is_left_out_has_its_reason(smiles, says):
    with pytest.raises(Rejected, match=says):
        conformer(smiles, 0)


def test_atoms_as_written_find_their_place_in_the_drawing():
    for smiles in ("OCC", "[CH3:2][O:1][CH2:7]Br", "Clc1ncc(C#N)c(OC)c1", "[2H]OC", "[H]C([H])Cl"):
        order = np.frombuffer(written_order(0, smiles), np.int32)
        written, drawn = read_smiles(smiles), parse(smiles)
        assert sorted(order) == list(range(drawn.GetNumAtoms()))
        for atom, place in zip(drawn.GetAtoms(), order.tolist()):
            same = written.GetAtomWithIdx(place)
            assert atom.GetSymbol() == same.GetSymbol() and atom.GetDegree() == same.GetDegree()
            mates = sorted(mate.GetSymbol() for mate in atom.GetNeighbors())
            assert mates == sorted(mate.GetSymbol() for mate in same.GetNeighbors())
    assert np.frombuffer(written_order(0, "OCC"), np.int32).tolist() == [2, 1, 0]


def test_a_missing_library_has_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite", None)
    check_method("huckel")
    with pytest.raises(Exception, match="requirements-extra.txt; or take --method huckel"):
        check_method("gfn2")


def test_quiet_gives_the_streams_back(capfd):
    with quiet():
        os.write(1, b"nothing")
    os.write(1, b"something\n")
    assert capfd.readouterr().out == "something\n"
