"""Tables of sweeps and searches, against numbers that no run made."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console

from precision_probe.cli.tables.search import recommendation_table, sweep_table
from precision_probe.policy import Policy, Rule


def printed(renderable, width=200):
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(renderable)
    styled = console.export_text(styles=True, clear=False)
    return console.export_text().splitlines(), styled.splitlines()


# sweeps


@pytest.fixture
def sweep():
    errors = {"whole model": (4e-3, 2e-3, 1e-4), "a": (3e-4, 5e-3, 1e-5), "b": (2e-3, 2e-3, 2e-3)}
    rows = [(block, n, e / 10, e) for block, line in errors.items() for n, e in zip((4, 7, 23), line, strict=True)]
    return pd.DataFrame(rows, columns=["block", "bits", "energy", "forces"]).sample(frac=1, random_state=1)


def test_a_sweep_is_shown_with_the_bits_needed(sweep):
    lines, styled = printed(sweep_table(sweep, "forces", 2e-3))
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["rounded"] == ["rounded", "needed", "4", "7", "23"]
    assert rows["whole"][2:] == ["7", "4.0e-03", "2.0e-03", "1.0e-04"]
    assert rows["a"][1:] == ["23", "3.0e-04", "5.0e-03", "1.0e-05"]  # every larger number must do too
    assert rows["b"][1:] == ["4", "2.0e-03", "2.0e-03", "2.0e-03"]
    assert "to stay within 0.002 eV/Å" in " ".join(lines)
    (whole,) = [line for line in styled if "whole" in line]
    assert "\x1b[31m4.0e-03" in whole  # red: too large
    assert "\x1b[31m2.0e-03" not in whole


def test_what_no_number_of_bits_keeps_needs_more(sweep):
    lines, _ = printed(sweep_table(sweep, "energy", 1e-4))
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["b"] == ["b", "more", "2.0e-04", "2.0e-04", "2.0e-04"]
    assert "energy (eV/atom)" in " ".join(lines)


def test_errors_are_the_larger_of_those_searched_on_and_held_out(sweep):
    table = sweep.assign(held_out_forces=2 * sweep["forces"], held_out_energy=0.0, n_searched=3, n_held_out=5)
    lines, _ = printed(sweep_table(table, "forces", 2e-3))
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["whole"][2:] == ["23", "(7)", "8.0e-03", "4.0e-03", "2.0e-04"]
    assert rows["a"][1:] == ["23", "6.0e-04", "1.0e-02", "2.0e-05"]
    assert rows["b"][1:] == ["more", "(4)", "4.0e-03", "4.0e-03", "4.0e-03"]
    assert "3 structures searched on and 5 held out" in " ".join(" ".join(lines).split())
    lines, _ = printed(sweep_table(table, "energy", 1e-4))
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["b"][1:] == ["more", "2.0e-04", "2.0e-04", "2.0e-04"]


# searches


CHOSEN = Policy(
    (Rule("interactions.*", "float16"), Rule("products.0", "float32")),
    evidence={"chosen": "mixed 1", "objective": "time"},
)
NOTHING = Policy((), evidence={"chosen": "float64", "objective": "memory"})


@pytest.fixture
def candidates():
    return pd.DataFrame(
        {
            "rules": ["interactions.* float16, products.0 float32", "", "no rules"],
            "energy": [1e-6, 2e-3, 0.0],
            "forces": [5e-4, 4e-2, 0.0],
            "stress": [math.nan] * 3,
            "forces_rel_l2": [1e-4, 1e-2, 0.0],
            "share": [0.5, 40.0, 0.0],
            "seconds": [0.1, 0.125, 0.2],
            "rounds": [(0.1,) * 6, (0.125,) * 6, (0.2,) * 6],
            "peak_gib": [math.nan] * 3,
            "vs_float64": [2.0, 1.6, 1.0],
            "vs_float64_low": [1.9, 1.5, 1.0],
            "vs_float64_high": [2.1, 1.7, 1.0],
            "vs_float32": [1.25, 1.0, 0.625],
            "vs_float32_low": [0.9, 1.0, 0.6],
            "vs_float32_high": [1.4, 1.0, 0.7],
            "memory_vs_float32": [math.nan] * 3,
            "held_out": [1.0, math.nan, math.nan],
            "held_out_at_least": [0.954, math.nan, math.nan],
            "pareto": [True, False, True],
        },
        index=pd.Index(["mixed 1", "model.to(float32)", "float64"], name="candidate"),
    )


def test_candidates_are_shown_in_units_that_are_read(candidates):
    lines, styled = printed(recommendation_table(CHOSEN, candidates, ["Let it run alone.", "12 runs."]))
    text = " ".join(" ".join(lines).split())
    assert lines[0].strip() == "Candidates, the fastest first"
    names = ("mixed 1", "model.to(float32)", "float64")
    rows = [next(line.split() for line in lines if line.strip().startswith(f"{name} ")) for name in names]
    numbers = [row[-9:] if row[0] == "mixed" else row[-7:] for row in rows]
    # in milli-units and ms; what is not told apart from 1 is marked
    assert numbers[0] == ["1.0e-03", "0.5", "1.0e-04", "0.5", "100", "2", "≈1.25", "1", "0.954"]
    assert numbers[1] == ["2", "40", "1.0e-02", "40", "125", "1.6", "≈1"]
    assert numbers[2] == ["0", "0", "0", "0", "200", "≈1", "0.625"]
    assert "stress" not in text  # nothing to show in these columns
    assert "GiB" not in text
    assert "Recommended: mixed 1 (interactions.* float16, products.0 float32); the rest is float64." in text
    assert text.endswith("≈: speeds that are not told apart. Let it run alone. 12 runs.")
    assert "both faster and more accurate" in text
    green, dim, plain = (next(line for line in styled if name in line) for name in ("mixed 1", names[1], "no rules"))
    assert "\x1b[1;32m" in green  # chosen
    assert "\x1b[2m" in dim  # something is both faster and more accurate
    assert "\x1b" not in plain


def test_columns_are_shown_where_there_are_numbers(candidates):
    measured = candidates.assign(stress=[1e-6, 2e-6, 0.0], peak_gib=[1.5, 3.0, 6.0], memory_vs_float32=[0.5, 1, 2])
    text = " ".join(" ".join(printed(recommendation_table(CHOSEN, measured, []), 250)[0]).split())
    assert "meV/Å³" in text
    assert "GiB" in text


def test_to_do_nothing_is_recommended_in_words(candidates):
    lines, _ = printed(recommendation_table(NOTHING, candidates, []))
    text = " ".join(" ".join(lines).split())
    assert "Candidates, the smallest first" in text
    assert "Recommended: the model as it is, in float64." in text
    assert "both smaller and more accurate" in text
