import itertools

import faulty
from conftest import ROOT, small_molecules

from moleclip.drawing import draw_all
from moleclip.molecules import Molecule, Rejected
from moleclip.workers import parallel


def test_a_crash_or_a_stall_costs_one_row(monkeypatch):
    items = [Molecule(row, row + 1, smiles) for row, smiles in enumerate(small_molecules(10))]
    items[3], items[6] = Molecule(3, 4, "die"), Molecule(6, 7, "sleep")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    results = [result for _, result in parallel(faulty.draw, items, 2, group=4, limit=3)]
    assert "crashed" in str(results[3]) and "longer than 3 s" in str(results[6])
    assert isinstance(results[3], Rejected) and isinstance(results[6], Rejected)
    assert all(result == "drawn" for row, result in enumerate(results) if row not in (3, 6))


def test_no_more_is_read_than_the_workers_need():
    taken = []

    def endless():
        for row in itertools.count():
            taken.append(row)
            yield Molecule(row, row + 1, "CCO")

    results = draw_all(endless(), 2)
    for _ in range(100):
        next(results)
    results.close()
    assert len(taken) <= 100 + 2 * 3 * 32 + 32
