"""provenance.py: what a trace says of the run, against what Python, torch and the model themselves say."""

import datetime as dt
import importlib.metadata
import json
import platform

import pytest
import torch

from precision_probe import version
from precision_probe.models import provenance as module
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.provenance import describe_device, describe_model, provenance

CPU = torch.device("cpu")


def test_versions_are_those_installed(model):
    versions = provenance(model, CPU)["versions"]
    assert versions["precision-probe"] == version.__version__
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    for name in ("mace-torch", "e3nn", "ase", "numpy", "xarray", "h5py", "h5netcdf"):
        assert versions[name] == importlib.metadata.version(name)


@pytest.mark.parametrize("name", ["cuequivariance-torch", "openequivariance"])
@pytest.mark.parametrize("is_installed", [True, False])
def test_backends_are_named_where_they_are_installed(model, monkeypatch, name, is_installed):
    real = importlib.metadata.version

    def installed(package):
        if package != name:
            return real(package)
        if is_installed:
            return "9.8.7"
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(module.importlib.metadata, "version", installed)
    versions = provenance(model, CPU)["versions"]
    assert versions.get(name) == ("9.8.7" if is_installed else None)


def test_time_is_now_and_says_its_zone(model):
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    created = dt.datetime.fromisoformat(provenance(model, CPU)["created"])
    assert created.utcoffset() == dt.timedelta(0)
    assert before <= created <= dt.datetime.now(dt.UTC)


def test_settings_are_torchs(model):
    was_deterministic, reductions = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul
    was = reductions.allow_bf16_reduced_precision_reduction, reductions.allow_fp16_reduced_precision_reduction
    try:
        torch.use_deterministic_algorithms(True)
        reductions.allow_bf16_reduced_precision_reduction = False
        reductions.allow_fp16_reduced_precision_reduction = True
        settings = provenance(model, CPU)["settings"]
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        reductions.allow_bf16_reduced_precision_reduction, reductions.allow_fp16_reduced_precision_reduction = was
    assert settings == {
        "deterministic_algorithms": True,
        "float16_reduced_precision_reduction": True,
        "bfloat16_reduced_precision_reduction": False,
        "num_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "",
    }


def test_it_can_be_written_as_json(model):
    said = provenance(model, CPU)
    assert json.loads(json.dumps(said)) == said


def test_a_mace_is_described(model, config):
    described = describe_model(model)
    assert described["model_class"] == "ScaleShiftMACE"
    assert (described["model_dtype"], described["reference"]) == ("float64", "the model as it is")
    assert described["model_sha256"] == weights_sha256(model)
    assert described["n_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert described["backend"] == "e3nn"
    assert described["cutoff"] == config["r_max"]
    assert described["atomic_numbers"] == config["atomic_numbers"]
    assert described["hidden_irreps"] == "4x0e+4x1o"
    assert described["edge_irreps"] == "1x0e+1x1o+1x2e"  # up to max_ell = 2
    assert described["interactions"] == [config["interaction_cls"]] * config["num_interactions"]
    assert described["heads"] == ["Default"]


def test_what_rounded_weights_lost_is_said(mine):
    described = describe_model(mine.to(torch.bfloat16))
    assert described["model_dtype"] == "bfloat16"
    assert "bfloat16 weights" in described["reference"]
    assert "stays lost" in described["reference"]


def test_of_other_modules_there_is_no_architecture():
    described = describe_model(torch.nn.Linear(3, 2))
    assert set(described) == {"model_class", "model_dtype", "reference", "model_sha256", "n_parameters"}
    assert (described["model_class"], described["model_dtype"], described["n_parameters"]) == ("Linear", "float32", 8)
    assert describe_model(torch.nn.Tanh())["model_dtype"] == "float64"  # without weights nothing was lost


def test_devices_are_named_with_their_hardware(monkeypatch):
    assert describe_device(CPU).startswith("cpu (")
    assert describe_device(CPU).endswith(f", {torch.get_num_threads()} threads)")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert describe_device(torch.device("cuda:1")) == "cuda:1 (card 1)"
    assert describe_device(torch.device("cuda")).startswith("cuda:0 (")
