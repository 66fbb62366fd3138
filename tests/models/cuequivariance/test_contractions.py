"""contractions.py: what is shared is what cuEquivariance compiles itself, line by line and number by number."""

import warnings

import pytest
import torch

from precision_probe.models import backends
from precision_probe.models.cuequivariance import contractions
from precision_probe.models.cuequivariance.contractions import shared_contractions
from precision_probe.models.loading import load_model

cue = pytest.importorskip("cuequivariance")
compiler = pytest.importorskip("cuequivariance_torch.primitives.segmented_polynomial_naive")

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, None]


def descriptor(mul=2):
    """That of a product of features with spherical harmonics, anew at each call."""
    irreps = [cue.Irreps("O3", f"{mul}x0e + {mul}x1o"), cue.Irreps("O3", "0e + 1o + 2e"), cue.Irreps("O3", "0e + 1o")]
    ((_, made),) = cue.descriptors.channelwise_tensor_product(*irreps).polynomial.operations
    return made


def compiled(made, dtype):
    return compiler._tensor_product_fx(made, device=None, math_dtype=dtype, optimize_einsums=True)


@pytest.fixture
def counted(monkeypatch):
    """The dtypes that cuEquivariance itself has compiled in, where nothing is shared yet."""
    theirs, calls = compiler._tensor_product_fx, []

    def call(made, **options):
        calls.append(options["math_dtype"])
        return theirs(made, **options)

    monkeypatch.setattr(compiler, "_tensor_product_fx", call)
    monkeypatch.setattr(contractions, "_COMPILED", {})
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_cuequivariance_compiles_it(dtype):
    expected = compiled(descriptor(), dtype)
    with shared_contractions():
        first, second = compiled(descriptor(), dtype), compiled(descriptor(), dtype)
    for ours in (first, second):
        assert ours.code == expected.code
        assert dict(ours.named_buffers()).keys() == dict(expected.named_buffers()).keys()
        for name, constant in expected.named_buffers():
            assert ours.get_buffer(name).dtype is constant.dtype
            assert torch.equal(ours.get_buffer(name), constant)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, operand.size, generator=generator).to(dtype) for operand in descriptor().operands[:-1]]
    assert torch.equal(second(*inputs), expected(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, None], ids=str)
def test_casting_reaches_constants_as_it_does_in_cuequivariance(dtype):
    expected = compiled(descriptor(), dtype).to(torch.float16)
    with shared_contractions():
        ours = compiled(descriptor(), dtype).to(torch.float16)
    assert {c.dtype for c in ours.buffers()} == {c.dtype for c in expected.buffers()} == {dtype or torch.float16}


def test_constants_and_hooks_are_each_modules_own():
    with shared_contractions():
        first, second = compiled(descriptor(), torch.float32), compiled(descriptor(), torch.float32)
    before = [constant.clone() for constant in second.buffers()]
    first.register_forward_hook(lambda *_: pytest.fail("another module's hook"))
    for constant in first.buffers():
        constant.zero_()
    assert all(torch.equal(constant, kept) for constant, kept in zip(second.buffers(), before, strict=True))
    assert all(torch.any(constant) for constant in second.buffers())
    inputs = [torch.ones(1, operand.size) for operand in descriptor().operands[:-1]]
    second(*inputs)


def test_an_equal_contraction_is_compiled_once_and_another_by_itself(counted):
    theirs = compiler._tensor_product_fx
    with shared_contractions():
        for dtype in (torch.float32, torch.float16, torch.float32, torch.float64):
            compiled(descriptor(), dtype)
        assert counted == [torch.float64]
        compiled(descriptor(mul=3), torch.float32)
        assert counted == [torch.float64] * 2
    assert compiler._tensor_product_fx is theirs


def test_a_model_is_compiled_once_for_its_file_and_all_variants(counted, converted, tmp_path):
    torch.save(converted, tmp_path / "converted.model")
    model, _ = load_model(tmp_path / "converted.model")
    n = len(counted)
    assert n
    assert set(counted) <= {torch.float64, None}
    for dtype in DTYPES[:-1]:
        backends.clone(model, dtype, CPU)
    assert len(counted) == n


def test_that_it_takes_long_is_said_once_where_it_does(counted, converted, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.clone(converted, torch.float64, CPU)
    contractions._COMPILED.clear()
    monkeypatch.setattr(contractions, "_MANY", 1)
    with pytest.warns(RuntimeWarning, match=r"precision_probe: Without its CUDA kernels.* \d+ paths in Python"):
        backends.clone(converted, torch.float64, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.clone(converted, torch.float32, CPU)


def test_a_cuequivariance_that_compiles_otherwise_is_left_alone(monkeypatch):
    monkeypatch.delattr(compiler, "_tensor_product_fx")
    with shared_contractions():
        assert not hasattr(compiler, "_tensor_product_fx")
