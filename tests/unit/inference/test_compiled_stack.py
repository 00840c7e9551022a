"""Rows that two threads run are the bits of one thread."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.inference.cpu import compiled_stack, stack
from services.inference.cpu.compiled_stack import SHARED_ROWS, CompiledStack
from services.inference.kv_cache import KvCache
from services.inference.transformer import Transformer, transformer_config

HIDDEN, POSITIONS = 48, 400

Result = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    section = {
        "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 80, "rms_norm_eps": 1e-5, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    made = Transformer(transformer_config(section, qkv_bias=True, default_theta=1e4))
    generator = torch.Generator().manual_seed(0)
    for tensor in made.state_dict().values():
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return made


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs in the caller's thread."""

    def run_alone(*what: Any) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(compiled_stack, "SHARED_ROWS", 10**9)
            return run(*what)

    return run_alone


def run(transformer: Transformer, slots: list[int], columns: list[int], wanted: list[int], seed: int = 0) -> Result:
    """The wanted states, and what the cache holds then."""
    compiled, cache = transformer.compiled, transformer.cache(slots=3, positions=POSITIONS)
    assert isinstance(compiled, CompiledStack)
    chance = np.random.default_rng(seed)
    cache.entries.copy_(torch.from_numpy(chance.normal(size=cache.entries.shape).astype(np.float32)))
    x = np.zeros((len(slots), compiled.width), np.float32)
    x[:, :HIDDEN] = chance.normal(size=(len(slots), HIDDEN))
    compiled.run(x, *map(ints, (slots, columns, columns, wanted)), cache)
    return x[: len(wanted), :HIDDEN].tobytes(), held(cache)


def ints(numbers: list[int]) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def held(cache: KvCache) -> bytes:
    return cache.entries[..., : cache.dump, :].numpy().tobytes()


@pytest.mark.parametrize("first", [0, 5, 300])
@pytest.mark.parametrize("count", [SHARED_ROWS, SHARED_ROWS + 1, 57, 96])
def test_a_prompts_rows_are_the_same_bits_on_two_threads(
    transformer: Transformer, alone: Callable[..., Result], count: int, first: int
) -> None:
    columns = list(range(first, first + count))
    for wanted in ([count - 1], [], [0], [0, count // 2 - 1, count // 2, count - 1], list(range(count))):
        assert run(transformer, [1] * count, columns, wanted) == alone(transformer, [1] * count, columns, wanted)


def test_rows_of_several_slots_are_too(transformer: Transformer, alone: Callable[..., Result]) -> None:
    slots = [0] * 10 + [2] * 11 + [1] * 12
    columns = [*range(40, 50), *range(11), *range(200, 212)]
    assert run(transformer, slots, columns, [9, 20, 32]) == alone(transformer, slots, columns, [9, 20, 32])


def test_callers_at_the_same_time_do_not_hinder_each_other(
    transformer: Transformer, alone: Callable[..., Result]
) -> None:
    prompts = [(transformer, [0] * 60, list(range(60)), [59], seed) for seed in range(12)]
    expected = [alone(*prompt) for prompt in prompts]
    with ThreadPoolExecutor(3) as callers:
        assert list(callers.map(lambda prompt: run(*prompt), prompts)) == expected


@pytest.mark.parametrize("broken", ["both", "the second"])
def test_a_thread_that_fails_before_it_takes_a_part_spoils_nothing(
    transformer: Transformer, alone: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    prompt = (transformer, [0] * 40, list(range(40)), [39])
    run_together, caller = stack.run_together, threading.current_thread()

    def run_or_fail(*what: Any) -> None:
        if broken == "both" or threading.current_thread() is not caller:
            raise MemoryError("no room")
        run_together(*what)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "run_together", run_or_fail)
        if broken == "both":
            with pytest.raises(MemoryError, match="no room"):
                run(*prompt)
        else:
            assert run(*prompt) == alone(*prompt)
    assert run(*prompt) == alone(*prompt)
