"""The benchmark's smoke run: what it writes, that the numbers in it are plausible, and what it refuses at once."""

import json
import subprocess
import sys

import ase.build
import ase.io
import bench_precisions
import precisions_run
import pytest
import torch
from runs import ROOT

from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import read_structures

SMOKE = ["float64", "float32", "bfloat16", "float16"]
BLOCKS = [  # in the order in which MACE calls them
    "atomic_energies_fn",
    "node_embedding",
    "spherical_harmonics",
    "radial_embedding",
    *("interactions.0", "products.0", "interactions.1", "products.1", "readouts.0", "readouts.1"),
    "scale_shift",
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
    assert record["schema"] == precisions_run.SCHEMA
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


def test_tables_hold_the_numbers_of_the_file(written, record):
    """Each cell of the times and errors is read back from the Markdown, and beside it stands what the JSON file has."""
    text = (written / "bench_precisions-cpu-smoke.md").read_text(encoding="utf-8")
    end_to_end, *blocks = text.split("## Blocks alone")
    for system, section in zip(record["systems"], end_to_end.split("\n## ")[1:], strict=True):
        head, *rows = [cells(line) for line in section.splitlines() if line.startswith("|") and "--:" not in line]
        assert [row[0] for row in rows] == SMOKE
        assert {len(row) for row in rows} == {len(head)}
        for name, *shown in rows:
            measured = system["end_to_end"][name]
            errors = measured["errors"]
            assert float(shown[0].split()[0]) == pytest.approx(measured["time_ms"]["median"], abs=0.0501)
            assert float(shown[1]) == pytest.approx(1 / measured["time_ratio_to_float64"]["median"], abs=0.00501)
            assert float(shown[2]) == pytest.approx(1 / measured["time_ratio_to_float32"]["median"], abs=0.00501)
            assert shown[3] == "–"  # memory is not measured on a CPU
            assert [float(cell) for cell in shown[4:]] == [
                pytest.approx(errors["forces_mae_meV_per_A"], rel=0.051),
                pytest.approx(errors["forces_max_meV_per_A"], rel=0.051),
                pytest.approx(errors["forces_rel_l2"], rel=0.051),
                pytest.approx(errors["forces_run_to_run_max_meV_per_A"], rel=0.051),
                pytest.approx(errors["energy_abs_meV_per_atom"], rel=0.051),
                pytest.approx(errors["interaction_energy_abs_meV_per_atom"], rel=0.051),
                errors["forces_nonfinite"],
            ]
    assert len(blocks) == 2  # times and errors, of the largest structure
    largest = record["systems"][-1]["blocks"]
    times, errors = ([cells(line) for line in table.splitlines() if line.startswith("| `")] for table in blocks)
    assert [row[0] for row in times] == [row[0] for row in errors] == [f"`{block}`" for block in BLOCKS]
    for (block, *in_ms), (_, *relative) in zip(times, errors, strict=True):
        for name, time, error in zip(SMOKE, in_ms, relative, strict=True):
            row = largest[block.strip("`")][name]
            forward_and_backward = [row[f"{phase}_ms"]["median"] for phase in ("forward", "backward")]
            assert [float(part) for part in time.split(" + ")] == pytest.approx(forward_and_backward, abs=0.00501)
            for part, phase in zip(error.split(", "), ("forward", "backward"), strict=True):
                rel_l2 = row[phase]["rel_l2"]
                assert part == "–" if rel_l2 is None else float(part) == pytest.approx(rel_l2, rel=0.051)


def cells(line):
    """Of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--precisions", "float31"], "float31"),
        (["--device", "gpu"], "gpu"),
        (["--sizes", "many"], "--sizes"),
        (["--sizes", "0"], "--sizes"),
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


def test_wrong_options_are_refused_before_torch_is_imported(tmp_path):
    lines = [
        "import sys, bench_precisions",
        f"assert bench_precisions.main(['--repeats', '0', '-o', {str(tmp_path)!r}]) == 2",
        "assert 'torch' not in sys.modules and 'mace' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT / "benchmarks", check=True)


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
