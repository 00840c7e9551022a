"""The matrix product of a layer, whose rows do not depend on each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# From this size on laying out pays: the call itself costs 7 µs more.
_LAID_OUT_NUMBERS = 80_000


class Product:
    """Multiplies by one layer's weight; on a CPU a row's result is the same bits in any `batch_rows`.

    A large weight in float32 is laid out for oneDNN once, on a CPU: eight rows then cost little more than one, where
    the library behind `functional.linear` lays it out again for every product of more than one row.
    """

    def __init__(self) -> None:
        self._laid_out: Tensor | None = None
        # Held, so that no other weight takes its place in memory and passes for it.
        self._source: Tensor | None = None
        self._version = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Product":
        """A copy's weight is laid out anew: oneDNN's layout can't be copied."""
        return Product()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., inputs], weight [outputs, inputs], bias [outputs] → [..., outputs]."""
        if weight.numel() < _LAID_OUT_NUMBERS or x.device.type != "cpu" or x.dtype != torch.float32:
            return functional.linear(x, weight, bias)
        # A weight that was filled or moved since is laid out again.
        version = 0 if weight.is_inference() else weight._version
        if self._source is None or weight.data_ptr() != self._source.data_ptr() or version != self._version:
            self._laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
            self._source, self._version = weight.detach(), version
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._laid_out, bias, "none", [], "")
        return product


class Linear(nn.Linear):
    """A linear layer that multiplies by `Product`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self._product = Product()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] → [..., outputs]."""
        return self._product(x, self.weight, self.bias)


def laid_out_bytes(module: nn.Module, device: torch.device, dtype: torch.dtype) -> int:
    """At most what the products of a module hold besides its weights, once they have run."""
    if device.type != "cpu" or dtype != torch.float32:
        return 0
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.ndim > 1}
    return sum(tensor.numel() * dtype.itemsize for key, tensor in weights.items() if key not in tables)
