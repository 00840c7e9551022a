"""A weight as compiled code reads it, and the product with it."""

import numpy as np
import torch
from torch import Tensor, nn

from services.inference.cpu.product import in_blocks, laid_out, multiply, padded


class CompiledProduct:
    """Multiplies by one weight [outputs, inputs] on a CPU in float32, of which it has a copy laid out for reading."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs, self._inputs = weight.shape
        self.weight = laid_out(weight.detach().numpy())
        self.bias = padded(np.zeros(self._outputs, np.float32) if bias is None else bias.detach().numpy())

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., inputs] → [..., outputs]."""
        rows = x.reshape(-1, self._inputs).numpy()
        width = in_blocks(self._outputs)
        product = np.empty((len(rows), width), np.float32)
        multiply(
            rows.reshape(-1), 0, self._inputs, len(rows), self._inputs, self.weight, 0, self.bias, 0, self._outputs,
            product.reshape(-1), 0, width, False,
        )  # fmt: skip
        return torch.from_numpy(product)[:, : self._outputs].view(*x.shape[:-1], self._outputs)


def laid_out_count(module: nn.Module) -> int:
    """At most how many numbers compiled code holds of a module, once it has run."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    products = {
        id(part.weight): in_blocks(len(part.weight)) * _inputs(part)
        for part in module.modules()
        if isinstance(part, nn.Linear | nn.Conv1d)
    }
    others = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in tables | products.keys()}
    return sum(products.values()) + sum(map(_in_rows, others.values()))


def _inputs(part: nn.Linear | nn.Conv1d) -> int:
    """At most how many numbers one output is made of, its bias among them."""
    if isinstance(part, nn.Linear):
        return part.in_features + 1
    return in_blocks(part.in_channels) * part.kernel_size[0] + 1


def _in_rows(tensor: Tensor) -> int:
    """A tensor's numbers in rows of whole blocks."""
    return tensor.numel() // tensor.shape[-1] * in_blocks(tensor.shape[-1])
