"""The floor: the matrix products that a frame contains, one after another and nothing between them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.bench.clock import Clock
from services.bench.engines import StageEngines
from services.bench.shape import Cost, ReplyShape
from services.codec.streaming_decoder import exact_float32
from services.inference.device import is_compiled_for
from services.inference.graphs import Capture, graph_capture
from services.inference.transformer import Transformer
from services.reasoner.model import ReasonerModel
from services.speech.model import SpeechModel


@dataclass(frozen=True)
class Product:
    """One product with an input of its own. weights: the model's tensors in it, without biases.

    rows, matrix [outputs, inputs]: the same for compiled code; no matrix: each channel has numbers of its own, so there
    is no product.
    """

    run: Callable[[], Tensor]
    weights: tuple[Tensor, ...]
    rows: int
    matrix: Tensor | None


def linear(layers: Sequence[nn.Module], *rows: int) -> Product:
    """Layers that have one input are one product: rows of positions through all of them."""
    weights = tuple(layer.get_parameter("weight") for layer in layers)
    biases = [layer.bias for layer in layers if isinstance(layer.bias, Tensor)]
    assert len(biases) in {0, len(layers)}
    weight = _joined(weights)
    inputs = torch.randn(*rows, weight.shape[1]).to(weight)
    run = partial(functional.linear, inputs, weight, _joined(biases) if biases else None)
    return Product(run, weights, math.prod(rows), weight)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts: as they lie, where they lie one behind the other, or else copied."""
    ends = [part.data_ptr() + part.nbytes for part in parts]
    starts = [part.data_ptr() for part in parts]
    if ends[:-1] != starts[1:] or len({part.untyped_storage().data_ptr() for part in parts}) > 1:
        return torch.cat(list(parts))
    return parts[0].as_strided((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].stride())


def matrix(weight: Tensor, rows: int) -> Product:
    """Rows of positions times a matrix [in, out]."""
    run = partial(torch.matmul, torch.randn(rows, weight.shape[0]).to(weight), weight)
    return Product(run, (weight,), rows, weight.t())


def stack(transformer: Transformer, slots: int, width: int, wanted: int) -> Iterator[Product]:
    """An autoregressive stack that runs `width` positions, of which what follows needs the states of `wanted`.

    Of the others the last layer makes only keys and values.
    """
    for index, layer in enumerate(transformer.layers, start=1):
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        yield linear((attention.q_proj, attention.k_proj, attention.v_proj), slots, width)
        states = wanted if index == len(transformer.layers) else width
        if states:
            yield linear((attention.o_proj,), slots, states)
            yield linear((mlp.gate_proj, mlp.up_proj), slots, states)
            yield linear((mlp.down_proj,), slots, states)


def speech_frame(model: SpeechModel, slots: int, *, has_step: bool) -> list[Product]:
    """A frame of codes: the backbone, its head, and the depth decoder's seven runs.

    With a step there are two positions more. Compiled code runs all three at once; a graph, whose shapes are fixed, the
    two before the third.
    """
    backbone, depth = model.backbone, model.depth_decoder
    weight = backbone.codebook0_head.weight
    products: list[Product] = []
    if has_step and is_compiled_for(weight.device, weight.dtype):
        products += stack(backbone.stack, slots, width=3, wanted=1)
    else:
        if has_step:
            products += stack(backbone.stack, slots, width=2, wanted=0)
        products += stack(backbone.stack, slots, width=1, wanted=1)
    products.append(linear((backbone.codebook0_head,), slots))
    # The backbone's state and the first code go in together, then a code at a time.
    first, later = (
        [linear((depth.projection,), slots, width), *stack(depth.stack, slots, width, wanted=1)] for width in (2, 1)
    )
    for codebook, head in enumerate(depth.codebook_head):
        products += later if codebook else first
        products.append(matrix(head, slots))
    return products


def reasoner_step(model: ReasonerModel, slots: int) -> list[Product]:
    """A token of the reply."""
    return [*stack(model.stack, slots, width=1, wanted=1), linear((model.lm_head,), slots)]


def codec_frame(mimi: Any, slots: int) -> list[Product]:
    """The sound of a frame. What stands before the upsampling is a table: codes have no product."""
    products, width = _convolutions(mimi.upsample, slots, 1)
    for layer in mimi.decoder_transformer.layers:
        attention = layer.self_attn
        products.append(linear((attention.q_proj, attention.k_proj, attention.v_proj), slots, width))
        products.append(linear((attention.o_proj,), slots, width))
        products += [linear((part,), slots, width) for part in (layer.mlp.fc1, layer.mlp.fc2)]
    return products + _convolutions(mimi.decoder, slots, width)[0]


def _convolutions(module: nn.Module, slots: int, width: int) -> tuple[list[Product], int]:
    """The convolutions of a causal module in order, for `width` new positions; and how many these have become."""
    products = []
    for conv in module.modules():
        if isinstance(conv, nn.ConvTranspose1d):
            inputs = torch.randn(slots, conv.in_channels, width).to(conv.weight)
            run = partial(
                functional.conv_transpose1d, inputs, conv.weight, conv.bias, stride=conv.stride, groups=conv.groups
            )
            spread = conv.weight.permute(1, 2, 0).reshape(-1, conv.in_channels) if conv.groups == 1 else None
            products.append(Product(run, (conv.weight,), slots * width, spread))
            width *= conv.stride[0]
        elif isinstance(conv, nn.Conv1d):
            reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + width
            inputs = torch.randn(slots, conv.in_channels, reach).to(conv.weight)
            run = partial(functional.conv1d, inputs, conv.weight, conv.bias, dilation=conv.dilation, groups=conv.groups)
            products.append(Product(run, (conv.weight,), slots * width, conv.weight.flatten(1)))
    return products, width


class Launch(Protocol):
    """Runs some products in order."""

    def __call__(self) -> None: ...


def launch(products: Sequence[Product]) -> Launch:
    """The products of a step in the way that costs least: in one call of compiled code, or in one captured graph."""
    weight = products[0].weights[0]
    if is_compiled_for(weight.device, weight.dtype):
        from services.bench.compiled_floor import CompiledProducts

        return CompiledProducts([(product.rows, product.matrix) for product in products if product.matrix is not None])
    runs = [product.run for product in products]

    def run_all() -> None:
        for run in runs:
            run()

    capture: Capture[None] | None = graph_capture(products[0].weights[0].device)
    if capture is not None:
        return capture(run_all)
    run_all()
    return run_all


class Floor:
    """The products of these engines' models with a row for each of `slots` streams."""

    def __init__(self, engines: StageEngines, slots: int, clock: Clock) -> None:
        self._clock = clock
        self._device = engines.speech.model.device
        with exact_float32():
            speech = engines.speech.model
            self._plain_frame = launch(speech_frame(speech, slots, has_step=False))
            self._step_frame = launch(speech_frame(speech, slots, has_step=True))
            self._reasoner_step = launch(reasoner_step(engines.reasoner.model, slots))
            self._codec_frame = launch(codec_frame(engines.codec.codec.mimi, slots))

    def measure(self, shape: ReplyShape) -> Cost:
        """Runs what a reply of that shape contains, stage by stage."""
        frames = range(shape.frame_count)
        return Cost(
            self._seconds([self._step_frame if shape.has_step(index) else self._plain_frame for index in frames]),
            self._seconds([self._reasoner_step] * shape.step_count),
            self._seconds([self._codec_frame for _ in frames]),
        )

    def _seconds(self, launches: Sequence[Launch]) -> float:
        """The mean time of these, in seconds."""
        with exact_float32():
            began = self._clock()
            for run in launches:
                run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return (self._clock() - began) / len(launches)
