"""What bench_errors does in processes of their own: make traces of any size, read them raw, take their errors.

    python benchmarks/errors_run.py read TRACE
    python benchmarks/errors_run.py errors TRACE

print seconds and the peak memory of the process as JSON. Neither imports torch.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from precision_probe.trace.growing_file import append, finish
from precision_probe.trace.parts.part import Part
from precision_probe.trace.schema import COUNTED, TABLES
from precision_probe.trace.trace import Trace, encoded

__all__ = ["make_trace", "size_of", "tiled"]

_AT_ONCE = 2**23  # bytes that are read raw at once
_APPENDED = 2**26  # bytes that are added to a trace at once, as a run does


def make_trace(trace: Trace, path: Path, n_bytes: float, part: Part | None = None) -> int:
    """Write the structures of a trace over and over, until there are so many bytes; return how many structures."""
    tiles = tiled(trace, max(1, round(min(n_bytes, _APPENDED) / trace.tree.nbytes)))
    n, n_written = tiles["structures"].sizes["structure"], 0
    while not n_written or path.stat().st_size < n_bytes:
        append(tiles, path, new=not n_written)
        tiles["structures"]["structure_of_atom"] += n
        n_written += n
    about = trace.attributes | ({} if part is None else part.about)
    finish(path, {}, {key: encoded(value) for key, value in about.items()})
    return n_written


def tiled(trace: Trace, n: int) -> xr.DataTree:
    """The same structures so many times, without tables."""
    sizes = {dim: size for dim, size in trace.structures.sizes.items() if dim in COUNTED}
    rows = {dim: np.tile(np.arange(size), n) for dim, size in sizes.items()}
    datasets = {
        node.path: node.to_dataset(inherit=False).isel(rows, missing_dims="ignore")
        for node in trace.tree.subtree
        if not node.path.startswith(f"/{TABLES}")
    }
    shifts = np.repeat(sizes["structure"] * np.arange(n), sizes["atom"])
    datasets["/structures"]["structure_of_atom"] += shifts
    return xr.DataTree.from_dict(datasets)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def read(path: Path) -> None:
    """Read every number in a trace once, with h5py alone."""
    for file in _files(path):
        with h5py.File(file, "r") as opened:
            opened.visititems(_read_dataset)


def _read_dataset(_: str, dataset: h5py.HLObject) -> None:
    """Some rows after others."""
    if isinstance(dataset, h5py.Dataset) and dataset.shape:
        row_bytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
        n_rows = max(1, _AT_ONCE // max(1, row_bytes))
        for first in range(0, len(dataset), n_rows):
            np.asarray(dataset[first : first + n_rows])


def errors(path: Path) -> None:
    """Open a trace and take all its errors."""
    import precision_probe as pp

    with pp.open_trace(path) as trace:
        pp.errors(trace)


def _peak_bytes() -> int:
    """The most memory that this process has had; what getrusage says would count what started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Do one of both, imports not counted."""
    import precision_probe.analysis.errors
    import precision_probe.trace.reading  # noqa: F401 so that they are not counted

    tasks: dict[str, Callable[[Path], None]] = {"read": read, "errors": errors}
    task, path = tasks[sys.argv[1]], Path(sys.argv[2])
    before = _peak_bytes()
    start = time.perf_counter(), time.process_time()
    task(path)
    seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    print(json.dumps({"s": seconds, "cpu_s": cpu_seconds, "peak": _peak_bytes(), "imports": before}))


if __name__ == "__main__":
    main()
