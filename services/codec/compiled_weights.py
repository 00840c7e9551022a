"""The decoder's weights as compiled code reads them, and the room it works in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.codec.compiled_layers import CONVOLUTION, Signals, TransformerShape, Weights
from services.codec.convolutions import Convolution
from services.codec.streaming_decoder import LayerStep, StreamingDecoder, TransformerStep
from services.inference.cpu.aligned import Floats, aligned, aligned_zeros
from services.inference.cpu.vectors import LANES
from services.inference.cpu.windows import in_vectors, in_whole_vectors, laid_out_windows

# Weights that stay in a core's cache, beside the signals of a slot, while slots are decoded one after the other.
_CACHED_NUMBERS = 1 << 16


def compiled_weights(decoder: StreamingDecoder) -> Weights:
    """A copy of the weights of a decoder on a CPU, laid out; the latents are the decoder's own."""
    layers = [_tensors(layer) for layer in decoder.transformer_layers]
    places = dict(zip([*layers[0], "layer"], accumulate(map(_count, layers[0].values()), initial=0), strict=True))
    blocks = list(_blocks(decoder))
    steps = [step for block in blocks for step in block]
    starts = list(accumulate((step.number_count for step in steps), initial=0))
    records = np.array([step.record(start) for step, start in zip(steps, starts, strict=False)], CONVOLUTION)
    return Weights(
        codebook_size=decoder.codebook_size,
        latents=decoder.latents.numpy(),
        shape=TransformerShape(
            layers=len(layers),
            hidden=decoder.upsample.outputs,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            inner=len(layers[0]["first"]),
            window=decoder.window,
            ring=decoder.ring_columns,
            positions=decoder.positions_per_frame,
            epsilon=decoder.norm_epsilon,
            rotation_scale=decoder.rope.scale,
            **{name: place for name, place in places.items() if name in TransformerShape._fields},
        ),
        transformer=aligned([_laid_out(tensor) for layer in layers for tensor in layer.values()]),
        frequencies=decoder.rope.inverse_frequencies.numpy(),
        convolutions=records,
        together=_together(blocks),
        kernels=aligned([step.laid_out() for step in steps]),
    )


def compiled_bytes(decoder: StreamingDecoder) -> int:
    """What `compiled_weights` copies, from the shapes alone."""
    layers = [_count(tensor) for layer in decoder.transformer_layers for tensor in _tensors(layer).values()]
    steps = [step.number_count for block in _blocks(decoder) for step in block]
    return (sum(layers) + sum(steps)) * torch.float32.itemsize


def signals(weights: Weights, slot_count: int) -> Signals:
    """Room for a step of so many slots. What is computed in whole vectors may reach beyond its end by one."""
    layers = weights.convolutions
    taken = layers["positions"] * layers["channels"]
    given = layers["positions"] * layers["outputs"] // layers["group"]
    given = np.where(layers["is_depthwise"], given * layers["channels"], given)
    inside = np.where(layers["writes_inside"], given, 0)
    widest = (np.maximum(taken, given), inside, taken + layers["edge_size"])
    rows = (int(in_vectors(int(counts.max()))) + LANES for counts in widest)
    return Signals(*(aligned_zeros(slot_count * row).reshape(slot_count, row) for row in rows))


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """What a layer of the transformer multiplies with, named as in `TransformerShape`; layer scales are in it."""
    assert isinstance(layer, TransformerStep)

    def bias(given: Tensor | None, weight: Tensor) -> Tensor:
        return weight.new_zeros(len(weight)) if given is None else given

    output, second = layer.output, layer.second
    attention_scale, mlp_scale = layer.attention_scale.scale, layer.mlp_scale.scale
    return {
        "attention_norm": layer.attention_norm.weight,
        "attention_norm_bias": layer.attention_norm.bias,
        "qkv": layer.qkv,
        "qkv_bias": bias(layer.qkv_bias, layer.qkv),
        "output": output.weight * attention_scale[:, None],
        "output_bias": bias(output.bias, output.weight) * attention_scale,
        "mlp_norm": layer.mlp_norm.weight,
        "mlp_norm_bias": layer.mlp_norm.bias,
        "first": layer.first.weight,
        "first_bias": bias(layer.first.bias, layer.first.weight),
        "second": second.weight * mlp_scale[:, None],
        "second_bias": bias(second.bias, second.weight) * mlp_scale,
    }


def _laid_out(tensor: Tensor) -> Floats:
    numbers: Floats = tensor.detach().numpy()
    return laid_out_windows(numbers) if numbers.ndim == 2 else in_whole_vectors(numbers)


def _count(tensor: Tensor) -> int:
    """Numbers of `_laid_out`."""
    return int(in_vectors(len(tensor))) * tensor[0].numel()


@dataclass(frozen=True)
class _Step:
    """A convolution in the order of a frame: of how many positions, which input it has and where its output goes."""

    layer: Convolution
    positions: int
    edge: int
    reads_inside: bool = False
    activates: bool = False
    writes_inside: bool = False
    adds: bool = False

    @property
    def group(self) -> int:
        """Positions of which one window gives the outputs, so that few outputs fill a vector: the cheapest number.

        The window of several is longer; where it does not concern a position, that one's weights are zeros.
        """
        if self.layer.dilation > 1 or self.layer.is_depthwise:
            return 1
        outputs, further = len(self.layer.weight), self.layer.kernel - 1

        def cost(group: int) -> tuple[float, int]:
            return math.ceil(group * outputs / LANES) * (group + further) / group, -group

        return min((group for group in range(1, LANES + 1) if self.positions % group == 0), key=cost)

    @property
    def taps(self) -> int:
        """Runs of numbers that a window has: of neighbouring positions they are one."""
        return self.layer.kernel if self.layer.dilation > 1 or self.layer.is_depthwise else 1

    @property
    def run(self) -> int:
        """Numbers of a run."""
        return (self.layer.kernel - 1 + self.group) // self.taps * self.layer.inputs

    @property
    def outputs(self) -> int:
        """Of a window; of each channel, where the convolution is depthwise."""
        return self.group * len(self.layer.weight)

    @property
    def bias_count(self) -> int:
        """Numbers of the bias as it is laid out."""
        return int(in_vectors(self.group * self.layer.stride * self.layer.outputs))

    @property
    def number_count(self) -> int:
        """Numbers of `laid_out`."""
        weight = self.layer.weight.numel() if self.layer.is_depthwise else self.bias_count * self.taps * self.run
        return self.bias_count + weight

    def laid_out(self) -> Floats:
        """The bias, then the weight."""
        layer, group = self.layer, self.group
        bias = layer.weight.new_zeros(layer.stride * layer.outputs) if layer.bias is None else layer.bias
        laid_out_bias = in_whole_vectors(bias.repeat(group).numpy())
        if layer.is_depthwise:
            return np.concatenate((laid_out_bias, layer.weight.numpy().reshape(-1)))
        places = [functional.pad(layer.weight, (0, 0, place, group - 1 - place)) for place in range(group)]
        return np.concatenate((laid_out_bias, laid_out_windows(torch.cat(places).flatten(1).numpy())))

    def record(self, start: int) -> tuple[int, ...]:
        """What compiled code is told, a `CONVOLUTION`. start: where `laid_out` begins in the array of all."""
        layer = self.layer
        numbers = {
            "positions": self.positions,
            "channels": layer.inputs,
            "reads_inside": self.reads_inside,
            "activates": self.activates,
            "edge": self.edge,
            "edge_size": math.prod(layer.edge_shape),
            "repeats_edge": layer.repeats_edge,
            "group": self.group,
            "taps": self.taps,
            "tap_row": layer.dilation * layer.inputs,
            "run": self.run,
            "outputs": self.outputs,
            "weight": start + self.bias_count,
            "bias": start,
            "is_depthwise": layer.is_depthwise,
            "writes_inside": self.writes_inside,
            "adds": self.adds,
        }
        return tuple(int(numbers[name]) for name in CONVOLUTION.names or ())


def _blocks(decoder: StreamingDecoder) -> Iterator[list[_Step]]:
    """The steps of a frame, those of a residual block together."""
    convolutions = list(decoder.convolutions())
    starts = accumulate((math.prod(layer.edge_shape) for layer in convolutions), initial=0)
    edges = {id(layer): start for layer, start in zip(convolutions, starts, strict=False)}
    yield [_Step(decoder.upsample, 1, edges[id(decoder.upsample)])]
    positions, activates = decoder.positions_per_frame, False
    for layer in decoder.seanet_layers:
        if isinstance(layer, LayerStep):
            yield [_Step(part, positions, edges[id(part)], **role) for part, role in _roles(layer, activates)]
            positions *= layer.stride
        activates = isinstance(layer, nn.ELU)


def _roles(layer: LayerStep, activates: bool) -> Iterator[tuple[Convolution, dict[str, bool]]]:
    """A layer's convolutions in the order of a frame, and what of `_Step` is true for each."""
    convolutions = [part for part in layer.parts if isinstance(part, Convolution)]
    if layer.shortcut is None:
        (only,) = convolutions
        yield only, {"activates": activates}
        return
    first, second = convolutions
    yield first, {"activates": True, "writes_inside": True}
    if isinstance(layer.shortcut, Convolution):
        yield layer.shortcut, {}
    yield second, {"reads_inside": True, "activates": True, "adds": True}


def _together(blocks: list[list[_Step]]) -> int:
    """How many of the first steps are run for all slots side by side: up to where the weights of the rest are few."""
    counts = [sum(step.number_count for step in block) for block in blocks]
    first = next(index for index in range(1, len(blocks) + 1) if sum(counts[index:]) <= _CACHED_NUMBERS)
    return sum(map(len, blocks[:first]))
