"""search.py: the right molecule first, hits that can be trusted, queries that can't be."""

import base64
import csv
import random
import re
import string

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import invoke, mistake, rows_of
from rdkit.Chem import MolFromSmiles, rdMolDescriptors
from standin import spectrum_of, told_by

import search
from moleclip.alignedmodel import AlignedModel
from moleclip.drawing import draw, layout
from moleclip.hitspage import ticks
from moleclip.molecules import parse
from moleclip.pixels import png
from moleclip.spectra import peak_distance


@pytest.fixture(scope="module", autouse=True)
def indexed(aligned):
    """The index of the aligned folder's library, made as a user makes it."""
    said = aligned.run("python search.py aligned.onnx library.smi --workers 1")
    assert "embedded 300 rows" in said and "2 of 300 can't be searched, see index/rejected" in said
    assert "give a query" in said
    return aligned


@pytest.fixture
def look(indexed, tmp_path, monkeypatch):
    """A function that searches, and returns (records of hits.csv, what was printed)."""
    monkeypatch.chdir(indexed.folder)
    monkeypatch.setattr(search, "BUNDLED", indexed / "aligned.onnx")

    def find(*words, library="library.smi"):
        out = tmp_path / "hits.csv"
        said = invoke(search.main, library, *words, "-o", out)
        return rows_of(out), said

    return find


def peaks_of(aligned, smiles):
    return " ".join(f"{place:g}" for place in spectrum_of(aligned.net, smiles).places)


def refused(*words, code=1):
    return mistake(search.main, "library.smi", *words, code=code)


def test_a_spectrum_finds_its_molecule(indexed, look):
    for row in (20, 33, 49):
        smiles = indexed.smiles[row]
        hits, said = look("--peaks", peaks_of(indexed, smiles), "--top", 7)
        assert [hit["rank"] for hit in hits] == list("1234567")
        first = hits[0]
        assert (first["row"], first["smiles"], first["name"]) == (str(row), smiles, f"m{row}")
        assert first["formula"] == rdMolDescriptors.CalcMolFormula(MolFromSmiles(smiles))
        assert f"best {float(first['score']):.3f}, row {row}, {smiles} m{row}" in said
        scores = [float(hit["score"]) for hit in hits]
        assert scores == sorted(scores, reverse=True) and "unlike" not in said


def test_a_score_is_product_less_peaks(indexed, look):
    spectrum = spectrum_of(indexed.net, indexed.smiles[40])
    query = AlignedModel(indexed / "aligned.onnx", "cpu").embed_query(spectrum)
    hits, _ = look("--peaks", peaks_of(indexed, indexed.smiles[40]), "--top", 298)
    assert sorted(int(hit["row"]) for hit in hits) == [n for n in range(300) if n not in (7, 299)]
    for hit in hits[::20]:
        embedding, shifts = told_by(indexed.net, hit["smiles"])
        away = peak_distance(shifts, spectrum.places, "nmr13c")
        assert float(hit["score"]) == pytest.approx(embedding @ query - 0.05 * away, abs=0.005)


def test_a_molecule_finds_itself(indexed, look):
    hits, said = look("--smiles", indexed.smiles[123])
    assert len(hits) == 20 and hits[0]["smiles"] == indexed.smiles[123]
    assert float(hits[0]["score"]) == pytest.approx(1, abs=2e-3) and hits[0]["query"] == "smiles"


def test_formula_and_mass_restrict(indexed, look):
    peaks = "--peaks", peaks_of(indexed, indexed.smiles[30])
    formula = rdMolDescriptors.CalcMolFormula(MolFromSmiles(indexed.smiles[100]))
    turned = "".join(reversed(re.findall(r"[A-Z][a-z]?\d*", formula)))  # in no usual order
    hits, _ = look(*peaks, "--formula", turned)
    assert hits and {hit["formula"] for hit in hits} == {formula}
    assert "100" in {hit["row"] for hit in hits}
    mass = float(hits[0]["mass"])
    hits, _ = look(*peaks, "--mass", mass + 0.001, "--ppm", 10)
    assert hits and all(abs(float(hit["mass"]) - mass) < 0.005 for hit in hits)
    heaviest = max(map(float, (hit["mass"] for hit in look("--smiles", "C", "--top", 300)[0])))
    hits, said = look(*peaks, "--mass", heaviest + 1)
    assert not hits and "within 10 ppm" in said and f"the nearest has {heaviest:.4f} u" in said
    hits, said = look(*peaks, "--formula", "C99H2")
    assert not hits and "no molecule of the library has the formula C99H2" in said


@pytest.mark.parametrize(
    "given, hill",
    [
        ("C9H12O2", "C9H12O2"),
        ("O2H12C9", "C9H12O2"),
        ("CH3CH2OH", "C2H6O"),
        ("C4H12N+", "C4H12N+"),
        ("ClH", "ClH"),
        ("C9H", "C9H"),
        ("H2O", "H2O"),
        ("O4S-2", "O4S-2"),
        ("BrC1H1Cl", "CHBrCl"),
    ],
)
def test_a_formula_is_read_in_any_order(given, hill):
    assert search.parse_formula(None, None, given) == hill


@pytest.mark.parametrize("text", ["", "c9", "C0", "Xx2", "C9 H12", "9C", "C9H12O2?", "\0"])
def test_no_formula(look, text):
    assert "is not a formula" in refused("--formula", text, "--smiles", "C", code=2)


def test_even_the_best_is_unlike(look):
    peaks = "--peaks", "-10 -5 200 210 220 230"
    hits, said = look(*peaks)
    assert float(hits[0]["score"]) < 0.525 and "even the best hit is unlike" in said
    assert "95% of queries" in said and "0.525" in said


@pytest.mark.parametrize(
    "peaks, says",
    [
        ("20.6 500", "500 ppm is no 13C NMR shift"),
        ("20.6 abc", "'abc' is no number"),
        ("", "no peaks"),
        ("  ", "no peaks"),
        ("20,6 22,7", "'20,6' has a decimal comma; write 20.6"),
        ("0.9 1.2 3.6 7.2", "is this a 1H spectrum?"),
        ("43:999", "a shift has no height"),
        ("20.6 nan", "'nan' is no number"),
        ("20.6 \0 5", "is no number"),
        ("1e999", "no finite number"),
    ],
)
def test_hostile_peaks(look, peaks, says):
    line = refused("--peaks", peaks)
    assert line.startswith("Error: --peaks: ") and says in line


def test_fuzzed_peaks_give_no_traceback(look):
    dice, run = random.Random(0), CliRunner()
    model = AlignedModel("aligned.onnx", "cpu")
    words = ["20.6", "170,5", "-", "1e5", "nan", ";", ",", "µ", "\udc80", "5:9", "0x1f", "١", "--"]
    done = 0
    for _ in range(2000):
        text = dice.choice([" ", ", ", ";"]).join(dice.choices(words, k=dice.randrange(1, 6)))
        text += "".join(dice.choices(string.printable, k=dice.randrange(3)))
        asked = search.SimpleNamespace(peaks=text, precursor=None)
        try:
            [query] = search.of_peaks(model, asked)
            done += 1
            assert np.isfinite(query.embedding).all()
        except search.click.ClickException as error:
            assert error.message.startswith("--peaks: ") and "\n" not in error.message
    assert done > 10
    outcome = run.invoke(search.main, ["library.smi", "--peaks", "20 \ud800"])
    assert outcome.exit_code == 1 and "Traceback" not in outcome.output


def test_a_file_of_spectra_gives_a_query_each(indexed, look, tmp_path):
    lines = ["id,peaks"]
    lines += [f"a,{peaks_of(indexed, indexed.smiles[20])}", "bad,20 999"]
    lines += [f"a,{peaks_of(indexed, indexed.smiles[21])}", "none,"]
    path = tmp_path / "spectra.csv"
    path.write_text("\n".join(lines) + "\n")
    hits, said = look("--spectrum", path, "--top", 2)
    assert [(hit["query"], hit["rank"]) for hit in hits] == [
        *(("a", "1"), ("a", "2"), ("a (2)", "1"), ("a (2)", "2"))
    ]
    assert hits[0]["row"] == "20" and hits[2]["row"] == "21" and "4 hits of 2 queries" in said
    assert "spectrum bad is left out: 999 ppm is no 13C NMR shift" in said
    assert "spectrum none is left out: no peaks" in said
    path.write_text("id,peaks\nbad,20 999\n")
    assert "none of its 1 spectra can be used" in refused("--spectrum", path)


def test_mass_spectra_are_queries_too(indexed, look, tmp_path):
    out, html = tmp_path / "hits.csv", tmp_path / "p.html"
    first = ["msms.onnx", "library.smi", "--index", tmp_path / "index", "--top", 3, "-o", out]
    invoke(search.main, *first, "--peaks", "43.02:999 55.05")
    without_loss = out.read_text()
    said = invoke(search.main, *first, "--peaks", "43.02:999 55.05", "--precursor", 153.09)
    assert "3 hits in 300 molecules" in said
    with_loss = out.read_text()
    assert with_loss != without_loss
    text = "Name: q\nPrecursorMZ: 153.09\nNum Peaks: 2\n43.02 999\n55.05 1\n"
    (tmp_path / "a.msp").write_text(text)
    invoke(search.main, *first, "--spectrum", tmp_path / "a.msp", "--html", html)
    assert out.read_text() == with_loss.replace("peaks,", "q,")
    page = html.read_text()
    assert 'class="measured"' in page and 'class="predicted"' not in page


def test_a_picture_is_a_query_too(indexed, look, tmp_path):
    out, html, picture = (tmp_path / name for name in ("hits.csv", "p.html", "a.png"))
    picture.write_bytes(base64.b64decode(png(draw(layout(parse("CCO"))))))
    words = ["picture.onnx", "library.smi", "--index", tmp_path / "index", "-o", out]
    said = invoke(search.main, *words, "--picture", picture, "--html", html)
    assert "a.png: best" in said and len(rows_of(out)) == 20
    assert 'alt="query"' in html.read_text()
    line = mistake(search.main, *words, "--picture", "library.smi")
    assert "--picture library.smi: not a PNG or JPEG picture" in line


def test_the_librarys_columns_stay(indexed, look, tmp_path):
    path = tmp_path / "lib.csv"
    with open(path, "w", newline="") as stream:
        table = csv.writer(stream, delimiter=";")
        table.writerow(["price", "smiles", "name", "score", "supplier"])
        for row, smiles in enumerate(indexed.smiles[20:60]):
            table.writerow([row * 1.5, smiles, f"n{row}", "own", f"<b>{row}&</b>"])
    html = tmp_path / "hits.html"
    peaks = peaks_of(indexed, indexed.smiles[25])
    words = ("--peaks", peaks, "--index", tmp_path / "index", "--html", html, "--top", 40)
    hits, said = look(*words, library=path)
    own = "query rank row smiles name score formula mass"
    assert list(hits[0]) == [*own.split(), "price", "input_score", "supplier"]
    first = hits[0]
    assert (first["row"], first["name"], first["price"], first["input_score"]) == (
        *("5", "n5", "7.5"),
        "own",
    )
    page = html.read_text()
    assert "<b>" not in page and "&lt;b&gt;5&amp;&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == 40 and page.count("<svg") == 41
    assert page.count('class="predicted"') == 40 and "input_score" in page
    assert "script" not in page.lower() and "lib.csv, searched by 13C NMR" in page


def test_the_same_search_gives_the_same_bytes(indexed, look, tmp_path):
    words = ("--peaks", peaks_of(indexed, indexed.smiles[25]), "--html", tmp_path / "a.html")
    look(*words)
    first = (tmp_path / "hits.csv").read_bytes(), (tmp_path / "a.html").read_bytes()
    look(*words, "--workers", 1)
    assert ((tmp_path / "hits.csv").read_bytes(), (tmp_path / "a.html").read_bytes()) == first


def test_the_page_ends_somewhere(indexed, look, tmp_path, monkeypatch):
    monkeypatch.setattr("moleclip.hitspage.SHOWN", 5)
    lines = [f"q{i} {peaks_of(indexed, indexed.smiles[20 + i])}" for i in range(4)]
    path = tmp_path / "s.txt"
    path.write_text("\n\n".join(line.replace(" ", "\n", 1) for line in lines))
    hits, _ = look("--spectrum", path, "--top", 3, "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert len(hits) == 12 and "of 12 hits the first 5 are shown" in page
    assert page.count("<h2>") == 2 and page.count("data:image/png") == 5


def test_a_library_without_a_molecule(indexed, look, tmp_path):
    path = tmp_path / "bad.smi"
    path.write_text("C1CC\n\n?\n")
    hits, said = look("--smiles", "C", "--index", tmp_path / "i", library=path)
    assert not hits and "no molecule of the library can be read" in said
    assert "3 of 3 can't be searched" in said


@pytest.mark.parametrize(
    "words, says",
    [
        (["--peaks", "20", "--smiles", "C"], "give one kind of query"),
        (["--picture", "a.png"], "takes 13C NMR; give --peaks or --spectrum"),
        (["--peaks", "20", "--precursor", "5"], "--precursor: 13C NMR has none"),
        (["--smiles", "C", "--precursor", "5"], "--precursor belongs to --peaks"),
        (["--peaks", "20", "--part", "1/2"], "search without it afterwards"),
        (["--part", "3/2"], "is not I/N"),
        (["--smiles", "C", "--mass", "nan"], "finite"),
        (["more.smi", "still.smi"], "give a LIBRARY"),
    ],
)
def test_mistakes_of_usage(look, words, says):
    assert says in refused(*words, code=2)


def test_other_mistakes(indexed, look, tmp_path):
    assert "--smiles: not a valid SMILES" in refused("--smiles", "C1CC")
    assert "no such file, here or in data/" in mistake(search.main, "none.smi", "--smiles", "C")
    line = mistake(search.main, "other.onnx", "library.smi", "--smiles", "C")
    assert line.startswith("Error: index: its index was made by another model")
    assert "is a folder" in refused("--smiles", "C", "-o", tmp_path)
    out = ("-o", tmp_path / "a", "--html", tmp_path / "a")
    assert "as CSV and as page" in refused("--smiles", "C", *out)
    assert "is the input itself" in refused("--smiles", "C", "-o", "library.smi")
    assert "give a file" in mistake(search.main, "-", "--smiles", "C", code=2)
    assert "give a LIBRARY" in mistake(search.main, "aligned.onnx", "--smiles", "C", code=2)
    assert "unknown kind of file" in refused("--spectrum", "search.py")


def test_ticks_are_round():
    assert ticks(-1, 11) == [0, 2, 4, 6, 8, 10]
    assert ticks(10.2, 171.3) == [50, 100, 150]
    assert ticks(7.08, 7.4) == pytest.approx([7.1, 7.2, 7.3, 7.4])
