"""The house: what lies where, who owns what, who may import whom, and how long things are."""

import ast
import re
import sys
from functools import cache

import pytest
from conftest import ROOT, STATIONS

GROUND = [  # without torch; each may import from those before it
    *("files", "formats", "molecules", "workers", "options", "pixels", "movement", "styles"),
    *("drawing", "shards", "loader", "targets", "pictures", "graphs", "features", "proteins"),
    *("proteintable", "keys", "electronic", "blocks", "calibration", "session", "onnxfacts"),
    *("familiar", "onnxmodel", "explain"),
    *("outputs", "parts", "reportpage", "embeddingmap", "spectra", "tokens", "texts"),
    *("alignedmodel", "peaktables", "jcamp", "mzml", "spectrumfiles", "index", "hitspage"),
    *("captions", "describe", "evolve", "generatedpage"),
]
UPPER = [
    *("device", "transfer", "augment", "encoder", "gin", "embedder", "weights", "encoders"),
    *("seen", "pairs", "losses", "trainstate", "labels", "splits", "table", "affinity"),
    *("metrics", "training", "posterior", "gp", "forest", "folds", "model", "mlpfit", "deploy"),
    *("quantize", "trained", "heads", "choice", "results", "plots", "runs", "grid", "stages"),
    *("experiment", "transformer", "queries", "dense", "correlation", "counted", "aligned"),
    *("pairtable", "textpairs", "alignscores", "alignstate", "alignstep", "alignedfile"),
]
FLOORS = GROUND + UPPER
HEAVY = {"torch", "clip", "sklearn", "scipy", "onnx"}
MODULES = {name: ROOT / "moleclip" / f"{name}.py" for name in FLOORS}
SOURCES = {**{name: ROOT / f"{name}.py" for name in STATIONS}, **MODULES}
EVERYWHERE = [
    *SOURCES.values(),
    *sorted((ROOT / "tests").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]


@cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def imports(path):
    """Return (line, module, name or None) of every import of a file, those in functions too."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: relative import"
            found += [(node.lineno, node.module, alias.name) for alias in node.names]
    return found


def floors_below(path):
    """Return (line, floor) of every import from moleclip/."""
    found = []
    for line, module, name in imports(path):
        package, _, floor = module.partition(".")
        if package == "moleclip":
            found.append((line, floor or name))
    return found


def own_names(path):
    """Return the names that a module defines itself, at its top level."""
    names = set()
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for part in ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ():
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
    return names


def packages_of(path):
    """Return the packages that a file, and all of moleclip/ that it imports, take from outside."""
    reached, waiting, packages = set(), [path], set()
    while waiting:
        here = waiting.pop()
        if here not in reached:
            reached.add(here)
            waiting += [MODULES[floor] for _, floor in floors_below(here)]
            packages |= {module.partition(".")[0] for _, module, _ in imports(here)}
    return packages - {"moleclip"} - set(sys.stdlib_module_names)


def functions(path):
    """Return (name, line, lines without decorators) of every function of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]
    return [(node.name, node.lineno, node.end_lineno - node.lineno + 1) for node in found]


def test_the_stations_lie_alone_on_the_top_level():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(STATIONS)


def test_every_part_of_moleclip_has_its_floor():
    assert sorted(path.stem for path in (ROOT / "moleclip").glob("*.py")) == sorted(FLOORS)
    # 26 files of 300 lines can't hold what the issues after the house's ask for; nor can 48 the
    # second and third system, ACML and MoMu, nor 85 proteins
    assert len(FLOORS) <= 91


def test_contributing_has_the_order_of_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("\n   ", " ")
    assert f"{', '.join(GROUND)}; then, with torch, {', '.join(UPPER)}." in text


@pytest.mark.parametrize("name", FLOORS)
def test_a_module_imports_only_from_floors_below(name):
    below = set(FLOORS[: FLOORS.index(name)])
    wrong = [f"line {line}: {floor}" for line, floor in floors_below(MODULES[name])]
    wrong = [each for each in wrong if each.partition(": ")[2] not in below]
    assert not wrong, f"{name}.py imports from its own floor or above: {wrong}"


def test_nothing_imports_a_station():
    wrong = [
        f"{path.name}:{line}: {module}"
        for path in SOURCES.values()
        for line, module, _ in imports(path)
        if module.partition(".")[0] in STATIONS
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_comes_from_its_owner(path):
    wrong = []
    for line, module, name in imports(path):
        package, _, floor = module.partition(".")
        if package == "moleclip" and floor and name not in own_names(MODULES[floor]):
            wrong.append(f"line {line}: {name} is not {floor}.py's own")
        elif path in SOURCES.values() and module == "moleclip" and name != "options":
            wrong.append(f"line {line}: import names, not the module {name}")
    assert not wrong, wrong


def test_shared_options_are_declared_in_options():
    known = own_names(MODULES["options"])
    for station in STATIONS:
        decorators = [
            each for node in ast.walk(tree(SOURCES[station])) for each in decorators_of(node)
        ]
        for each in decorators:
            if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "options":
                assert each.attr in known, f"{station}.py: options.{each.attr}"


def decorators_of(node):
    calls = getattr(node, "decorator_list", [])
    return [call.func if isinstance(call, ast.Call) else call for call in calls]


def test_no_import_is_handed_on():
    wrong = [path.name for path in EVERYWHERE if re.search("noqa.*F40" + "1", path.read_text())]
    assert not wrong, wrong


def test_predict_needs_what_its_requirements_name():
    lines = (ROOT / "requirements-predict.txt").read_text().splitlines()
    named = {re.match(r"[\w-]+", line)[0] for line in lines if line[:1].isalpha()}
    other_names = {"pillow": "PIL", "onnxruntime-gpu": "onnxruntime"}
    needed = packages_of(ROOT / "predict.py")
    assert needed == {other_names.get(name, name) for name in named}


def test_search_needs_no_more_than_predict():
    assert packages_of(ROOT / "search.py") <= packages_of(ROOT / "predict.py")


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_floors_stay_light(name):
    taken = {module.partition(".")[0] for _, module, _ in imports(MODULES[name])}
    assert not taken & HEAVY


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_have_at_most_100_columns(path):
    lines = enumerate(path.read_text().splitlines(), 1)
    wrong = [f"line {number}: {len(line)}" for number, line in lines if len(line) > 100]
    assert not wrong, wrong


@pytest.mark.parametrize("name", SOURCES)
def test_functions_have_at_most_40_lines(name):
    wrong = [f"{each[0]}, line {each[1]}: {each[2]}" for each in functions(SOURCES[name])]
    wrong = [each for each in wrong if int(each.rpartition(" ")[2]) > 40]
    assert not wrong, wrong


def test_files_stay_short():
    lines = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    limits = {name: 450 if name in STATIONS else 300 for name in SOURCES}
    assert not {name: count for name, count in lines.items() if count > limits[name]}
    # 7,500 was the bound when the house was built, at 7,073; what makes its numbers and rows
    # trustworthy came on top, then the targets of atoms and electrons, then heads for few data,
    # then graphs, spectra and texts, also for tables of labels, a look inside, int8, and proteins.
    # A file's own bound is what keeps it readable.
    assert sum(lines.values()) <= 20000


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_says_what_it_is(name):
    assert "TODO" not in SOURCES[name].read_text()
    docstring = ast.get_docstring(tree(SOURCES[name]))
    assert docstring
    if name in STATIONS:
        commands = re.findall(rf"^    .*\b{name}\.py\b.*$", docstring, re.M)
        assert 2 <= len(commands) <= 4, commands
