"""version.py: one number, which the package, its metadata and the project file agree on."""

import importlib.metadata
import runpy
import tomllib

from runs import ROOT

import precision_probe as pp


def test_the_installed_package_is_of_this_version():
    assert pp.__version__ == importlib.metadata.version("precision-probe")


def test_the_project_file_takes_the_version_from_the_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    path = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert runpy.run_path(str(path))["__version__"] == pp.__version__
