"""keeping.py: what waits on the host for its errors comes back as it was."""

import pytest
import torch
from runs import molecule

from precision_probe.models.blocks import select_blocks
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.observing import keeping
from precision_probe.probe.observing.observer import Observer
from precision_probe.variants.variant import Variant


def observed(model, device, **options):
    variants = [Variant(model, PRECISIONS[name], device) for name in ("float64", "float16")]
    observing = Observer(
        variants, select_blocks(model, None), ("propagated", "isolated"), "per_block", "eV", "errors", **options
    )
    groups = observing.observe(build_graph(molecule(), model)).captured
    return {f"{group}/{each.name}": each.values for group, arrays in groups.items() for each in arrays}


def test_every_tensor_of_the_reference_waits_elsewhere_and_errors_are_the_same(model, monkeypatch):
    """On a CPU, with what would go to the host put aside instead."""
    aside = []

    def offloaded(tensor):
        aside.append(tensor.clone())
        tensor.zero_()
        return aside[-1]

    plain = observed(model, torch.device("cpu"))
    monkeypatch.setattr(keeping, "_offloaded", offloaded)
    assert observed(model, torch.device("cpu")).keys() == plain.keys()
    assert not aside
    found = observed(model, torch.device("cpu"), offload=True)
    assert len(aside) > 1
    for name, values in plain.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_waits_on_the_host_comes_back_bit_for_bit():
    tensor = torch.randn(1000, 300, dtype=torch.float64, device="cuda")
    host = keeping._offloaded(tensor)
    assert host.is_pinned()
    torch.testing.assert_close(host.to("cuda", non_blocking=True), tensor, rtol=0, atol=0)
