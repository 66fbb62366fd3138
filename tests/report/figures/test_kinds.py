"""kinds.py: all figures are called alike, draw on given axes, are written, and leave matplotlib as it was."""

import inspect
import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from pages_by_hand import CONTRIBUTIONS
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

from precision_probe.cli.plot import Kind
from precision_probe.exceptions import InputError
from precision_probe.report.figures.files import save_figure
from precision_probe.report.figures.kinds import FIGURES


@pytest.fixture(scope="module")
def trace():
    return trace_by_hand().with_tables(TABLES | {"contributions": CONTRIBUTIONS})


def test_the_command_line_has_them_all():
    assert [kind.value for kind in Kind] == [*FIGURES, "policy"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_alike(trace, tmp_path, name):
    plot = FIGURES[name]
    assert {"precisions", "blocks", "ax"} <= set(inspect.signature(plot).parameters)
    before = dict(mpl.rcParams)
    given = Figure().add_subplot()
    assert plot(trace, precisions="float16", ax=given) is given
    axes = plot(trace)
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    path = save_figure(axes, tmp_path / "figure.svg")
    assert b"<svg" in path.read_bytes()
    assert dict(mpl.rcParams) == before
    with pytest.raises(InputError, match="exists"):
        save_figure(axes, path)


def test_matplotlib_waits_until_something_is_drawn():
    code = (
        "import sys; import precision_probe as pp; pp.plot_bits, pp.plot_policy; "
        "import precision_probe.report.figures.kinds; assert not {'torch', 'mace', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
