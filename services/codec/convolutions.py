"""Mimi's causal convolutions as steps: new positions in, their results out, the edge kept for the next step.

Channels come last, so that every convolution is a matrix product whose rows are positions: on a CPU a row's result then
depends neither on how many slots a step has nor on their places (`batch_rows`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d

from services.inference.batch_rows import batch_rows
from services.inference.product import Product


@dataclass(frozen=True)
class Edge:
    """What a layer remembers of each slot, [S, positions, channels], during one step.

    starting, executed [S, 1, 1] bool: whether a slot has no past, and whether it takes part; executed None: all do.
    """

    kept: Tensor
    starting: Tensor
    executed: Tensor | None

    def keep(self, new: Tensor) -> None:
        """Remembers what the next step needs, for the slots that take part."""
        self.kept.copy_(new if self.executed is None else torch.where(self.executed, new, self.kept))


class Convolution(nn.Module):
    """A causal convolution of stride 1. Its edge: the last inputs."""

    def __init__(self, layer: MimiConv1d) -> None:
        super().__init__()
        conv: Any = layer.conv
        self.outputs, inputs, self.kernel = conv.weight.shape
        assert (conv.stride[0], conv.groups) == (1, 1), "Mimi's decoder has no other convolution"
        self.weight = nn.Buffer(conv.weight.permute(0, 2, 1).reshape(self.outputs, -1), persistent=False)
        self.bias = None if conv.bias is None else nn.Buffer(conv.bias.detach(), persistent=False)
        self._product = Product()
        self.dilation: int = conv.dilation[0]
        self.repeats_edge = layer.pad_mode == "replicate"
        self.edge_shape = ((self.kernel - 1) * self.dilation, inputs)

    def forward(self, x: Tensor, edge: Edge) -> Tensor:
        """x [S, W, inputs] → [S, W, outputs]."""
        if self.kernel == 1:
            return _multiply(self._product, x, self.weight, self.bias)
        before = torch.where(edge.starting, x[:, :1], edge.kept) if self.repeats_edge else edge.kept
        joined = torch.cat((before, x), dim=1)
        (slots, width, channels), stride = x.shape, joined.stride(0)
        edge.keep(joined[:, width:])
        windows = joined.as_strided(
            (slots, width, self.kernel, channels), (stride, channels, channels * self.dilation, 1)
        )
        return _multiply(self._product, windows.reshape(slots, width, -1), self.weight, self.bias)


class TransposedConvolution(nn.Module):
    """A causal transposed convolution: each input is spread over blocks of as many outputs as the stride.

    Its edge: the blocks that the inputs so far have begun and those to come will complete.
    """

    def __init__(self, layer: MimiConvTranspose1d) -> None:
        super().__init__()
        conv: Any = layer.conv
        inputs, outputs_a_group, kernel = conv.weight.shape
        self.stride: int = conv.stride[0]
        self.blocks = -(-kernel // self.stride)
        outputs = outputs_a_group * conv.groups
        # [kernel, outputs, inputs], filled up to whole blocks; channels of different groups have nothing in common.
        weight = functional.pad(conv.weight.detach(), (0, self.blocks * self.stride - kernel)).permute(2, 1, 0)
        self.is_depthwise = conv.groups == inputs == outputs
        if not self.is_depthwise and conv.groups > 1:
            grouped = weight.unflatten(2, (conv.groups, -1))
            weight = torch.stack([torch.block_diag(*tap.unbind(1)) for tap in grouped.unbind()])
        shape = (-1, outputs) if self.is_depthwise else (-1, inputs)
        self.weight = nn.Buffer(weight.reshape(shape), persistent=False)
        self.bias = None if conv.bias is None else nn.Buffer(conv.bias.detach(), persistent=False)
        self._product = Product()
        self.outputs = outputs
        self.edge_shape = (self.blocks - 1, self.stride * outputs)

    def forward(self, x: Tensor, edge: Edge) -> Tensor:
        """x [S, W, inputs] → [S, W * stride, outputs]."""
        slots, width, _ = x.shape
        spread = x[:, :, None] * self.weight if self.is_depthwise else _multiply(self._product, x, self.weight, None)
        spread = spread.reshape(slots, width, self.blocks, -1)
        total = functional.pad(spread[:, :, 0], (0, 0, 0, self.blocks - 1))
        for block in range(1, self.blocks):
            total[:, block : block + width] += spread[:, :, block]
        total[:, : self.blocks - 1] += edge.kept
        edge.keep(total[:, width:])
        emitted = total[:, :width].reshape(slots, width * self.stride, self.outputs)
        # Each output gets the bias once, also where inputs overlap.
        return emitted if self.bias is None else emitted + self.bias


def _multiply(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [S, W, inputs] → [S, W, outputs], as a product of as many rows as `batch_rows` wants."""
    slots, width, inputs = x.shape
    rows = x.reshape(-1, inputs)
    missing = batch_rows(len(rows), x.device) - len(rows)
    if missing:
        rows = functional.pad(rows, (0, 0, 0, missing))
    return product(rows, weight, bias)[: slots * width].view(slots, width, -1)
