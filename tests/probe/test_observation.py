"""observation.py: sizes of what was observed, and the random numbers that it was observed with."""

import ase
import torch
from runs import molecule

from precision_probe.models.graphs import build_graph
from precision_probe.models.inputs import Inputs
from precision_probe.probe.observation import Observation, RandomState
from precision_probe.trace.arrays import Sizes


def test_sizes_of_what_was_observed(model):
    assert Observation(build_graph(molecule(), model)).sizes == Sizes(1, 3, 6, 2)
    assert Observation(build_graph(ase.Atoms("C"), model)).sizes == Sizes(1, 1, 0, 1)
    assert Observation(Inputs("input 0", (torch.ones(5, 2),))).sizes == Sizes(1)


def test_random_numbers_begin_where_they_were_and_the_present_ones_go_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = RandomState(torch.device("cpu"))
        first = torch.rand(4)
        between = torch.get_rng_state()
        for _ in range(2):
            with state.restored():
                assert torch.equal(torch.rand(4), first)
        assert torch.equal(torch.get_rng_state(), between)
