"""The verb validate: everything in a trace is read, in a process that may crash, and what is wrong is named."""

import subprocess
import sys

import h5py
import pytest
from traces_by_hand import trace_by_hand

from precision_probe.cli import validate as module
from precision_probe.exceptions import InputError

FINE = 0


@pytest.fixture
def saved(tmp_path):
    return trace_by_hand().save(tmp_path / "trace.h5")


def flipped(path, name):
    with h5py.File(path) as file:
        at = file[name].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_trace_that_is_fine_gets_one_line(saved, run, monkeypatch):
    """The process that reads it is told to load no plug-in."""
    options, works = {}, subprocess.run
    monkeypatch.setattr(
        module.subprocess, "run", lambda *args, **given: works(*args, **(options.update(given) or given))
    )
    result = run("validate", saved)
    assert options["env"]["HDF5_PLUGIN_PRELOAD"] == "::"
    assert (result.exit_code, result.stderr) == (FINE, "")
    assert result.stdout == f"{saved} is fine: 2 structures, 29 arrays of 0.0 MB, every checksum agrees.\n"


def test_every_damaged_variable_is_named_and_since_when(saved, run, refused):
    names = ("/propagated/float16/forces", "/isolated/float64/products.0.output")
    for name in names:
        flipped(saved, name)
    result = run("validate", saved)
    refused(result, *names, "is not what was written", "last changed 20")
    assert "energy" not in result.stderr


CIRCLES = "import time\nwhile True: pass"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
GREED = "import resource, sys\nfrom precision_probe.trace.validation import _limit\n_limit(60, 2**32)\nbytearray(2**33)"


@pytest.mark.parametrize(
    ("script", "seconds", "words"),
    [
        (CIRCLES, 1, "could not be read within 1 s"),
        (CRASH, 60, "ended by SIGSEGV"),
        (GREED, 60, "ran out of time or memory"),
    ],
)
def test_what_ends_the_reader_is_an_error(saved, run, refused, monkeypatch, script, seconds, words):
    """A library that goes in circles or crashes, in the place of the one that reads."""
    works = subprocess.run
    monkeypatch.setattr(module, "_SECONDS", seconds)
    monkeypatch.setattr(
        module.subprocess, "run", lambda command, **options: works([sys.executable, "-c", script], **options)
    )
    refused(run("validate", saved), words)


@pytest.mark.parametrize("verb", ["errors", "explain", "compare"])
def test_untrusted_traces_are_validated_before_they_are_opened(saved, run, refused, monkeypatch, verb):
    asked = []

    def examine(path):
        asked.append(path)
        if len(asked) == n_traces:
            raise InputError("It is damaged.")

    monkeypatch.setattr(module, "_examined", examine)
    monkeypatch.setattr("precision_probe.trace.reading.open_trace", lambda _: pytest.fail("it was opened"))
    n_traces = 2 if verb == "compare" else 1
    refused(run(verb, *[saved] * n_traces, "--untrusted"), "It is damaged.")
    assert asked == [saved] * n_traces


def test_an_untrusted_trace_that_is_fine_is_read(saved, run):
    fine = run("errors", saved, "--untrusted")
    assert fine.exit_code == FINE
    assert fine.stdout == run("errors", saved).stdout


def test_notes_go_to_stderr(tmp_path, run):
    result = run("validate", trace_by_hand(complete="false").save(tmp_path / "x.h5"))
    assert result.exit_code == FINE
    assert result.stdout.startswith(f"{tmp_path / 'x.h5'} is fine: ")
    assert result.stderr.startswith("Note: complete is false")


def test_what_cannot_be_opened_is_refused_as_open_trace_does(tmp_path, run, refused):
    refused(run("validate", tmp_path / "absent.h5"), "absent.h5 does not exist")
