"""Interruptions: raised where something is made, remembered where the exception is lost, the end of all else."""

import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from precision_probe import progress
from precision_probe.exceptions import InputError, ProbeError
from precision_probe.interruption import EXIT_CODE, INTERRUPTIONS

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """As a shell starts a program; and none of a test is left."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in BOTH}
    yield
    found = [signal.getsignal(number) for number in BOTH]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == [signal.default_int_handler] * 2


def working(kept="All is in x."):
    return INTERRUPTIONS.working(lambda: kept)


@pytest.mark.parametrize("number", BOTH)
def test_work_is_told_and_the_message_says_what_is_kept(number):
    seen = []

    def work():
        try:
            signal.raise_signal(number)
        finally:
            seen.append("told")

    with pytest.raises(ProbeError) as caught, working():
        work()
    assert seen == ["told"]
    assert str(caught.value) == "Interrupted. All is in x."
    assert not isinstance(caught.value, InputError)


def test_what_is_kept_is_asked_for_when_it_is_said():
    kept = ["Nothing was written."]

    def work(say):
        say("x.h5 is complete.")
        signal.raise_signal(signal.SIGINT)

    for say in (kept.append, INTERRUPTIONS.keep):
        with pytest.raises(ProbeError, match=r"x\.h5 is complete"), INTERRUPTIONS.working(lambda: kept[-1]):
            work(say)
        kept.append("Nothing was written.")


def test_work_that_is_not_interrupted_is_left_alone():
    with working():
        INTERRUPTIONS.check()
    with pytest.raises(ZeroDivisionError), working():
        raise ZeroDivisionError
    INTERRUPTIONS.check()


class Dropping:
    """Python prints what a finalizer raises, and drops it."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


class Failing:
    """What else finalizers raise is printed."""

    def __del__(self):
        raise ZeroDivisionError


def test_an_exception_that_was_lost_is_raised_at_the_next_piece_of_work_and_python_prints_nothing(monkeypatch):
    done, printed = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: printed.append(lost.exc_type))

    def work():
        for piece in progress.shown([1, 2, 3], "working", progress=False):
            done.append(piece)
            if piece == 2:
                Dropping()
                done.append("went on")

    with pytest.raises(ProbeError, match="All is in x"), working():
        work()
    assert done == [1, 2, "went on"]
    assert not printed
    Failing()
    assert printed == [ZeroDivisionError]
    with working():
        Failing()
    assert printed == [ZeroDivisionError] * 2


def test_an_error_that_a_library_made_of_it_is_an_interruption():
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("callback failed") from None

    with pytest.raises(ProbeError, match="All is in x") as caught, working():
        work()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_of_who_was_told_is_its_own():
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            INTERRUPTIONS.told()
            INTERRUPTIONS.check()
            signal.raise_signal(signal.SIGTERM)  # a batch system's second: the work is being finished
            raise OSError("disk full") from None

    with pytest.raises(OSError, match="disk full"), working():
        work()


def test_signals_that_are_to_be_ignored_are_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with working():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_change_no_handlers():
    found = []

    def work():
        with working():
            found.append([signal.getsignal(number) for number in BOTH])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[signal.default_int_handler] * 2]


# In a process of its own: the end of it


def ended(script):
    """What is left of a process: exit code, stdout, stderr."""
    code = "import os, signal, sys\nfrom precision_probe.interruption import INTERRUPTIONS\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_where_nothing_is_made_the_process_ends_at_once_whatever_would_swallow_it(name):
    code, out, err = ended(
        f"""
        INTERRUPTIONS.take_over()
        try:
            signal.raise_signal(signal.{name})
        except BaseException:
            pass
        print("still there", flush=True)
        """
    )
    assert (code, out, err) == (EXIT_CODE, "", "Error: Interrupted. Nothing was written.\n")


def test_a_second_ctrl_c_ends_work_at_once():
    code, out, err = ended(
        """
        with INTERRUPTIONS.working(lambda: "All is in x."):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGTERM)
                print("finishing", flush=True)
                signal.raise_signal(signal.SIGINT)
            print("still there", flush=True)
        """
    )
    assert (code, out, err) == (EXIT_CODE, "finishing\n", "Error: Interrupted. All is in x.\n")


def test_work_that_is_done_is_not_undone_by_a_signal():
    code, out, err = ended(
        """
        import atexit
        INTERRUPTIONS.take_over()
        atexit.register(lambda: signal.raise_signal(signal.SIGTERM))
        print("done", flush=True)
        INTERRUPTIONS.give_up()
        """
    )
    assert (code, out, err) == (0, "done\n", "")
