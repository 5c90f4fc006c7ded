import importlib
import re
import subprocess
import sys

import accuracy
import pytest
import tables
from conftest import ROOT, STATIONS

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("station", STATIONS)
def test_every_option_is_in_the_readme_and_has_help(station):
    for parameter in importlib.import_module(station).main.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
            assert any(f"`{name}" in README for name in parameter.opts), (
                f"{station}.py {parameter.opts[0]} is not in README.md"
            )


@pytest.mark.parametrize("station", STATIONS)
def test_a_script_opens_with_commands_and_stays_short(station):
    text = (ROOT / f"{station}.py").read_text()
    assert (
        f"    python {station}.py" in text.split('"""')[1] or "pretrain.py" in text.split('"""')[1]
    )
    assert len(text.splitlines()) <= 600 and len(importlib.import_module(station).main.params) <= 20


def test_options_in_the_readme_exist():
    known = {
        name
        for command in [*(importlib.import_module(station) for station in STATIONS), accuracy]
        for parameter in command.main.params
        for name in parameter.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {
        "--nproc_per_node",
        "--nproc",
        "--help",
    }  # of torchrun and click
    assert named <= known, named - known


def test_imports_never_point_back():
    allowed = {
        "render": set(),
        "cluster": {"render"},
        "pretrain": {"render"},
        "finetune": {"render", "pretrain"},
        "export": {"render", "finetune", "pretrain"},
        "predict": {"render"},
    }
    for station in STATIONS:
        found = set(
            re.findall(r"^\s*(?:import|from) (\w+)", (ROOT / f"{station}.py").read_text(), re.M)
        )
        assert found & set(STATIONS) <= allowed[station]
        if station == "predict":
            assert not found & {"torch", "clip", "sklearn", "scipy", "onnx"}


def test_what_has_no_command_has_one_owner():
    """render owns molecules, pretrain owns encoder and device, finetune owns table and report, predict owns pictures; all others ask the owner."""
    owners = {
        "molecules": {"render"},
        "encoder": {"pretrain"},
        "device": {"pretrain"},
        "report": {"finetune"},
        "table": {"finetune", "report"},
        "pictures": {"export", "predict"},
    }
    for path in ROOT.glob("*.py"):
        found = set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.M))
        assert all(path.stem in owners[name] for name in found & set(owners)), path.name


def test_the_tables_are_what_the_results_say():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    title = "| ESOL, scaffold, RMSE in log mol/L | "
    assert title in README and tables.renewed(README.replace(title, title + "9")) == README
