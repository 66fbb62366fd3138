"""The examples in the package's docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import precision_probe

MODULES = [module.name for module in pkgutil.iter_modules(precision_probe.__path__) if module.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    result = doctest.testmod(importlib.import_module(f"precision_probe.{name}"))
    assert result.failed == 0


def test_the_modules_that_need_examples_have_them():
    with_examples = {"blocks", "metrics", "models", "precisions", "probe", "structures"}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in with_examples:
        tests = finder.find(importlib.import_module(f"precision_probe.{name}"))
        assert any(test.examples for test in tests)
