"""The documentation says what there is: every option, every table, every link, every example."""

import csv
import importlib
import re
import subprocess
import sys

import accuracy
import pytest
import retrieval
import tables
from conftest import ROOT, STATIONS

README = (ROOT / "README.md").read_text()
MANUAL = (ROOT / "docs" / "manual.md").read_text()
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "data", "weights")),
]
SHARED = {  # they mean the same everywhere, and are declared once, in moleclip/options.py
    "--out",
    "--seed",
    "--workers",
    "--device",
    "--precision",
    "--provider",
    "--batch",
    "--part",
    "--resume",
    "--smiles-column",
    "--r-groups",
    "--proteins",
}
TORCHRUN = {"--nproc_per_node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
FOREIGN = TORCHRUN | {"--help"}  # and click's
OPTION = r"(?<![\w-])--?[a-z][a-z_-]*"
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "files.md").read_text(), re.S)


def options_of(station):
    """Return the options of a station or benchmark, as click has them."""
    parameters = importlib.import_module(station).main.params
    return [each for each in parameters if each.param_type_name == "option"]


def in_manual(station):
    """Return {option: its line} of the table in a station's section of the manual."""
    section = re.search(rf"^## {station}\.py\n(.*?)(?=^## |\Z)", MANUAL, re.S | re.M)[1]
    lines = re.findall(r"^\| (`-[^|]*)\|(.*)\|$", section, re.M)
    return {name: meaning for cell, meaning in lines for name in re.findall(OPTION, cell)}


@pytest.mark.parametrize("station", STATIONS)
def test_the_manual_has_every_option_and_invents_none(station):
    described, known = in_manual(station), options_of(station)
    missing = [each.opts for each in known if not each.hidden and not {*each.opts} & {*described}]
    assert not missing, f"docs/manual.md lacks {missing} of {station}.py"
    invented = {*described} - {name for each in known for name in each.opts}
    assert not invented, f"docs/manual.md has {invented}, {station}.py doesn't"


@pytest.mark.parametrize("station", STATIONS)
def test_the_manual_has_the_defaults(station):
    described = in_manual(station)
    for each in options_of(station):
        default = each.show_default if isinstance(each.show_default, str) else each.default
        if not each.is_flag and each.show_default:
            line = next(described[name] for name in each.opts if name in described)
            assert f"[{default}" in line, f"{station}.py {each.opts[0]}: {default}"


@pytest.mark.parametrize("station", STATIONS)
def test_every_option_has_help(station):
    assert all(each.help or each.hidden for each in options_of(station))


@pytest.mark.parametrize("station", STATIONS)
def test_a_station_has_at_most_twenty_options_of_its_own(station):
    own = [each.opts for each in options_of(station) if not {*each.opts} & SHARED]
    assert len(own) <= 20, own


def test_options_that_pages_speak_of_exist():
    commands = [*STATIONS, accuracy.__name__, retrieval.__name__]
    known = {name for command in commands for each in options_of(command) for name in each.opts}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", path.read_text()))
        assert named <= known | FOREIGN, f"{path.name}: {named - known - FOREIGN}"


def test_the_readme_is_read_in_five_minutes():
    assert len(README.splitlines()) <= 180


def test_scripts_and_targets_that_pages_speak_of_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for path in PAGES:
        text = path.read_text()
        for script in set(re.findall(r"(?:python|pytest) ([\w/]+\.py)", text)) - {"STATION.py"}:
            assert (ROOT / script).is_file(), f"{path.name}: {script}"
        for target in set(re.findall(r"(?:`|^    )make (\w+)", text, re.M)):
            assert target in targets, f"{path.name}: make {target}"


def anchors(path):
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    titles = [title.strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]


def links(path):
    """Return (file, anchor or "") of every relative link on a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    targets = [each for each in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in each]
    parts = [each.partition("#") for each in targets]
    return [((path.parent / name).resolve() if name else path, mark) for name, _, mark in parts]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_work(path):
    for target, mark in links(path):
        assert target.exists(), f"{path.name} links to {target}"
        assert not mark or mark in anchors(target), f"{path.name}: no #{mark} in {target.name}"


def test_every_page_is_linked_from_the_readme():
    linked = {target for target, _ in links(ROOT / "README.md")}
    assert {*PAGES} - linked == {ROOT / "README.md"}


def test_the_tables_are_what_the_results_say():
    command = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    title = "| ESOL, scaffold, RMSE in log mol/L | "
    for page in (README, (ROOT / "docs" / "results.md").read_text()):
        assert title in page
        assert tables.renewed(page.replace(title, title + "9")) == page


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_files_md_run(number, road, monkeypatch):
    monkeypatch.chdir(road.folder)
    example = EXAMPLES[number].replace("runs/esol", "runs/solubility")
    exec(compile(example, f"example {number} of files.md", "exec"), {})


def test_the_readme_shows_what_predict_writes(road):
    with open(road / "predictions.csv", newline="") as stream:
        written = list(csv.reader(stream))
    block = re.search(r"^    (row,smiles.*?)\n\n", README, re.S | re.M)[1]
    shown = list(csv.reader(line.strip() for line in block.splitlines()))
    # the README's model is a head for few data, with intervals, the road's an MLP without
    ends = ("_spread", "_low", "_high")
    assert [name for name in shown[0] if not name.endswith(ends)] == written[0]
    assert {len(line) for line in shown} == {len(written[0]) + len(ends)}
    assert [line[:3] for line in shown[1:]] == [line[:3] for line in written[1 : len(shown)]]
