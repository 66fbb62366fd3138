"""devices.py: which devices and precisions are refused, what is compared by default, and torch's matmul mode."""

import pytest
import torch
from runs import rel_l2

from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.variants.devices import (
    check_device,
    check_precisions,
    default_precisions,
    matmul_mode,
    undisturbed,
)

CPU = torch.device("cpu")
BACKENDS = {"cuda": torch.backends.cuda.matmul, "mkldnn": torch.backends.mkldnn.matmul}


def pretend_gpu(monkeypatch, capability):
    """As if there were one GPU; nothing is run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


# the device


@pytest.mark.parametrize("name", ["tpu9", "gpu", "", "cuda:x"])
def test_unknown_device(name):
    with pytest.raises(InputError, match=r"Unknown device.*cpu, cuda or cuda:N"):
        check_device(name)


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_devices_that_cannot_compute_float64_are_refused(name):
    with pytest.raises(InputError, match=f"Unknown device '{name}'"):
        check_device(name)


def test_absent_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"sees no CUDA device.*--device cpu"):
        check_device("cuda")
    assert check_device(None) == CPU


def test_a_gpu_is_taken_if_there_is_one_and_a_second_must_be_there(monkeypatch):
    pretend_gpu(monkeypatch, (8, 0))
    assert check_device(None) == torch.device("cuda")
    assert check_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(InputError, match=r"no device 'cuda:1'.*1 CUDA"):
        check_device("cuda:1")


@pytest.mark.parametrize("given", ["cpu", CPU])
def test_the_cpu_is_always_there(given):
    assert check_device(given) == CPU


# precisions


def test_tf32_needs_cuda(model):
    for network in (None, model):
        with pytest.raises(InputError, match=r"tf32.*--device cuda"):
            check_precisions(parse_precisions("float32,tf32"), CPU, network)
        check_precisions(parse_precisions("float32"), CPU, network)
        check_precisions((), CPU, network)


def test_tf32_needs_tensor_cores(monkeypatch):
    pretend_gpu(monkeypatch, (7, 5))
    place = torch.device("cuda:0")
    with pytest.raises(InputError, match=r"tf32 needs a GPU of compute capability 8\.0"):
        check_precisions(parse_precisions("float32,tf32"), place)
    check_precisions(parse_precisions("float16"), place)
    pretend_gpu(monkeypatch, (8, 0))
    check_precisions(parse_precisions("float32,tf32"), place)


def test_formats_that_are_emulated_run_anywhere():
    check_precisions(parse_precisions("e5m10,m10,e8m7sr"), CPU)


@pytest.mark.parametrize(("capability", "has_tf32"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_what_is_compared_by_default_is_all_that_the_device_has(monkeypatch, model, capability, has_tf32):
    halves = ["bfloat16", "float16"]
    for network in (None, model):
        assert [str(each) for each in default_precisions(CPU, network)] == ["float32", *halves]
    pretend_gpu(monkeypatch, capability)
    for network in (None, model):
        names = [str(each) for each in default_precisions("cuda", network)]
        assert names == ["float32", *(["tf32"] if has_tf32 else []), *halves]
        check_precisions(default_precisions("cuda", network), torch.device("cuda"), network)


def test_of_a_gpu_that_is_not_there_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_precisions("cuda") == default_precisions("cpu")


# torch's matmul mode


SETTINGS = {
    "untouched": lambda: None,
    "new style": lambda: setattr(BACKENDS["cuda"], "fp32_precision", "tf32"),
    "new style, exact": lambda: setattr(BACKENDS["cuda"], "fp32_precision", "ieee"),
    "new style on the CPU": lambda: setattr(BACKENDS["mkldnn"], "fp32_precision", "bf16"),
    "old style": lambda: setattr(BACKENDS["cuda"], "allow_tf32", True),
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
}


def modes():
    return {name: backend.fp32_precision for name, backend in BACKENDS.items()}


@pytest.fixture
def torchs_own_mode():
    before = modes()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for name, backend in BACKENDS.items():
        backend.fp32_precision = before[name]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mode", ["ieee", "tf32"])
def test_matmul_mode_is_set_and_restored(torchs_own_mode, setting, mode):
    SETTINGS[setting]()
    before = modes()
    with matmul_mode(mode):
        assert modes() == {"cuda": mode, "mkldnn": "ieee"}
    assert modes() == before
    with pytest.raises(ArithmeticError), matmul_mode(mode):
        raise ArithmeticError
    assert modes() == before


def test_a_mode_that_torch_does_not_have_is_an_error_and_changes_nothing(torchs_own_mode):
    before = modes()
    with pytest.raises(RuntimeError), matmul_mode("tf33"):
        pass
    assert modes() == before


def test_old_style_flags_can_be_read_afterwards(torchs_own_mode):
    torch.set_float32_matmul_precision("high")
    with matmul_mode("ieee"):
        pass
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32


def test_inherited_matmul_mode_stays_inherited(torchs_own_mode):
    torch.backends.fp32_precision = "tf32"
    with matmul_mode("ieee"):
        pass
    assert modes() == {"cuda": "tf32", "mkldnn": "tf32"}
    torch.backends.fp32_precision = "ieee"
    assert modes() == {"cuda": "ieee", "mkldnn": "ieee"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("setting", ["new style", "new style, exact"])
def test_cuda_matrix_products_are_as_the_precision_says(torchs_own_mode, setting):
    SETTINGS[setting]()
    a = torch.rand(256, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    exact = a.double() @ a.double()
    off = {}
    for name in ("float32", "tf32"):
        with matmul_mode(PRECISIONS[name].matmul_mode):
            off[name] = rel_l2(exact, a @ a)
    assert off["float32"] < 2**-20 < off["tf32"] < 2**-8


# what surrounds a computation


def test_nothing_around_reaches_what_is_undisturbed():
    x = torch.ones(2, 2)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        with undisturbed():
            y = x.clone().requires_grad_() @ x
            assert (y.dtype, y.requires_grad, y.is_inference()) == (torch.float32, True, False)
        assert (x @ x).dtype is torch.bfloat16
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        with undisturbed():
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
