"""plots.py: figures are written where and as they are asked for, or refused."""

import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from matplotlib.axes import Axes
from tables_by_hand import TABLES

import precision_probe as pp
from precision_probe.report.plots import check_figure, plot_sweep

SWEEP = TABLES["sweep"].frame
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml", ".PNG": b"\x89PNG"}


def left_behind(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_the_suffix_says_which_format(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    path.write_bytes(b"older")
    plot_sweep(SWEEP, "forces", 1e-3, path)
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert left_behind(tmp_path) == [path.name]


def test_a_line_for_each_block_has_the_numbers_of_the_table(tmp_path, monkeypatch):
    drawn, plain = [], Axes.semilogy
    monkeypatch.setattr(
        Axes, "semilogy", lambda axes, *xy, **style: drawn.append((xy, style)) or plain(axes, *xy, **style)
    )
    plot_sweep(SWEEP, "energy", 1e-3, str(tmp_path / "figure.svg"))
    assert [style["label"] for _, style in drawn] == ["whole model", "a"]
    for (bits, errors), style in drawn:
        rows = SWEEP[SWEEP["block"] == style["label"]].set_index("bits")["energy"]
        assert bits.tolist() == [7, 23]
        assert errors.tolist() == rows.loc[[7, 23]].tolist()
    text = (tmp_path / "figure.svg").read_text()
    ET.fromstring(text)
    assert "largest error of energy / eV/atom" in text
    assert all(f"<!-- {name} -->" in text for name in ("whole model", "a", " tolerance", "float32", "bfloat16"))
    assert "<!-- float16, tf32 -->" in text


def test_names_of_blocks_are_text(tmp_path):
    table = SWEEP.assign(block=SWEEP["block"].where(SWEEP["block"] != "a", "$\\frac{$\x1b[2J"))
    plot_sweep(table, "forces", 1e-3, tmp_path / "figure.svg")
    assert "<!-- $\\frac{$\\x1b[2J -->" in (tmp_path / "figure.svg").read_text()


@pytest.mark.filterwarnings("error")
def test_errors_of_zero_have_no_logarithm_and_are_left_out(tmp_path):
    table = SWEEP.assign(forces=SWEEP["forces"].where(SWEEP["bits"] < 20, 0.0))
    plot_sweep(table, "forces", 1e-3, tmp_path / "figure.png")
    plot_sweep(table.assign(forces=0.0), "forces", 1e-3, tmp_path / "none.png")
    assert left_behind(tmp_path) == ["figure.png", "none.png"]


@pytest.mark.parametrize("name", ["figure.xyz", "figure", "figure.h5", ".png"])
def test_an_unknown_suffix_is_refused_and_leaves_no_file(tmp_path, name):
    for refused in (lambda: plot_sweep(SWEEP, "forces", 1e-3, tmp_path / name), lambda: check_figure(tmp_path / name)):
        with pytest.raises(pp.InputError, match=r"\.png, \.svg or \.pdf"):
            refused()
    assert left_behind(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(pp.InputError, match="cannot be written"):
        plot_sweep(SWEEP, "forces", 1e-3, tmp_path / "missing" / "figure.png")
    (tmp_path / "there.png").touch()
    with pytest.raises(pp.InputError, match="exists"):
        check_figure(tmp_path / "there.png")
    assert check_figure(tmp_path / "there.png", force=True) == tmp_path / "there.png"
    assert left_behind(tmp_path) == ["there.png"]


def test_without_matplotlib_it_is_said_what_to_install(tmp_path, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(pp.InputError, match=r"need matplotlib.*precision-probe\[plots\]"):
        plot_sweep(SWEEP, "forces", 1e-3, tmp_path / "figure.png")
    with pytest.raises(pp.InputError, match="need matplotlib"):
        check_figure(tmp_path / "figure.png")
    assert left_behind(tmp_path) == []


def test_figures_need_no_torch_and_open_no_window(tmp_path):
    code = (
        "import sys; import precision_probe.report.plots as p; p.check_figure(sys.argv[1]); "
        "assert not {'torch', 'mace', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "figure.png")], check=True, timeout=60)
