"""A transformer's weights as compiled code reads them, and the call."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.inference.cpu import stack
from services.inference.cpu.aligned import Floats, aligned_zeros
from services.inference.cpu.product import in_blocks
from services.inference.cpu.second_thread import work_together
from services.inference.cpu.stack import LayerWeights, StackCache, StackShape
from services.inference.cpu.team import Ints, alone
from services.inference.kv_cache import KvCache
from services.inference.rope import Rope

SHARED_ROWS = 24
"""With fewer rows it takes longer to wake another thread than it helps."""


class CompiledStack:
    """A stack on a CPU in float32.

    It has a copy of the weights, laid out for reading. Steps are run by the thread that asks; of many rows, as a prompt
    has them, a second one runs what it gets to: listeners wait for the end of a prompt.
    """

    def __init__(self, config: Any, layers: Iterable[nn.Module], final_norm: Tensor, rope: Rope) -> None:
        """config: `TransformerConfig`; layers: `Layer`s."""
        weights, places = stack.flat_weights([_layer_weights(layer) for layer in layers], _numbers(final_norm))
        self.weights: Floats = weights
        self.shape = StackShape(
            layers=config.layers,
            hidden=config.hidden_size,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            epsilon=config.norm_epsilon,
            **places,
        )
        self.width = in_blocks(config.hidden_size)
        self._rope = rope
        self._turns = np.empty(0, np.float32)

    def turns(self, position_count: int) -> Floats:
        """Cosines, then sines, of each half head at positions 0 ..< position_count or more: flat."""
        if len(self._turns) < position_count * self.shape.head_dim:
            half = self.shape.head_dim // 2
            cosines, sines = self._rope(torch.arange(position_count)[None])
            table = torch.cat((cosines[0, :, 0, :half], sines[0, :, 0, half:]), dim=-1)
            self._turns = np.ascontiguousarray(table.numpy()).reshape(-1)
        return self._turns

    def with_cache(self, cache: KvCache) -> StackCache:
        """The stack and a cache of its own, whole."""
        columns = cache.position_count + 1
        return StackCache(self.shape, self.weights, self.turns(columns), cache.numbers, cache.slot_count, columns)

    def run(
        self, x: NDArray[np.float32], slots: Ints, columns: Ints, positions: Ints, wanted: Ints, cache: KvCache
    ) -> None:
        """Runs positions of slots; x [rows, width], zeros behind `hidden`, begins with the `wanted` states then.

        slots: counted from the cache's first one. A row sees its slot's columns up to its own. wanted: rows, in
        ascending order; their states are those after the final norm.
        """
        whole, slots = cache.whole, slots + cache.first_slot
        shared = (
            cache.numbers, whole.slot_count, whole.position_count + 1,
            self.shape, self.weights, self.turns(whole.position_count + 1),
        )  # fmt: skip
        rows = (x.reshape(-1), slots, columns, positions, wanted)
        signals, phases = stack.signals(len(slots), self.shape), stack.phases(self.shape)
        if len(slots) < SHARED_ROWS:
            stack.run_together(*rows, *shared, signals, alone(phases))
        else:
            work_together(phases, lambda team: stack.run_together(*rows, *shared, signals, team))

    def forward(
        self, x: Tensor, columns: Tensor, positions: Tensor, cache: KvCache, wanted: Tensor | None = None
    ) -> Tensor:
        """`Transformer.forward`: x [B, W, hidden], columns and positions [B, W] → states [B, W or wanted, hidden].

        States of positions in the dump column are zeros.
        """
        batch, width, hidden = x.shape
        flat = columns.reshape(-1).numpy()
        is_there = flat != cache.dump
        there = np.flatnonzero(is_there)
        asked = np.arange(width) if wanted is None else wanted.numpy()
        asked = (np.arange(batch)[:, None] * width + asked).reshape(-1)
        given = is_there[asked]
        rows = aligned_zeros(len(there) * self.width).reshape(-1, self.width)
        rows[:, :hidden] = x.reshape(-1, hidden).numpy()[there]
        if len(there):
            places = np.searchsorted(there, asked[given])
            self.run(rows, there // width, flat[there], positions.reshape(-1).numpy()[there], places, cache)
        states = np.zeros((len(asked), hidden), np.float32)
        states[given] = rows[: given.sum(), :hidden]
        return torch.from_numpy(states).view(batch, -1, hidden)


def _layer_weights(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp

    def bias(part: Any) -> Floats:
        return _numbers(part.bias) if part.bias is not None else np.zeros(len(part.weight), np.float32)

    return LayerWeights(
        attention_norm=_numbers(layer.input_layernorm.weight),
        qkv=_numbers(attention.qkv.weight),
        qkv_bias=bias(attention.qkv),
        output=_numbers(attention.o_proj.weight),
        output_bias=bias(attention.o_proj),
        mlp_norm=_numbers(layer.post_attention_layernorm.weight),
        gate_up=_numbers(mlp.gate_up.weight),
        gate_up_bias=bias(mlp.gate_up),
        down=_numbers(mlp.down_proj.weight),
        down_bias=bias(mlp.down_proj),
    )


def _numbers(tensor: Tensor) -> Floats:
    return tensor.detach().numpy()
