"""Tables and figures of bench_precisions, drawn from the committed results."""

import copy
import json
import shutil

import plots
import pytest
from runs import ROOT

COMMITTED = ROOT / "benchmarks" / "results" / "bench_precisions-nvidia-h200.json"
PRECISIONS = ["float64", "float32", "tf32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def record():
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("failed", [["float64"], ["float32"], PRECISIONS])
def test_out_of_memory_is_shown(record, failed, tmp_path):
    changed = copy.deepcopy(record | {"systems": record["systems"][-2:]})
    system = changed["systems"][-1]
    for name in failed:
        system["end_to_end"][name] = {"status": "out_of_memory"}
        for rows in system["blocks"].values():
            rows[name] = {"status": "out_of_memory"}
    for row in system["end_to_end"].values():
        if "float64" in failed and row["status"] == "ok":
            row["time_ratio_to_float64"] = row["errors"] = None
    if "float64" in failed:
        system["blocks"] = {}
    assert plots.markdown(changed).count("| out of memory |") >= len(failed)
    assert all(path.stat().st_size > 10_000 for path in plots.draw(changed, tmp_path / "figure"))


def test_committed_tables_are_drawn_again_from_the_committed_file(tmp_path):
    shutil.copy(COMMITTED, tmp_path)
    assert plots.main([str(tmp_path / COMMITTED.name)]) == 0
    stem = COMMITTED.stem
    kinds = (".json", ".md", "-pareto.png", "-blocks.png", "-scaling.png")
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}{kind}" for kind in kinds}
    assert (tmp_path / f"{stem}.md").read_text("utf-8") == COMMITTED.with_suffix(".md").read_text("utf-8")


def test_what_is_as_fast_and_as_accurate_beats_a_point_but_not_itself():
    assert plots.beats((1.0, 0.1), (2.0, 0.1))
    assert plots.beats((1.0, 0.1), (1.0, 0.2))
    assert not plots.beats((1.0, 0.1), (1.0, 0.1))
    assert not plots.beats((1.0, 0.3), (2.0, 0.2))


def test_error_axis_covers_what_is_drawn_in_whole_decades(record):
    system = record["systems"][-1]
    low, high = plots.decades(system)
    drawn = [
        value
        for rows in system["blocks"].values()
        for row in rows.values()
        for phase in ("forward", "backward")
        if phase in row
        for value in row[phase]["abs_error_over_rms_percentiles"][1:-1]
        if value
    ]
    assert low <= min(drawn) < 10 * low
    assert max(drawn) <= high
