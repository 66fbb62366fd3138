"""loading.py: a model from a file, a calculator, a module or the demo, and refusing everything else."""

import copy
import io
import random
import subprocess
import sys
import textwrap
import zipfile
from importlib import resources

import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from mace.modules import ScaleShiftMACE

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.probe import attach
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant


def floats_of(model):
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def test_a_file_that_is_called_as_the_demo_is_named_by_its_path(model, tmp_path, monkeypatch):
    torch.save(model, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert weights_sha256(load_model("./demo")[0]) == weights_sha256(model) != weights_sha256(load_model("demo")[0])


def test_checkpoint_path(model, model_file):
    for source in (model_file, str(model_file)):
        loaded, name = load_model(source)
        assert (type(loaded), name) == (ScaleShiftMACE, "small")
        assert weights_sha256(loaded) == weights_sha256(model)


def test_module_is_returned_as_it_is(model):
    before = weights_sha256(model)
    loaded, name = load_model(model)
    assert loaded is model
    assert name == "ScaleShiftMACE"
    assert weights_sha256(model) == before


@pytest.fixture
def calculator_of(model):
    """Makes calculators; a MACECalculator sets the default dtype for good."""

    def make(n):
        return MACECalculator(models=[copy.deepcopy(model) for _ in range(n)], device="cpu", default_dtype="float64")

    with default_dtype(torch.float64):
        yield make


def test_calculator_gives_its_own_module(calculator_of):
    calculator = calculator_of(1)
    assert load_model(calculator)[0] is calculator.models[0]


def test_of_a_committee_the_first_member_is_probed_and_said_to_be(calculator_of):
    calculator = calculator_of(3)
    loaded, name = load_model(calculator)
    assert loaded is calculator.models[0]
    assert name == "ScaleShiftMACE-member-0-of-3"
    with attach(calculator, precisions="float32", device="cpu") as probe:
        assert (probe.model, probe.name) == (loaded, name)
        (note,) = probe.notes
        assert "of the calculator's 3 models, the first is probed" in note
        assert "models[i]" in note
    with attach(calculator_of(1), precisions="float32", device="cpu") as probe:
        assert (probe.name, probe.notes) == ("ScaleShiftMACE", [])


def test_demo_is_small():
    folder = resources.files("precision_probe") / "demo"
    assert sum(len(path.read_bytes()) for path in folder.iterdir() if path.is_file()) < 1_000_000


def test_demo_forces_follow_their_reference():
    demo, name = load_model("demo")
    assert (type(demo), name, demo.atomic_numbers.tolist()) == (ScaleShiftMACE, "demo", [1, 6, 8])
    assert {t.dtype for t in floats_of(demo)} == {torch.float64}
    predict = Variant(demo, PRECISIONS["float64"], torch.device("cpu")).predict
    graphs = [build_graph(atoms, demo) for atoms in read_structures("demo")]
    reference = np.concatenate([graph.labels["forces"] for graph in graphs])
    forces = np.concatenate([predict(graph)["forces"].numpy() for graph in graphs])
    assert np.abs(forces - reference).mean() < min(0.3, 0.2 * np.abs(reference).mean())
    assert np.corrcoef(forces.ravel(), reference.ravel())[0, 1] > 0.95


# parts that are TorchScript


def test_parts_that_were_compiled_on_a_gpu_are_loaded_without_one(model, tmp_path, monkeypatch):
    """A GPU's file is this one with another device written where the constants of a part are."""
    save, n_changed = torch.jit.save, 0

    def save_as_on_a_gpu(part, file):
        nonlocal n_changed
        here, there = io.BytesIO(), io.BytesIO()
        save(part, here)
        with zipfile.ZipFile(here) as before, zipfile.ZipFile(there, "w", zipfile.ZIP_STORED) as after:
            for name in before.namelist():
                data = before.read(name)
                on_gpu = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0") if ".pkl" in name else data
                n_changed += on_gpu != data
                after.writestr(name, on_gpu)
        file.write(there.getvalue())

    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "save", save_as_on_a_gpu)
        torch.save(model, tmp_path / "gpu.model")
    assert n_changed > 0
    if not torch.cuda.is_available():
        with pytest.raises(NotImplementedError, match="CUDA"):
            torch.load(tmp_path / "gpu.model", weights_only=False, map_location="cpu")
    loaded, _ = load_model(tmp_path / "gpu.model")
    assert {tensor.device.type for tensor in floats_of(loaded)} == {"cpu"}
    assert weights_sha256(loaded) == weights_sha256(model)
    graph = build_graph(read_structures("demo@0")[0], model)
    assert torch.equal(loaded(graph.cast(torch.float64))["energy"], model(graph.cast(torch.float64))["energy"])


# weights that are no numbers


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_whose_weights_are_no_numbers_is_refused_by_the_tensors_name(mine, tmp_path, value):
    with torch.no_grad():
        mine.products[1].linear.weight[3] = value
    torch.save(mine, tmp_path / "diverged.model")
    for source in (mine, tmp_path / "diverged.model"):
        with pytest.raises(InputError, match=r"NaN or infinity in products\.1\.linear\.weight: "):
            load_model(source)
    for parameter in mine.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"node_embedding\.linear\.weight.* and \d+ more"):
        load_model(mine)


# a mace-torch that is too old


def test_a_mace_torch_that_is_too_old_is_said_to_be():
    code = """
        import sys
        import mace.modules

        vars(mace.modules).pop("extensions", None)
        sys.modules["mace.modules.extensions"] = None  # as it is before version 0.3.14
        from precision_probe.cli.main import app

        app(["inspect"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "lacks mace.modules.extensions. At least 0.3.14 is needed" in " ".join(done.stderr.split())


# what cannot be loaded


class Tiny(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def write_bad(path, kind, model):
    """A file, or nothing, that is no MACE model."""
    if kind == "folder":
        path.mkdir()
    elif kind.startswith("truncated"):
        torch.save(model, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // int(kind.split("/")[1])])
    elif kind == "random bytes":
        path.write_bytes(bytes(random.Random(0).choices(range(256), k=4096)))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "state dict":
        torch.save(model.state_dict(), path)
    elif kind == "TorchScript":
        torch.jit.script(Tiny()).save(str(path))
    elif kind == "other module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "number":
        torch.save(42, path)


BAD = {
    "missing": "does not exist.*Give a MACE checkpoint",
    "folder": "is a folder, not a file",
    "truncated to 1/2": "cannot be read.*truncated",
    "truncated to 1/50": "cannot be read.*truncated",
    "random bytes": "cannot be read",
    "empty": "cannot be read",
    "state dict": "state dict.*whole MACE model",
    "TorchScript": "TorchScript.*eager",
    "other module": "is a Linear, not a MACE model",
    "number": "is a int, not a MACE model",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_explained(model, tmp_path, kind):
    path = tmp_path / "bad.model"
    write_bad(path, kind, model)
    with pytest.raises(InputError, match=BAD[kind]) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (torch.nn.Linear(2, 2), "Linear, not a MACE model"),
        (42, "int, not a MACE model"),
        (None, "NoneType, not a MACE model"),
        ({"a": 1}, "dictionary with the keys 'a'"),
        (torch.jit.script(Tiny()), "TorchScript.*eager"),
    ],
    ids=["module", "int", "None", "dict", "scripted"],
)
def test_bad_object_is_explained(thing, words):
    with pytest.raises(InputError, match=words):
        load_model(thing)


def test_compiled_models_are_refused(model):
    with pytest.raises(InputError, match=r"compiled.*eager"):
        load_model(torch.compile(model))
