"""probe.py on modules that are not MACE: what it records, against the same computed with NumPy and torch alone."""

import copy

import e3nn.nn
import numpy as np
import pytest
import torch
from e3nn import o3
from runs import rel_l2

import precision_probe as pp
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.dtypes import default_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = {"device": "cpu", "precisions": "float32,bfloat16,float16"}
FAST = {"device": "cpu", "precisions": "float32", "modes": "propagated"}


class Scale(torch.nn.Module):
    """Called by keyword."""

    def forward(self, x, *, by):
        return x * by


class Split(torch.nn.Module):
    """Returns a dictionary."""

    def forward(self, x):
        return {"even": x[:, ::2], "odd": x[:, 1::2], "size": x.shape[0]}


class Pair(torch.nn.Module):
    """Returns a tuple."""

    def forward(self, a, b):
        return a * b, a - b


class Network(torch.nn.Module):
    """A bit of everything; ``shared`` runs twice."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Tanh()))
        self.shared = torch.nn.Linear(4, 4)
        self.scale, self.split, self.pair = Scale(), Split(), Pair()

    def forward(self, x, factor):
        hidden = self.shared(torch.relu(self.shared(self.encoder(x))))
        parts = self.split(self.scale(hidden, by=factor))
        product, difference = self.pair(parts["even"], b=parts["odd"])
        return {"product": product, "difference": difference}


BLOCKS = ["encoder", "encoder.*", "encoder.1.*", "shared", "scale", "split", "pair"]
# of each call in order: module, names of inputs and outputs in the trace
CALLS = {
    "encoder.0": (("input",), ("output",)),
    "encoder.1.0": (("input",), ("output",)),
    "shared": (("input",), ("output",)),
    "shared.call1": (("input.call1",), ("output.call1",)),
    "scale": (("x", "by"), ("output",)),
    "split": (("x",), ("even", "odd")),
    "pair": (("a", "b"), ("output0", "output1")),
}


class Tape:
    """The network run call by call, each input an own node of the graph."""

    def __init__(self, network, x, factor):
        self.leaves, self.outputs = {}, {}
        call = self.call
        hidden = call("encoder.1.0", torch.tanh, call("encoder.0", network.encoder[0], x))
        hidden = call("shared.call1", network.shared, torch.relu(call("shared", network.shared, hidden)))
        scaled = call("scale", lambda x, by: x * by, hidden, factor)
        even, odd = call("split", lambda x: (x[:, ::2], x[:, 1::2]), scaled)
        self.returned = call("pair", lambda a, b: (a * b, a - b), even, odd)

    def call(self, name, function, *inputs):
        block = name.removesuffix(".call1")
        names_in, names_out = CALLS[name]
        inputs = [x * 1.0 if x.requires_grad else x.clone().requires_grad_() for x in inputs]
        self.leaves |= {f"{block}.{label}.grad": x for label, x in zip(names_in, inputs, strict=True)}
        returned = function(*inputs)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        self.outputs |= {f"{block}.{label}": y for label, y in zip(names_out, outputs, strict=True)}
        return returned

    def everything(self, cotangents=None):
        """Outputs, and gradients of the returned numbers' squares with respect to every input."""
        cotangents = [2 * y.detach() for y in self.returned] if cotangents is None else cotangents
        grads = torch.autograd.grad(self.returned, self.leaves.values(), cotangents)
        return {k: v.detach() for k, v in self.outputs.items()} | dict(zip(self.leaves, grads, strict=True))


def alone(network, reference, dtype):
    """Each call alone on the float64 run's inputs, and gradients of the sum of its squared outputs."""
    functions = {
        "encoder.0": network.encoder[0],
        "encoder.1.0": torch.tanh,
        "shared": network.shared,
        "shared.call1": network.shared,
        "scale": lambda x, by: x * by,
        "split": lambda x: (x[:, ::2], x[:, 1::2]),
        "pair": lambda a, b: (a * b, a - b),
    }
    found = {}
    for name, function in functions.items():
        block = name.removesuffix(".call1")
        labels = [f"{block}.{label}" for label in CALLS[name][0]]
        inputs = [reference.leaves[f"{label}.grad"].detach().to(dtype).requires_grad_() for label in labels]
        returned = function(*inputs)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        grads = torch.autograd.grad(outputs, inputs, [2 * y.detach() for y in outputs])
        found |= {f"{block}.{label}": y.detach() for label, y in zip(CALLS[name][1], outputs, strict=True)}
        found |= {f"{label}.grad": grad for label, grad in zip(labels, grads, strict=True)}
    return found


def cast(network, dtype):
    return copy.deepcopy(network).to(dtype).requires_grad_(False)


def call_network(module, batch):
    return module(*batch)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network().double()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(rows, 3, **options), torch.randn(rows, 4, **options)) for rows in (5, 2)]


@pytest.fixture(scope="module")
def trace(network, inputs):
    with pp.attach(network, call=call_network, blocks=BLOCKS, **CPU) as probe:
        probe.run(inputs, progress=False)
    return probe.trace()


# a network of torch's own layers


@pytest.mark.parametrize("precision", ["float64", *DTYPES])
@pytest.mark.parametrize("mode", ["propagated", "isolated"])
def test_everything_is_as_by_hand(network, inputs, trace, precision, mode):
    dtype = getattr(torch, precision)
    group = trace.group(mode, precision)
    parts = []
    for batch in inputs:
        if mode == "propagated":
            parts.append(Tape(cast(network, dtype), *(x.to(dtype) for x in batch)).everything())
        else:
            parts.append(alone(cast(network, dtype), Tape(cast(network, torch.float64), *batch), dtype))
    recorded = {
        str(name) for name, array in group.data_vars.items() if array.attrs.get("block", "encoder") != "encoder"
    }
    assert recorded - {"encoder.1.input.grad", "encoder.1.output"} == set(parts[0])
    for name in parts[0]:
        expected = torch.cat([part[name] for part in parts])
        np.testing.assert_array_equal(group[name], expected.double(), err_msg=name)
        assert group[name].attrs["native_dtype"] == precision
        assert expected.any()


def test_errors_are_what_one_computes_oneself(network, inputs, trace):
    table = pp.errors(trace).set_index(["precision", "mode", "block", "tensor", "direction"]).sort_index()
    reference = [Tape(cast(network, torch.float64), *batch) for batch in inputs]
    exact = [tape.everything() for tape in reference]
    exact_alone = [alone(cast(network, torch.float64), tape, torch.float64) for tape in reference]
    n = 0
    for precision, dtype in DTYPES.items():
        variant = cast(network, dtype)
        found = [Tape(variant, *(x.to(dtype) for x in batch)).everything() for batch in inputs]
        found_alone = [alone(variant, tape, dtype) for tape in reference]
        for mode, y, y_hat in (("propagated", exact, found), ("isolated", exact_alone, found_alone)):
            for name in y[0]:
                block = next(b for b in ("encoder.1.0", "encoder.0", *BLOCKS[3:]) if name.startswith(f"{b}."))
                direction = "backward" if name.endswith(".grad") else "forward"
                tensor = name.removeprefix(f"{block}.").removesuffix(".grad")
                row = table.loc[precision, mode, block, tensor, direction]
                expected = rel_l2(*(torch.cat([part[name] for part in parts]).double() for parts in (y, y_hat)))
                np.testing.assert_allclose(row["rel_l2"], expected, rtol=1e-12, err_msg=name)
                n += 1
    assert n == 3 * 2 * len(exact[0])


def test_forward_in_numpy(network, inputs, trace):
    weights = {name: tensor.numpy() for name, tensor in cast(network, torch.float64).state_dict().items()}
    x = np.concatenate([batch[0] for batch in inputs])
    factor = np.concatenate([batch[1] for batch in inputs])
    first = x @ weights["encoder.0.weight"].T + weights["encoder.0.bias"]
    hidden = np.tanh(first)
    once = hidden @ weights["shared.weight"].T + weights["shared.bias"]
    twice = np.maximum(once, 0) @ weights["shared.weight"].T + weights["shared.bias"]
    even, odd = (twice * factor)[:, ::2], (twice * factor)[:, 1::2]
    expected = {
        "encoder.0.output": first,
        "encoder.output": hidden,
        "shared.output": once,
        "shared.output.call1": twice,
        "split.even": even,
        "split.odd": odd,
        "pair.output0": even * odd,
        "product": even * odd,
        "difference": even - odd,
    }
    group = trace.group("propagated", "float64")
    for name, values in expected.items():
        np.testing.assert_allclose(group[name], values, rtol=1e-13, atol=1e-15, err_msg=name)


def test_gradients_in_numpy(network, inputs, trace):
    group = trace.group("propagated", "float64")
    even, odd = group["split.even"].values, group["split.odd"].values
    by_even, by_odd = 2 * even * odd * odd + 2 * (even - odd), 2 * even * odd * even - 2 * (even - odd)
    np.testing.assert_allclose(group["pair.a.grad"], by_even, rtol=1e-13)
    np.testing.assert_allclose(group["pair.b.grad"], by_odd, rtol=1e-13)
    by_scaled = np.stack([by_even, by_odd], axis=2).reshape(len(even), 4)
    np.testing.assert_allclose(group["split.x.grad"], by_scaled, rtol=1e-13)
    factor = np.concatenate([batch[1] for batch in inputs])
    np.testing.assert_allclose(group["scale.x.grad"], by_scaled * factor, rtol=1e-13)
    weight = network.shared.weight.detach().numpy()
    np.testing.assert_allclose(group["shared.input.call1.grad"], by_scaled * factor @ weight, rtol=1e-12, atol=1e-15)


def test_what_the_module_returns_is_in_the_trace(trace):
    table = pp.errors(trace)
    rows = table[table["block"] == "model"]
    assert set(rows["tensor"]) == {"product", "difference"}
    assert {"product", "difference", "nonfinite", "time", "time_iqr"} <= set(pp.summary(trace))
    for precision in ("float64", *DTYPES):
        group = trace.group("propagated", precision)
        np.testing.assert_array_equal(group["product"], group["pair.output0"])
    assert trace.structures["name"].values.tolist() == ["input 0", "input 1"]
    assert "positions" not in trace.structures


def test_the_trace_survives_the_disk(trace, tmp_path):
    with pp.open_trace(trace.save(tmp_path / "module.h5")) as again:
        for mode in ("propagated", "isolated"):
            found, expected = (opened.group(mode, "bfloat16").load() for opened in (again, trace))
            assert found.identical(expected)


# an equivariant network that is not a MACE


class Equivariant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = o3.Linear("3x0e + 2x1o", "4x0e + 4x1o")
        self.product = o3.FullyConnectedTensorProduct("4x0e + 4x1o", "1x0e + 1x1o", "6x0e + 2x1o")
        silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
        self.gate = e3nn.nn.Gate("4x0e", [silu], "2x0e", [sigmoid], "2x1o")

    def forward(self, x, y):
        return self.gate(self.product(self.linear(x), y))


@pytest.fixture(scope="module")
def equivariant():
    with torch.random.fork_rng(), default_dtype(torch.float64):
        torch.manual_seed(2)
        return Equivariant()


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(7, width, generator=generator, dtype=torch.float64) for width in (9, 4))


@pytest.fixture(scope="module")
def equivariant_trace(equivariant, features):
    with pp.attach(equivariant, call=call_network, blocks="*", **CPU) as probe:
        probe.run(features, progress=False)
    return probe.trace()


def test_irreps_of_e3nn_blocks(equivariant_trace):
    group = equivariant_trace.group("propagated", "float32")
    for block, irreps in {"linear": "4x0e+4x1o", "product": "6x0e+2x1o", "gate": "4x0e+2x1o"}.items():
        array = group[f"{block}.output"]
        entries = [str(ir) for mul, ir in o3.Irreps(irreps) for _ in range(mul * ir.dim)]
        assert array[f"{block}.feature"].values.tolist() == entries
        assert array.attrs["irreps"] == irreps


def test_linear_in_numpy(equivariant, features, equivariant_trace):
    x = features[0].numpy()
    weight = equivariant.linear.weight.detach().numpy()
    scalars, vectors = weight[:12].reshape(3, 4), weight[12:].reshape(2, 4)
    expected = np.concatenate(
        [
            x[:, :3] @ scalars / np.sqrt(3),
            np.einsum("nui,uv->nvi", x[:, 3:].reshape(-1, 2, 3), vectors).reshape(-1, 12) / np.sqrt(2),
        ],
        axis=1,
    )
    for mode in ("propagated", "isolated"):
        found = equivariant_trace.group(mode, "float64")
        np.testing.assert_allclose(found["linear.output"], expected, rtol=1e-12, atol=1e-14)
    by_output = 2 * expected
    by_scalars = by_output[:, :4] @ scalars.T / np.sqrt(3)
    by_vectors = np.einsum("nvi,uv->nui", by_output[:, 4:].reshape(-1, 4, 3), vectors).reshape(-1, 6) / np.sqrt(2)
    alone = equivariant_trace.group("isolated", "float64")["linear.features.grad"]
    np.testing.assert_allclose(alone, np.concatenate([by_scalars, by_vectors], axis=1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("precision", ["float64", *DTYPES])
def test_equivariant_network_is_as_by_hand(equivariant, features, equivariant_trace, precision):
    dtype = getattr(torch, precision)
    variant = cast(equivariant, dtype)
    x, y = (feature.to(dtype).requires_grad_() for feature in features)
    for _ in range(3):  # TorchScript compiles in the second call
        mixed = variant.linear(x)
        multiplied = variant.product(mixed, y)
        gated = variant.gate(multiplied)
        grads = torch.autograd.grad(gated, [x, mixed, y, multiplied], 2 * gated.detach())
    group = equivariant_trace.group("propagated", precision)
    expected = {"linear.output": mixed, "product.output": multiplied, "gate.output": gated, "output": gated}
    names = ("linear.features.grad", "product.x.grad", "product.y.grad", "gate.features.grad")
    expected |= dict(zip(names, grads, strict=True))
    for name, value in expected.items():
        np.testing.assert_array_equal(group[name], value.detach().double(), err_msg=name)
    errors = pp.errors(equivariant_trace).query("precision == @precision and mode == 'propagated'")
    assert errors["rel_l2"].between(0, 0.1, inclusive="neither").all()


# inputs


class Lookup(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 3)
        self.linear = torch.nn.Linear(3, 2)
        self.seen = []

    def forward(self, index, *, weights, keep=True):
        chosen = self.linear(self.table(index)) * weights["scale"][0]
        return chosen if keep else chosen.sum()


def test_nested_inputs_and_integers(monkeypatch):
    module, seen = Lookup().double(), []

    def call(module, batch):
        seen.append((batch["index"].dtype, batch["mask"].dtype, batch["weights"]["scale"][0].dtype))
        return module(batch["index"], weights=batch["weights"], keep=batch["keep"])[batch["mask"]]

    scale = torch.tensor([[0.5], [1.5], [2.5]], dtype=torch.float64)
    batch = {
        "index": torch.tensor([3, 0, 2]),
        "mask": torch.tensor([True, False, True]),
        "weights": {"scale": (scale, [1, 2])},
        "keep": True,
    }
    with pp.attach(module, call=call, blocks=["table", "linear"], **CPU) as probe:
        probe.run(batch, progress=False)
    assert {kinds[:2] for kinds in seen} == {(torch.int64, torch.bool)}
    assert {kinds[2] for kinds in seen} == {torch.float64, *DTYPES.values()}
    group = probe.trace().group("propagated", "float64")
    expected = (module.linear(module.table(batch["index"])) * scale)[batch["mask"]]
    np.testing.assert_allclose(group["output"], expected.detach(), rtol=1e-14)
    np.testing.assert_array_equal(group["table.output"], module.table(batch["index"]).detach())
    assert "table.input.grad" not in group
    assert not scale.requires_grad


def test_calls_of_the_module_itself_are_observed():
    module = Lookup().double().eval()
    scale = torch.full((3, 1), 2.0, dtype=torch.float64)
    index = torch.tensor([3, 0, 2])
    expected = module(index, weights={"scale": (scale,)}).detach()
    with pp.attach(module, call=lambda m, x: m(x), blocks=["linear"], **FAST) as probe:
        found = module(index, weights={"scale": (scale,)})
        module(index=index[:2], weights={"scale": (scale[:2],)})
    assert torch.equal(found, expected)
    group = probe.trace().group("propagated", "float64")
    np.testing.assert_array_equal(group["output"][:3], expected)
    assert probe.trace().structures["name"].values.tolist() == ["call 1", "call 2"]
    assert group["linear.output"].shape == (5, 2)


def test_a_module_that_returns_a_number():
    module = torch.nn.Linear(2, 2).double()
    x = torch.ones(3, 2, dtype=torch.float64)
    with pp.attach(torch.nn.Sequential(module), call=lambda m, x: m(x).sum(), blocks="0", **FAST) as probe:
        probe.run([x, 2 * x], progress=False)
    found = probe.trace().group("propagated", "float64")["output"]
    np.testing.assert_allclose(np.ravel(found), [module(x).sum().item(), module(2 * x).sum().item()])


def test_inputs_of_several_lengths():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2)).double()
    probe = pp.attach(module, call=lambda m, x: m(x), blocks="0", **FAST)
    with pytest.raises(pp.InputError, match=r"0\.output has rows of shape \(4, 2\) here and had \(3, 2\) before"):
        probe.run([torch.ones(1, length, 2, dtype=torch.float64) for length in (3, 4)], progress=False)
    assert probe.trace().structures.sizes["structure"] == 1  # what was there is kept


def test_observed_calls_are_not_changed_by_what_comes_after(network, inputs):
    x, factor = (tensor.clone() for tensor in inputs[0])
    with pp.attach(network, call=call_network, blocks="shared", **FAST) as probe:
        network.eval()(x, factor)
        x.zero_()
    network.train()
    expected = Tape(cast(network, torch.float64), *inputs[0]).outputs["shared.output"]
    np.testing.assert_array_equal(probe.trace().group("propagated", "float64")["shared.output"], expected.detach())


def test_inputs_are_numbered_over_several_runs(network, inputs):
    with pp.attach(network, call=call_network, blocks="shared", **FAST) as probe:
        probe.run(inputs[0], progress=False)
        probe.run(inputs, progress=False)
    assert probe.trace().structures["name"].values.tolist() == ["input 0", "input 1", "input 2"]


def test_a_module_without_parameters():
    module = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Softplus())
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)
    with pp.attach(module, call=lambda m, x: m(x), blocks="*", precisions="float32") as probe:
        probe.run(x, progress=False)
    trace = probe.trace()
    assert trace.attributes["n_parameters"] == 0
    np.testing.assert_allclose(trace.group("propagated", "float64")["0.output"], np.tanh(x.numpy()), rtol=1e-14)
    first = np.tanh(x.numpy())
    expected = 2 * np.log1p(np.exp(first)) / (1 + np.exp(-first))
    np.testing.assert_allclose(trace.group("isolated", "float64")["1.input.grad"], expected, rtol=1e-13)


# training


def test_gradients_of_a_loss(inputs):
    torch.manual_seed(4)
    module = Network().double().train()
    x, factor = inputs[0]
    losses = []
    for observed in (False, True):
        probe = pp.attach(module, call=call_network, blocks=BLOCKS[3:], **FAST) if observed else None
        module.zero_grad()
        out = module(x, factor)
        loss = out["product"].sum() ** 2 + out["difference"].abs().sum()
        loss.backward()
        losses.append((loss.detach(), [parameter.grad.clone() for parameter in module.parameters()]))
    probe.detach()
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))
    tape = Tape(cast(module, torch.float64), x, factor)
    product, difference = (y.detach() for y in tape.returned)
    cotangents = [torch.full_like(product, 2 * product.sum()), difference.sign()]
    expected = tape.everything(cotangents)
    trace = probe.trace()
    assert trace.modes == ("propagated", "loss")
    group = trace.group("loss", "float64")
    assert set(group.data_vars) == {n for n in expected if n.endswith(".grad") and not n.startswith("encoder")}
    for name in group.data_vars:
        np.testing.assert_allclose(group[name], expected[name], rtol=1e-12, atol=1e-14, err_msg=name)
    assert set(pp.errors(trace).query("mode == 'loss'")["direction"]) == {"backward"}


def dropout_losses(*, observed):
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5)).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    probe = pp.attach(module, call=lambda m, x: m(x), blocks="0", **FAST) if observed else None
    found = [module(x).sum().item() for _ in range(3)]
    if probe is not None:
        probe.detach()
    return found


def test_the_users_random_numbers_are_left_alone():
    assert dropout_losses(observed=True) == dropout_losses(observed=False)


def test_all_precisions_drop_the_same():
    torch.manual_seed(6)
    module = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.Dropout(0.5)).double().train()
    with pp.attach(module, call=lambda m, x: m(x), blocks="*", **FAST) as probe:
        probe.run(torch.ones(4, 3, dtype=torch.float64), progress=False)
    kept = [probe.trace().group("propagated", p)["1.output"].values != 0 for p in ("float64", "float32")]
    np.testing.assert_array_equal(*kept)


def test_variants_follow_the_mode_of_the_module():
    torch.manual_seed(7)
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).double().train()
    x = torch.randn(6, 3, dtype=torch.float64)
    module(x)
    with pp.attach(module, call=lambda m, x: m(x), blocks="*", **FAST) as probe:
        module.eval()
        expected = module(x).detach()
    np.testing.assert_allclose(probe.trace().group("propagated", "float64")["output"], expected, rtol=1e-12)


# the module is left as it was


def test_the_module_is_untouched(inputs):
    torch.manual_seed(8)
    module = Network().train()
    x, factor = (tensor.float() for tensor in inputs[0])
    hooks = [name for name in vars(module) if name.endswith("_hooks")]

    def state():
        n_hooks = [len(getattr(m, name)) for m in module.modules() for name in hooks]
        parameters = [(p.dtype, p.requires_grad, p.grad) for p in module.parameters()]
        return weights_sha256(module), module.training, n_hooks, parameters

    before, expected = state(), module(x, factor)
    with pp.attach(module, call=call_network, blocks=BLOCKS, **CPU) as probe:
        probe.run([(x, factor)], progress=False)
        found = module(x, factor)
    assert state() == before
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert probe.trace().attributes["model_dtype"] == "float32"
    assert not x.requires_grad


# what is refused


def refused(match, module, **options):
    with pytest.raises(pp.InputError, match=match):
        pp.attach(module, **({"call": call_network, "blocks": "*", "device": "cpu"} | options))


def test_blocks_must_be_named(network):
    refused("name the blocks", network, blocks=None)
    refused("No block matches 'decoder'", network, blocks="decoder")


def test_heads_are_for_mace(network):
    refused("head=", network, head="Default")


def test_only_eager_modules_are_taken(network):
    refused("not a MACE model|not a", lambda x: x)
    refused("TorchScript", torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)))
    refused("compile", torch.compile(torch.nn.Linear(2, 2)))


def test_a_module_that_is_not_a_mace_needs_call(network):
    refused("call=", network, call=None)


def test_no_inputs(network):
    with pp.attach(network, call=call_network, blocks="shared", **FAST) as probe:
        with pytest.raises(pp.InputError, match="empty"):
            probe.run([])
        with pytest.raises(pp.InputError, match="Nothing has been recorded"):
            probe.trace()
