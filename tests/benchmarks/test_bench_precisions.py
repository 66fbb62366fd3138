"""The benchmark's smoke run: what it writes, and that the numbers in it are plausible."""

import copy
import json
from types import SimpleNamespace

import ase.build
import ase.io
import bench_policy_drift
import bench_precisions
import bench_recommend
import measure
import plots
import pytest
import torch
from runs import ROOT

from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import read_structures

SMOKE = ["float64", "float32", "bfloat16", "float16"]
BLOCKS = [
    "node_embedding",
    "spherical_harmonics",
    "radial_embedding",
    *("interactions.0", "products.0", "interactions.1", "products.1", "readouts.0", "readouts.1"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    flags = torch.get_default_dtype(), torch.backends.cuda.matmul.fp32_precision, torch.get_rng_state()
    assert bench_precisions.main(["--smoke", "--quiet", "-o", str(folder)]) == 0
    assert torch.get_default_dtype() == flags[0]
    assert torch.backends.cuda.matmul.fp32_precision == flags[1]
    assert torch.equal(torch.get_rng_state(), flags[2])
    return folder


@pytest.fixture(scope="module")
def record(written):
    return json.loads((written / "bench_precisions-cpu-smoke.json").read_text(encoding="utf-8"))


def test_files(written):
    kinds = (".json", ".md", "-pareto.png", "-blocks.png", "-scaling.png")
    assert {path.name for path in written.iterdir()} == {f"bench_precisions-cpu-smoke{kind}" for kind in kinds}
    for path in written.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 10_000


def test_enough_to_run_it_again(record):
    assert record["schema"] == bench_precisions.SCHEMA
    assert "--smoke" in record["command"]
    assert record["provenance"]["versions"]["torch"]
    assert len(record["architecture"]["atomic_numbers"]) == 89
    assert max(map(abs, record["architecture"]["atomic_energies"])) < PRECISIONS["float16"].largest
    model = build(record["architecture"], record["options"]["seed"])
    assert weights_sha256(model) == record["provenance"]["model_sha256"]


def test_end_to_end(record):
    assert [system["n_atoms"] for system in record["systems"]] == [8, 64]
    for system in record["systems"]:
        rows = system["end_to_end"]
        assert list(rows) == SMOKE
        assert all(row["status"] == "ok" and len(row["time_ms"]["samples"]) == 3 for row in rows.values())
        assert all(row["peak_memory_bytes"] is None for row in rows.values())
        assert set(rows["float64"]["errors"].values()) == {0}
        assert rows["float64"]["time_ratio_to_float64"] == {"median": 1, "q25": 1, "q75": 1}
        error = {name: row["errors"]["forces_rel_l2"] for name, row in rows.items()}
        assert 0 < error["float32"] < 1e-4 < error["float16"] < error["bfloat16"]
        assert rows["float32"]["errors"]["interaction_energy_abs_meV_per_atom"] < 1e-4


def test_blocks(record):
    for system in record["systems"]:
        assert list(system["blocks"]) == BLOCKS
        for rows in system["blocks"].values():
            assert list(rows) == SMOKE
            assert rows["float64"]["forward"]["rel_l2"] == 0
            error = {name: row["forward"]["rel_l2"] for name, row in rows.items()}
            assert 0 < error["float32"] < error["float16"] < error["bfloat16"] < 1
            for row in rows.values():
                assert row["forward_ms"]["median"] > 0
                assert row["backward_ms"]["median"] > 0
                percentiles = row["forward"]["abs_error_over_rms_percentiles"]
                assert percentiles == sorted(percentiles)


def test_gradient_that_is_zero_has_no_relative_error(record):
    """Spherical harmonics of normalised vectors have squares that sum to a constant, so its gradient is zero."""
    for name, row in record["systems"][-1]["blocks"]["spherical_harmonics"].items():
        assert row["backward"]["rel_l2"] is None, name
    for name, row in record["systems"][-1]["blocks"]["interactions.0"].items():
        assert row["backward"]["rel_l2"] is not None, name


def test_table(written, record):
    text = (written / "bench_precisions-cpu-smoke.md").read_text(encoding="utf-8")
    assert text == plots.markdown(record) + "\n"
    end_to_end = text.partition("## Blocks")[0]
    for name in SMOKE:
        assert end_to_end.count(f"| {name} |") == len(record["systems"])
    for block in BLOCKS:
        assert text.count(f"| `{block}` |") == 2
    columns = {line.count("|") for line in end_to_end.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_runs_out_of_memory():
    variants = [SimpleNamespace(precision=PRECISIONS[name], device=torch.device("cpu")) for name in SMOKE]

    def call(variant):
        if variant.precision.name == "float64":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if variant.precision.name == "bfloat16":
            raise RuntimeError("The following operation failed in the TorchScript interpreter: CUDA out of memory.")
        return (1.0,), None

    def fail():
        raise RuntimeError("another error")

    found = measure.interleave(variants, call, repeats=4)
    assert {name: measured.phase(0) for name, measured in found.items()} == {"float32": [1.0] * 4, "float16": [1.0] * 4}
    with pytest.raises(RuntimeError, match="another"):
        measure.attempt(fail)


@pytest.mark.parametrize("failed", [["float64"], ["float32"], SMOKE])
def test_out_of_memory_is_shown(record, failed, tmp_path):
    changed = copy.deepcopy(record)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--precisions", "float31"], "float31"),
        (["--device", "gpu"], "gpu"),
        (["--sizes", "many"], "--sizes"),
        (["--sizes", "8", "--structures", "demo"], "--structures"),
        (["--model", "absent.model"], "absent.model"),
        (["--model", "demo"], "does not know"),
        (["--sizes", "8", "--output", __file__], "--output"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert bench_precisions.main(["--smoke", "--quiet", "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_own_model_and_structures(tmp_path, capsys):
    large, small = sorted(read_structures("demo"), key=len)[-1], ase.build.molecule("H2O")
    path = tmp_path / "structures.xyz"
    ase.io.write(path, [large, small])
    options = ["--model", "demo", "--structures", str(path), "--precisions", "float32", "--repeats", "1", "--quiet"]
    assert bench_precisions.main([*options, "--device", "cpu", "--stress", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_precisions-cpu.json").read_text(encoding="utf-8"))
    assert record["architecture"] is None
    assert record["model_name"] == "demo"
    assert [system["n_atoms"] for system in record["systems"]] == [3, len(large)]
    assert str(tmp_path / "bench_precisions-cpu.json") in capsys.readouterr().out


def test_policies_are_found_for_each_question(tmp_path):
    bench_recommend.main(["--smoke", "--device", "cpu", "--allow", "float16", "--out", str(tmp_path / "results")])
    record = json.loads((tmp_path / "results" / "bench_recommend-e3nn-cpu-8.json").read_text(encoding="utf-8"))
    assert record["schema"] == bench_recommend.SCHEMA
    assert {row["block"] for row in record["blocks"]} == set(BLOCKS)
    assert list(record["questions"]) == ["free digits", "fast", "fast, by module"]
    text = (tmp_path / "results" / "bench_recommend-e3nn-cpu-8.md").read_text(encoding="utf-8")
    assert text == bench_recommend.markdown(record)
    for question, result in record["questions"].items():
        rows = {row["candidate"]: row for row in result["candidates"]}
        assert {"float64", "float16", "model.to(float32)"} <= set(rows)
        chosen = rows[result["chosen"]]
        assert all(chosen[name] <= limit for name, limit in result["tolerance"].items())
        assert chosen["held_out"] == 1
        assert f"## {question}" in text
        assert rows["model.to(float32)"]["vs_float32"] == 1
    half = {row["candidate"]: row for row in record["questions"]["fast"]["candidates"]}["float16 after the embeddings"]
    limit = record["questions"]["fast"]["tolerance"]["forces"]
    assert limit == pytest.approx(half["forces"] / half["forces_rel_l2"] * bench_recommend.RELATIVE)


def test_drift_of_policies(tmp_path):
    for system in ("water", "water again"):
        bench_policy_drift.main([system, "demo", "demo@0", "--smoke", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "bench_policy_drift.json").read_text(encoding="utf-8"))
    assert list(record) == ["water", "water again"]
    assert record["water"] == record["water again"]
    names = ["float64", "float32", "float32 after the embeddings", "float16 after the embeddings"]
    assert [row["precision"] for row in record["water"]["drift"]] == names
    assert (tmp_path / "bench_policy_drift.md").read_text(encoding="utf-8") == bench_policy_drift.markdown(record)


def test_drifts_of_policies_in_the_docs_are_the_committed_ones():
    record = json.loads((ROOT / "benchmarks" / "results" / "bench_policy_drift.json").read_text(encoding="utf-8"))
    assert bench_policy_drift.markdown(record) in (ROOT / "docs" / "policies.md").read_text("utf-8")
    assert {(found["steps"], found["n_runs"]) for found in record.values()} == {(1000, 4)}


@pytest.mark.parametrize("structure", ["demo", "demo@99", "absent.xyz@0"])
def test_drift_refuses(tmp_path, structure):
    with pytest.raises(SystemExit) as stopped:
        bench_policy_drift.main(["x", "demo", structure, "--smoke", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())
