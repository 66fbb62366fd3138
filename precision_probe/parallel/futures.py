"""What came of work that was given to workers, as it is done."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from precision_probe.exceptions import ProbeError, first_line
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["as_done"]

_MOMENT = 0.5  # seconds after which it is looked whether somebody has interrupted


def as_done(futures: Mapping["Future", str]) -> Iterator[tuple["Future", Any]]:
    """Futures and what came of them, as they are done, as long as none fails and nobody interrupts.

    Args:
        futures: Each with what it runs, as a sentence has it.

    Raises:
        InputError: If what was given to one cannot be used.
        ProbeError: If one fails otherwise.
    """
    from distributed import wait

    waiting = list(futures)
    while waiting:
        INTERRUPTIONS.check()
        done: set[Future] = set()
        with suppress(TimeoutError):
            done = wait(waiting, timeout=_MOMENT, return_when="FIRST_COMPLETED").done
        for future in done:
            waiting.remove(future)
            yield future, _result(future, futures[future])


def _result(future: "Future", what: str) -> Any:
    """What came of something, once it is done.

    Raises:
        InputError: If what was given to it cannot be used.
        ProbeError: If it failed otherwise.
    """
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except ProbeError:
        raise
    except KilledWorker as error:
        raise ProbeError(
            f"Workers that ran {what} were killed again and again. Look for why in their logs (memory?), and take "
            "fewer workers or smaller structures."
        ) from error
    except Exception as error:
        raise ProbeError(f"A worker failed ({type(error).__name__}: {first_line(error)}).") from error
