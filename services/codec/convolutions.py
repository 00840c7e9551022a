"""Mimi's causal convolutions as steps: new positions in, their results out, the edge kept for the next step.

A convolution is a matrix product whose rows are windows: the last `kernel` positions, channels last. So is a transposed
one: each position becomes as many as the stride, and what it still gives to later ones is found in their windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.codec.mimi import CausalConv, TransposedConv


@dataclass(frozen=True)
class Edge:
    """The last inputs of each slot that a layer remembers, [S, positions, channels], during one step.

    starting, executed [S, 1, 1] bool: whether a slot has no past, and whether it takes part.
    """

    kept: Tensor
    starting: Tensor
    executed: Tensor

    def keep(self, new: Tensor) -> None:
        """Remembers what the next step needs, for the slots that take part."""
        self.kept.copy_(torch.where(self.executed, new, self.kept))


class Convolution(nn.Module):
    """A causal convolution; each position becomes `stride` positions of `outputs` channels.

    weight [stride * outputs, kernel, inputs], the oldest position first; bias [stride * outputs]. Where channels have
    nothing in common (depthwise), the weight is [stride, kernel, channels].
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, stride: int, dilation: int, repeats_edge: bool, is_depthwise: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.detach().contiguous(), persistent=False)
        self.bias = None if bias is None else nn.Buffer(bias.detach().repeat(stride), persistent=False)
        self.stride, self.dilation = stride, dilation
        self.repeats_edge, self.is_depthwise = repeats_edge, is_depthwise
        rows, self.kernel, self.inputs = weight.shape
        self.outputs = self.inputs if is_depthwise else rows // stride
        self.edge_shape = ((self.kernel - 1) * dilation, self.inputs)

    def forward(self, x: Tensor, edge: Edge) -> Tensor:
        """x [S, W, inputs] → [S, W * stride, outputs]."""
        slots, width, _ = x.shape
        windows = x[:, :, None] if self.kernel == 1 else self._windows(x, edge)
        if self.is_depthwise:
            spread = (windows[:, :, None] * self.weight).sum(dim=3)
            spread = spread if self.bias is None else spread + self.bias.view(self.stride, -1)
        else:
            spread = functional.linear(windows.reshape(slots, width, -1), self.weight.flatten(1), self.bias)
        return spread.reshape(slots, width * self.stride, self.outputs)

    def _windows(self, x: Tensor, edge: Edge) -> Tensor:
        """x [S, W, inputs] → what each position sees, [S, W, kernel, inputs]; keeps the edge."""
        before = torch.where(edge.starting, x[:, :1], edge.kept) if self.repeats_edge else edge.kept
        joined = torch.cat((before, x), dim=1)
        slots, width, channels = x.shape
        edge.keep(joined[:, width:])
        strides = (joined.stride(0), channels, channels * self.dilation, 1)
        return joined.as_strided((slots, width, self.kernel, channels), strides)


def plain(layer: CausalConv) -> Convolution:
    """Of Mimi's layer."""
    conv = layer.conv
    assert (conv.stride[0], conv.groups) == (1, 1), "Mimi's decoder has no other convolution"
    return Convolution(
        conv.weight.permute(0, 2, 1),
        conv.bias,
        stride=1,
        dilation=conv.dilation[0],
        repeats_edge=layer.pad_mode == "replicate",
        is_depthwise=False,
    )


def transposed(layer: TransposedConv) -> Convolution:
    """Of Mimi's layer."""
    conv = layer.conv
    inputs, outputs_a_group, kernel = conv.weight.shape
    stride, groups = conv.stride[0], conv.groups
    outputs = outputs_a_group * groups
    is_depthwise = groups == inputs == outputs
    # [inputs, outputs of a group, taps], filled up to whole strides, of which the oldest position gives the last.
    weight = functional.pad(conv.weight.detach(), (0, -kernel % stride)).unflatten(2, (-1, stride)).flip(2)
    if is_depthwise:
        weight = weight[:, 0].permute(2, 1, 0)
    else:
        # Channels of different groups have nothing in common.
        blocks = weight.permute(3, 2, 1, 0).unflatten(3, (groups, -1))
        taps = [torch.block_diag(*tap.unbind(1)) for tap in blocks.flatten(0, 1).unbind()]
        weight = torch.stack(taps).view(stride, -1, outputs, inputs).transpose(1, 2).flatten(0, 1)
    return Convolution(weight, conv.bias, stride=stride, dilation=1, repeats_edge=False, is_depthwise=is_depthwise)
