"""Every row of the model support matrix that can run here, and how a row that fails says so."""

import copy
import dataclasses
import re

import model_checks
import pytest
import torch
from model_rows import ALL, ROWS, charged

import precision_probe as pp

ON_CPU = [row for row in ROWS if not row.needs_cuda and not row.full_width]
ON_CUDA = [row for row in ROWS if not row.full_width and (row.needs_cuda or row.is_conversion)]


def checked(row, device, precisions):
    if missing := row.missing(device):
        pytest.skip(missing)
    result = model_checks.check(row, device, precisions)
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
    """Rows of which others show the same: deeper models, conversions of one class after another, parts of a whole."""
    if row.name in ("Agnesi distance transform", "Soft distance transform", "PolarMACE, charges"):
        return True  # each is part of a row that has ZBL, or dipoles, too
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


def perturbed(model, _, __):
    """What a wrong converter would make of a model."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.interactions[1].linear.weight[0] += 1e-6
    return made


def test_a_row_that_fails_says_how(monkeypatch):
    row = next(row for row in ROWS if row.name == "ScaleShiftMACE")

    def status(**changes):
        return model_checks.check(dataclasses.replace(row, **changes), "cpu", ["float32"]).status

    assert status(quantities=("energy",)) == "fails: it predicts energy, forces, interaction_energy, stress"
    assert status(refusal="no") == "fails: it is not refused"
    assert re.match("fails: .* arrays differ from e3nn's, first inter", status(given=perturbed, is_conversion=True))
    assert status(tells_charge_and_spin=True, structures=charged).endswith(
        "charge or spin makes no difference to the energy"
    )
    assert status(precisions=("float64",)).startswith("fails: InputError: ")
    monkeypatch.setattr(pp.Probe, "detach", lambda probe: None)
    assert status() == "fails: the model was changed"
