"""in_threads.py: what is made is in order, few pieces are taken ahead, and tables are those of one thread."""

import itertools
import threading

import numpy as np
import pytest
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.analysis import in_threads as module
from precision_probe.analysis import pairs
from precision_probe.analysis.in_threads import in_threads


@pytest.mark.parametrize("n_threads", [1, 4])
def test_order_is_that_of_the_pieces(n_threads, monkeypatch):
    monkeypatch.setattr(module, "_THREADS", n_threads)
    second = threading.Event()

    def make(piece):
        if n_threads > 1 and piece == 0:
            assert second.wait(10)  # which another thread makes meanwhile
        if piece == 1:
            second.set()
        return 2 * piece

    assert list(in_threads(make, range(50))) == list(range(0, 100, 2))


def test_few_pieces_are_taken_ahead():
    taken = itertools.count()
    made = in_threads(lambda piece: piece, (next(taken) for _ in range(1000)))
    assert next(made) == 0
    assert next(taken) <= module._AHEAD + 1


def test_a_failure_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda piece: 1 / piece, [1, 0, 2]))


def test_tables_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK", 8)
    trace = trace_by_hand()
    tables = []
    for n_threads in (1, 4):
        monkeypatch.setattr(module, "_THREADS", n_threads)
        with np.errstate(all="raise"):  # which is that of the thread that asks
            tables.append(pp.errors(trace))
    assert tables[0].equals(tables[1])
