"""A static key-value cache: one row a slot, one column a position."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHORTEST_REACH = 512


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """One layer of a cache, as a run of a stack uses it.

    keys, values [slots, kv heads, reach, head dim]: the columns that the run looks at.
    """

    entries: Tensor
    keys: Tensor
    values: Tensor

    def keep(self, new: Tensor, columns: Tensor) -> None:
        """Writes keys and values side by side, [slots, 2 kv heads, W, head dim], at columns [slots, 1, W, 1]."""
        self.entries.scatter_(2, columns.expand_as(new), new)


@dataclass(frozen=True)
class KvCache:
    """Keys and values of all layers: entries [layers, slots, 2 kv heads, positions + 1, head dim], keys first.

    The last column is a dump: a position that must not be kept is written there and nobody sees it. That is how a
    batch step leaves a slot as it was, without a branch.
    """

    entries: Tensor
    # Of a view: the cache that it shows a part of, and which slot of that is its first.
    _whole: "KvCache | None" = field(default=None, repr=False, compare=False)
    first_slot: int = 0
    _layers: dict[int, tuple[CachedLayer, ...]] = field(default_factory=dict, repr=False, compare=False)
    _views: "dict[tuple[int, int], KvCache]" = field(default_factory=dict, repr=False, compare=False)

    @property
    def keys(self) -> Tensor:
        """[layers, slots, kv heads, positions + 1, head dim]."""
        return self.entries[:, :, : self.entries.shape[2] // 2]

    @property
    def values(self) -> Tensor:
        """[layers, slots, kv heads, positions + 1, head dim]."""
        return self.entries[:, :, self.entries.shape[2] // 2 :]

    @property
    def whole(self) -> "KvCache":
        """The cache that this is a view of, or this one."""
        return self._whole or self

    @property
    def numbers(self) -> NDArray[np.float32]:
        """The entries of the whole, flat; on a CPU, in float32."""
        return self.whole.entries.view(-1).numpy()

    @property
    def slot_count(self) -> int:
        """Rows."""
        return self.entries.shape[1]

    @property
    def position_count(self) -> int:
        """Positions that a slot can hold."""
        return self.entries.shape[3] - 1

    @property
    def dump(self) -> int:
        """The column that takes what must not be kept."""
        return self.position_count

    def slot(self, index: int) -> "KvCache":
        """A view of one row."""
        return self._view(index, index + 1)

    def rows(self, count: int) -> "KvCache":
        """A view of the first rows."""
        return self._view(0, count)

    def _view(self, first: int, end: int) -> "KvCache":
        """Made once, and its layers with it: a step should not spend its time on slicing."""
        if (first, end) not in self._views:
            self._views[first, end] = KvCache(self.entries[:, first:end], self.whole, self.first_slot + first)
        return self._views[first, end]

    def read(self, slot: int, count: int) -> Tensor:
        """A copy of a slot's first columns, [layers, 2 kv heads, count, head dim]."""
        return self.entries[:, slot, :, :count].clone()

    def write(self, slot: int, columns: Tensor) -> None:
        """Puts what `read` gave into a slot's first columns."""
        self.entries[:, slot, :, : columns.shape[2]] = columns

    def copy(self, source: int, target: int, count: int) -> None:
        """Copies the first columns of one slot to another."""
        if source != target:
            self.entries[:, target, :, :count] = self.entries[:, source, :, :count]

    def clear(self) -> None:
        """Forgets everything: a mask hides a number from a product, but not what is no number."""
        self.entries.zero_()

    def reach(self, column: int) -> int:
        """How many columns a step must look at whose highest column is `column`: few sizes, so few shapes."""
        return next(reach for reach in self.reaches() if reach > column)

    def reaches(self) -> Iterator[int]:
        """All lengths that `reach` may give, the shortest first."""
        length = _SHORTEST_REACH
        while length < self.position_count:
            yield length
            length *= 2
        yield self.position_count

    def layers(self, reach: int) -> tuple[CachedLayer, ...]:
        """The layers' first `reach` columns: views, made once."""
        if reach not in self._layers:
            kv_heads = self.entries.shape[2] // 2
            self._layers[reach] = tuple(
                CachedLayer(layer, layer[:, :kv_heads, :reach], layer[:, kv_heads:, :reach])
                for layer in self.entries.unbind()
            )
        return self._layers[reach]


def allocate(
    *, layers: int, slots: int, kv_heads: int, positions: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> KvCache:
    """An empty cache. Zeroed, because a masked column still enters the products and must be finite."""
    return KvCache(torch.zeros((layers, slots, 2 * kv_heads, positions + 1, head_dim), device=device, dtype=dtype))
