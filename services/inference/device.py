"""Where a model lives and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from transformers.initialization import no_init_weights

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]


class BadSetting(ValueError):
    """A setting that this machine or this model can't honour."""


def resolve_device(name: DeviceName) -> torch.device:
    """The device of a setting; auto is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadSetting("device is 'cuda', but no CUDA device is available here")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The precision of a setting; auto is bfloat16 on CUDA and float32 on a CPU (model.md H)."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "bfloat16" and device.type == "cpu":
        raise BadSetting("dtype is 'bfloat16', but a CPU computes in float32; expected 'float32' or 'auto'")
    return torch.float32 if name == "float32" else torch.bfloat16


def is_compiled_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the models' steps are compiled code (`services.inference.cpu`) rather than torch's operations."""
    return device.type == "cpu" and dtype == torch.float32


@contextmanager
def blank_modules(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made in this block are allocated in place, uninitialised: a checkpoint fills them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)
