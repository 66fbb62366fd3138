"""Foundation models by name, offline: small models stand in for them in mace-torch's cache."""

import urllib.request

import pytest
import torch
from mace.calculators import foundations_models

from precision_probe.exceptions import InputError
from precision_probe.models import foundations
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.loading import load_model

NAMES = [f"mace-mp:{name}" for name in foundations_models.mace_mp_urls]
MACE_OFF = getattr(foundations_models, "mace_off_urls", foundations._MACE_OFF)  # mace-torch before 0.3.16 has no table
NAMES += [f"mace-off:{name}" for name in MACE_OFF]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(foundations_models, "local_model_path", str(tmp_path / "absent"))
    (tmp_path / "mace").mkdir()
    return tmp_path / "mace"


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_the_cache_is_loaded_from_where_the_error_says(model, offline, name):
    with pytest.raises(InputError) as caught:
        load_model(name)
    message = str(caught.value)
    assert "no network in this test" in message
    assert "https://" in message
    path = message.rsplit(" save it as ", 1)[1].removesuffix(".")
    assert path.startswith(str(offline))
    torch.save(model, path)
    loaded, stem = load_model(name)
    assert weights_sha256(loaded) == weights_sha256(model)
    assert stem == name.replace(":", "-")


@pytest.mark.parametrize("name", ["mace-mp:huge", "mace-off:", "mace-mp:medium "])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"mace-(mp|off):small"):
        load_model(name)


def test_what_is_printed_stays_off_stdout(model, offline, capsys):
    torch.save(model, foundations._cached("mace-off", MACE_OFF["small"]))
    load_model("mace-off:small")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "MACE-OFF23" in printed.err
