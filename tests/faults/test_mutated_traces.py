"""Traces damaged in every way that we could think of: refused with an InputError, or read with identical numbers.

``pytest -m slow -s tests/faults/test_mutated_traces.py`` tries 10,000 and prints a table of what came of them.
"""

import json
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mutations
import pandas as pd
import pytest
from traces_by_hand import trace_by_hand

READER = Path(mutations.__file__).with_name("reads_traces.py")
SECONDS = 20  # after which a reader hangs; it takes a tenth of one
FINE = {"identical", "refused", "noticed"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A trace that has something of everything, and is read in no time."""
    return trace_by_hand().save(tmp_path_factory.mktemp("pristine") / "trace.h5")


class Reader:
    """A process that reads traces until one ends it or makes it hang; then the next begins."""

    def __init__(self, pristine):
        self._pristine, self._process = pristine, None

    def ask(self, path):
        """What came of a trace."""
        if self._process is None:
            command = [sys.executable, str(READER)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._answer(self._pristine, 120)[0] == "ready"
        return self._answer(path, SECONDS)

    def _answer(self, path, seconds):
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self.close()
            return "hang", f"{seconds} s"
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            return "crash", f"exit code {code}"
        return tuple(json.loads(line))

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def tried(seeds, pristine, folder):
    """What was done, and what came of it, for each seed."""
    data, path, reader = pristine.read_bytes(), folder / "mutated.h5", Reader(pristine)
    try:
        for seed in seeds:
            kind = mutations.mutate(seed, data, path)
            yield seed, kind, *reader.ask(path)
    finally:
        reader.close()


def judge(results):
    """Print what came of what, and fail if anything but what is allowed did."""
    results = list(results)
    table = Counter((kind, outcome) for _, kind, outcome, _ in results)
    frame = pd.Series(table).unstack(fill_value=0)
    print(f"\n{frame.to_string()}\n{frame.sum().to_string()}")
    assert [each for each in results if each[2] not in FINE] == []


def test_damaged_traces_are_refused_or_read_as_they_were(pristine, tmp_path):
    judge(tried(range(40), pristine, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_damaged_traces(thousand, pristine, tmp_path):
    judge(tried(range(1000 * thousand, 1000 * (thousand + 1)), pristine, tmp_path))
