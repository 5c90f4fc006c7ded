import gzip

import click
import pytest
from conftest import mistake

import render
from moleclip.molecules import read_molecules


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.smi", b"CCO ethyl alcohol\r\n\r\nc1ccccc1\tbenzene\r\n"),
        ("b.smi", b"\xef\xbb\xbfCCO ethyl alcohol\n\nc1ccccc1 benzene"),
        ("c.txt.gz", gzip.compress(b"CCO ethyl alcohol\n\nc1ccccc1 benzene\n")),
    ],
)
def test_lines(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles, m.name) for m in found] == [
        (0, 1, "CCO", "ethyl alcohol"),
        (1, 2, "", ""),
        (2, 3, "c1ccccc1", "benzene"),
    ]
    assert found[1].problem == "empty line"


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", b'id,SMILES,note\r\n1,CCO,"a, b"\r\n\r\n2,,x\r\n3,c1ccccc1,"two\r\nlines"\r\n'),
        ("b.tsv", b"\xef\xbb\xbfid\tSMILES\tnote\n1\tCCO\ta, b\n\n2\t\tx\n3\tc1ccccc1\ttwo\n"),
        ("c.csv.gz", gzip.compress(b"id;SMILES;note\n1;CCO;a, b\n\n2;;x\n3;c1ccccc1;two\n")),
    ],
)
def test_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = list(read_molecules(str(tmp_path / name)))
    assert [(m.row, m.line, m.smiles) for m in found] == [
        (0, 2, "CCO"),
        (1, 4, ""),
        (2, 5, "c1ccccc1"),
    ]
    assert found[0].fields["note"] == "a, b" and "no SMILES" in found[1].problem


def test_a_header_may_span_lines_and_a_stray_quote_may_not_swallow_rows(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('smiles,"IC50\n(nM)"\nCCO,1\nCCN,2\n')
    assert [(m.row, m.line, m.smiles) for m in read_molecules(str(tmp_path / "a.csv"))] == [
        (0, 3, "CCO"),
        (1, 4, "CCN"),
    ]
    for text in ('name,smiles\n"3-methyl,CCO\nb,CCN\n', 'smiles,name\nCCO,"a\nCCN",b\n'):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(click.ClickException):
            list(read_molecules(str(tmp_path / "b.csv")))
    # It may be meant so, or not: it is said.
    (tmp_path / "c.csv").write_text('name,smiles\n"two\nlines",CCC\n')
    assert next(read_molecules(str(tmp_path / "c.csv"))).fields["name"] == "two\nlines"
    assert "lines 2 to 3 are one record" in capsys.readouterr().err


def test_a_field_too_many_is_rejected_not_shifted(tmp_path):
    (tmp_path / "a.csv").write_text("name,smiles\nethanol,CCO\n2,3-butanediol,CC(O)C(C)O\n")
    found = list(read_molecules(str(tmp_path / "a.csv")))
    assert not found[0].problem and "3 fields where the header has 2" in found[1].problem


def test_truncated_gzip(tmp_path):
    (tmp_path / "cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 10_000)[:40])
    assert "truncated" in mistake(render.main, tmp_path / "cut.smi.gz", "-o", tmp_path / "out")
