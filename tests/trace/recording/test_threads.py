"""threads.py: pieces are made in order, few ahead, and by the caller where Python starts no threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from precision_probe.trace.recording.threads import Threads


def ending(*_):
    raise RuntimeError("cannot schedule new futures after interpreter shutdown")


@pytest.mark.parametrize("has_threads", [True, False])
def test_what_is_made_of_each_comes_in_order(monkeypatch, has_threads):
    if not has_threads:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    with Threads() as threads:
        assert list(threads.each(lambda number: number**2, range(1000))) == [number**2 for number in range(1000)]


def test_few_are_begun_before_the_first_is_asked_for():
    begun = []
    with Threads() as threads:
        made = threads.each(lambda number: number, (begun.append(number) or number for number in range(1000)))
        assert next(made) == 0
        assert len(begun) == threads.n_ahead < 1000


@pytest.mark.parametrize("has_threads", [True, False])
def test_an_error_is_raised_where_its_piece_is_asked_for(monkeypatch, has_threads):
    if not has_threads:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    with Threads() as threads:
        made = threads.each(lambda number: 1 // number, [1, 0])
        assert next(made) == 1
        with pytest.raises(ZeroDivisionError):
            next(made)
