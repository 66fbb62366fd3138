"""Policies worth measuring, made from what each block alone was measured to save and to spoil. Nothing is run here.

:mod:`precision_probe.search.convex_hull` chooses assignments; uniform ones, and ones that keep what comes before the
first interaction in float64, are added. Nothing is concluded from a proposal: it only says what is measured next.
"""

from collections.abc import Iterable, Mapping, Sequence

from precision_probe.policy import Policy, Rule
from precision_probe.precisions import PRECISIONS
from precision_probe.search.convex_hull import Option, assignments, rules_of

__all__ = ["DO_NOTHING", "combined", "is_low", "raised", "uniform"]

DO_NOTHING = "float64"

# On 40 hulls (demo and 3BPA model, costs made up) with 8 to 16 hopeful assignments the cheapest that held was one of
# the first three. As many again for tf32; each one more costs its errors, and a place among those that are timed.
_N_PROPOSED = 6
# Tolerances that an error may be expected to reach. Measured errors were 0.6 to 1.5 times the expected ones (5 % and
# 95 % of the 299 assignments on those hulls, median 1.0). At 1.5 it takes 0.53 to hold with a margin of 0.8: 3 % had.
_HOPEFUL = 1.5
# Before the first interaction: what reads positions or embeds atoms, where digits are lost that nothing brings back.
_BEFORE = ("node_embedding", "radial_embedding", "spherical_harmonics", "joint_embedding", "pair_repulsion_fn")


def uniform(blocks: Sequence[str], precisions: Sequence[str]) -> dict[str, Policy]:
    """One precision for all blocks, or for all but those before the first interaction; and float64.

    Args:
        blocks: Names of the model's blocks.
        precisions: Those to choose from.

    Returns:
        Policies by name.
    """
    policies = {DO_NOTHING: Policy(())}
    for name in precisions:
        policies[name] = Policy.uniform(name)
        policies[f"{name} after the embeddings"] = _policy({each: name for each in blocks if each not in _BEFORE})
    return policies


def combined(options: Mapping[str, Mapping[str, Option]], known: Iterable[Policy]) -> dict[str, Policy]:
    """A precision for each block, the cheapest for growing errors, as far as they may hold and save anything.

    Args:
        options: For each block, what each precision alone costs and does.
        known: Policies that are measured anyway.

    Returns:
        Policies by name, no two of which give the blocks the same precisions.
    """
    taken = [policy.assignments(options) for policy in known]
    policies: dict[str, Policy] = {}
    for mode in _matmul_modes(options):
        within = [each for each in assignments(_computable(options, mode)) if each.error <= _HOPEFUL and each.cost < 0]
        for each in within[:_N_PROPOSED]:
            policy = _policy(each.precisions)
            assigned = policy.assignments(options)
            if assigned not in taken:
                taken.append(assigned)
                policies[f"mixed {len(policies) + 1}"] = policy
    return policies


def raised(policy: Policy, parts: Sequence[str]) -> Policy:
    """The same policy with some modules in the next precision: float32, or float64 for those that have its bits.

    What float32 would compute as tf32 is in float64, too.
    """

    def higher(part: str) -> str:
        has_fewer = policy.precision_of(part).significand_bits < PRECISIONS["float32"].significand_bits
        return "float32" if has_fewer and policy.matmul_mode == "ieee" else DO_NOTHING

    return Policy((*(Rule(part, higher(part)) for part in parts), *policy.rules))


def is_low(policy: Policy, block: str) -> bool:
    """Whether a block computes with fewer bits than float64 has, so that there is something to raise."""
    return policy.precision_of(block).significand_bits < PRECISIONS[DO_NOTHING].significand_bits


def _matmul_modes(options: Mapping[str, Mapping[str, Option]]) -> list[str]:
    """The modes of float32 matrix products that the options need: a policy has but one of them."""
    needed = {PRECISIONS[name].matmul_mode for choices in options.values() for name in choices if _is_single(name)}
    return sorted(needed) or ["ieee"]


def _computable(options: Mapping[str, Mapping[str, Option]], mode: str) -> dict[str, dict[str, Option]]:
    """The options that one mode of float32 matrix products leaves."""
    return {
        block: {
            name: option
            for name, option in choices.items()
            if not _is_single(name) or PRECISIONS[name].matmul_mode == mode
        }
        for block, choices in options.items()
    }


def _is_single(name: str) -> bool:
    """Whether a precision is stored in float32, so that the mode of matrix products makes a difference."""
    return PRECISIONS[name].dtype == "float32"


def _policy(precisions: Mapping[str, str]) -> Policy:
    return Policy(tuple(Rule(glob, name) for glob, name in rules_of(precisions)))
