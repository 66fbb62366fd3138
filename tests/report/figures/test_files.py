"""files.py: figures are written where and as they are asked for, or refused."""

import subprocess
import sys

import pytest
from tables_by_hand import TABLES

import precision_probe as pp
from precision_probe.report.figures.files import check_figure, save_figure

SWEEP = TABLES["sweep"].frame
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml", ".PNG": b"\x89PNG"}


def left_behind(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_the_suffix_says_which_format(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    path.write_bytes(b"older")
    save_figure(pp.plot_sweep(SWEEP), path, force=True)
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert left_behind(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["figure.xyz", "figure", "figure.h5", ".png"])
def test_an_unknown_suffix_is_refused_and_leaves_no_file(tmp_path, name):
    axes = pp.plot_sweep(SWEEP)
    for refused in (lambda: save_figure(axes, tmp_path / name), lambda: check_figure(tmp_path / name)):
        with pytest.raises(pp.InputError, match=r"\.png, \.svg or \.pdf"):
            refused()
    assert left_behind(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(pp.InputError, match="cannot be written"):
        save_figure(pp.plot_sweep(SWEEP), tmp_path / "missing" / "figure.png")
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
        save_figure(pp.plot_sweep(SWEEP), tmp_path / "figure.png")
    with pytest.raises(pp.InputError, match="need matplotlib"):
        check_figure(tmp_path / "figure.png")
    assert left_behind(tmp_path) == []


def test_figures_need_no_torch_and_open_no_window(tmp_path):
    code = (
        "import sys; import precision_probe.report.figures.files as p; p.check_figure(sys.argv[1]); "
        "assert not {'torch', 'mace', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "figure.png")], check=True, timeout=60)
