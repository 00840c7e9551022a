"""How many slots of which length a stage can hold: worked out from a budget before anything is allocated."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from services.inference.device import BadSetting
from services.inference.memory_budget import Budget, bytes_in_words
from services.inference.transformer import TransformerConfig

META = torch.device("meta")
"""Tensors without memory: what is allocated here has the shapes of the real thing, hence its bytes."""

WORKSPACE_FACTOR = 2
"""Of the activations that are alive at the widest place of a step: an allocator keeps what the step before it used, in
blocks of other sizes."""

SHORTEST_USEFUL_LENGTH = 16
"""Positions of a slot below which no prompt fits."""


class Demand(Protocol):
    """What a stage takes on its device."""

    @property
    def weights_bytes(self) -> int:
        """Parameters and buffers."""

    @property
    def voice_cache_bytes(self) -> int:
        """What is set aside for the prefixes of voices."""

    def slot_bytes(self, context_length: int) -> int:
        """What a slot keeps between two steps."""

    def workspace_bytes(self, slots: int, context_length: int) -> int:
        """What the steps need while they run, and prompts until they are read."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a stage will take: slots of so many positions, and the bytes of it all."""

    budget_bytes: int
    weights_bytes: int
    slot_bytes: int
    slots: int
    context_length: int
    workspace_bytes: int
    voice_cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.slots * self.slot_bytes + self.workspace_bytes + self.voice_cache_bytes

    @property
    def size(self) -> str:
        """The slots, in words."""
        return f"{self.slots} slot{'s' if self.slots > 1 else ''} × {self.context_length} positions"

    @property
    def parts(self) -> str:
        """What the bytes are for, in words."""
        parts = {"weights": self.weights_bytes, "workspace": self.workspace_bytes, "voices": self.voice_cache_bytes}
        words = [f"slots {self.slots} × {bytes_in_words(self.slot_bytes)}"]
        return ", ".join(words + [f"{name} {bytes_in_words(count)}" for name, count in parts.items() if count])

    @property
    def fits(self) -> bool:
        """Whether the budget holds it."""
        return self.total_bytes <= self.budget_bytes


def plan(demand: Demand, budget: Budget, *, slot_counts: Sequence[int], context_lengths: Sequence[int]) -> MemoryPlan:
    """The most slots, and then the longest, that the budget holds.

    Of the candidates, each ascending: as many slots as fit at the shortest length; a longer one only when there are as
    many slots as there may be. So a larger budget never gives less of either. Raises BadSetting, which says what is
    needed and what would fit, when not even the least does.
    """

    def sized(slots: int, context_length: int) -> MemoryPlan:
        return MemoryPlan(
            budget_bytes=budget.bytes,
            weights_bytes=demand.weights_bytes,
            slot_bytes=demand.slot_bytes(context_length),
            slots=slots,
            context_length=context_length,
            workspace_bytes=demand.workspace_bytes(slots, context_length),
            voice_cache_bytes=demand.voice_cache_bytes,
        )

    def largest(plans: Iterable[MemoryPlan]) -> MemoryPlan | None:
        return next((candidate for candidate in plans if candidate.fits), None)

    least = sized(slot_counts[0], context_lengths[0])
    if least.weights_bytes > budget.bytes:
        raise BadSetting(f"the weights alone take {bytes_in_words(least.weights_bytes)}; {budget.in_words}")
    chosen = largest(sized(slots, context_lengths[0]) for slots in reversed(slot_counts))
    if chosen is None:
        holds = largest(sized(slots, least.context_length) for slots in range(least.slots - 1, 0, -1))
        holds = holds or largest(sized(1, length) for length in shorter_lengths(least.context_length))
        raise BadSetting(
            f"it takes {bytes_in_words(least.total_bytes)} to hold {least.size} ({least.parts}); {budget.in_words}, "
            f"which holds {holds.size if holds else 'not a single slot'}"
        )
    if chosen.slots == slot_counts[-1]:
        chosen = largest(sized(chosen.slots, length) for length in reversed(context_lengths)) or chosen
    return chosen


def shorter_lengths(length: int) -> Iterator[int]:
    """Half of a length, half of that, and so on, while it is of any use."""
    while (length := length // 2) >= SHORTEST_USEFUL_LENGTH:
        yield length


def module_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of modules, each counted once."""
    tensors: dict[int, Tensor] = {}
    for module in modules:
        tensors |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def held_bytes(holder: object) -> int:
    """Bytes of the tensors in a dataclass of tensors, tuples and dataclasses, as they are when it is made."""
    if isinstance(holder, Tensor):
        return holder.nbytes
    if isinstance(holder, tuple):
        return sum(map(held_bytes, holder))
    if is_dataclass(holder):
        return sum(held_bytes(getattr(holder, field.name)) for field in fields(holder))
    return 0


def run_bytes(config: TransformerConfig, *, rows: int, width: int, reach: int, dtype: torch.dtype) -> int:
    """Activations of one layer of a stack in a run of `width` positions of each of `rows` slots.

    The residual, its norm, what comes of attention and feed-forward (4 × hidden) and the feed-forward's three products
    in the model's precision; queries, keys and values in it and, while they are rotated, three times in float32; each
    query's scores and mask over `reach` columns in float32.
    """
    heads = config.heads + 2 * config.kv_heads
    position = (4 * config.hidden_size + 3 * config.intermediate_size) * dtype.itemsize
    position += heads * config.head_dim * (dtype.itemsize + 3 * torch.float32.itemsize)
    return rows * width * (position + 2 * config.heads * reach * torch.float32.itemsize)
