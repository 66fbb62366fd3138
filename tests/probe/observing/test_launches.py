"""What an audit has a device do beyond the bare runs: counts that do not depend on a machine, for speed to rest on."""

from collections import Counter

import pytest
import torch
from runs import molecule
from torch.utils._python_dispatch import TorchDispatchMode

import precision_probe as pp
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.variant import Variant

# Of two precisions of the demo model, 11 blocks, counted with torch 2.13: operations beyond those of both bare models.
# Whoever makes them fewer lowers the numbers; they are higher where a change costs launches.
COMMITTED = {
    ("shared", "none", ("propagated",)): 109,
    ("shared", "tensors", ("propagated",)): 135,
    ("shared", "errors", ("propagated",)): 452,
    ("per_block", "errors", ("propagated",)): 1858,
    ("per_block", "errors", ("propagated", "isolated")): 3462,
}
# Which only look at what is there: nothing is launched for them.
VIEWS = {
    *("alias", "as_strided", "detach", "expand", "permute", "reshape", "select", "slice", "split", "split_with_sizes"),
    *("squeeze", "t", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view"),
}
READ = "_local_scalar_dense"  # a number is taken to the host, which a device has to be waited for


class Counted(TorchDispatchMode):
    """Counts the operations that torch carries out, those of compiled modules too."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def launches(self):
        return sum(n for name, n in self.operations.items() if name not in VIEWS)


def counted(run):
    """The operations of a run, once TorchScript has compiled what it runs."""
    for _ in range(3):
        run()
    with Counted() as counted:
        run()
    return counted


@pytest.fixture(scope="module")
def bare():
    """The operations of both precisions' bare models."""
    model, _ = load_model("demo")
    graph = build_graph(molecule(), model)
    variants = [Variant(model, PRECISIONS[name], torch.device("cpu")) for name in ("float64", "float32")]
    return counted(lambda: [variant.predict(graph) for variant in variants])


@pytest.mark.parametrize(("gradients", "keep", "modes"), COMMITTED)
def test_an_audit_launches_no_more_than_it_did(bare, gradients, keep, modes):
    options = {"precisions": "float32", "device": "cpu", "time": False}
    with pp.attach("demo", gradients=gradients, keep=keep, modes=modes, **options) as probe:
        audit = counted(lambda: probe.run(molecule(), progress=False))
    beyond = audit.launches - bare.launches
    assert 0 < beyond <= COMMITTED[gradients, keep, modes]
    assert bare.operations[READ] == 0
    assert audit.operations[READ] <= 7  # as the graph is made, on the host: none for a block or a precision
