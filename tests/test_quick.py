"""The quick tests: a cross-section that leaves no module of the program out."""

import ast
import functools
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.quick import OF_MODULE, QUICK

TESTS = ROOT / "tests"
FOLDERS = "common", "encoders", "experiments", "figures", "inputs", "metrics", "scripts", \
    "searching", "training", "vocab"


def source_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules() -> set[str]:
    """Return the modules of the program, without packages that are a docstring alone."""
    found = {path.stem for path in ROOT.glob("*.py")}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__" or len(ast.parse(path.read_text()).body) > 1:
            found.add(name.removesuffix(".__init__"))
    return found


MODULES = modules()


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the modules of the program that a file imports, in functions too.

    A text of the form "module:name" counts: the table of objectives is of such texts.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            found.add(node.value.partition(":")[0])
    return found & MODULES


def reached(path: Path) -> set[str]:
    """Return the modules that a file imports, and those that they import, and so on."""
    found, waiting = set(), imported(path)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imported(source_of(module)) - found
    return found


def test_every_module_has_a_quick_test():
    assert OF_MODULE.keys() == MODULES


@pytest.mark.parametrize("module", sorted(OF_MODULE))
def test_a_modules_quick_test_reaches_it(module):
    assert module in reached(TESTS / OF_MODULE[module].partition("::")[0])


@pytest.mark.parametrize("entry", sorted(QUICK))
def test_a_quick_test_exists(entry):
    name, _, function = entry.partition("::")
    source = (TESTS / name).read_text()
    assert f"def {function or 'test_'}" in source


def test_quick_tests_have_their_mark(request):
    """This file is one of them; its tests that are running have the mark."""
    assert request.node.get_closest_marker("quick")
