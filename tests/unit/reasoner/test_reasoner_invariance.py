"""A reply's tokens and states are the same bytes whatever else is in the batch, however its prompt was cut or found."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.checkpoint_spec import open_checkpoint
from services.inference.tokenizer import Tokenizer
from services.reasoner import weights
from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.features import MelFeatures
from services.reasoner.model import ReasonerModel
from services.reasoner.prompt import Clip, History, Turn
from tests.conftest import GOLDEN, started
from tests.unit.stream_visits import DEVICES, Visit, random_visits, rounds, threads, visit

ALONE = Visit()
STEP_COUNT = 6
LIVE_PIECE = 4000
CHECKPOINTS = {"golden": str(GOLDEN / "checkpoint"), "small": "random:small"}

Steps = list[tuple[int, bytes]]


def sound(seed: int, seconds: float) -> Clip:
    return Clip((0.1 * np.random.default_rng(seed).normal(0, 1, round(16_000 * seconds))).astype(np.float32))


def conversations() -> list[list[Turn]]:
    """Twelve that begin alike, up to many places; one is longer than a step's shortest reach."""
    system = Turn("system", ("You are Chroma, a helpful assistant.",))
    asked = Turn("user", (sound(0, 2.5), "What was that?"))
    answered = [system, asked, Turn("assistant", ("The quick brown fox.",))]
    return [
        [system, Turn("user", ("How do I make a taco?",))],
        [system, Turn("user", ("How do I make a taco at home tonight?",))],
        [Turn("user", ("How do I make a taco?",))],
        [system, asked],
        [system, Turn("user", (sound(0, 2.5), "What was this?"))],
        [*answered, Turn("user", (sound(1, 0.4),))],
        [*answered, Turn("user", (sound(1, 0.4), sound(2, 1.1)))],
        [*answered, Turn("user", ("And now?",))],
        [system, Turn("user", (sound(3, 22.0),))],
        [system, Turn("user", (sound(1, 0.4),))],
        [*answered, Turn("user", (sound(1, 0.4),))],
        [system, Turn("user", ("How do I make a taco?",))],
    ]


@dataclass(frozen=True)
class Reasoning:
    """A model with what an engine needs beside it."""

    model: ReasonerModel
    tokenizer: Tokenizer
    features: MelFeatures

    def engine(self, *, slot_count: int, prefill_chunk: int, finds_prefixes: bool) -> ReasonerEngine:
        engine = ReasonerEngine(
            self.model, self.tokenizer, self.features, slot_count=slot_count, queue_limit=20, context_length=1024,
            prefill_chunk=prefill_chunk,
        )  # fmt: skip
        if not finds_prefixes:
            engine.kept.keep = lambda *_: None  # type: ignore[method-assign]
        return engine


@pytest.fixture(scope="module")
def new_reasoning() -> Callable[[str, str], Reasoning]:
    """Makes the golden or a random model on a device, in bfloat16 where that is not a CPU; each once."""
    made: dict[tuple[str, str], Reasoning] = {}

    def make(checkpoint: str, device: str) -> Reasoning:
        if (checkpoint, device) not in made:
            opened = open_checkpoint(CHECKPOINTS[checkpoint])
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
            model = weights.load(opened, torch.device(device), dtype)
            made[checkpoint, device] = Reasoning(model, Tokenizer(opened.folder), MelFeatures(opened.folder))
        return made[checkpoint, device]

    return make


async def write(
    engine: ReasonerEngine, turns: list[Turn], plan: Visit = ALONE, *, is_live: bool = False
) -> tuple[Steps, int]:
    """One reply's steps, and how many positions of its prompt were found. `is_live`: its turn comes piece by piece."""
    stream = ReasonerStream(STEP_COUNT)

    kinds = [type(part) for part in turns[-1].parts]

    async def feed() -> None:
        if is_live and kinds != [Clip, Clip]:  # which would be one clip
            await stream.send(History(tuple(turns[:-1])))
            for part in turns[-1].parts:
                whole = part if isinstance(part, str) else part.samples
                for start in range(0, len(whole), LIVE_PIECE):
                    await stream.send(whole[start : start + LIVE_PIECE])
                    await rounds(engine, 1)
        else:
            await stream.send(turns)
        stream.end()

    steps = [(step.token_id, step.hidden_state.tobytes()) for step in await visit(engine, stream, feed, plan)]
    return steps, stream.found_count


@pytest.fixture(scope="module")
def alone(new_reasoning: Callable[[str, str], Reasoning]) -> Callable[..., Any]:
    """Each reply in an engine that was never used before; run once for each kind of engine."""
    known: dict[tuple[Any, ...], list[Steps]] = {}

    async def write_alone(checkpoint: str, device: str, **shape: int) -> list[Steps]:
        key = (checkpoint, device, torch.get_num_threads(), *shape.values())
        if key not in known:
            known[key] = []
            for turns in conversations():
                async with started(new_reasoning(checkpoint, device).engine(**shape, finds_prefixes=False)) as engine:
                    known[key].append((await write(engine, turns))[0])
        return known[key]

    return write_alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("checkpoint", "thread_count", "slot_count", "prefill_chunk", "finds_prefixes"),
    [
        ("golden", 1, 1, 16, True),
        ("golden", 1, 2, 64, False),
        ("golden", 1, 3, 4, True),
        ("golden", 1, 5, 64, True),
        ("golden", 1, 8, 16, True),
        ("golden", 2, 1, 64, True),
        ("golden", 2, 2, 16, True),
        ("golden", 2, 3, 64, True),
        ("golden", 2, 5, 4, False),
        ("golden", 2, 8, 64, True),
        ("small", 2, 3, 64, True),
    ],
)
async def test_replies_that_come_and_go_equal_those_written_alone(
    new_reasoning: Callable[[str, str], Reasoning],
    alone: Callable[..., Any],
    device: str,
    checkpoint: str,
    thread_count: int,
    slot_count: int,
    prefill_chunk: int,
    finds_prefixes: bool,
) -> None:
    shape = {"slot_count": slot_count, "prefill_chunk": prefill_chunk}
    # Only on a CPU does a row's result not even depend on how many slots there are, or on the chunks' size.
    shape_alone = {"slot_count": 1, "prefill_chunk": 64} if device == "cpu" else shape
    with threads(thread_count):
        expected = await alone(checkpoint, device, **shape_alone)
        assert [len(steps) for steps in expected] == [STEP_COUNT] * len(conversations())
        engine = new_reasoning(checkpoint, device).engine(**shape, finds_prefixes=finds_prefixes)
        async with started(engine):
            for seed in range(2):
                plans = random_visits(slot_count + 10 * prefill_chunk + seed, len(expected))
                written = await asyncio.gather(*map(partial(write, engine, is_live=seed == 1), conversations(), plans))
                for (steps, _), whole, plan in zip(written, expected, plans, strict=True):
                    assert steps == whole[: plan.leave_after]
    assert any(found for _, found in written) == finds_prefixes
