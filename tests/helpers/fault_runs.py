"""What tests of faults do: runs that are worth breaking, and whether what they leave is what they had recorded."""

import numpy as np

import precision_probe as pp

__all__ = ["AUDIT", "MD", "N_STRUCTURES", "OFTEN", "arrays", "check_left", "environment", "n_recorded", "names"]

N_STRUCTURES = 4

# The command line of an audit, and a user's own molecular dynamics. Both write after each structure, and say on
# stderr's neighbour, the file "../progress", how many they have recorded: what is in the file by then must stay there.
OFTEN = """
import os
import torch
torch.set_num_threads(1)
import precision_probe.probe.probe
from precision_probe.probe.recording import Recording
from precision_probe.trace import recorder
recorder._MANY_BYTES = 1
precision_probe.probe.batches._TIMED = 1
_add, _path = Recording.add, os.getcwd() + ".progress"
def add(self, *arguments, **options):
    _add(self, *arguments, **options)
    with open(_path, "a") as file:
        file.write(str(self.n_structures) + "\\n")
Recording.add = add
"""
AUDIT = ("audit", "../small.model", "../structures.xyz", "-o", "out.h5", "--device", "cpu", "-q")
AUDIT += ("-p", "float32", "--blocks", "readouts.*", "--modes", "propagated")
MD = (
    OFTEN
    + f"""
import sys
import ase.io
from ase.md.verlet import VelocityVerlet
from mace.calculators import MACECalculator
import precision_probe as pp
atoms = ase.io.read("../structures.xyz", index=0)
atoms.calc = MACECalculator(model_paths="../small.model", device="cpu", default_dtype="float64")
dynamics = VelocityVerlet(atoms, 0.5)
options = dict(precisions="float32", blocks="readouts.*", modes="propagated", output="out.h5")
try:
    probe = pp.attach(atoms.calc, **options)
except pp.InputError as error:
    sys.exit(f"refused: {{error}}")
with probe:
    for step in range({N_STRUCTURES - 1}):
        dynamics.run(1)
        print(float(atoms.get_potential_energy()).hex(), flush=True)
print("end", flush=True)
"""
)


def arrays(path):
    """All numbers and names that a trace has, but for times, by group and name; and its attributes."""
    with pp.open_trace(path) as trace:
        found = {
            f"{node.path}/{name}": np.asarray(variable.values)
            for node in trace.tree.subtree
            for name, variable in node.to_dataset(inherit=False).variables.items()
            if name != "seconds"
        }
        return found, dict(trace.attributes)


def names(folder):
    """What is in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


def check_left(folder, whole, *, n_at_least=0, is_killed=False):
    """Check what a run left of a trace: as much as was written, the same numbers, and nothing else beside it.

    Args:
        folder: Where.
        whole: The arrays of a run that was not disturbed.
        n_at_least: How many structures had been written.
        is_killed: Whether the process was killed: a file that it was making stays, and the next run makes it anew.

    Returns:
        How many structures there are, and whether the trace says that it is complete.
    """
    left = set(names(folder)) - ({"out.h5.partial.new"} if is_killed else set())
    assert left <= {"out.h5", "out.h5.partial", "out.h5.partial.journal", "out.h5.lock"}, left
    path = next((folder / name for name in ("out.h5", "out.h5.partial") if name in left), None)
    if path is None:
        assert n_at_least == 0
        return 0, False
    found, attributes = arrays(path)
    n = len(found["/structures/name"])
    assert n_at_least <= n <= len(whole["/structures/name"])
    for name in found.keys() & whole.keys():
        expected = whole[name][: len(found[name])]
        np.testing.assert_array_equal(found[name], expected, err_msg=name, strict=True)
    missing = {name for name in whole.keys() - found.keys() if not name.startswith("/tables")}
    assert not missing, missing
    assert attributes["complete"] is (path.name == "out.h5")
    if path.name == "out.h5":
        assert n == len(whole["/structures/name"])
    return n, attributes["complete"]


def n_recorded(folder):
    """How many structures a run has said that it had recorded."""
    path = folder.parent / f"{folder.name}.progress"
    return int(path.read_text().split()[-1]) if path.exists() and path.read_text() else 0


def environment(**values):
    """Python that sets environment variables, before all else that a run does."""
    return f"import os; os.environ.update({values!r})\n" if values else ""
