"""Where a model lives, and in which precision."""

import pytest
import torch
from torch import nn

from services.inference.device import blank_modules, resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("present", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, present: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device is available"):
        resolve_device("cuda")


def test_precision_is_the_devices_unless_named() -> None:
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype("auto", CUDA) is torch.bfloat16
    assert resolve_dtype("float32", CPU) is resolve_dtype("float32", CUDA) is torch.float32
    assert resolve_dtype("bfloat16", CUDA) is torch.bfloat16


def test_a_cpu_computes_in_float32_alone() -> None:
    with pytest.raises(ValueError, match="dtype is 'bfloat16', but a CPU computes in float32; expected"):
        resolve_dtype("bfloat16", CPU)


def test_blank_modules_have_the_dtype_and_leave_the_default_alone() -> None:
    before = torch.get_default_dtype()

    def make_and_fail() -> None:
        with blank_modules(CPU, torch.bfloat16):
            assert nn.Linear(2, 2).weight.dtype is torch.bfloat16
            raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        make_and_fail()
    assert torch.get_default_dtype() is before
