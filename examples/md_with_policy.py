"""Molecular dynamics of a model in mixed precision, and its energy drift beside float64's.

    python examples/md_with_policy.py                              # the bundled model and benzene, a policy by hand
    python examples/md_with_policy.py policy.json --model my.model --structures my.xyz --device cuda

A policy found by ``precision-probe recommend`` is applied to the model; the calculator it gives runs in ASE like any
other. Then the same dynamics are run in float64 and under the policy from the same velocities, several times, and the
drifts of the total energy are compared with their 95 % confidence intervals.
"""

import argparse
from collections.abc import Sequence

from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

import precision_probe as pp
from precision_probe.structures import read_structures

BY_HAND = pp.Policy((pp.Rule("interactions.*", "float32"), pp.Rule("products.*", "float32")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run dynamics under a policy, then compare drifts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", nargs="?", help="a policy's JSON file")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--structures", default="demo")
    parser.add_argument("--index", type=int, default=4, help="of the structure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=500, help="of half a femtosecond")
    given = parser.parse_args(arguments)
    policy = pp.Policy.load(given.policy) if given.policy else BY_HAND
    atoms = read_structures(given.structures)[given.index]

    moving = atoms.copy()
    moving.calc = policy.calculator(given.model, device=given.device)
    MaxwellBoltzmannDistribution(moving, temperature_K=300)
    dynamics = VelocityVerlet(moving, 0.5 * units.fs)
    dynamics.run(10)
    print(f"After 10 steps: {moving.get_total_energy():.6f} eV, {moving.get_temperature():.0f} K")

    drift = pp.energy_drift(
        given.model, atoms, "float64", policies={"policy": policy}, steps=given.steps, device=given.device
    )
    print(drift.round(4))


if __name__ == "__main__":
    main()
