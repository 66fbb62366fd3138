"""The questions of bench_recommend, asked of a small model; and what it refuses at once."""

import json

import bench_recommend
import pytest
import recommend_run

BLOCKS = [
    "node_embedding",
    "spherical_harmonics",
    "radial_embedding",
    *("interactions.0", "products.0", "interactions.1", "products.1", "readouts.0", "readouts.1"),
]


def test_policies_are_found_for_each_question(tmp_path):
    options = ["--smoke", "--device", "cpu", "--allow", "float16", "--out", str(tmp_path / "results")]
    assert bench_recommend.main(options) == 0
    record = json.loads((tmp_path / "results" / "bench_recommend-e3nn-cpu-8.json").read_text(encoding="utf-8"))
    assert record["schema"] == recommend_run.SCHEMA
    assert {row["block"] for row in record["blocks"]} == set(BLOCKS)
    assert list(record["questions"]) == ["free digits", "fast", "fast, by module"]
    text = (tmp_path / "results" / "bench_recommend-e3nn-cpu-8.md").read_text(encoding="utf-8")
    for question, result in record["questions"].items():
        rows = {row["candidate"]: row for row in result["candidates"]}
        assert {"float64", "float16", "model.to(float32)"} <= set(rows)
        chosen = rows[result["chosen"]]
        assert all(chosen[name] <= limit for name, limit in result["tolerance"].items())
        assert chosen["held_out"] == 1
        section = text.split(f"## {question}\n")[1].split("\n## ")[0]
        shown = {
            line.split(" | ")[0].strip("| "): line.split(" | ") for line in section.splitlines()[5:] if "|" in line
        }
        assert set(shown) == set(rows)
        for name, cells in shown.items():
            assert cells[2] == "not finite" or float(cells[2]) == pytest.approx(rows[name]["forces_rel_l2"], rel=0.05)
        assert rows["model.to(float32)"]["vs_float32"] == 1
    half = {row["candidate"]: row for row in record["questions"]["fast"]["candidates"]}["float16 after the embeddings"]
    limit = record["questions"]["fast"]["tolerance"]["forces"]
    assert limit == pytest.approx(half["forces"] / half["forces_rel_l2"] * recommend_run.RELATIVE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow", "float31"], "float31"),
        (["--allow", "float32"], "lacks float16"),
        (["--atoms", "many"], "--atoms"),
        (["--device", "gpu"], "gpu"),
        (["--out", __file__], "--out"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert bench_recommend.main(["--smoke", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("seconds", 0.0984, "98.4"),
        ("energy", 2.6e-6, "2.6e-03"),
        ("energy", None, "not finite"),
        ("peak_gib", None, ""),
        ("vs_float32", 1.446, "1.45 (1.40–1.50)"),
        ("vs_float64", None, ""),
        ("held_out", 1.0, "100%"),
        ("held_out_at_least", 0.05, "5%"),
        ("forces_rel_l2", 2e-3, "2.0e-03"),
    ],
)
def test_cells_are_in_the_units_of_their_columns(column, value, shown):
    """Seconds and eV in the file, milliseconds and meV in the table; ratios with their confidence intervals."""
    assert recommend_run.cell({column: value, f"{column}_low": 1.4, f"{column}_high": 1.5}, column) == shown


def test_a_ratio_that_too_few_rounds_tell_nothing_of_stands_alone():
    row = {"vs_float32": 1.446, "vs_float32_low": 0.0, "vs_float32_high": None}  # infinity, as JSON has it
    assert recommend_run.cell(row, "vs_float32") == "1.45"
