"""The draft of a conda-forge recipe: it asks for what pyproject.toml asks for, under the names that conda-forge has."""

import tomllib

import pytest
import yaml
from runs import ROOT

from precision_probe.version import __version__

NAMES = {"torch": "pytorch", "mace-torch": "pymace"}  # where conda-forge's differ from PyPI's


@pytest.fixture(scope="module")
def recipe():
    return yaml.safe_load((ROOT / "packaging" / "conda" / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_requirements_are_those_of_the_project(recipe, project):
    needed = [each.partition(">=") for each in project["project"]["dependencies"]]
    expected = [f"{NAMES.get(name, name)} >={version}" for name, _, version in needed]
    assert recipe["requirements"]["run"] == ["python >=${{ python_min }}", *expected]
    assert recipe["requirements"]["host"][1:] == ["pip", *project["build-system"]["requires"]]


def test_the_rest_is_said_once_more_and_alike(recipe, project):
    about = project["project"]
    assert recipe["context"]["version"] == __version__
    assert about["requires-python"] == f">={recipe['context']['python_min']}"
    assert recipe["package"]["name"] == about["name"]
    (script,) = (f"{name} = {target}" for name, target in about["scripts"].items())
    assert recipe["build"]["python"]["entry_points"] == [script]
    assert recipe["about"] == {
        "summary": about["description"],
        "license": about["license"],
        "license_file": about["license-files"][0],
    }
