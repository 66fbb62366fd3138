"""The table of the model support matrix, made of what was checked on one device or two."""

import json

import model_matrix
import pytest


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
