"""Convolutions step by step against layers that see all positions at once, and these against transformers'."""

import pytest
import torch
from torch import Tensor
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiConv1d

from services.codec.convolutions import Convolution, Edge, plain, transposed
from services.codec.mimi import CausalConv, TransposedConv

SLOTS, STEPS, POSITIONS = 2, 4, 3


def in_steps(convolution: Convolution, x: Tensor) -> Tensor:
    """x [S, channels, positions], a few positions a step."""
    kept, executed = torch.zeros(len(x), *convolution.edge_shape), torch.ones(len(x), 1, 1, dtype=torch.bool)
    given = []
    for step, part in enumerate(x.transpose(1, 2).split(POSITIONS, dim=1)):
        given.append(convolution(part, Edge(kept, torch.full((len(x), 1, 1), step == 0), executed)))
    return torch.cat(given, dim=1).transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("kernel", "stride"), [(6, 3), (7, 3), (4, 4), (3, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_transposed_convolution(groups: int, kernel: int, stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = TransposedConv(6, 6, kernel, stride=stride, groups=groups, bias=bias).requires_grad_(False)
    x = torch.randn(SLOTS, 6, STEPS * POSITIONS)
    # What lies beyond the last stride is trimmed; a kernel below the stride leaves zeros there.
    expected = torch.zeros(SLOTS, 6, x.shape[2] * stride)
    if bias:
        expected += layer.conv.bias[:, None]
    whole = layer.conv(x)[..., : expected.shape[2]]
    expected[..., : whole.shape[2]] = whole
    torch.testing.assert_close(in_steps(transposed(layer), x), expected)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
def test_a_convolution(kernel: int, dilation: int, pad_mode: str) -> None:
    torch.manual_seed(0)
    layer = CausalConv(5, 7, kernel, dilation=dilation, pad_mode=pad_mode).requires_grad_(False)
    x = torch.randn(SLOTS, 5, STEPS * POSITIONS)
    torch.testing.assert_close(in_steps(plain(layer), x), layer(x))


@pytest.mark.parametrize("positions", range(1, 9))
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 2), (4, 2, 1), (10, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
def test_a_convolution_of_all_positions(pad_mode: str, kernel: int, stride: int, dilation: int, positions: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv(5, 7, kernel, stride=stride, dilation=dilation, pad_mode=pad_mode).requires_grad_(False)
    theirs = MimiConv1d(MimiConfig(), 5, 7, kernel, stride, dilation, pad_mode=pad_mode).requires_grad_(False)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(1, 5, positions)
    assert torch.equal(layer(x), theirs(x))
