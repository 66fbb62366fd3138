"""The examples in the package's docstrings."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import precision_probe

ROOT = Path(precision_probe.__file__).parent
WALKED = {module.name for module in pkgutil.walk_packages(precision_probe.__path__, "precision_probe.")}
MODULES = sorted({"precision_probe", *WALKED} - {"precision_probe.__main__"})  # which runs the command line


def examples_of(name):
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [example for test in tests for example in test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    result = doctest.testmod(importlib.import_module(name))
    assert (result.failed, result.attempted) == (0, len(examples_of(name)))


def test_every_file_is_a_module_whose_examples_are_run():
    files = {path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert names == {*MODULES, "precision_probe.__main__"}


def test_every_example_written_is_found():
    """Also those of nested functions and of what a decorator replaces, which doctest would pass over in silence."""
    lines = [line for path in ROOT.rglob("*.py") for line in path.read_text().splitlines()]
    written = sum(line.lstrip().startswith(">>> ") for line in lines)
    assert sum(len(examples_of(name)) for name in MODULES) == written > 50


@pytest.mark.parametrize(
    "name", ["analysis.metrics", "models.blocks", "models.building", "precisions", "probe.probe", "structures"]
)
def test_the_modules_that_need_examples_have_them(name):
    assert examples_of(f"precision_probe.{name}")
