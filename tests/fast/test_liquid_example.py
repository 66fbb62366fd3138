"""The example of a liquid under a policy runs, and says what it saw."""

import runpy
import sys

from runs import ROOT


def test_both_ensembles_are_run_in_both_ways_and_drawn(tmp_path, monkeypatch, capsys):
    path, figure = ROOT / "examples" / "liquid_dynamics.py", tmp_path / "liquid.png"
    monkeypatch.setattr(sys, "argv", [str(path), "--picoseconds", "0.01", "--figure", str(figure)])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == [
        "NVE, float64",
        "NVE, policy",
        "NVT, float64",
        "NVT, policy",
    ]
    assert lines[0].partition(":")[2] == lines[1].partition(":")[2]  # float32 is not seen in ten steps
    assert figure.read_bytes().startswith(b"\x89PNG")
