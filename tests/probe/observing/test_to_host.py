"""to_host.py: what comes to the host is what was computed, whatever the GPU does meanwhile."""

import numpy as np
import pytest
import torch

from precision_probe.probe.observing import to_host
from precision_probe.probe.observing.to_host import ToHost, to_numpy

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tensors(device):
    """Of every dtype that is captured, in any layout, of no numbers and of many."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(300, 17, 5, generator=random, dtype=torch.float64)
    made = [values.to(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)]
    made += [each.transpose(0, 2) for each in made] + [values[::2, 3], torch.zeros(0, 4), torch.tensor(2.5)]
    made.append(torch.tensor([torch.nan, torch.inf, -0.0], dtype=torch.float16))
    return [each.to(device) for each in made]


def expected(tensor):
    wide = tensor.cpu()
    wide = wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide
    return np.atleast_1d(wide.numpy())


def assert_same(arrays, given):
    for array, tensor in zip(arrays, given, strict=True):
        like = expected(tensor)
        assert (array.dtype, array.shape) == (like.dtype, like.shape)
        assert array.tobytes() == like.tobytes()


def test_on_the_host_it_is_to_numpy():
    given = tensors("cpu")
    taking = ToHost()
    assert_same(taking.begin(given).result(), given)
    assert_same([to_numpy(each) for each in given], given)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("buffer", [2**26, 1000 * 8], ids=["whole", "in pieces"])
def test_from_a_gpu_it_is_what_was_computed(monkeypatch, buffer):
    monkeypatch.setattr(to_host, "_BUFFER", buffer)
    given = tensors("cuda")
    taking = ToHost()
    found = [taking.begin([each * 2 for each in given]) for _ in range(3)]  # memory is used again while others wait
    for arrays in found:
        assert_same(arrays.result(), [each * 2 for each in given])


@pytest.mark.cuda
@needs_cuda
def test_it_waits_for_what_is_computed_and_lets_it_go():
    torch.ones(9, 9, device="cuda") @ torch.ones(9, 9, device="cuda")  # cuBLAS keeps a workspace
    before = torch.cuda.memory_allocated()
    product = matrix = torch.full((4096, 4096), 1e-4, device="cuda")
    for _ in range(20):
        product = product @ matrix
    arrays = ToHost().begin([product, torch.ones(2)])
    like = expected(product)
    del product, matrix
    np.testing.assert_array_equal(arrays.result()[0], like)
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.cuda
@needs_cuda
def test_what_cannot_be_taken_is_told_at_the_next(monkeypatch):
    monkeypatch.setattr(to_host, "_BUFFER", -1)
    taking = ToHost()
    taking.begin([torch.ones(3, device="cuda")])
    with pytest.raises(RuntimeError):
        taking.begin([torch.ones(3, device="cuda")])
