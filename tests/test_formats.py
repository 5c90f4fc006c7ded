import gzip
import sys
import tracemalloc

import click
import pytest
from conftest import mistake
from rdkit import Chem
from rdkit.Chem import rdDepictor

import render
from moleclip.formats import find_smiles_column
from moleclip.molecules import input_facts, numbered, read_molecules


def rows_in(path, content, smiles_column=None):
    """Write a file and return its molecules."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_molecules(str(path), smiles_column))


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.smi", b"CCO ethyl alcohol\r\n\r\nc1ccccc1\tbenzene\r\n"),
        ("b.smi", b"\xef\xbb\xbfCCO ethyl alcohol\n\nc1ccccc1 benzene"),
        ("c.txt.gz", gzip.compress(b"CCO ethyl alcohol\n\nc1ccccc1 benzene\n", mtime=0)),
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
        (
            "c.csv.gz",
            gzip.compress(b"id;SMILES;note\n1;CCO;a, b\n\n2;;x\n3;c1ccccc1;two\n", mtime=0),
        ),
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


def test_blank_records_are_rows_and_only_empty_lines_are_none(tmp_path, capsys):
    content = 'id,smiles,note\n0,CCO,\n,,\n"",\n  ,, \n\n4,CCN,\n\n,,,,\n6,CCC,\n\n\n'
    found = rows_in(tmp_path / "a.csv", content)
    assert [(m.row, m.line, m.smiles) for m in found] == [
        *[(0, 2, "CCO"), (1, 3, ""), (2, 4, ""), (3, 5, "")],
        *[(4, 7, "CCN"), (5, 9, ""), (6, 10, "CCC")],
    ]
    assert all(m.problem == ("" if m.smiles else "no SMILES in column 'smiles'") for m in found)
    list(read_molecules(str(tmp_path / "a.csv")))
    said = capsys.readouterr().err.strip().splitlines()  # once, and not of those at the end
    assert len(said) == 1 and "are no rows (2 of them)" in said[0]
    single = rows_in(tmp_path / "b.csv", 'smiles\nCCO\n""\n\nCCN\n')
    assert [m.smiles for m in single] == ["CCO", "", "CCN"]


def test_a_cell_of_several_lines_costs_no_other_row(tmp_path, capsys):
    content = 'name,smiles,note\na,CCO,\nb,,"two\nlines"\n"c,\nd, CO",CCN,\n'
    content += 'g,,"CO, N\nO"\ne,"CC\nN",x\nf,CCC,\n'
    found = rows_in(tmp_path / "a.csv", content)
    assert [(m.smiles, m.problem) for m in found] == [
        ("CCO", ""),
        ("", "no SMILES in column 'smiles'"),
        ("CCN", ""),
        ("", "no SMILES in column 'smiles'"),
        ("CC\nN", "several lines in column 'smiles'"),
        ("CCC", ""),
    ]
    assert found[1].fields["note"] == "two\nlines" and found[2].name == "c,\nd, CO"
    assert [m.line for m in found] == [2, 3, 5, 7, 9, 11]
    said = capsys.readouterr().err
    assert said.count("are one record") == 1 and "lines 3 to 4" in said  # of the first alone


@pytest.mark.parametrize(
    "rows",
    [
        '"a,CCO\nb",CCN\n',  # two rows in one, with as many fields as the header
        '"a,CCO\nb,CCC\nc",CCN\nd,CO\n',
        '"a,\nb,CCO\nc",\n',  # the row's own SMILES is missing
        'a,"CCO\nb,CCC"\n',
        '"a,CCO\nb,CCN\n',  # never closed
        '"a,InChI=1S/CH4/h1H4\nb",CCN\nd,CO\n"e\n"f,CCC\n',
    ],
)
def test_a_quote_that_swallows_rows_refuses_the_table(tmp_path, rows):
    with pytest.raises(click.ClickException, match="quote|not a readable table"):
        rows_in(tmp_path / "a.csv", "name,smiles\n" + rows)


@pytest.mark.parametrize(
    "content, columns",
    [
        ("name;smiles;x\n2,3-butanediol;CCO;1,5\nb;CCN;2,5\n", 3),
        ('name;smiles;x\n"a;b";CCO;1,5\nb;CCN;2,5\n', 3),
        ("name (a, b);smiles;x (mol/L, 25)\na, b;CCO;1,5\nb;CCN;2,5\n", 3),
        ("smiles (RDKit, 2026);x\nCCO;1,5\nCCN;2,5\n", 2),
        ('"name; all";"smiles";"x, y"\na;CCO;1\nb;CCN;2\n', 3),
        ("name,smiles,x; y; z\na;b;c,CCO,1\nb,CCN,2\n", 3),
        ("name\tsmiles\tx, y, z\na, b, c\tCCO\t1\nb\tCCN\t2\n", 3),
        ('name,smiles,x\n"2,3-butanediol",CCO,"1\n2"\nb,CCN,2\n', 3),
        ("sep=;\nname;smiles;x\na;CCO;1\nb;CCN;2\n", 3),
        ('"sep=|"\r\nname|smiles|x\r\na|CCO|1\r\nb|CCN|2\r\n', 3),
        ("sep=\t\nsmiles\nCCO\nCCN\n", 1),
        ("smiles\nCCO\nCCN\n", 1),
        ("smiles (canonical, RDKit)\nCCO\nCCN\n", 1),
        ("name;smiles;x;;;\na;CCO;1;;;\nb;CCN;2\n", 3),
        ("name,smiles,x, ,\na,CCO,1,,\nb,CCN,2,,,,\n", 3),
    ],
)
def test_what_separates_columns(tmp_path, content, columns):
    found = rows_in(tmp_path / "a.csv", content)
    assert [(m.smiles, m.problem) for m in found] == [("CCO", ""), ("CCN", "")]
    assert [len(m.fields) for m in found] == [columns, columns]
    first = content.splitlines().index(next(x for x in content.splitlines() if "CCO" in x))
    assert found[0].line == 1 + first


def test_in_doubt_a_line_says_what_is_taken(tmp_path, capsys):
    content = "smiles;x,y;z\n;1,2;3\nCCO;4,5;6\n"
    for name, before in (("a.csv", ""), ("b.csv", "sep=;\n")):
        found = rows_in(tmp_path / name, before + content)
        assert list(found[1].fields.items()) == [("smiles", "CCO"), ("x,y", "4,5"), ("z", "6")]
        said = capsys.readouterr().err
        assert said.count("\n") == (not before) and ("by ';'" in said) == (not before)
    rows_in(tmp_path / "c.csv", 'name,smiles\n"a; b",CCO\n')
    assert not capsys.readouterr().err


def test_a_cell_without_a_column_name_is_said(tmp_path):
    (found,) = rows_in(tmp_path / "a.csv", "smiles,name,x,\nCCO,2,3-diol,5\n")
    assert "4 fields where the header has 3" in found.problem


def test_the_name_of_a_molecule(tmp_path):
    (found,) = rows_in(tmp_path / "a.csv", "Name,SMILES\nethanol,CCO\n")
    assert found.name == "ethanol" and found.fields == {"Name": "ethanol", "SMILES": "CCO"}
    (found,) = rows_in(tmp_path / "a.smi", "CCO |$a b;;$,(0,0,;1,0,;2,0,)| ethyl alcohol\n")
    assert (found.smiles, found.name) == ("CCO |$a b;;$,(0,0,;1,0,;2,0,)|", "ethyl alcohol")
    (found,) = rows_in(tmp_path / "a.smi", "CCO |a|b\n")
    assert (found.smiles, found.name) == ("CCO", "|a|b")


def test_inchi_where_there_is_no_smiles(tmp_path):
    alanine = "InChI=1S/C3H7NO2/c1-2(4)3(5)6/h2H,4H2,1H3,(H,5,6)/t2-/m0/s1"
    content = f'InChIKey,Standard InChI\nQ,"{alanine}"\nX,InChI=1S/bad\nY,\nZ,CCO\n'
    found = rows_in(tmp_path / "a.csv", content)
    assert [m.smiles for m in found] == ["C[C@H](N)C(=O)O", "InChI=1S/bad", "", "CCO"]
    assert [bool(m.problem) for m in found] == [False, True, True, False]
    assert found[0].fields["Standard InChI"] == alanine and "can't read" in found[1].problem
    found = rows_in(tmp_path / "b.csv", f'inchi,smiles\n"{alanine}",CCO\n')
    assert found[0].smiles == "CCO"


def molfile(smiles):
    molecule = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(molecule)
    return Chem.MolToMolBlock(molecule)


@pytest.fixture
def sdf():
    """Records: fine, unreadable, of other properties, without atoms, a query, without an end."""
    alanine = molfile("C[C@H](N)C(=O)O")
    query = molfile("CC").replace("1.2990    0.7500    0.0000 C", "1.2990    0.7500    0.0000 Q")
    query = query.replace("0.7500    0.0000    0.0000 C", "0.7500    0.0000    0.0000 Q")
    return (
        f"alanine\n{alanine[1:]}>  <pIC50>  (1)\n>100 <5>\n\n> 2 <name>\ntwo\nlines\n\n$$$$\n"
        "broken\n  x\n\nno molfile\nM  END\n> <pIC50>\n5\n\n$$$$\n"
        f"{molfile('F/C=C/F')}> <note>\n\n$$$$\n"
        "$$$$\n"
        f"{query}$$$$\n"
        f"caf\u00e9\n{molfile('CCO')[1:]}"
    ).encode("latin-1")


@pytest.mark.parametrize("form", ["a.sdf", "b.sdf.gz", "crlf.sdf"])
def test_sdf(tmp_path, capfd, sdf, form):
    content = sdf.replace(b"\n", b"\r\n") if form == "crlf.sdf" else sdf
    found = rows_in(tmp_path / form, gzip.compress(content) if form.endswith("gz") else content)
    assert [m.row for m in found] == list(range(6))
    assert [m.smiles for m in found] == ["C[C@H](N)C(=O)O", "", "F/C=C/F", "", "", "CCO"]
    assert [bool(m.problem) for m in found] == [False, True, False, True, True, False]
    assert "a query" in found[4].problem and found[0].name == "alanine"
    assert found[0].fields == {"pIC50": ">100 <5>", "name": "two\nlines", "note": ""}
    assert found[1].fields == {"pIC50": "5", "name": "", "note": ""}
    assert found[5].name.encode("utf-8", "surrogateescape") == b"caf\xe9"
    line = 1 + content.decode("latin-1").splitlines().index("broken")
    assert found[1].line == line
    assert find_smiles_column(str(tmp_path / form), list(found[0].fields)) is None
    assert input_facts(str(tmp_path / form))["rows"] == 6
    assert not capfd.readouterr().err


def test_sdf_has_no_smiles_column(tmp_path, sdf):
    with pytest.raises(click.ClickException, match="--smiles-column is for tables"):
        rows_in(tmp_path / "a.sdf", sdf, "note")
    with pytest.raises(click.ClickException, match="is empty"):
        rows_in(tmp_path / "a.sdf", "\n")


def test_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for cells in (
        ["SMILES", "Name", "x", "hit", None],
        ["CCO", "ethanol", -0.77, True],
        [],
        ["CCN", None, 3],
        [None, "no structure", 1e-7, None],
        ["CCC", "a", 1, False, "beyond"],
    ):
        book.active.append(cells)
    book.create_sheet("second").append(["not", "this"])
    book.save(tmp_path / "a.xlsx")
    found = list(read_molecules(str(tmp_path / "a.xlsx")))
    assert [(m.line, m.smiles, m.name) for m in found] == [
        *[(2, "CCO", "ethanol"), (4, "CCN", ""), (5, "", "no structure"), (6, "CCC", "a")]
    ]
    assert list(found[0].fields.items())[2:] == [("x", "-0.77"), ("hit", "True")]
    assert list(found[1].fields.values()) == ["CCN", "", "3", ""]
    assert found[2].problem and "5 fields where the header has 4" in found[3].problem
    (tmp_path / "b.xlsx").write_text("smiles\nCCO\n")
    with pytest.raises(click.ClickException, match="not a readable .xlsx"):
        list(read_molecules(str(tmp_path / "b.xlsx")))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "smiles": ["CCO", None, "CCN"],
        "x": pyarrow.array([0.1, None, 3], pyarrow.float32()),
        "class": pyarrow.array(["a", "b", None]).dictionary_encode(),
        "list": [[1, 2], None, []],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = list(read_molecules(str(tmp_path / "a.parquet")))
    assert [(m.row, m.line, m.smiles) for m in found] == [(0, 1, "CCO"), (1, 2, ""), (2, 3, "CCN")]
    assert list(found[0].fields.values()) == ["CCO", "0.1", "a", "[1, 2]"]
    assert list(found[1].fields.values()) == ["", "", "b", ""] and found[1].problem
    (tmp_path / "b.parquet").write_text("smiles\nCCO\n")
    with pytest.raises(click.ClickException, match="not a readable .parquet"):
        list(read_molecules(str(tmp_path / "b.parquet")))


@pytest.mark.parametrize("name, package", [("a.xlsx", "openpyxl"), ("a.parquet", "pyarrow")])
def test_a_missing_library_is_one_line(tmp_path, monkeypatch, name, package):
    for module in (package, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("x")
    said = mistake(render.main, tmp_path / name, "-o", tmp_path / "out")
    assert f"pip install {package}" in said


def test_files_larger_than_memory(tmp_path, sdf):
    (tmp_path / "a.csv").write_text("smiles,x\n" + f"CCO,{'x' * 100}\n" * 5000)
    (tmp_path / "a.sdf").write_bytes((sdf.rpartition(b"$$$$\n")[0] + b"$$$$\n") * 400)
    for name, rows in (("a.csv", 5000), ("a.sdf", 2000)):
        tracemalloc.start()
        assert sum(1 for _ in numbered(str(tmp_path / name))) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000 < 500_000 < (tmp_path / name).stat().st_size


def test_a_field_too_many_is_rejected_not_shifted(tmp_path):
    (tmp_path / "a.csv").write_text("name,smiles\nethanol,CCO\n2,3-butanediol,CC(O)C(C)O\n")
    found = list(read_molecules(str(tmp_path / "a.csv")))
    assert not found[0].problem and "3 fields where the header has 2" in found[1].problem


def test_truncated_gzip(tmp_path):
    (tmp_path / "cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 10_000)[:40])
    assert "truncated" in mistake(render.main, tmp_path / "cut.smi.gz", "-o", tmp_path / "out")
