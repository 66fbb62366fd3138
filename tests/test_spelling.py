"""spelling.py: what users write for a model and a device."""

import pytest

from precision_probe.exceptions import InputError
from precision_probe.spelling import check_device_name, check_model_name, is_foundation


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cuda", "cuda:0", "cuda:12"])
def test_devices(name):
    check_device_name(name)


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:", "cuda:01", "cuda:-1", "cuda:0 ", "meta", "cuda:0\n"])
def test_names_of_no_device(name):
    with pytest.raises(InputError, match="cpu, cuda or cuda:N"):
        check_device_name(name)


def test_models(tmp_path):
    (tmp_path / "a.model").touch()
    for name in ("demo", "mace-mp:small", "mace-off:whatever", str(tmp_path / "a.model")):
        check_model_name(name)
    for name, says in (
        (str(tmp_path), "is a folder"),
        ("mace-mp", "does not exist"),
        ("other:small", "does not exist"),
    ):
        with pytest.raises(InputError, match=says):
            check_model_name(name)
    assert not is_foundation("mace-mp")
