"""What is done in which round: a prompt's prefill alternates with the steps of others."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.prompt import Turn
from tests.conftest import GoldenCase, gated, started

STEP = "step"


async def write(engine: ReasonerEngine, turns: list[Turn], limit: int) -> int:
    """Writes all; returns how many steps there were."""
    stream = ReasonerStream(limit)
    async with engine.open(stream):
        await stream.send(turns)
        stream.end()
        return len([step async for step in stream])


async def test_a_long_prompt_never_keeps_others_waiting_for_more_than_a_piece(
    new_reasoner_engine: Callable[..., ReasonerEngine],
    golden_cases: dict[str, GoldenCase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A piece is a chunk of the prompt, or a block of its sound."""
    engine, done = new_reasoner_engine(slot_count=3, prefill_chunk=8), []

    def note(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*what: Any, **how: Any) -> Any:
            done.append(name)
            return run(*what, **how)

        return noted

    async with started(engine):
        monkeypatch.setattr(engine.model, "prefill", note("chunk", engine.model.prefill))
        monkeypatch.setattr(engine.model, "encode_block", note("block", engine.model.encode_block))
        monkeypatch.setattr(engine.step, "run", note(STEP, engine.step.run))
        with gated(engine.step, "run", at_call=3) as gate:
            writing = asyncio.create_task(write(engine, golden_cases["text_only"].turns(), 60))
            await gate.reached()
            long = [golden_cases[name].turns() for name in ("long_speech", "text_and_speech")]
            preparing = [asyncio.create_task(write(engine, turns, 1)) for turns in long]
            await asyncio.sleep(0)
            gate.opened.set()
            assert await writing == 60
            assert await asyncio.gather(*preparing) == [1, 1]
    steps = [index for index, what in enumerate(done) if what == STEP][:59]
    assert {"chunk", "block"} <= set(done[steps[0] : steps[-1]])
    assert all(later - earlier <= 2 for earlier, later in pairwise(steps))
