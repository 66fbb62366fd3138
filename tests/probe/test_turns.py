"""turns.py: one thread at a time, turns within turns, and none that is held for ever."""

import sys
import threading
import time

import pytest

from precision_probe.probe.turns import Turns, is_running


def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_threads_are_served_one_after_the_other():
    turns, events = Turns(), []

    def work(name):
        for _ in range(20):
            with turns.taken():
                events.append((name, "begins"))
                time.sleep(1e-4)
                events.append((name, "ends"))

    threads = [in_thread(lambda name=name: work(name)) for name in "abc"]
    for thread in threads:
        thread.join(30)
    assert len(events) == 120
    for begin, end in zip(events[::2], events[1::2], strict=True):
        assert (begin[0], begin[1], end[1]) == (end[0], "begins", "ends")


def test_a_thread_takes_turns_within_its_own():
    turns, others = Turns(), []
    with turns.taken():
        with turns.taken():
            thread = in_thread(lambda: [others.append("waited") for _ in [0] if turns.take(sys._getframe()) is None])
        thread.join(0.2)
        assert others == []  # the outer one still has it
    thread.join(10)
    assert others == ["waited"]


def test_an_exception_gives_the_turn_back():
    turns = Turns()
    with pytest.raises(KeyError), turns.taken():
        raise KeyError
    thread = in_thread(lambda: turns.take(sys._getframe()))
    thread.join(10)
    assert not thread.is_alive()


def test_what_has_ended_without_giving_back_is_not_waited_for():
    """As torch runs no hook when a call is interrupted."""
    turns = Turns()

    def interrupted():
        turns.take(sys._getframe())

    interrupted()
    thread = in_thread(lambda: turns.take(sys._getframe()))
    thread.join(10)
    assert not thread.is_alive()
    in_thread(interrupted).join(10)  # of a thread that is no more
    with turns.taken():
        pass


def test_giving_back_what_was_never_taken_does_nothing():
    turns, events = Turns(), []
    with turns.taken():
        (lambda: turns.give_back(sys._getframe()))()
        thread = in_thread(lambda: events.append(turns.take(sys._getframe())))
        thread.join(0.2)
        assert events == []
    thread.join(10)
    assert events == [None]


def test_frames_are_running_while_they_are_on_the_stack_of_their_thread():
    def frame():
        own = sys._getframe()
        assert is_running(own, threading.get_ident())
        return own

    ended = frame()
    assert not is_running(ended, threading.get_ident())
    assert is_running(sys._getframe(), threading.get_ident())
    assert not is_running(sys._getframe(), None)
    assert not is_running(sys._getframe(), -1)
