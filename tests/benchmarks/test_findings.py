"""The page of findings: made from a smoke run, and the committed one from the committed results."""

import json

import ase.io
import findings
import findings_page
import pytest
from findings_data import number
from runs import ROOT

from precision_probe.structures import read_structures

FIGURES = {"findings-bits.png", "findings-budget.png", "findings-energy.png"}
UNITS = [
    *("energy", "interaction_energy", "forces_mae", "forces_max", "stress"),
    *("forces_share", "energy_share", "net_force", "net_torque"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    ase.io.write(folder / "two.traj", [read_structures("demo")[index] for index in (0, 6)])
    findings.main(["--smoke", "--out", str(folder), "measure", "demo", "demo", str(folder / "two.traj")])
    return folder


@pytest.fixture(scope="module")
def docs(results):
    folder = results / "docs"
    findings.main(["--out", str(results), "write", "--docs", str(folder)])
    return folder


def test_page_and_figures_of_a_smoke_run(docs):
    text = (docs / "what-we-learned.md").read_text(encoding="utf-8")
    assert text.startswith("# What we learned about MACE\n")
    assert "nan" not in text
    assert "None" not in text
    assert {path.name for path in (docs / "figures").iterdir()} == FIGURES
    for path in (docs / "figures").iterdir():
        assert f"(figures/{path.name})" in text
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_table_holds_the_numbers_of_the_file(results, docs):
    record = json.loads((results / "findings-demo.json").read_text(encoding="utf-8"))
    section = (
        (docs / "what-we-learned.md").read_text(encoding="utf-8").split("\n## In your units\n")[1].split("\n## ")[0]
    )
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| demo")]
    assert [row[0] for row in cells] == ["demo, float64", "demo, float16"]
    for label, *shown in cells:
        (row,) = (
            row
            for row in record["tables"]["physics"]
            if row["structure"] == "all" and f"demo, {row['precision']}" == label
        )
        for name, cell in zip(UNITS, shown, strict=True):
            factor = 100 if cell.endswith("%") else 1
            assert float(cell.rstrip(" %").replace(",", "")) == pytest.approx(factor * row[name], rel=0.051), name


def test_steps_are_of_all_digits(results):
    tables = json.loads((results / "findings-demo.json").read_text(encoding="utf-8"))["tables"]
    assert [row["precision"] for row in tables["steps"]] == ["float64", "float16"]
    assert tables["steps"][1]["energy_step"] > 0


def test_committed_page_is_what_the_committed_results_give(tmp_path):
    findings_page.write(findings.RESULTS, tmp_path)
    page = "what-we-learned.md"
    written, committed = (folder / page for folder in (tmp_path, ROOT / "docs"))
    assert written.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), "run findings.py write"
    figures = {path.name: path for path in (ROOT / "docs" / "figures").iterdir()}
    assert set(figures) == FIGURES
    assert all(path.stat().st_size < 120_000 for path in figures.values())


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"),
    (float("nan"), "–"),
    (0.0, "0"),
    (135.7, "140"),
    (-0.00555, "-0.0056"),
    (99.9, "100"),
    (12345.0, "12,000"),
    (3.8e-5, "3.8e-5"),
    (99_900.0, "1.0e5"),
])  # fmt: skip
def test_two_significant_digits(value, text):
    assert number(value) == text
