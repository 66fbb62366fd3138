"""Watch molecular dynamics from inside: what would lower precision have made of the forces along the way?

Run it as ``python examples/probe_md.py [OUTPUT]``. The run itself is bit for bit what it is without the probe.
"""

import sys
from pathlib import Path

import ase.units
import numpy as np
import pandas as pd
from ase.md.langevin import Langevin

import precision_probe as pp
from precision_probe.models.loading import load_model
from precision_probe.structures import read_structures


def main(output: str = "md.h5") -> None:
    """Run 100 steps of ethanol at 300 K, observe every tenth call, and print the force errors over time."""
    from mace.calculators import MACECalculator

    model, _ = load_model("demo")
    atoms = next(atoms for atoms in read_structures("demo") if atoms.info["name"] == "ethanol")
    atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
    timestep = 0.5  # fs
    dynamics = Langevin(
        atoms, timestep * ase.units.fs, temperature_K=300, friction=0.02, rng=np.random.default_rng(0), fixcm=False
    )

    precisions = ["float32", "float16"]
    with pp.attach(
        atoms.calc, every=10, precisions=precisions, blocks="readouts.*", modes="isolated", output=output, force=True
    ):
        dynamics.run(100)  # what is observed goes to the file as it comes

    with pp.open_trace(Path(output)) as trace:
        print(errors_over_time(trace, timestep).to_string(float_format="{:.2e}".format))


def errors_over_time(trace: pp.Trace, timestep: float) -> pd.DataFrame:
    """For each observed call its time (fs), and the largest force error (eV/Å) of each precision."""
    calls = trace.structures["name"].to_series().str.removeprefix("call ").astype(int)
    owner = trace.structures["structure_of_atom"].values
    reference = trace.group("propagated", "float64")["forces"].values
    table = pd.DataFrame({"call": calls, "fs": (calls - 1) * timestep})  # the first call comes before the first step
    for precision in trace.precisions:
        error = np.abs(trace.group("propagated", precision)["forces"].values - reference).max(axis=1)
        table[precision.name] = pd.Series(error).groupby(owner).max()
    return table.set_index("call")


if __name__ == "__main__":
    main(*sys.argv[1:])
