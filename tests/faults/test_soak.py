"""Long runs into a file: memory, handles, threads and hooks stay what they were, and so does a structure's time."""

import json

import h5py
import numpy as np
import pytest

N_SAMPLE, N = 120, 10_000
# Of memory that may be left by each; 0.5 MB are where nothing is written. Few structures do not tell much from noise.
BYTES = {N_SAMPLE: 150_000, N: 2_000}
TIMES_SLOWER = 1.3  # the last quarter than the first; twice would be one more pass over what is there already
SCRIPT = """
import gc, json, os, threading, time
import torch
torch.set_num_threads(1)
import ase.io
import precision_probe as pp
import precision_probe.probe.probe
from ase.md.verlet import VelocityVerlet
from mace.calculators import MACECalculator
from precision_probe.trace import recorder
recorder._MANY_BYTES = {many_bytes}
precision_probe.probe.probe._TIMED = 1
kind, n, batch = {kind!r}, {n}, {batch}
structures = ase.io.read("../structures.xyz", index=":")
calculator = MACECalculator(model_paths="../small.model", device="cpu", default_dtype="float64")
model = calculator.models[0]
rows = []

def note():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    rows.append(dict(
        bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        handles=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        python_threads=threading.active_count(),
        hooks=sum(len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks)
                  for part in model.modules()),
        seconds=time.process_time(),
    ))

with pp.attach(calculator, precisions="float32", blocks="readouts.*", output="out.h5") as probe:
    atoms = structures[0]
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, 0.1)
    note()
    for start in range(0, n, batch):
        if kind == "run":
            probe.run([structures[number % len(structures)] for number in range(batch)], progress=False)
        else:
            dynamics.run(batch)
        note()
print(json.dumps(rows))
"""
CASES = [
    pytest.param("run", N_SAMPLE, 10, 20_000, id="run"),
    pytest.param("run", N, 100, 1_000_000, id="run-long", marks=pytest.mark.slow),
    pytest.param("md", N, 100, 1_000_000, id="md-long", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "n", "batch", "many_bytes"), CASES)
def test_nothing_grows(folder, server, kind, n, batch, many_bytes):
    script = SCRIPT.format(kind=kind, n=n, batch=batch, many_bytes=many_bytes)
    done = server.run(folder, script, timeout=7200)
    assert (done.code, done.err) == (0, "")
    rows = {name: np.asarray([row[name] for row in json.loads(done.out)]) for name in json.loads(done.out)[0]}
    settled = slice(len(rows["bytes"]) // 4, None)  # the first writes make caches
    for name in ("handles", "threads", "python_threads", "hooks"):
        assert len(set(rows[name][settled])) == 1, (name, rows[name])
    numbers = batch * np.arange(len(rows["bytes"]))[settled]
    slope, _ = np.polyfit(numbers, rows["bytes"][settled], 1)
    seconds = np.diff(rows["seconds"])
    quarter = len(seconds) // 4
    slower = np.median(seconds[-quarter:]) / np.median(seconds[quarter : 2 * quarter])
    print(
        f"{n} structures ({kind}): {slope:.0f} bytes each are left, the last quarter takes {slower:.2f} times as long"
    )
    assert slope < BYTES[n]
    assert slower < TIMES_SLOWER
    with h5py.File(folder / "out.h5", "r") as file:
        assert len(file["structures/name"]) == n + (kind == "md")
        assert file.attrs["complete"]
