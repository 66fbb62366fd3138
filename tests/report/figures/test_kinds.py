"""kinds.py: all figures are called alike, draw on given axes, are written, and leave matplotlib as it was."""

import inspect
import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pages_by_hand import CONTRIBUTIONS, of_two
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


def drawn(axes):
    """Colour, marker and dashes of every line and of the outline of every histogram."""
    outlines = [(to_hex(each.get_edgecolor()), "None", each.get_linestyle()) for each in axes.patches]
    return {*map(look, axes.lines), *outlines}


def look(line):
    return to_hex(line.get_color()), str(line.get_marker()), line.get_linestyle()


def explained(axes):
    """What the legend says: the look of each name."""
    legend = axes.get_legend()
    return {text.get_text(): look(line) for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("blocks", "bits", "sweep")])
def test_a_precision_looks_the_same_whatever_is_beside_it(name):
    plot, trace, alone = FIGURES[name], of_two(), {}
    whole = plot(trace)
    assert "float64" not in explained(whole) or explained(whole)["float64"][0] == "#000000"
    for asked in ("float32", "float16", "float16,float32"):
        part = plot(trace, precisions=asked)
        assert explained(part).items() <= explained(whole).items()
        assert drawn(part) <= drawn(whole)
        alone[asked] = drawn(part)
    assert alone["float32"] != alone["float16"]
    assert alone["float32"] | alone["float16"] == alone["float16,float32"]


def test_matplotlib_waits_until_something_is_drawn():
    code = (
        "import sys; import precision_probe as pp; pp.plot_bits, pp.plot_policy; "
        "import precision_probe.report.figures.kinds; assert not {'torch', 'mace', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
