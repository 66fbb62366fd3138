"""How results are kept as JSON, where they may go, and which sources made them."""

import hashlib
import json
import math

import pytest
import records
from runs import ROOT

import precision_probe
from precision_probe.exceptions import InputError


def test_plain_is_json_with_six_digits_and_null():
    value = {"a": (1, 2.123456789, math.inf), "b": [{"c": math.nan, "d": None}], "e": "text", "f": True}
    kept = records.plain(value)
    assert kept == {"a": [1, 2.12346, None], "b": [{"c": None, "d": None}], "e": "text", "f": True}
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


def test_a_folder_is_checked_and_not_made(tmp_path):
    records.check_folder(tmp_path)
    records.check_folder(tmp_path / "new" / "deeper")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("beneath", ["", "new/deeper"])
def test_a_file_is_no_folder(tmp_path, beneath):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError, match=r"--out .*file"):
        records.check_folder(path / beneath, "--out")


def test_digest_covers_the_sources_of_every_package(tmp_path, monkeypatch):
    """Written by hand of all ``.py`` files: a change in any of them, and a move, changes the digest."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "sub" / "part.py").write_text("x = 1\n")
    monkeypatch.setattr(precision_probe, "__file__", str(tmp_path / "__init__.py"))
    digest = hashlib.sha256(b"__init__.py\n" + b"sub/part.py\nx = 1\n")
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    assert records.source_sha256() == digest.hexdigest()
