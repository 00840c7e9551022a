"""A stage's size from its budget: never more than it holds, and never less for a larger one."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from services.inference.device import BadSetting
from services.inference.kv_cache import allocate
from services.inference.memory import MemoryPlan, held_bytes, module_bytes, plan, shorter_lengths
from services.inference.memory_budget import GIB, MIB, Budget


@dataclass(frozen=True)
class FakeDemand:
    """A stage whose bytes are easy to follow."""

    weights_bytes: int = 1000
    voice_cache_bytes: int = 0
    fixed_bytes: int = 0
    position_bytes: int = 1
    step_bytes: int = 0

    def slot_bytes(self, context_length: int) -> int:
        return self.fixed_bytes + (context_length + 1) * self.position_bytes

    def workspace_bytes(self, slots: int, context_length: int) -> int:
        return self.step_bytes * slots * context_length


def budget_of(count: int) -> Budget:
    return Budget(count, "memory_gib")


demands = st.builds(
    FakeDemand,
    weights_bytes=st.integers(1, 10_000),
    voice_cache_bytes=st.integers(0, 1000),
    fixed_bytes=st.integers(0, 2000),
    position_bytes=st.integers(0, 9),
    step_bytes=st.integers(0, 3),
)
candidates = st.fixed_dictionaries(
    {
        "slot_counts": st.one_of(
            st.integers(1, 40).map(lambda most: range(1, most + 1)), st.integers(1, 40).map(lambda n: range(n, n + 1))
        ),
        "context_lengths": st.lists(st.integers(16, 200), min_size=1, max_size=5, unique=True).map(sorted),
    }
)
headrooms = st.integers(0, 60_000)
shortages = st.integers(1, 20_000)


def least(demand: FakeDemand, choices: dict) -> int:
    """Bytes of the least that was asked for."""
    slots, length = choices["slot_counts"][0], choices["context_lengths"][0]
    kept = demand.weights_bytes + demand.voice_cache_bytes + slots * demand.slot_bytes(length)
    return kept + demand.workspace_bytes(slots, length)


def planned(demand: FakeDemand, headroom: int, choices: dict) -> MemoryPlan:
    """The plan for a budget that is so much more than the least that was asked for."""
    return plan(demand, budget_of(least(demand, choices) + headroom), **choices)


@given(demands, headrooms, candidates)
def test_a_plan_is_within_its_budget_and_among_what_was_asked_for(demand, headroom, choices) -> None:
    chosen = planned(demand, headroom, choices)
    assert chosen.total_bytes <= chosen.budget_bytes == least(demand, choices) + headroom
    assert chosen.slots in choices["slot_counts"]
    assert chosen.context_length in choices["context_lengths"]
    assert chosen.weights_bytes == demand.weights_bytes
    assert chosen.slot_bytes == demand.slot_bytes(chosen.context_length)
    assert chosen.workspace_bytes == demand.workspace_bytes(chosen.slots, chosen.context_length)


@given(demands, headrooms, headrooms, candidates)
def test_a_larger_budget_never_gives_less(demand, one, other, choices) -> None:
    small, large = (planned(demand, headroom, choices) for headroom in sorted((one, other)))
    assert large.slots >= small.slots
    assert large.context_length >= small.context_length


@given(demands, headrooms, candidates)
def test_nothing_more_would_fit(demand, headroom, choices) -> None:
    """One slot more does not fit at the shortest length, nor the next length with all the slots there may be."""
    chosen = planned(demand, headroom, choices)

    def needed(slots: int, length: int) -> int:
        return least(demand, {"slot_counts": [slots], "context_lengths": [length]})

    lengths, most = choices["context_lengths"], choices["slot_counts"][-1]
    if chosen.slots < most:
        assert needed(chosen.slots + 1, lengths[0]) > chosen.budget_bytes
        assert chosen.context_length == lengths[0]
    elif longer := lengths[lengths.index(chosen.context_length) + 1 :]:
        assert needed(most, longer[0]) > chosen.budget_bytes


@given(demands, shortages, candidates)
def test_what_does_not_fit_is_refused_with_what_would(demand, shortage, choices) -> None:
    count = max(0, least(demand, choices) - shortage)
    with pytest.raises(BadSetting, match="the budget is ") as refused:
        plan(demand, budget_of(count), **choices)
    holds = str(refused.value).partition("which holds ")[2].split()
    if holds and holds[0] != "not":
        slots, length = int(holds[0]), int(holds[3])
        assert least(demand, {"slot_counts": [slots], "context_lengths": [length]}) <= count


@pytest.mark.parametrize(
    ("count", "slot_counts", "lengths", "sentence"),
    [
        (
            GIB,
            range(1, 9),
            [1024],
            "the weights alone take 2.00 GiB; the budget is 1.00 GiB (memory_gib)",
        ),
        (
            3 * GIB,
            range(64, 65),
            [1024, 2048],
            "it takes 66.5 GiB to hold 64 slots × 1024 positions (slots 64 × 1.00 GiB, weights 2.00 GiB, "
            "voices 512 MiB); the budget is 3.00 GiB (memory_gib), "
            "which holds 1 slot × 512 positions",
        ),
        (
            4 * GIB,
            range(64, 65),
            [1024, 2048],
            "it takes 66.5 GiB to hold 64 slots × 1024 positions (slots 64 × 1.00 GiB, weights 2.00 GiB, "
            "voices 512 MiB); the budget is 4.00 GiB (memory_gib), "
            "which holds 1 slot × 1024 positions",
        ),
        (
            2 * GIB + 512 * MIB,
            range(1, 9),
            [1024],
            "it takes 3.50 GiB to hold 1 slot × 1024 positions (slots 1 × 1.00 GiB, weights 2.00 GiB, "
            "voices 512 MiB); the budget is 2.50 GiB (memory_gib), which holds not a single slot",
        ),
    ],
)
def test_a_refusal_names_budget_need_and_what_would_fit(count, slot_counts, lengths, sentence) -> None:
    demand = FakeDemand(weights_bytes=2 * GIB, voice_cache_bytes=512 * MIB, position_bytes=MIB, fixed_bytes=-MIB)
    with pytest.raises(BadSetting) as refused:
        plan(demand, budget_of(count), slot_counts=slot_counts, context_lengths=lengths)
    assert str(refused.value) == sentence


def test_shorter_lengths_are_halves_that_a_prompt_fits_in() -> None:
    assert list(shorter_lengths(100)) == [50, 25]
    assert list(shorter_lengths(16)) == []


def test_the_bytes_of_modules_are_counted_once() -> None:
    first = nn.Linear(3, 5)
    second = nn.Sequential(first, nn.BatchNorm1d(5))
    assert module_bytes(first) == (15 + 5) * 4
    assert module_bytes(first, second) == module_bytes(second) == 80 + 4 * 5 * 4 + 8


def test_the_bytes_that_are_held_are_those_of_the_tensors() -> None:
    cache = allocate(
        layers=3, slots=2, kv_heads=4, positions=9, head_dim=8, device=torch.device("cpu"), dtype=torch.bfloat16
    )
    assert held_bytes(cache) == 2 * (3 * 2 * 4 * 10 * 8) * 2
    assert held_bytes((cache, (torch.zeros(3), "a word"))) == held_bytes(cache) + 12
