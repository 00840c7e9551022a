"""A linear layer whose rows do not depend on each other."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from services.inference.device import is_compiled_for

if TYPE_CHECKING:
    from services.inference.cpu.compiled_product import CompiledProduct


class Linear(nn.Linear):
    """A linear layer; on a CPU in float32 it is compiled code, in which a row's bits are its own."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self._compiled: CompiledProduct | None = None
        # Held, so that no other weight takes its place in memory and passes for it.
        self._source: Tensor | None = None
        self._version = 0

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] → [..., outputs]."""
        compiled = self.compiled
        return super().forward(x) if compiled is None else compiled(x)

    @property
    def compiled(self) -> "CompiledProduct | None":
        """The layer in compiled code, where that is what runs it."""
        weight = self.weight
        if not is_compiled_for(weight.device, weight.dtype):
            return None
        # A weight that was filled or moved since is laid out again.
        version = 0 if weight.is_inference() else weight._version
        is_same = self._source is not None and self._source.data_ptr() == weight.data_ptr()
        if self._compiled is None or not is_same or version != self._version:
            from services.inference.cpu.compiled_product import CompiledProduct  # a GPU's machine needs no compiler

            self._compiled = CompiledProduct(weight, self.bias)
            self._source, self._version = weight.detach(), version
        return self._compiled


def laid_out_bytes(module: nn.Module, device: torch.device, dtype: torch.dtype) -> int:
    """At most what compiled code holds of a module besides its weights, once it has run."""
    if not is_compiled_for(device, dtype):
        return 0
    from services.inference.cpu.compiled_product import laid_out_count

    return laid_out_count(module) * dtype.itemsize
