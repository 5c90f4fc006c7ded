"""Files of spectra: what each kind gives, and that a bad record costs itself alone."""

import base64
import gzip
import random
import struct
import sys

import click
import numpy as np
import pytest
from conftest import first_lines

from moleclip.molecules import Rejected
from moleclip.peaktables import numbers_of, pick_peaks
from moleclip.spectra import SPECTRA, Spectrum
from moleclip.spectrumfiles import read_measured, read_spectra, spectrum_files


def read(folder, name, text, modality):
    """[(name, [places], [heights]) or (name, reason), ...] of a file with this text."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [
        (title, str(result))
        if isinstance(result, Rejected)
        else (title, result.places.tolist(), result.heights.tolist())
        for title, result in read_spectra(folder / name, modality)
    ]


def places(folder, name, text, modality):
    """The places of the peaks of the one spectrum of a text."""
    [(_, found, _)] = read(folder, name, text, modality)
    return found


SHIFTS = [20.6, 22.7, 170.5]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "20.6 22.7 170.5"),
        ("a.txt", "170.5, 22.7, 20.6\n"),
        ("a.txt", "20.6,22.7,170.5"),
        ("a.txt", "20,6 22,7 170,5"),
        ("a.txt", "20,6, 22,7, 170,5"),
        ("a.txt", "20.6; 22.7; 170.5"),
        ("a.txt", "\ufeff20.6\r\n22.7\r\n\r\n".replace("\r\n\r\n", "\r\n") + "170.5\r\n"),
        ("a.txt", "ppm intensity\n20.6 9\n22.7 3\n170.5 1\n"),
        ("a.csv", "ppm,intensity\n20.6,9\n22.7,3\n170.5,1\n"),
        ("a.csv", "Shift (ppm);Intensity\n20,6;9\n22,7;3\n170,5;1\n"),
        ("a.csv", "atom,type,shift\n1,C,20.6\n2,C,22.7\n3,C,170.5\n"),
        ("a.csv", "20.6,9\n22.7,3\n170.5,1\n"),
        ("a.csv", "20.6\n22.7\n170.5\n"),
        ("a.tsv", "ppm\tint\r\n20.6\t9\r\n22.7\t3\r\n170.5\t1\r\n"),
        ("a.csv", "id,peaks\nx,20.6 22.7 170.5\n"),
        ("a.csv", '"20,6","9"\n"22,7","3"\n"170,5","1"\n'),
        ("a.dx", "##TITLE=a\n##DATA TYPE=NMR PEAK TABLE\n##XUNITS=PPM\n##PEAK TABLE=(XY..XY)\n"
         "20.6,9 22.7,3\n170.5,1 $$ the last\n##END=\n"),
        ("a.jdx", "##TITLE=a\n##DATATYPE=NMR PEAK ASSIGNMENTS\n##.OBSERVE NUCLEUS=^13C\n"
         "##PEAK ASSIGNMENTS=(XYA)\n(20.6,9,<1>)\n(22.7, 3, <2>)\n(170.5,1,<C=O 3>)\n##END=\n"),
        ("a.dx", "##TITLE=a\n##DATA TYPE=NMR PEAK TABLE\n##XUNITS=HZ\n##.OBSERVE FREQUENCY=100\n"
         "##PEAK TABLE=(XY..XY)\n2060,9;2270,3;17050,1\n##END=\n"),
    ],
)  # fmt: skip
def test_every_way_to_write_shifts(tmp_path, name, text):
    assert places(tmp_path, name, text, "nmr13c") == pytest.approx(SHIFTS)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "43.02 999\n55.05 10\n"),
        ("a.txt", "43,02\t999\n55,05\t10\n"),
        ("a.txt", "43.02:999 55.05:10"),
        ("a.csv", "m/z,intensity\n43.02,999\n55.05,10\n"),
        ("a.msp", "Name: a\nNum Peaks: 2\n43.02 999\n55.05 10\n"),
        ("a.msp", 'NAME: a\nNUM PEAKS: 2\n43.02 999 "C2H3O"; 55.05 10 "C4H7";\n'),
        ("a.msp", "Name: a\r\nNum peaks: 2\r\n(43.02,999) (55.05,10)\r\n"),
        ("a.msp", "Name: a\nNum Peaks: 2\n43,02\t999\n55,05\t10\n"),
        ("a.jdx", "##TITLE=a\n##DATA TYPE=MASS SPECTRUM\n##XUNITS=M/Z\n##PEAK TABLE=(XY..XY)\n"
         "43.02,999\n55.05,10\n##END=\n"),
        ("a.jdx", "##TITLE=a\n##DATA TYPE=MASS SPECTRUM\n##XYDATA=(XY..XY)\n"
         "43.02 999; 55.05 10\n##END=\n"),
    ],
)  # fmt: skip
def test_every_way_to_write_masses(tmp_path, name, text):
    [(_, found, heights)] = read(tmp_path, name, text, "ei")
    assert found == pytest.approx([43.02, 55.05]) and heights == [999, 10]


def test_several_spectra_have_their_names_and_reasons(tmp_path):
    text = "ethanol\n17.9 57.3\n\n20.6 oops\n\nempty\n\n# acetone:\n29.8\n206.3\n"
    found = read(tmp_path, "s.txt", text, "nmr13c")
    assert found[0] == ("ethanol", [17.9, 57.3], [1, 1])
    assert found[1] == ("2", "'oops' is no number") and found[2] == ("empty", "no peaks")
    assert found[3] == ("acetone", [29.8, 206.3], [1, 1])
    text = "name,ppm\na,1.2\nb,7.3\na,2.1\nc,x\n"
    found = read(tmp_path, "s.csv", text, "nmr1h")
    assert found[:2] == [("a", [1.2, 2.1], [1, 1]), ("b", [7.3], [1])]
    assert found[2] == ("c", "'c,x' has no number where a peak should be")
    text = "id,smiles,peaks\n5,CCO,1.2 3.6\n6,CC,\n7,C,0.2 99\n8\n"
    found = list(read_measured(write(tmp_path, "t.csv", text), "nmr1h"))
    assert [each[0] for each in found] == ["5", "6", "7", "8"] and found[0][2] == "CCO"
    assert found[0][1].places.tolist() == [1.2, 3.6]
    assert [str(each[1])[:12] for each in found[1:]] == ["no peaks", "99 ppm is no", "the row ends"]


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_msp_records_end_by_themselves(tmp_path):
    text = (
        "Name: a\nPrecursorMZ: 153,0910\nSMILES: CCO\nNum Peaks: 1\n43 9\n"
        "Name: b\nNum Peaks: 2\n43 9\nx 1\n\nName: c\nNum Peaks: 0\n\nName: d\nComment: none\n\n"
        "Name: e\nNum Peaks: 3\n43 9\n"
    )
    found = list(read_measured(write(tmp_path, "a.msp", text), "msms"))
    assert found[0][0] == "a" and found[0][2] == "CCO"
    assert found[0][1].precursor == pytest.approx(153.091)
    assert [str(result) for _, result, _ in found[1:]] == [
        "'x 1' is no m/z and intensity",
        "no peaks",
        "no line Num Peaks",
        "1 peaks of 3: the record is cut off",
    ]
    path = write(tmp_path, "b.msp", "Name: a\nExactMass: 152.08\nNum Peaks: 1\n43 9\n")
    precursors = [dict(read_spectra(path, modality))["a"].precursor for modality in ("ei", "msms")]
    assert precursors[0] == 152.08 and np.isnan(precursors[1])


MGF = """COM=a header
BEGIN IONS
TITLE=first
PEPMASS=153,0910 100
CHARGE=1+
SMILES=CCO
43,02 999
55.05 10
END IONS

BEGIN IONS
TITLE=second
PEPMASS=nothing
43.02 999
END IONS
BEGIN IONS
43.02 9x9
END IONS
BEGIN IONS
TITLE=cut
43.02 999
BEGIN IONS
TITLE=last
60 5
END IONS
"""


def test_mgf(tmp_path):
    (tmp_path / "a.mgf.gz").write_bytes(gzip.compress(("\ufeff" + MGF).encode()))
    found = list(read_measured(tmp_path / "a.mgf.gz", "msms"))
    assert [each[0] for each in found] == ["first", "second", "3", "cut", "last"]
    name, spectrum, smiles = found[0]
    assert spectrum.places.tolist() == [43.02, 55.05] and smiles == "CCO"
    assert spectrum.precursor == pytest.approx(153.091)
    assert isinstance(found[1][1], Spectrum) and np.isnan(found[1][1].precursor)
    assert str(found[2][1]) == "'43.02 9x9' is no m/z and intensity"
    assert str(found[3][1]) == "no END IONS" and isinstance(found[4][1], Spectrum)
    (tmp_path / "b.mgf.gz").write_bytes((tmp_path / "a.mgf.gz").read_bytes()[:-20])
    with pytest.raises(click.ClickException, match="truncated or damaged"):
        list(read_measured(tmp_path / "b.mgf.gz", "msms"))


def mzml(*spectra):
    """An mzML of (id, ms level, m/z, intensities, precursor); of arrays None it has nonsense."""
    parts = []
    for name, level, *arrays, precursor in spectra:
        told = []
        for accession, words, values in zip(
            ("MS:1000514", "MS:1000515"), ("m/z array", "intensity array"), arrays
        ):
            text = "!!" if values is None else base64.b64encode(np.array(values, "<f8")).decode()
            told.append(
                f'<binaryDataArray encodedLength="{len(text)}">'
                '<cvParam cvRef="MS" accession="MS:1000523" name="64-bit float"/>'
                '<cvParam cvRef="MS" accession="MS:1000576" name="no compression"/>'
                f'<cvParam cvRef="MS" accession="{accession}" name="{words}"/>'
                f"<binary>{text}</binary></binaryDataArray>"
            )
        ion = (
            '<precursorList count="1"><precursor><selectedIonList count="1"><selectedIon>'
            '<cvParam cvRef="MS" accession="MS:1000744" name="selected ion m/z" '
            f'value="{precursor}"/></selectedIon></selectedIonList></precursor></precursorList>'
        )
        parts.append(
            f'<spectrum index="{len(parts)}" id="{name}" defaultArrayLength="2">'
            f'<cvParam cvRef="MS" accession="MS:1000511" name="ms level" value="{level}"/>'
            f"{ion if precursor else ''}"
            f'<binaryDataArrayList count="2">{"".join(told)}</binaryDataArrayList></spectrum>'
        )
    return (
        '<?xml version="1.0"?><mzML xmlns="http://psi.hupo.org/ms/mzml" version="1.1.0">'
        f'<run id="r"><spectrumList count="{len(parts)}">{"".join(parts)}</spectrumList></run>'
        "</mzML>"
    )


def test_mzml(tmp_path):
    text = mzml(
        ("survey", 1, [50.0, 60.0], [1.0, 2.0], None),
        ("one", 2, [55.05, 43.02], [10.0, 999.0], 153.091),
        ("bad", 2, None, [1.0, 2.0], 153.091),
        ("odd", 2, [1.0], [1.0, 2.0], 153.091),
        ("two", 2, [60.0], [5.0], None),
    )
    path = write(tmp_path, "a.mzML", text)
    found = dict(read_spectra(path, "msms"))
    assert list(found) == ["one", "bad", "odd", "two"]
    assert found["one"].places.tolist() == [43.02, 55.05]
    assert found["one"].heights.tolist() == [999, 10] and found["one"].precursor == 153.091
    assert "not a readable record" in str(found["bad"])
    assert str(found["odd"]) == "a peak has no intensity" and np.isnan(found["two"].precursor)
    assert list(dict(read_spectra(path, "ei"))) == ["survey"]
    found = list(read_spectra(write(tmp_path, "b.mzml", text[:-400]), "msms"))
    assert [name for name, _ in found][:3] == ["one", "bad", "odd"]
    assert "can't be read further" in str(found[-1][1])


def curve(shifts, low, high, count=4096):
    """A noisy spectrum with peaks there, from high to low: (ppm, heights)."""
    x = np.linspace(high, low, count)
    y = np.random.default_rng(1).normal(0, 1, count)
    return x, y + sum(100 * np.exp(-(((x - each) / 0.08) ** 2)) for each in shifts)


def test_a_curve_in_jcamp_is_picked(tmp_path):
    pytest.importorskip("nmrglue")
    x, y = curve(SHIFTS, -10, 220)
    lines = [
        f"{x[i] * 100:.4f} {' '.join(str(int(v * 100)) for v in y[i : i + 8])}"
        for i in range(0, len(x), 8)
    ]
    head = (
        "##TITLE=curve\n##JCAMP-DX=5.01\n##DATA TYPE=NMR SPECTRUM\n##DATA CLASS=XYDATA\n"
        f"##.OBSERVE FREQUENCY=100\n##.OBSERVE NUCLEUS=^13C\n##XUNITS=HZ\n##FIRSTX={x[0] * 100}\n"
        f"##LASTX={x[-1] * 100}\n##XFACTOR=1\n##YFACTOR=0.01\n##NPOINTS={len(x)}\n"
        "##XYDATA=(X++(Y..Y))\n"
    )
    text = head + "\n".join(lines) + "\n##END=\n"
    assert places(tmp_path, "a.dx", text, "nmr13c") == pytest.approx(SHIFTS, abs=0.05)
    assert read(tmp_path, "a.dx", text, "nmr1h") == [
        ("curve", "its data are 13C, 1H NMR is wanted")
    ]
    assert read(tmp_path, "a.dx", text, "ei") == [
        ("curve", "its data are nmr spectrum, EI-MS is wanted")
    ]
    link = f"##TITLE=all\n##DATA TYPE=LINK\n##BLOCKS=2\n{text}{text}##END=\n"
    assert [name for name, *_ in read(tmp_path, "a.dx", link, "nmr13c")] == ["curve", "curve"]
    [(_, reason)] = read(tmp_path, "a.dx", head + "nonsense\n##END=\n", "nmr13c")
    assert "nmrglue can't read its points" in reason


def test_a_curve_in_a_table_is_picked(tmp_path):
    x, y = curve([1.25, 3.7, 7.26], -1, 12)
    text = "\n".join(f"{a:.5f},{b:.3f}" for a, b in zip(x, y))
    assert places(tmp_path, "a.csv", text, "nmr1h") == pytest.approx([1.25, 3.7, 7.26], abs=0.02)
    noise = "\n".join(f"{a:.5f},{b:.3f}" for a, b in zip(x, np.sin(np.arange(len(x)))))
    [(_, reason)] = read(tmp_path, "a.csv", noise, "nmr1h")
    assert "no peaks stand out" in reason
    assert pick_peaks([], []) == ([], []) and pick_peaks([1, 2], [0, 5]) == ([], [])


def test_what_can_not_be_is_said(tmp_path):
    [(_, reason)] = read(tmp_path, "a.csv", "20,6\n22,7\n170,5\n", "nmr13c")
    assert reason == "decimal commas or two columns? Write decimal points, or a header"
    [(_, reason)] = read(tmp_path, "a.csv", "a,b\n1,2\n", "nmr13c")
    assert "no column ppm or m/z" in reason
    [(_, reason)] = read(tmp_path, "a.txt", "1.2 3.4 5.5 7.2", "nmr13c")
    assert "is this a 1H spectrum?" in reason
    [(_, reason)] = read(tmp_path, "a.txt", "43\n0\n", "ei")
    assert reason == "0 is no m/z; it must be above 0"
    for name, modality, says in [
        ("a.doc", "ei", "unknown kind of file"),
        ("a.msp", "nmr1h", "holds mass spectra, 1H NMR is wanted"),
        ("none.txt", "ei", "can't be read"),
        ("empty.txt", "ei", "holds no spectrum"),
        ("empty.jdx", "ei", "holds no spectrum"),
    ]:
        if name.startswith("empty"):
            write(tmp_path, name, "\n")
        with pytest.raises(click.ClickException, match=says) as error:
            list(read_spectra(tmp_path / name, modality))
        assert str(tmp_path / name) in error.value.message and "\n" not in error.value.message


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nmrglue", None)
    text = "##TITLE=a\n##DATA TYPE=NMR SPECTRUM\n##XYDATA=(X++(Y..Y))\n1 2 3 4\n##END=\n"
    path = write(tmp_path, "a.dx", text)
    with pytest.raises(click.ClickException, match="needs nmrglue, .*pip install nmrglue"):
        list(read_spectra(path, "nmr13c"))


def test_a_folder_gives_its_files_in_order(tmp_path):
    for name in ("b.msp", "a.txt", "notes.md", "c.mgf.gz"):
        write(tmp_path, name, "")
    assert [path.name for path in spectrum_files(tmp_path)] == ["a.txt", "b.msp", "c.mgf.gz"]
    assert spectrum_files(tmp_path / "b.msp") == [tmp_path / "b.msp"]
    (tmp_path / "sub").mkdir()
    with pytest.raises(click.ClickException, match="holds no file of spectra"):
        spectrum_files(tmp_path / "sub")


@pytest.mark.parametrize(
    "line, numbers",
    [
        ("1,5 2,5", [1.5, 2.5]),
        ("1.5,2.5", [1.5, 2.5]),
        ("1,2,3", [1, 2, 3]),
        ("1e2\t-3", [100, -3]),
        ("1_000 2", []),
        ("٣ 2", []),
        ("inf nan", []),
        ("1e999", []),
        ("", []),
    ],
)
def test_numbers_of_a_line(line, numbers):
    assert numbers_of(line)[0] == numbers


def hostile(random):
    """A line as files have them, with something wrong in it or nothing."""
    words = ["20.6", "170,5", "43.02:999", "1e308", "nan", "-5", "\0", "µ", "(1,2)", "", "##END="]
    words += ["BEGIN IONS", "END IONS", "PEPMASS=,", "Name: x", "Num Peaks: 3", "##TITLE=", "ppm"]
    words += ["##PEAK TABLE=(XY..XY)", "##XYDATA=(X++(Y..Y))", "##DATA TYPE=NMR SPECTRUM", "peaks"]
    words += ["##FIRSTX=1", "##LASTX=x", "m/z", "9" * 400, '"', "name", "\ufeff", "\udc80", "99;1"]
    marks = [" ", ",", ";", "\t", ", ", "\r"]
    return random.choice(marks).join(random.choices(words, k=random.randrange(1, 5)))


def test_hostile_files_give_reasons(tmp_path):
    dice, count = random.Random(0), 0
    kinds = [".txt", ".csv", ".tsv", ".msp", ".jdx", ".mgf", ".mzml"]
    for _ in range(400):
        lines = [hostile(dice) for _ in range(dice.randrange(1, 12))]
        path = tmp_path / f"a{dice.choice(kinds)}"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        modality = dice.choice(SPECTRA[2:] if path.suffix in (".mgf", ".msp", ".mzml") else SPECTRA)
        try:
            for name, result in read_spectra(path, modality):
                count += 1
                assert name.isprintable() and isinstance(result, (Spectrum, Rejected))
                assert not isinstance(result, Rejected) or "\n" not in str(result)
        except click.ClickException as error:
            expected = "holds no spectrum" in error.message or "nmrglue" in error.message
            assert expected or "UTF-16" in error.message
    assert count > 300


def test_binary_files_give_reasons(tmp_path):
    dice = np.random.default_rng(0)
    for suffix in (".txt", ".csv", ".msp", ".jdx", ".mgf", ".mzml"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"x" + dice.bytes(3000) + struct.pack("<d", 1.5))
        try:
            results = [result for _, result in read_spectra(path, "ei")]
        except click.ClickException as error:
            assert "holds no spectrum" in error.message
            continue
        assert all(isinstance(result, Rejected) for result in results)


def test_real_lines_are_no_spectra(tmp_path):
    path = write(tmp_path, "esol.csv", "\n".join(first_lines("esol.csv", 5)))
    [(_, reason)] = [(name, str(result)) for name, result in read_spectra(path, "nmr13c")]
    assert "no column ppm or m/z" in reason
