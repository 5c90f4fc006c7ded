"""What the cells of a column say: numbers with their units and qualifiers, or two classes."""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from moleclip.files import UTF8

BLANKS = {"", "nan", "na", "n/a", "#n/a", "n.a.", "nd", "n.d.", "null", "none", "-", "--", "–"}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
QUALIFIED = re.compile(r"(?:[<>]=|<<|>>|[<>~≥≤≈])\s*(?=[\d.+-])")
UNIT = r"[A-Za-zµμ%°Å][A-Za-zµμ%°Å/·*^0-9 ().-]{0,19}"
WITH_UNIT = re.compile(rf"({NUMBER})\s*({UNIT})?")
DASHES = dict.fromkeys(map(ord, "−–‐‑"), "-")  # that programs write for a minus
GAP = "[ \u00a0\u202f]"  # what people write between thousands, beside , ' and .
GROUPED = (
    rf"\d{{1,3}}(?:(?:[,'’]|{GAP})\d{{3}})+(?:[.,]\d+)?"
    r"|\d{1,3}(?:\.\d{3})+(?:,\d+|\.\d{3})"
)
DRESSED = re.compile(  # a measurement, but no plain number: 5 ± 1, 1-2, (5), 2 × 10^-3, 1,234.5
    rf"[(<>~≤≥=]*\s*[+-]?(?:{GROUPED}|{NUMBER})"
    rf"(?:\s*(?:±|\+/?-|–|-|to|\^|[x×*]\s*10\s*\^?)\s*{NUMBER})?"
    rf"\s*\)?(?:\s*\(.*\))?\s*(?:{UNIT})?"
)
PAIRS = ({0, 1}, {1, 2}, {-1, 1})  # of numbers that are classes
YES = {"active", "yes", "true", "high", "positive", "pos", "+", "y", "t", "toxic", "hit", "pass"}
NO = {"inactive", "no", "false", "low", "negative", "neg", "-", "n", "f", "nontoxic", "fail"}
COUNTER = r"unnamed:?.*|num|no\.?|nr\.?|number|rows?|index|indices|idx|#|"
IDENTIFIER = re.compile(  # of a name in lower case
    rf"({COUNTER})|(.*[ _.-])?(id|ids|[csau]id|cas)([ _.-].*)?"
    r"|(.*[ _.-])?(fold|lot|batch|plate|split|seed|replicate|year|date|pmid)"
    r"([ _.-]?(no|nr|num|number|id|\d+))?"
)
BESIDE = re.compile(r"(^|[\W_])(units?|relations?|operators?|qualifiers?)($|[\W_])")
IDS = "an index, ids or parts, by its name or as each number occurs once"
FEW = 10  # different words that may be classes


class Column(NamedTuple):
    """What a column holds, as far as it can be learned."""

    kind: str  # "numbers", "classes", or "" if it can't be learned
    reason: str = ""  # why it can't be learned, or is only if it is named
    asked: bool = False  # whether it looks like labels in spite of that
    values: np.ndarray | None = None  # float64 (rows, width), NaN where missing
    classes: tuple = ()  # the words of 0 and of 1; () for numbers, and for 0 and 1 as such
    unit: str = ""  # of every number
    qualified: dict = {}  # {row: text} of what is no exact number, such as >10
    wrong: tuple = ()  # (row, text) of the first cell that can't be read, for a column of numbers


class Cell(NamedTuple):
    """The numbers of one cell."""

    numbers: list
    unit: str = ""
    qualified: bool = False


def read_column(name, cells, comma=False, positive=None, task="auto"):
    """Return the Column that stripped cells make.

    comma: whether 1,5 is a number in this table. positive: the word that is to be class 1. Several
    blank-separated numbers may share a cell (MoleCLIP).
    """
    cells = ["-" if cell in ("−", "–", "—") else cell for cell in cells]
    known = {i: cell for i, cell in enumerate(cells) if cell.lower() not in BLANKS - {"-"}}
    signs = set(known.values()) == {"+", "-"}
    known = {i: cell for i, cell in known.items() if signs or cell != "-"}
    words = Counter(cell.lower() for cell in known.values())
    if not known:
        return Column("", "every cell is blank")
    own = comma and any(re.search(r"\d,\d", cell) for cell in known.values())
    read = {i: read_cell(cell, own) for i, cell in known.items()}
    good = {i: cell for i, cell in read.items() if cell}
    groups = grouped({known[i]: cell for i, cell in good.items()}, comma and not own)
    if groups:
        return Column("", groups, asked=not named_as_id(name))
    if signs or (not good and len(words) == 2 < len(known)):
        column = two_classes(words, known, len(cells), positive)
        return column._replace(reason=IDS) if column.kind and named_as_id(name) else column
    if 2 * len(good) <= len(known):
        column = unreadable(known, words, len(good))
        return column._replace(asked=column.asked and not named_as_id(name))
    column = numbers(good, known, len(cells))
    kinds = set(np.unique(column.values[~np.isnan(column.values)])) if column.kind else set()
    if kinds <= {0, 1} or (column.values.shape[1] == 1 and kinds in PAIRS):
        column = numbers_as_classes(column, kinds, positive, task) if column.kind else column
    if not column.reason and identifies(name, column, [known[i] for i in good]):
        column = column._replace(reason=IDS)
    elif not column.reason and not column.wrong and len(kinds) == 1:
        column = column._replace(reason="the same in every row")
    return column


def read_cell(text, comma=False):
    """Return the Cell of a text, None if it holds no numbers.

    Spellings that Python alone reads, such as 2021_014 and infinity, are none.
    """
    text = text.translate(DASHES)
    if comma:
        if "." in text:
            return None
        text = text.replace(",", ".")
    qualifier = QUALIFIED.match(text)
    text = text[qualifier.end() :] if qualifier else text
    words, unit = text.split(), ""
    if not all(re.fullmatch(NUMBER, word) or word.lower() in BLANKS for word in words):
        found = WITH_UNIT.fullmatch(text)
        if not found:
            return None
        words, unit = [found[1]], found[2].strip()
    values = [math.nan if word.lower() in BLANKS else float(word) for word in words]
    fits = all(math.isnan(value) or abs(value) < 1e30 for value in values)
    return Cell(values, unit, bool(qualifier)) if values and fits else None


def grouped(good, pointed):
    """Return why numbers can't be told from groups of thousands, "" if they can.

    good: {text: Cell}. pointed: whether a point may separate such groups too, since commas are
    decimal in the table.
    """
    mark, says = GAP, "may be one number or several"
    found = [text for text, cell in good.items() if len(cell.numbers) > 1]
    if pointed and not found:
        mark, says = r"\.", "may be thousands, as commas are decimal in this table"
        found = [text for text in good if "." in text]
    number = rf"[<>~≤≥=]*\s*[+-]?[1-9]\d{{0,2}}(?:{mark}\d{{3}})+\s*(?:{UNIT})?"
    if not found or not all(re.fullmatch(number, text.translate(DASHES)) for text in found):
        return ""
    return f"{found[0][:40]!r} {says}; write numbers without groups of three digits"


def two_classes(words, known, rows, positive):
    """Return the Column of two words."""
    if any(map(strange, words)):
        return Column("", f"its words are not UTF-8; save the table as {UTF8}", asked=True)
    negative, active = in_order(*words)
    if positive and positive.lower() not in words:
        return Column("", f"has the classes {negative} and {active}, none is {positive!r}")
    if positive and positive.lower() == negative:
        negative, active = active, negative
    spelt = {cell.lower(): cell for cell in reversed(known.values())}
    values = np.full((rows, 1), math.nan)
    for i, cell in known.items():
        values[i] = cell.lower() == active
    return Column("classes", values=values, classes=(spelt[negative], spelt[active]))


def in_order(first, second):
    """Return two words, the one for class 0 before the one for class 1."""
    denied = [f"{no}{first}" for no in ("in", "im", "non", "non-", "un", "not ", "not_")]
    if first in YES or second in NO or second in denied:
        return second, first
    if second in YES or first in NO or second in first:
        return first, second
    return tuple(sorted((first, second)))


def unreadable(known, words, good):
    """Return the Column of cells of which most are no numbers."""
    commas = sum(bool(re.fullmatch(r"[+-]?\d*,\d+", cell)) for cell in known.values())
    if 2 * (commas + good) > len(known):
        says = "its decimal commas are read in tables separated by semicolons alone; write points"
        return Column("", says, asked=True)
    foreign = [cell for cell in known.values() if strange(cell) and cell[0] in "+-.0123456789<>"]
    if 2 * len(foreign) > len(known):
        return Column("", f"its cells are not UTF-8; save the table as {UTF8}", asked=True)
    dressed = [cell for cell in known.values() if DRESSED.fullmatch(cell.translate(DASHES))]
    if 2 * len(dressed) > len(known):
        odd = next((cell for cell in dressed if not read_cell(cell)), dressed[0])
        return Column("", f"its cells are no plain numbers ({odd[:40]!r}); write one in each", True)
    shown = ", ".join(" ".join(word.split())[:40] for word in list(words)[:3])
    if len(words) == 1:
        return Column("", "the same in every row")
    if len(words) <= FEW and 2 * len(words) <= len(known):
        says = f"{len(words)} different words ({shown}{', ...' * (len(words) > 3)}); to learn it, "
        says += "write numbers, or two classes, and leave blank what is neither"
        return Column("", says, asked=bool(set(words) & (YES | NO)))
    if 5 * good >= len(known):
        odd = next(cell for cell in known.values() if not read_cell(cell))
        says = f"most of its cells are no numbers ({odd[:40]!r})"
        return Column("", says, asked=True)
    return Column("", "words")


def strange(text):
    """Tell whether a text holds bytes that are not UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def numbers(good, known, rows):
    """Return the Column of a column of numbers: without its unit, exact ones alone."""
    exact = {i: cell.numbers for i, cell in good.items() if not cell.qualified}
    qualified = {i: known[i] for i, cell in good.items() if cell.qualified}
    units = Counter(cell.unit.replace("μ", "µ") for cell in good.values())
    if len(units) > 1:
        shown = ", ".join(f"{n} in {unit}" if unit else f"{n} bare" for unit, n in units.items())
        return Column("", f"units are mixed ({shown[:80]}); write all in one", asked=len(units) < 6)
    if not exact:
        return Column("", f"holds no exact number ({next(iter(qualified.values()))})", asked=True)
    width = max(map(len, exact.values()))
    odd = [i for i in known if i not in good] + [i for i in exact if len(exact[i]) != width]
    values = np.full((rows, width), math.nan)
    for i, found in exact.items():
        if len(found) == width:
            values[i] = found
    reason, most = "", 2 * len(qualified) > len(known)
    if most:
        first = next(iter(qualified.values()))
        reason = f"most of its values are not exact ({first}); {len(exact)} are"
    wrong = (odd[0], known[odd[0]]) if odd else ()
    return Column("numbers", reason, most, values, (), *units, qualified, wrong)


def numbers_as_classes(column, kinds, positive, task):
    """Return a Column of two numbers as classes; 0 and 1 need no words."""
    if column.unit or column.qualified or (task == "regression" and kinds != {0, 1}):
        return column
    low, high = ("0", "1") if kinds <= {0, 1} else (f"{value:g}" for value in sorted(kinds))
    values = column.values
    if kinds not in ({0}, {1}, {0, 1}):
        values = np.where(np.isnan(values), math.nan, values == max(kinds))
    if positive not in (None, low, high):
        return Column("", f"has the classes {low} and {high}, none is {positive!r}")
    if positive == low:
        return column._replace(kind="classes", values=1 - values, classes=(high, low))
    words = () if (low, high) == ("0", "1") else (low, high)
    return column._replace(kind="classes", values=values, classes=words)


def named_as_id(name):
    """Tell whether a column's name is that of an index, of ids, folds or lots."""
    name = name.strip()
    return bool(IDENTIFIER.fullmatch(name.lower()) or re.search(r"[a-z](Id|ID|CID)$", name))


def identifies(name, column, cells):
    """Tell whether numbers rather name the rows than measure something: ids, folds, lots."""
    if named_as_id(name):
        return True
    if column.kind != "numbers" or column.values.shape[1] > 1 or column.unit or column.qualified:
        return False
    values = [float(value) for value in column.values[:, 0] if not math.isnan(value)]
    return len(values) == len(set(values)) > 2 and all(value.is_integer() for value in values)


def unlearnable(labels, splits):
    """Return why each target of labels (rows, targets) can't be learned, "" if it can.

    It needs two different labels in the training part of every one of the splits.
    """
    lost = [""] * labels.shape[1]
    for split in splits:
        for t, column in enumerate(labels[split["train"]].T):
            values = set(column[~np.isnan(column)])
            if not values:
                lost[t] = "no label in the training part"
            elif len(values) == 1:
                lost[t] = f"all labels of the training part are {values.pop():g}"
    return lost


def has_one_value(labels):
    """Tell of each target whether its known labels are all the same, bool (targets,)."""
    return np.array([len(set(column[~np.isnan(column)])) == 1 for column in labels.T])


def differs_beside(name, cells):
    """Return what a column says of the numbers beside it, if that isn't the same in all rows.

    Such as the units and relations that ChEMBL writes into columns of their own.
    """
    words = Counter(cell for cell in cells if cell.lower() not in BLANKS)
    if not BESIDE.search(name.lower()) or not 1 < len(words) <= FEW:
        return ""
    shown = ", ".join(f"{count} are {word[:20]}" for word, count in words.most_common(4))
    return f"{name.strip()} is not the same in all rows ({shown}): labels are taken as they stand"
