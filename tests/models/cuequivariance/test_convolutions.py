"""convolutions.py: what fused convolutions sum over edges in half precisions is rounded once."""

from types import SimpleNamespace

import pytest
import torch
from runs import convert

from precision_probe.models import backends
from precision_probe.models.cuequivariance.convolutions import sum_in_arithmetic

UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
N_ATOMS, N_EDGES = 7, 4000  # hundreds of edges an atom: sums in half precision would be wrong by many roundings


class Fused(torch.nn.Module):
    """What mace-torch makes of cuEquivariance's, on a CPU: products, summed in the dtype of the atoms' features."""

    def __init__(self):
        super().__init__()
        self.m = SimpleNamespace(dtypes=[0, 1, 2, 0], num_inputs=3, math_dtype=torch.float32)
        self.forward = self.fused

    def fused(self, node_feats, edge_attrs, tp_weights, edge_index):
        self.given = node_feats.dtype, edge_attrs.dtype, tp_weights.dtype
        products = node_feats[edge_index[0]] * edge_attrs.float() * tp_weights.float()
        return torch.zeros_like(node_feats).index_add(0, edge_index[1], products.to(node_feats.dtype))


def arguments(dtype, n_features, n_attributes, n_weights, device="cpu"):
    """Features of atoms, attributes and weights of edges, and which atoms they join."""
    torch.manual_seed(0)
    sizes = ((N_ATOMS, n_features), (N_EDGES, n_attributes), (N_EDGES, n_weights))
    floats = [torch.rand(size, device=device).add(0.5).to(dtype) for size in sizes]
    return *floats, torch.randint(N_ATOMS, (2, N_EDGES), device=device)


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_atoms_are_given_in_the_dtype_of_the_arithmetic_and_sums_rounded_once(dtype):
    fused = Fused()
    model = torch.nn.Module()
    model.interactions = [SimpleNamespace(conv_tp=fused)]
    given = arguments(dtype, 4, 1, 1)
    exact = fused.fused(*[each.double() if each.is_floating_point() else each for each in given])
    sum_in_arithmetic(model)
    found = fused(*given)
    assert found.dtype == dtype
    assert fused.given == (torch.float32, dtype, dtype)
    assert fused.m.dtypes == [0, 1, 2, -1]
    assert ((found.double() - exact).abs() <= 1.01 * UNIT_ROUNDOFF[dtype] * exact.abs()).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_fused_convolutions_round_sums_and_gradients_once_on_cuda(wide, dtype):
    pytest.importorskip("cuequivariance_ops_torch")
    network = convert(wide, device="cuda")
    device = torch.device("cuda")
    exact, half = (backends.clone(network, each, device).interactions[1].conv_tp for each in (torch.float64, dtype))
    weights, features, attributes = (operand.size for operand in half._polynomial_orig.inputs)
    given = arguments(dtype, features, attributes, weights, device)

    def found(convolution, dtype):
        floats = [each.detach().to(dtype).requires_grad_() for each in given[:3]]
        out = convolution(*floats, given[3])
        return out, *torch.autograd.grad(out, floats, cotangent.to(dtype))

    cotangent = torch.rand((N_ATOMS, exact(*[each.double() for each in given[:3]], given[3]).shape[1]), device=device)
    cotangent = cotangent.add(0.5).to(dtype)
    for name, ours, theirs in zip(("out", *"fsw"), found(half, dtype), found(exact, torch.float64), strict=True):
        assert ours.dtype == dtype, name
        # what float32 loses of sums of hundreds to thousands of terms of both signs, beside one rounding
        allowed = 1.01 * UNIT_ROUNDOFF[dtype] * theirs.abs() + 1e-5 * theirs.abs().max()
        assert ((ours.double() - theirs).abs() <= allowed).all(), name
