"""The page of findings made from a smoke run, and what is refused at once."""

import json

import ase.io
import findings
import numpy as np
import pandas as pd
import pytest
import torch

from precision_probe.structures import read_structures

FIGURES = {"findings-bits.png", "findings-budget.png", "findings-energy.png"}
UNITS = [
    *("energy", "interaction_energy", "forces_mae", "forces_max", "stress"),
    *("forces_share", "energy_share", "net_force", "net_torque"),
]


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    ase.io.write(folder / "two.traj", [read_structures("demo")[index] for index in (0, 6)])
    torch.save(model, folder / "small.model")
    measured = ("demo", str(folder / "small.model"), str(folder / "two.traj"))
    findings.main(["--smoke", "--out", str(folder), "measure", *measured])
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


def test_shares_of_the_parts_are_those_of_the_file_and_make_the_whole(results, docs):
    record = json.loads((results / "findings-demo.json").read_text(encoding="utf-8"))
    table = pd.DataFrame(record["tables"]["contributions"]).set_index("part")
    page = (docs / "what-we-learned.md").read_text(encoding="utf-8")
    section = page.split("\n## Which parts make the errors\n")[1].split("\n## ")[0]
    shown = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    forces, energy = shown[2 : 2 + len(table)], shown[4 + len(table) :]
    for name, rows in (("forces", forces), ("energy", energy)):
        assert [part for part, _ in rows] == list(table.index)
        shares = [float(cell.partition(" %")[0].replace(",", "")) / 100 for _, cell in rows]
        assert shares == pytest.approx(table[f"{name}_share"].tolist(), rel=0.051)
        assert sum(shares) == pytest.approx(1, abs=0.05)
    largest = table["forces_share"].idxmax()
    assert f"**What makes most of the squared force error is {largest}**" in " ".join(page.split())


def test_steps_are_of_all_digits(results):
    tables = json.loads((results / "findings-demo.json").read_text(encoding="utf-8"))["tables"]
    assert [row["precision"] for row in tables["steps"]] == ["float64", "float16"]
    assert tables["steps"][1]["energy_step"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drift", "x", "demo", "ice=demo@99"], "demo@99"),
        (["drift", "x", "demo", "ice"], "path@index"),
        (["drift", "x", "demo", "ice=absent.xyz@0"], "absent.xyz"),
        (["measure", "x", "absent.model", "demo"], "absent.model"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        findings.main(["--smoke", "--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_records_hold_four_digits_and_null_for_what_is_not_finite():
    table = pd.DataFrame({"name": ["a", "b"], "value": [1.23456e-7, np.inf], "n": [1, 2]})
    assert findings.records(table) == [{"name": "a", "value": 1.235e-7, "n": 1}, {"name": "b", "value": None, "n": 2}]
