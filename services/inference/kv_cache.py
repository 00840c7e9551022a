"""A static key-value cache: one row a slot, one column a position."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SHORTEST_REACH = 512


@dataclass(frozen=True)
class KvCache:
    """Keys and values of all layers: [layers, slots, kv heads, positions + 1, head dim].

    The last column is a dump: a position that must not be kept is written there and nobody sees it. That is how a
    batch step leaves a slot as it was, without a branch.
    """

    keys: Tensor
    values: Tensor

    @property
    def slot_count(self) -> int:
        """Rows."""
        return self.keys.shape[1]

    @property
    def position_count(self) -> int:
        """Positions that a slot can hold."""
        return self.keys.shape[3] - 1

    @property
    def dump(self) -> int:
        """The column that takes what must not be kept."""
        return self.position_count

    def slot(self, index: int) -> "KvCache":
        """A view of one row."""
        return KvCache(self.keys[:, index : index + 1], self.values[:, index : index + 1])

    def clear(self) -> None:
        """Forgets everything: a mask hides a number from a product, but not what is no number."""
        self.keys.zero_()
        self.values.zero_()

    def reach(self, column: int) -> int:
        """How many columns a step must look at whose highest column is `column`: few sizes, so few shapes.

        Columns beyond the highest, all masked, change no bit of a result: on a CPU, attention runs in blocks of 512
        columns from column 0, and blocks that are masked as a whole leave what is summed so far as it is. Shorter
        reaches would cut the first block to various lengths, whose sums differ in their last bits.
        """
        length = _SHORTEST_REACH
        while length <= column:
            length *= 2
        return min(length, self.position_count)

    def update(self, layer: int, keys: Tensor, values: Tensor, columns: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Writes keys and values [B, kv heads, W, head dim] at columns [B, W]; B must be the number of rows.

        Returns the layer's first `reach` columns of both, [B, kv heads, reach, head dim].
        """
        where = columns[:, None, :, None].expand_as(keys)
        all_keys, all_values = self.keys[layer], self.values[layer]
        all_keys.scatter_(2, where, keys)
        all_values.scatter_(2, where, values)
        return all_keys[:, :, :reach], all_values[:, :, :reach]


def allocate(
    *, layers: int, slots: int, kv_heads: int, positions: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> KvCache:
    """An empty cache. Zeroed, because a masked column still enters the products and must be finite."""
    shape = (layers, slots, kv_heads, positions + 1, head_dim)
    return KvCache(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))
