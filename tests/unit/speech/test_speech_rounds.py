"""What is done in which round: a voice's prefill alternates with the frames of others, and who is due first leads."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from services.speech.engine import Sampling, SpeechEngine, SpeechStep, SpeechStream, Voice
from tests.conftest import gated, started

GREEDY = Sampling(0.0, 0, 0)
CODES = np.random.default_rng(0).integers(1, 2048, (240, 8)).tolist()
FRAME = "frame"


def noted(engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What the engine does from now on: a frame of all, or a chunk of a slot's voice."""
    done: list[str | int] = []
    run, prefill = engine.step.run, engine.step.prefill

    def note_frame(*what: Any, **how: Any) -> Any:
        done.append(FRAME)
        return run(*what, **how)

    def note_chunk(chunk: Any, slot: int) -> None:
        done.append(slot)
        prefill(chunk, slot)

    monkeypatch.setattr(engine.step, "run", note_frame)
    monkeypatch.setattr(engine.step, "prefill", note_chunk)
    return done


def new_stream(engine: SpeechEngine, voice: Voice, limit: int, due_seconds: float = 0.0) -> SpeechStream:
    stream = SpeechStream(voice, GREEDY, limit)
    stream.transcript_ids = engine.transcript_ids(voice)
    stream.due_seconds = due_seconds
    return stream


async def speak(engine: SpeechEngine, stream: SpeechStream) -> int:
    """Says all; returns how many frames there were."""
    chance = np.random.default_rng(0)
    async with engine.open(stream):
        for number in range(30):
            await stream.send(SpeechStep(30 + number, chance.normal(0, 1, 48).astype(np.float32), False))
        stream.end()
        return len([frame async for frame in stream])


async def test_a_long_voice_never_keeps_others_waiting_for_more_than_a_chunk(
    new_speech_engine: Callable[..., SpeechEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(new_speech_engine(slot_count=3, prefill_chunk=8)) as engine:
        done = noted(engine, monkeypatch)
        with gated(engine.step, "run", at_call=3) as gate:
            speaking = asyncio.create_task(speak(engine, new_stream(engine, Voice("Hi.", CODES[:2]), 50)))
            await gate.reached()
            long = [new_stream(engine, Voice("Hi.", CODES[start:]), 1) for start in (0, 1)]
            preparing = [asyncio.create_task(speak(engine, stream)) for stream in long]
            await asyncio.sleep(0)
            gate.opened.set()
            assert await speaking == 50
            assert await asyncio.gather(*preparing) == [1, 1]
    frames = [index for index, what in enumerate(done) if what == FRAME][:50]
    assert frames[-1] - frames[0] > 80, "no prefill was under way"
    assert all(later - earlier <= 2 for earlier, later in pairwise(frames))


async def test_who_is_due_first_has_every_other_chunk(
    new_speech_engine: Callable[..., SpeechEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(new_speech_engine(slot_count=4, prefill_chunk=8)) as engine:
        done = noted(engine, monkeypatch)
        with gated(engine.step, "run", at_call=1) as gate:
            speaking = asyncio.create_task(speak(engine, new_stream(engine, Voice("Hi.", CODES[:2]), 1)))
            await gate.reached()
            streams = [
                new_stream(engine, Voice("Hi.", CODES[number:]), 1, due_seconds)
                for number, due_seconds in enumerate([900.0, 800.0, 0.0])
            ]
            preparing = [asyncio.create_task(speak(engine, stream)) for stream in streams]
            await asyncio.sleep(0)
            gate.opened.set()
            await asyncio.gather(speaking, *preparing)
    urgent = streams[2].slot
    chunks = [what for what in done if what != FRAME]
    turns = [index for index, slot in enumerate(chunks) if slot == urgent]
    assert all(later - earlier <= 2 for earlier, later in pairwise(turns))
    # The others share what is left.
    between = [slot for slot in chunks[turns[0] : turns[-1]] if slot != urgent]
    counts = [between.count(stream.slot) for stream in streams[:2]]
    assert min(counts) >= len(turns) // 2 - 2
