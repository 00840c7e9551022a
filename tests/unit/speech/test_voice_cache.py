"""A voice is prefilled once and found again: the same codes, whoever was first, and never more bytes than allowed."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.inference.slots import NotFinite
from services.speech.engine import Codes, Sampling, SpeechEngine, SpeechStep, SpeechStream, Voice
from services.speech.model import SpeechModel
from services.speech.voice_cache import VoiceCache
from tests.conftest import GoldenCase, Running, gated, started, until_idle
from tests.unit.stream_visits import rounds

GREEDY = Sampling(0.0, 0, 0)
CODES = np.random.default_rng(0).integers(1, 2048, (200, 8)).tolist()
TEXT = "The quick brown fox."
CHUNK = 8


# --- the cache alone


@given(
    limit=st.integers(0, 12),
    asked=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(1, 13)), max_size=30),
)
def test_the_one_used_longest_ago_goes_and_the_bytes_are_never_more_than_allowed(
    limit: int, asked: list[tuple[str, bool, int]]
) -> None:
    """Against a model: names with their sizes, in the order of their last use."""
    cache, model = VoiceCache(limit), OrderedDict[str, int]()
    for name, is_put, size in asked:
        if is_put:
            cache.put(name.encode(), torch.full((size,), size, dtype=torch.uint8))
            if name not in model and size <= limit:
                while sum(model.values()) + size > limit:
                    model.popitem(last=False)
                model[name] = size
        else:
            found = cache.get(name.encode())
            assert (None if found is None else found.tolist()) == (
                [model[name]] * model[name] if name in model else None
            )
            if name in model:
                model.move_to_end(name)
        assert cache.held_bytes == sum(model.values()) <= limit
        assert len(cache) == len(model)


def test_bytes_are_counted_as_the_tensors_have_them() -> None:
    cache = VoiceCache(100)
    cache.put(b"a", torch.zeros(12, dtype=torch.float32))
    cache.put(b"b", torch.zeros(26, dtype=torch.bfloat16))
    assert (cache.held_bytes, len(cache)) == (100, 2)
    cache.put(b"c", torch.zeros(1, dtype=torch.uint8))
    assert (cache.held_bytes, cache.get(b"a")) == (53, None)


# --- in an engine


def steps(count: int = 3) -> list[SpeechStep]:
    chance = np.random.default_rng(1)
    return [SpeechStep(30 + n, chance.normal(0, 1, 48).astype(np.float32), False) for n in range(count)]


def new_stream(engine: SpeechEngine, voice: Voice, sampling: Sampling = GREEDY) -> SpeechStream:
    stream = SpeechStream(voice, sampling, 5)
    stream.transcript_ids = engine.transcript_ids(voice)
    return stream


async def speak(
    engine: SpeechEngine, voice: Voice, sampling: Sampling = GREEDY, stream: SpeechStream | None = None
) -> list[Codes]:
    stream = stream or new_stream(engine, voice, sampling)
    async with engine.open(stream):
        for step in steps():
            await stream.send(step)
        stream.end()
        codes = [frame.codes async for frame in stream]
    await rounds(engine, 1)  # its slot is free
    return codes


def chunk_count(engine: SpeechEngine, voice: Voice) -> int:
    return math.ceil((len(engine.transcript_ids(voice)) + len(voice.frames) + 3) / engine.prefill_chunk)


@pytest.fixture
def alone(speech_engine: Running) -> Callable[..., Any]:
    """A reply in an engine that was never used before and keeps no voice."""

    async def speak_alone(voice: Voice, sampling: Sampling = GREEDY) -> list[Codes]:
        async with speech_engine(slot_count=1, voice_cache_bytes=0) as engine:
            return await speak(engine, voice, sampling)

    return speak_alone


VOICE, LONG_VOICE = Voice(TEXT, CODES[:30]), Voice(TEXT, CODES)


async def test_a_voice_is_prefilled_once_and_speaks_the_same_ever_after(
    speech_engine: Running, golden_cases: dict[str, GoldenCase], alone: Callable[..., Any]
) -> None:
    voices = [VOICE, *(case.voice() for case in golden_cases.values())]
    distinct = {(voice.transcript, str(voice.frames)): voice for voice in voices}
    asked = [(voice, how) for how in (GREEDY, Sampling(1.0, 0, 3), Sampling(0.7, 50, 4)) for voice in voices]
    expected = [await alone(*each) for each in asked]
    async with speech_engine(slot_count=2, prefill_chunk=CHUNK) as engine:
        with gated(engine.model, "prefill", at_call=0) as counted:
            assert [await speak(engine, *each) for each in asked] == expected
        assert len(engine.voices) == len(distinct)
        assert counted.calls == sum(chunk_count(engine, voice) for voice in distinct.values())


async def test_many_that_come_at_once_with_one_voice_wait_for_the_first_of_them(
    speech_engine: Running, alone: Callable[..., Any]
) -> None:
    samplings = [Sampling(1.0, 50, seed) for seed in range(7)]
    expected = [await alone(VOICE, sampling) for sampling in samplings]
    async with speech_engine(slot_count=4, prefill_chunk=CHUNK) as engine:
        streams = [new_stream(engine, VOICE, sampling) for sampling in samplings]
        with gated(engine.model, "prefill", at_call=0) as counted:
            heard = await asyncio.gather(*(speak(engine, VOICE, stream=stream) for stream in streams))
        assert counted.calls == chunk_count(engine, VOICE)
    assert heard == expected
    assert [stream.found_voice for stream in streams] == [False, *[True] * 6]


@pytest.mark.parametrize("at_call", [1, 3])
async def test_when_the_first_leaves_amid_the_prefill_the_next_does_it(
    speech_engine: Running, alone: Callable[..., Any], at_call: int
) -> None:
    samplings = [Sampling(1.0, 50, seed) for seed in range(4)]
    expected = [await alone(LONG_VOICE, sampling) for sampling in samplings]
    async with speech_engine(slot_count=5, prefill_chunk=CHUNK) as engine:
        streams = [new_stream(engine, LONG_VOICE, sampling) for sampling in samplings]
        with gated(engine.model, "prefill", at_call=at_call) as gate:
            leaving = asyncio.create_task(speak(engine, LONG_VOICE))
            await asyncio.sleep(0)
            staying = [asyncio.create_task(speak(engine, LONG_VOICE, stream=stream)) for stream in streams]
            await gate.reached()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.opened.set()
            heard = await asyncio.gather(*staying)
            # What the first had done is done again, from the start, and once.
            whole = chunk_count(engine, LONG_VOICE)
            assert at_call + whole <= gate.calls < 2 * whole
        await until_idle(engine)
    assert heard == expected
    assert sorted(stream.found_voice for stream in streams) == [False, True, True, True]


async def test_one_that_waits_may_leave_and_harms_nobody(speech_engine: Running, alone: Callable[..., Any]) -> None:
    expected = await alone(VOICE)
    async with speech_engine(slot_count=3, prefill_chunk=CHUNK) as engine:
        with gated(engine.model, "prefill", at_call=2) as gate:
            first = asyncio.create_task(speak(engine, VOICE))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(speak(engine, VOICE)) for _ in range(2)]
            await gate.reached()
            waiting[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            gate.opened.set()
            assert await first == await waiting[1] == expected
            assert gate.calls == chunk_count(engine, VOICE)


async def test_a_prefill_that_fails_lets_the_next_try(
    speech_engine: Running, alone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await alone(VOICE)
    async with speech_engine(slot_count=3, prefill_chunk=CHUNK) as engine:
        run, calls = engine.step.prefill, 0

        def fail_once(*chunk_and_slot: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("out of memory")
            run(*chunk_and_slot)

        monkeypatch.setattr(engine.step, "prefill", fail_once)
        outcomes = await asyncio.gather(*(speak(engine, VOICE) for _ in range(3)), return_exceptions=True)
        assert calls == 2 + chunk_count(engine, VOICE)
    assert isinstance(outcomes[0], RuntimeError)
    assert outcomes[1:] == [expected] * 2


async def test_a_voice_that_is_no_number_never_speaks_and_spoils_nothing(
    new_speech_engine: Callable[..., SpeechEngine], speech_model: SpeechModel, alone: Callable[..., Any]
) -> None:
    """Not even where its keys and values were kept and are written to another slot."""
    poison = new_speech_engine().transcript_ids(Voice("zebra", VOICE.frames))[0]
    assert poison not in new_speech_engine().transcript_ids(VOICE)
    expected, table = await alone(VOICE), speech_model.text_embedding.weight
    kept = table[poison].clone()
    table[poison] = torch.nan
    try:
        async with started(new_speech_engine(slot_count=2)) as engine:
            for _ in range(3):
                with pytest.raises(NotFinite, match="frame 0"):
                    await speak(engine, Voice("zebra", VOICE.frames))
                assert await speak(engine, VOICE) == expected
    finally:
        table[poison] = kept


async def test_without_room_for_voices_each_is_prefilled_anew(
    speech_engine: Running, alone: Callable[..., Any]
) -> None:
    expected = await alone(VOICE)
    async with speech_engine(slot_count=3, prefill_chunk=CHUNK, voice_cache_bytes=0) as engine:
        streams = [new_stream(engine, VOICE) for _ in range(4)]
        with gated(engine.model, "prefill", at_call=0) as counted:
            heard = await asyncio.gather(*(speak(engine, VOICE, stream=stream) for stream in streams))
        assert counted.calls == 4 * chunk_count(engine, VOICE)
        assert (len(engine.voices), engine.voices.held_bytes) == (0, 0)
    assert heard == [expected] * 4
    assert not any(stream.found_voice for stream in streams)


async def test_the_voice_used_longest_ago_makes_room(speech_engine: Running, alone: Callable[..., Any]) -> None:
    """Room for two of three voices that take up the same."""
    voices = [Voice(TEXT, CODES[start : start + 20]) for start in (0, 20, 40)]
    expected = [await alone(voice) for voice in voices]
    async with speech_engine(slot_count=1) as engine:
        await speak(engine, voices[0])
        one_bytes = engine.voices.held_bytes
    async with speech_engine(slot_count=1, voice_cache_bytes=2 * one_bytes + one_bytes // 2) as engine:
        found = []
        for number in (0, 1, 0, 2, 0, 1, 2):
            stream = new_stream(engine, voices[number])
            assert await speak(engine, voices[number], stream=stream) == expected[number]
            found.append(stream.found_voice)
            assert engine.voices.held_bytes <= engine.voices.limit_bytes
        assert found == [False, False, True, False, True, False, False]
        assert len(engine.voices) == 2


async def test_a_voice_too_large_to_be_kept_still_speaks(speech_engine: Running, alone: Callable[..., Any]) -> None:
    small, large = Voice(TEXT, CODES[:2]), Voice(TEXT, CODES)
    async with speech_engine(slot_count=1) as engine:
        await speak(engine, small)
        limit = engine.voices.held_bytes + 1
    async with speech_engine(slot_count=1, voice_cache_bytes=limit) as engine:
        for voice in (small, large, small, large):
            assert await speak(engine, voice) == await alone(voice)
        assert (len(engine.voices), engine.voices.held_bytes) == (1, limit - 1)


@given(
    one=st.tuples(st.lists(st.integers(0, 3), max_size=17), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
    other=st.tuples(st.lists(st.integers(0, 3), max_size=17), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
)
def test_only_equal_prompts_have_the_same_name(
    one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]
) -> None:
    """Whatever stands in the transcript can't pass for frames."""

    def name(ids: list[int], codes: list[int]) -> bytes:
        stream = SpeechStream(Voice("", [[code] * 8 for code in codes]), GREEDY)
        stream.transcript_ids = ids
        return stream.prompt

    assert (name(*one) == name(*other)) == (one == other)
    assert name([*one[0], *[one[1][0]] * 8], one[1]) != name(one[0], [one[1][0], *one[1]])
