"""dtypes.py: torch's default dtype for a while."""

import pytest
import torch

from precision_probe.models.dtypes import default_dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_new_tensors_have_it_inside_and_not_after(dtype):
    before = torch.get_default_dtype()
    with default_dtype(dtype):
        assert torch.empty(1).dtype is dtype
        with default_dtype(torch.float32):
            assert torch.empty(1).dtype is torch.float32
        assert torch.empty(1).dtype is dtype
    assert torch.empty(1).dtype is before


def test_default_dtype_is_restored_after_an_exception():
    def fail():
        assert torch.get_default_dtype() is torch.float16
        raise ArithmeticError

    before = torch.get_default_dtype()
    with pytest.raises(ArithmeticError), default_dtype(torch.float16):
        fail()
    assert torch.get_default_dtype() is before
