"""Times, with a clock that the calls themselves advance."""

import numpy as np
import pytest
import torch

from precision_probe.search.timing import Timed, peak_of, side_by_side

CPU = torch.device("cpu")


class Clock:
    """A clock, and calls that take their time on it."""

    def __init__(self):
        self.now = 0.0
        self.called = []

    def __call__(self):
        return self.now

    def call(self, name, *seconds):
        """Something that takes so long, each time another of the numbers given."""
        count = 0

        def run():
            nonlocal count
            self.called.append(name)
            self.now += seconds[count % len(seconds)]
            count += 1

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("precision_probe.search.timing.time.perf_counter", clock)
    return clock


def fail(error):
    def run():
        raise error

    return run


def test_rounds_begin_with_another_call_each_time(clock):
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    found = side_by_side(calls, CPU, rounds=4)
    assert list(found) == list("abc")
    warm_up, timed = clock.called[:9], clock.called[9:]
    assert warm_up == list("aaabbbccc")
    assert timed == list("abcbcacababc")


def test_times_are_those_of_the_calls(clock):
    found = side_by_side({"slow": clock.call("slow", 3.0), "fast": clock.call("fast", 0.5)}, CPU, rounds=5)
    assert found == {"slow": Timed((3.0,) * 5, None), "fast": Timed((0.5,) * 5, None)}


def test_medians_are_of_what_comes_after_the_warm_up(clock):
    (found,) = side_by_side({"a": clock.call("a", 100.0, 50.0, 25.0, 1.0, 9.0, 4.0)}, CPU, rounds=3).values()
    assert found.seconds == (1.0, 9.0, 4.0)
    assert found.median == 4.0


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("The following operation failed in the TorchScript interpreter: CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_what_does_not_fit_is_dropped_alone(clock, error):
    calls = {"a": clock.call("a", 2.0), "large": fail(error), "b": clock.call("b", 3.0)}
    found = side_by_side(calls, CPU, rounds=2)
    assert list(found) == ["a", "large", "b"]
    assert found["large"] == Timed((), None)
    assert found["large"].median == np.inf
    assert (found["a"].median, found["b"].median) == (2.0, 3.0)


def test_nothing_fits():
    found = side_by_side({"large": fail(OUT_OF_MEMORY[0])}, CPU)
    assert found == {"large": Timed((), None)}


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_raised(clock, error):
    with pytest.raises(type(error)):
        side_by_side({"a": clock.call("a", 1.0), "bad": fail(error)}, CPU)


def test_a_peak_is_not_known_on_a_cpu():
    assert peak_of(CPU, lambda: 3) == (3, None)


def test_a_real_clock_runs():
    found = side_by_side({"a": lambda: None}, CPU, rounds=3)["a"]
    assert len(found.seconds) == 3
    assert all(0 <= seconds < 1 for seconds in found.seconds)
    assert found.peak_bytes is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peaks_are_what_calls_allocate():
    def allocate(n):
        return lambda: torch.empty(n, dtype=torch.uint8, device="cuda").fill_(1)

    found = side_by_side({"small": allocate(2**20), "large": allocate(2**26)}, torch.device("cuda"), rounds=2)
    assert [each.peak_bytes for each in found.values()] == [2**20, 2**26]
