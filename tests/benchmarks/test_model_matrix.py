"""Every row of the model support matrix that can run here, and the parts that its table is made of."""

import copy
import dataclasses
import importlib.util
import json
import re
from itertools import product

import model_matrix
import pytest
import torch
from model_rows import ALL, CLASSES, ROWS, charged, latin_square

import precision_probe as pp

ON_CPU = [row for row in ROWS if not row.needs_cuda and not row.full_width]
ON_CUDA = [row for row in ROWS if not row.full_width and (row.needs_cuda or row.is_conversion)]
OPTIONAL = [row for row in ROWS if row.packages and row.given is None]


def checked(row, device, precisions):
    if missing := row.missing(device):
        pytest.skip(missing)
    result = model_matrix.check(row, device, precisions)
    if row.refusal:
        assert re.match(f"refused: .*{row.refusal}", result.status)
        return
    is_wrong = row.wrong_on_cuda and device == "cuda"
    assert (
        result.status.startswith("works, and shows the conversion to be wrong")
        if is_wrong
        else result.status == "works"
    )
    assert set(result.errors) == set(result.nonfinite) == set(precisions) & set(row.precisions)
    assert 0 < result.errors["float32"] < 1e-3
    assert result.nonfinite["float32"] == 0


def mostly_alike(row):
    """Rows of which others, quicker ones, show the same: deeper models, conversions of one class after another."""
    is_conversion = "cuEquivariance" in row.name
    is_deep = re.search("[23] layers, max_ell", row.name)
    return is_deep or (is_conversion and ("Interaction" in row.name or "correlation 3" in row.name))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if mostly_alike(row) else ()) for row in ON_CPU],
    ids=lambda row: row.name,
)
def test_on_the_cpu(row):
    checked(row, "cpu", ("float32", "bfloat16", "float16"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("row", ON_CUDA, ids=lambda row: row.name)
def test_on_cuda(row):
    checked(row, "cuda", ALL)


@pytest.mark.parametrize("row", OPTIONAL, ids=lambda row: row.name)
def test_a_model_class_whose_package_is_absent_is_refused_by_name(row):
    if all(importlib.util.find_spec(name) for name in row.packages):
        pytest.skip("its package is installed")
    with pytest.raises(pp.InputError, match=f"needs a package that is not installed.*{row.packages[0]}"):
        row.build()


def test_interaction_classes_are_all_of_mace_torch():
    assert len(CLASSES) == 6
    assert all(name.endswith("InteractionBlock") for name in CLASSES)


def test_latin_square_meets_every_pair():
    square = latin_square()
    assert len(square) == len(set(square)) == 18
    numbers = {1, 2, 3}
    for name in CLASSES:
        rows = [row for row in square if row[0] == name]
        assert all({row[axis] for row in rows} == numbers for axis in (1, 2, 3))
    for one, other in ((1, 2), (1, 3), (2, 3)):
        assert {(row[one], row[other]) for row in square} == set(product(numbers, numbers))


def test_tables_of_two_devices_are_merged(tmp_path, capsys):
    works = {"status": "works", "note": "a note", "errors": {"float32": 1.2e-6}, "nonfinite": {"float32": 0}}
    overflows = works | {"errors": {"float32": 2e-6, "tf32": None}, "nonfinite": {"float32": 0, "tf32": 3}}
    skipped = {"status": "skipped: needs CUDA", "note": "", "errors": {}, "nonfinite": {}}
    for device, rows in {
        "cpu": [works | {"name": "A"}, skipped | {"name": "B"}],
        "cuda": [overflows | {"name": "A"}],
    }.items():
        record = {
            "schema": model_matrix.SCHEMA,
            "device": device,
            "hardware": f"a {device}",
            "versions": {"torch": "2"},
            "rows": rows,
        }
        (tmp_path / f"{device}.json").write_text(json.dumps(record))
    merged = ["--merge", str(tmp_path / "cpu.json"), str(tmp_path / "cuda.json"), "-o", str(tmp_path / "table.md")]
    assert model_matrix.main(merged) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    assert "- CUDA: a cuda; torch 2\n" in text
    assert "| model | CPU | CUDA | float32, CPU | float32, CUDA | tf32, CUDA | note |" in text
    assert "| A | works | works | 1.2e-06 | 2.0e-06 | not finite (3) | a note |" in text
    assert "| B | skipped: needs CUDA | – | – | – | – |  |" in text
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize("content", [None, "not JSON", "{}", "[]"])
def test_a_file_that_cannot_be_merged(tmp_path, capsys, content):
    path = tmp_path / "given.json"
    if content is not None:
        path.write_text(content)
    assert model_matrix.main(["--merge", str(path), "-o", str(tmp_path / "table.md")]) == 2
    assert capsys.readouterr().err.startswith("model_matrix: ")
    assert not (tmp_path / "table.md").exists()


def perturbed(model, _, __):
    """What a wrong converter would make of a model."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.interactions[1].linear.weight[0] += 1e-6
    return made


def test_a_row_that_fails_says_how(monkeypatch):
    row = next(row for row in ROWS if row.name == "ScaleShiftMACE")

    def status(**changes):
        return model_matrix.check(dataclasses.replace(row, **changes), "cpu", ["float32"]).status

    assert status(quantities=("energy",)) == "fails: it predicts energy, forces, interaction_energy, stress"
    assert status(refusal="no") == "fails: it is not refused"
    assert re.match("fails: .* arrays differ from e3nn's, first inter", status(given=perturbed, is_conversion=True))
    assert status(tells_charge_and_spin=True, structures=charged).endswith(
        "charge or spin makes no difference to the energy"
    )
    assert status(precisions=("float64",)).startswith("fails: InputError: ")
    monkeypatch.setattr(pp.Probe, "detach", lambda probe: None)
    assert status() == "fails: the model was changed"


def test_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)
