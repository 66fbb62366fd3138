"""A process that has imported everything, and forks: a run of the command line then starts in milliseconds.

Each run is a process of its own, which is sent signals and whose end is seen; only the imports are shared. Nothing is
computed before it forks, so that no thread of torch is lost.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "ForkServer"]

_IMPORTS = """
torch h5netcdf.legacyapi h5py xarray dask.array ase.io.extxyz ase.md.verlet mace.calculators
precision_probe.cli.main precision_probe.cli.tables.errors precision_probe.cli.tables.search
precision_probe.analysis.whole_model precision_probe.probe.probe
precision_probe.diagnostics.bit_sweep precision_probe.diagnostics.contributions
precision_probe.search.recommendation precision_probe.search.running.delivered precision_probe.trace.validation
"""

_SIGNALS = [int(signal.SIGINT), int(signal.SIGTERM)]
_HANDLED = "from precision_probe.interruption import INTERRUPTIONS\nINTERRUPTIONS.take_over()"


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: Its exit code; negative, the signal that killed it; ``None`` if it hung and was killed.
        out, err: What it wrote.
        seconds: How long it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float


class ForkServer:
    """The process. ``environment`` is added to that of this one, such as ``LD_PRELOAD``."""

    def __init__(self, environment=None):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-W", "default::RuntimeWarning", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        )

    def run(self, folder, code, *, ready="", signals=(), timeout=120.0):
        """Run Python code in a folder.

        Args:
            folder: Where.
            code: Python; what it exits with is the exit code.
            ready: Python that runs before signals can come: there is a moment in which nobody could handle them.
            signals: Of (seconds after the start, number), in this order.
            timeout: After so many seconds it is taken to hang, and killed.
        """
        code = f"{ready}\nimport signal\nsignal.pthread_sigmask(signal.SIG_UNBLOCK, {_SIGNALS!r})\n{code}"
        asked = {"folder": str(folder), "code": code, "signals": list(signals), "timeout": timeout}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def cli(self, folder, *arguments, before="", **options):
        """Run the command line, after some Python code."""
        argv = ["precision-probe", *map(str, arguments)]
        code = f"{before}\nimport sys\nsys.argv = {argv!r}\nfrom precision_probe.__main__ import main\nmain()"
        return self.run(folder, code, ready=_HANDLED, **options)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _serve():
    """Answer requests until there are none; in a forked child, return the code that it is to run."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        names = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
        for name in names:
            name.touch()  # a process may be killed before it does so
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(folder, names)
            return asked["code"]
        code = _watched(pid, start, asked["signals"], asked["timeout"])
        seconds = time.monotonic() - start
        out, err = (name.read_text(errors="replace") for name in names)
        for name in names:
            name.unlink()
        answers.write(json.dumps({"code": code, "out": out, "err": err, "seconds": seconds}) + "\n")
        answers.flush()
    return None


def _become(folder, names):
    """Be a process as a shell starts it, in a folder, with its output in files."""
    os.setsid()
    os.chdir(folder)
    handles = [os.open(os.devnull, os.O_RDONLY), *(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600) for name in names)]
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = os.fdopen(0, closefd=False)  # the old one has read requests ahead
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watched(pid, start, signals, timeout):
    """Send a process signals, and wait for its end: its exit code."""
    waiting = list(signals)
    while time.monotonic() - start < timeout:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if waiting and time.monotonic() - start >= waiting[0][0]:
            os.kill(pid, waiting.pop(0)[1])
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the code that runs lets them through
    for _name in _IMPORTS.split():
        importlib.import_module(_name)
    _code = _serve()
    if _code is not None:
        exec(compile(_code, "<run>", "exec"), {"__name__": "__main__"})
