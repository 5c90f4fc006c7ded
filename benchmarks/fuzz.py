"""Hostile lines and tables as people write them, through the readers: what can't be read is told.

    python benchmarks/fuzz.py                      # 10,000 lines, 300 tables, 20 by the stations
    python benchmarks/fuzz.py --lines 200 --tables 20 --stations 0

No traceback, only a click.ClickException; every planted row has its number; what is learned of a
table is what was planted there, and what isn't learned is named. Prints what was found, with a
tally of what was refused and why; the file of each finding is kept in benchmarks/runs/fuzz/. Exit
code 1 if there is one. The same --seed makes the same files, each by itself. A run of no less than
the default writes what it prints to benchmarks/results/fuzz.txt.
"""

import csv
import gzip
import importlib
import io
import math
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import click
from rdkit import Chem, rdBase
from record import RESULTS, ROOT, RUNS, command_line, surroundings

from moleclip.files import save_whole
from moleclip.molecules import Rejected, parse, read_molecules
from moleclip.table import Data
from moleclip.workers import try_item

SLOW = 10  # seconds of a processor that no line may take
FILE = 1000  # lines of a file of lines
FULL = {"lines": 10_000, "tables": 300, "stations": 20}
STATIONS = ("render", "cluster", "finetune", "export", "predict")
PLANTED = 5  # every so many lines one is planted
ALPHABET = "CNOPSFIBrcnos[]()=#@+-/\\123456789%.:*~HDT$"
NOTES = (
    "|$R1;;R2$|", "|c:0,2|", "|m:0:1.2|", "|Sg:n:0,1:2:ht|", "|LN:1:1.3|", "|w:1.0|", "|&1:1|",
    "|(0,0,;1,0,)|", "|SgD:0:a:b|", "|^1:0|", "|lp:0:2|", "|", "||", "|$", "|C:0.1|",
)  # fmt: skip
WRAPS = ('"{}"', '"{}', "'{}'", '{}"', "{},{}", "{};1", "{}\t{}", '{} "x', "{} ;;", "{} =1+1")
PIECES = ("C", "C(", "[", "C1", "(C)", "C.", "%10", '"', "=", "[CH2:1]", "F")  # of long lines
ATOMS = ("[13C]", "*", "[#6]", "[C,N]", "[C;R]", "~", "[U]", "[R1]")
EMPTY = ("", " ", "\t\t", "\x00", "#", "SMILES name", "nan", "-", "0", "\ufeff")
TAILS = ("", "x", "a b", '"', "'q", "é", "|", "n\x00m", "a\tb", "\x1b[31m")
PEOPLE = ("ethanol", "1,2-diol", "a;b", 'the "x"', "µ-é", "=A1", "", "O'Neil")
REMARKS = ("", "cf. p. 3", 'a "b"', "x, y; z", "two\nlines")
BLANKS = ("", "n/a", "ND", "NaN", "-", "  ", "#N/A")
PAIRS = (
    ("inactive", "active"), ("no", "yes"), ("False", "True"), ("Low", "High"), ("-", "+"),
    ("0", "1"), ("1", "2"), ("-1", "1"), ("odd", "even"),
)  # fmt: skip
ODD = ("", "", "", "blank records", "empty lines", "trailing", "ragged", "stray quote")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16")
STRANGE = [*map(chr, range(10)), *"\x0b\x0c\x1c\x1d\x1e\x7f\x85\u2028\u2029\ufeff\u200b\u202eµ−😀"]


class Planted(NamedTuple):
    """A label column that was planted: its cells, and what a reader of sense takes them for."""

    name: str
    cells: list
    truth: list | None  # a number, a word or None for each row; None: nobody can learn it


class Table(NamedTuple):
    """A generated table.

    source: of each row, the place of its cells in the columns, None for a blank record; smiles:
    of each row, None where its record is none to use.
    """

    path: Path
    source: tuple
    smiles: tuple
    columns: list
    made: str  # how, for messages


def known_smiles():
    """Return SMILES that the planted rows are made of."""
    with open(ROOT / "data" / "esol.csv", newline="") as stream:
        return [line["smiles"] for line in csv.DictReader(stream) if len(line["smiles"]) > 5]


def hostile(rng, known):
    """Return one line, as bytes, of a kind that no reader likes."""
    smiles = rng.choice(known)
    name, note, place = rng.choice(TAILS), rng.choice(NOTES), rng.randrange(len(smiles))
    long = rng.choice([200, 200, 2000, 2000, 100_000])
    line = rng.choice([
        lambda: mutated(rng, smiles),
        lambda: mutated(rng, smiles),
        lambda: f"{smiles} {note} {name}",
        lambda: f"{mutated(rng, smiles)} {note}",
        lambda: f"{smiles} {mutated(rng, note)}",
        lambda: f"{smiles[:place]}{rng.choice(STRANGE)}{smiles[place:]} {name}",
        lambda: rng.choice(WRAPS).replace("{}", smiles),
        lambda: rng.choice(PIECES) * long,
        lambda: f"InChI=1S/{mutated(rng, 'C6H6/c1-2-4-6-5-3-1/h1-6H')} {name}",
        lambda: re.sub("[CNO]", lambda found: f"[{found[0]}:{rng.randrange(999)}]", smiles),
        lambda: smiles.replace("C", rng.choice(ATOMS)),
        lambda: rng.choice(EMPTY),
    ])()  # fmt: skip
    encoded = line.encode(rng.choice(["utf-8", "utf-8", "latin-1"]), "replace")
    if rng.random() < 0.1:
        encoded = rng.randbytes(rng.randrange(1, 80))
    return re.sub(rb"[\r\n]", b"", encoded).removeprefix(b"\x1f\x8b")


def mutated(rng, text):
    """Return a text with a few letters exchanged, lost, doubled or moved."""
    letters = list(text)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(letters) + 1)
        letters[at : at + rng.choice([0, 1])] = rng.choices(ALPHABET, k=rng.choice([0, 1, 1, 2]))
        if letters and rng.random() < 0.2:
            letters.insert(at, letters.pop(rng.randrange(len(letters))))
    return "".join(letters)


def fuzz_lines(count, seed, folder):
    """Return (findings, tally) of hostile lines, in files of 1000 with planted ones between."""
    known, findings, tally = known_smiles(), [], Counter()
    for number in range(math.ceil(count / FILE)):
        rng = random.Random(f"{seed} lines {number}")
        lines = [hostile(rng, known) for _ in range(min(FILE, count - number * FILE))]
        planted = {row: rng.choice(known) for row in range(PLANTED - 1, len(lines), PLANTED)}
        for row, smiles in planted.items():
            lines[row] = f"{smiles} planted-{row}".encode()
        text = rng.choice([b"\n", b"\r\n"]).join(lines) + b"\n"
        packed = rng.random() < 0.3
        path = folder / f"lines-{number}{rng.choice(['.smi', '.txt'])}{'.gz' * packed}"
        path.write_bytes(gzip.compress(text, 1) if packed else text)
        found = check_lines(path, len(lines), planted, tally)
        findings += [f"{path.name}: {each}" for each in found]
        if not found:
            path.unlink()
    return findings, tally


def check_lines(path, count, planted, tally):
    """Return what is wrong with how a file of lines is read, and tally what becomes of them."""
    found, rows = [], 0
    try:
        for rows, molecule in enumerate(read_molecules(str(path)), 1):
            begun = time.process_time()
            became = outcome(molecule)
            seconds = time.process_time() - begun
            tally["read" if isinstance(became, Chem.Mol) else became] += 1
            wrong = misread(molecule, became, planted.get(molecule.row))
            wrong = wrong or (seconds > SLOW and f"takes {seconds:.0f} s") or ""
            if wrong or molecule.row != rows - 1:
                found.append(f"row {molecule.row} ({molecule.smiles[:60]!r}) {wrong}")
    except click.ClickException as error:
        found.append(f"refused after {rows} rows: {error.message}")
    except Exception:
        found.append(f"after {rows} rows: {last_lines()}")
    if not found and rows != count:
        found.append(f"{rows} rows of {count} lines")
    return found


def misread(molecule, became, planted):
    """Return what is wrong with how a line was read, "" if nothing is."""
    if planted and (molecule.smiles, molecule.name) != (planted, f"planted-{molecule.row}"):
        return f"is not the planted {planted}"
    if not isinstance(became, Chem.Mol):
        return planted and f"was planted, and is {became}"
    return "keeps its map" if any(a.GetAtomMapNum() for a in became.GetAtoms()) else ""


def outcome(molecule):
    """Return RDKit's molecule, or why there is none, without its details, as a station has it."""
    task = lambda row, text: parse(text)
    result = try_item(task, molecule.row, molecule.smiles, molecule.problem, {})
    return shorten(str(result)) if isinstance(result, Rejected) else result


def last_lines():
    """Return the last lines of the traceback that is being handled, as one."""
    lines = traceback.format_exc().strip().splitlines()
    return " / ".join(line.strip() for line in (lines[-3], lines[-1]))[:400]


def label_columns(rng, rows):
    """Return a few Planted columns, of those that people have."""
    values = [round(rng.gauss(5, 3), rng.choice([1, 3])) for _ in range(rows)]
    write = rng.choice(["{:.4g}", "{:.3e}", " {:.3f} ", "{:+.2f}"])
    texts = [write.format(value) for value in values]
    numbers = [float(text) for text in texts]
    some = [rng.random() < 0.2 for _ in range(rows)]
    blank, pair = rng.choice(BLANKS), rng.choice(PAIRS)
    words = [*pair, *(rng.choice(pair) for _ in range(rows - 2))]
    rng.shuffle(words)
    gaps = [blank if gap else text for gap, text in zip(some, texts)]
    known = [None if gap else value for gap, value in zip(some, numbers)]
    few = [rng.choice(["low", "medium", "high"]) for _ in range(rows)]
    kinds = {
        "measured": (texts, numbers),
        "with gaps": (gaps, known),
        "minus": ([text.replace("-", "−") for text in texts], numbers),
        "dashes": ([text.replace("-", "–") for text in texts], numbers),
        "thousands": ([f"{row + 1} {500 + row}" for row in range(rows)], None),
        "commas": ([text.replace(".", ",") for text in texts], numbers),
        "IC50": ([f"{text.strip()} nM" for text in texts], numbers),
        "mixed IC50": ([f"{t} {'nM' if gap else 'µM'}" for gap, t in zip(some, texts)], None),
        "some beyond": ([">10" if gap else t for gap, t in zip(some, texts)], known),
        "most beyond": ([t if gap else ">100" for gap, t in zip(some, texts)], None),
        "activity": (words, words),
        "activity with gaps": (
            ["" if gap else word for gap, word in zip(some, words)],
            [None if gap else word for gap, word in zip(some, words)],
        ),
        "three words": (few, None),
        "PubChem CID": ([str(1000 + 7 * row) for row in range(rows)], None),
        "Unnamed: 0": ([str(row) if not gap else "" for row, gap in enumerate(some)], None),
        "fold": ([str(row % 5) for row in range(rows)], None),
        "lot": ([f"2021_{row:03d}" for row in range(rows)], None),
        "constant": (["7.5"] * rows, None),
        "remarks": (rng.choices(REMARKS, k=rows), None),
    }  # fmt: skip
    one_kind = [name for name in kinds if not name.startswith("activity")]
    mixed = list(kinds) if rng.random() < 0.3 else one_kind
    chosen = rng.sample(mixed, rng.choice([1, 1, 2, 3, 5]))
    if rng.random() < 0.7 and not {"measured", "activity"} & {*chosen}:
        chosen.append(rng.choice(["measured", "measured", "activity"]))
    return [Planted(name, *kinds[name]) for name in chosen]


def make_table(seed, number, folder, known):
    """Write a table of a random form, and return the Table."""
    rng = random.Random(f"{seed} table {number}")
    suffix = rng.choice([".csv"] * 8 + [".tsv"] * 2 + [".csv.gz", ".xlsx", ".parquet"])
    mark = rng.choice(",,;;\t") if ".csv" in suffix else "\t"
    rows = rng.randrange(12, 60)
    columns = label_columns(rng, rows)
    smiles = rng.sample(known, rows)
    head = [rng.choice(["SMILES", "smiles", "canonical_smiles", "Smiles "])]
    head.append(rng.choice(["name", "Name", "who"]))
    cells = (smiles, rng.choices(PEOPLE, k=rows), *(column.cells for column in columns))
    body = [*zip(*cells)]
    order = rng.sample(range(len(body[0])), len(body[0]))
    lines = [[line[i] for i in order] for line in [[*head, *(c.name for c in columns)], *body]]
    made, source = [suffix, repr(mark)], [*enumerate(smiles)]
    path = folder / f"table-{number}{suffix}"
    if suffix in (".xlsx", ".parquet"):
        write_library_table(path, lines)
    else:
        source, text = as_text(rng, lines, mark, smiles, made)
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    return Table(path, *zip(*source), columns, ", ".join(made))


def as_text(rng, lines, mark, smiles, made):
    """Return ((source, SMILES) of each row, bytes of a table), with what people's programs add."""
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    end = rng.choice(["\n", "\r\n"])
    odd, encoding = rng.choice(ODD), rng.choice(ENCODINGS)
    made += [odd, encoding] if odd else [encoding]
    planted, texts = [], []
    for row, cells in enumerate(lines):
        stream = io.StringIO()
        cells = cells + [""] * 2 * (odd == "trailing")
        struck = row > 1 and rng.random() < 0.1
        if struck and odd == "ragged":
            cells = cells + ["more"]
        csv.writer(stream, delimiter=mark, quoting=quoting, lineterminator=end).writerow(cells)
        text = stream.getvalue()
        if struck and odd == "stray quote":
            text = text.replace(mark, mark + '"', 1) if mark + '"' not in text else text
        if struck and odd == "blank records":
            texts.append(rng.choice(['""', mark * (len(cells) - 1)]) + end)
            planted.append((None, None))
        if struck and odd == "empty lines":
            texts.append(end)
        texts.append(text)
        if row:
            lost = struck and odd in ("ragged", "stray quote")
            planted.append((row - 1, None if lost else smiles[row - 1]))
    told = rng.random() < 0.15
    made += ["sep="] * told
    text = f"sep={mark}{end}" * told + "".join(texts)
    return planted, text.encode(encoding, "replace")


def write_library_table(path, lines):
    """Write a workbook or a Parquet file, numbers as such."""
    head, *body = lines
    typed = [[as_typed(cell) for cell in line] for line in body]
    if path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for line in [head, *typed]:
            book.active.append(line)
        book.save(path)
        return
    import pyarrow.parquet

    columns = {}
    for name, cells in zip(head, zip(*typed)):
        same = len({type(cell) for cell in cells if cell is not None}) < 2
        columns[name] = cells if same else [None if c is None else str(c) for c in cells]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def as_typed(text):
    """Return a cell as a spreadsheet keeps it: a number, a bool, None or the text."""
    if re.fullmatch(r"\s*[+-]?\d+\s*", text):
        return int(text)
    if re.fullmatch(r"\s*[+-]?[\d.]+(e[+-]\d+)?\s*", text):
        return float(text)
    text = f" {text}" if text[:1] == "=" else text  # which would be a formula
    return {"True": True, "False": False, "": None}.get(text, text)


def fuzz_tables(count, seed, folder):
    """Return (findings, tally, Tables that can be learned from) of generated tables."""
    known, findings, tally, good = known_smiles(), [], Counter(), []
    for number in range(count):
        table = make_table(seed, number, folder, known)
        with redirect_stderr(io.StringIO()):
            try:
                found, became = check_table(table, Data(str(table.path))), "learned"
            except click.ClickException as error:
                found, became = [], shorten(error.message.removeprefix(f"{table.path}: "))
                if "\n" in error.message or "\r" in error.message:
                    found = [f"a refusal over several lines: {error.message!r}"]
            except Exception:
                found, became = [last_lines()], "traceback"
        tally[became] += 1
        findings += [f"{table.path.name} ({table.made}): {each}" for each in found]
        if became == "learned" and not found:
            good.append(table)
        elif not found:
            table.path.unlink()
    return findings, tally, good


def shorten(message):
    """Return what kind of refusal a message is, without its numbers and names."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|\(.*?\)|\|.*", "…", message.replace(str(ROOT), ""))
    return re.sub(r"-?\d[\d.,]*", "N", plain)[:90]


def check_table(table, data):
    """Return what is wrong with what is learned of a table."""
    sound = [row for row, smiles in enumerate(table.smiles) if smiles]
    if len(data) != len(table.smiles):
        return [f"{len(data)} rows, {len(table.smiles)} were planted"]
    moved = [row for row in sound if data.smiles[row] != table.smiles[row] or data.problems[row]]
    if moved:
        row = moved[0]
        read = f"{data.smiles[row]!r} ({data.problems[row]})"
        return [f"row {row} is {read}, not {table.smiles[row]!r}"]
    planted, found = {column.name: column for column in table.columns}, []
    for name in planted:
        if name not in data.columns and name not in data.left_out:
            found.append(f"{name} is not learned, and nothing says so")
    for t, name in enumerate(data.columns):
        column = planted.get(name)
        if column is None or column.truth is None:
            first = column.cells[0] if column else ""
            found.append(f"{name} ({first!r}, ...) is learned, which nobody can")
        else:
            found += check_labels(table, data, t, column)
    return found


def check_labels(table, data, t, column):
    """Return the first label of a target that isn't what was planted."""
    for row, (source, smiles) in enumerate(zip(table.source, table.smiles)):
        planted = None if source is None else column.truth[source]
        value, words = data.labels[row, t], data.classes[t]
        missing = math.isnan(value) and (smiles is None or planted is None)
        if not missing and not same_label(value, planted, words):
            cell = "" if source is None else column.cells[source]
            return [f"{column.name}: row {row} ({cell!r}) is {value}, not {planted!r}"]
    return []


def same_label(value, planted, classes):
    """Tell whether a label is what was planted: a number, or a class by its word."""
    if math.isnan(value) or planted is None:
        return False
    if classes:
        return classes[int(value)].lower() == str(planted).lower()
    return math.isclose(value, float(planted), rel_tol=1e-9)


def fuzz_stations(tables, folder):
    """Return (findings, tally) of tables that go through the stations, each a process."""
    findings, tally = [], Counter()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in STATIONS if tables else ():
        importlib.import_module(name)  # once, for all forks
    for table in tables:
        desk = folder / f"desk-{table.path.stem}"
        shutil.rmtree(desk, ignore_errors=True)
        desk.mkdir()
        found = list(walk(table, desk, tally))
        findings += [f"{table.path.name} ({table.made}): {each}" for each in found]
        if not found:
            shutil.rmtree(desk)
    return findings, tally


def walk(table, desk, tally):
    """Take one table from render.py to predict.py; yield what is wrong."""
    path = str(table.path.resolve())
    learn = "finetune.py --init scratch:nano --freeze --epochs 2 -o run --data"
    commands = {
        "render.py -o shards": [path], "cluster.py --k 3": [path], learn: [path],
        "export.py run": [], "predict.py model.onnx": [path],
    }  # fmt: skip
    for command, more in commands.items():
        script, *words = command.split()
        code, said = play(script.removesuffix(".py"), [*words, *more], desk)
        last = (said.strip().splitlines() or [""])[-1]
        became = "done" if not code else shorten(last.replace(path, ""))
        tally[f"{script}: {became}"] += 1
        if "Traceback" in said or (code and "Error" not in last):
            yield f"{command}: {last}"
        if code:
            return
    for name in ("run/predictions.csv", "predictions.csv"):
        with open(desk / name, newline="", errors="surrogateescape") as stream:
            written = list(csv.DictReader(stream))
        sound = [row for row, smiles in enumerate(table.smiles) if smiles]
        if len(written) != len(table.smiles):
            yield f"{name} has {len(written)} rows, {len(table.smiles)} were planted"
        elif any(written[row]["smiles"] != table.smiles[row] for row in sound):
            yield f"{name}: its rows have shifted"


def play(station, words, desk):
    """Run a station in a fork, which spares the imports; return (exit code, what it said)."""
    child = os.fork()
    if not child:
        os.chdir(desk)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        code = 99
        try:
            sys.modules[station].main(words, f"{station}.py")
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, (desk / "said.txt").read_text(errors="replace")


@click.command()
@click.option("--lines", default=FULL["lines"], show_default=True, help="Hostile lines.")
@click.option("--tables", default=FULL["tables"], show_default=True, help="Generated tables.")
@click.option("--stations", default=FULL["stations"], show_default=True, help="Through stations.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other files.")
def main(seed, **counts):
    """Send hostile lines and tables through the readers and say what was wrong."""
    folder, said, facts = RUNS / "fuzz", [], surroundings(("rdkit", "torch"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with rdBase.BlockLogs():
        findings, tally = fuzz_lines(counts["lines"], seed, folder)
        said += show(f"{counts['lines']} lines", findings, tally)
        wrong, tally, good = fuzz_tables(counts["tables"], seed, folder)
        said += show(f"{counts['tables']} tables", wrong, tally)
    findings += wrong
    wrong, tally = fuzz_stations(good[: counts["stations"]], folder)
    if counts["stations"]:
        chosen = len(good[: counts["stations"]])
        said += show(f"{chosen} tables through the stations", wrong, tally)
    findings += wrong
    for table in good:
        table.path.unlink()
    if all(counts[name] >= FULL[name] for name in FULL):
        keep("fuzz", facts, said)
    sys.exit(1 if findings else 0)


def keep(name, facts, said):
    """Write what a whole run said to benchmarks/results/NAME.txt. facts: of `surroundings`."""
    head = [command_line(), f"{facts['versions']}, commit {facts['commit']}", ""]
    text = "\n".join(head + said) + "\n"
    save_whole(RESULTS / f"{name}.txt", lambda path: path.write_text(text))


def show(title, findings, tally):
    """Print what was found, and what became of the rest; return the lines."""
    lines = [f"{title}: {len(findings)} findings", *(f"    WRONG {each}" for each in findings)]
    lines += [f"    {count:6d}  {became}" for became, count in tally.most_common(30)]
    click.echo("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
