"""The scheduler of the codec's slots, with a real model on its device thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch

from services.bench.plain_codec import plain_codec
from services.codec.engine import CodecEngine, DecodeStream
from services.codec.model import Codec
from services.codec.streaming_decoder import exact_float32
from services.inference.slots import Full

Codes = list[list[int]]


@pytest.fixture
def codec(make_mimi) -> Codec:
    """A codec whose window is shorter than the replies here."""
    return Codec(make_mimi(5), 4)


@asynccontextmanager
async def running(codec: Codec, slot_count: int = 2, queue_limit: int = 4) -> AsyncIterator[CodecEngine]:
    """A warm engine. A slot is free a round after its stream: with no queue, the next stream may come too early."""
    engine = CodecEngine(codec, slot_count=slot_count, queue_limit=queue_limit)
    engine.start()
    try:
        await engine.call(engine.warm)
        yield engine
    finally:
        engine.close()


async def decode(engine: CodecEngine, codes: Codes, chunk: int = 1, played: int = 0) -> bytes:
    """The sound of a reply whose frames are sent in chunks, each when the sound of the one before it is there."""
    heard: list[np.ndarray] = []
    async with engine.open(DecodeStream(played)) as stream:
        for start in range(0, len(codes), chunk):
            for frame in codes[start : start + chunk]:
                await stream.send(frame)
            while len(heard) < min(start + chunk, len(codes)) - played:
                heard.append(await anext(stream))
        stream.end()
        assert [samples async for samples in stream] == []
    return b"".join(samples.tobytes() for samples in heard)


async def test_sound_does_not_depend_on_how_frames_are_chunked(codec, random_codes) -> None:
    codes = random_codes(codec, 30)
    with exact_float32():
        at_once = plain_codec(codec.mimi).decode(codes.T[None]).audio_values[0, 0].numpy()
    async with running(codec) as engine:
        heard = [await decode(engine, codes.tolist(), chunk) for chunk in (1, 2, 3, 7, 30)]
    assert len(set(heard)) == 1
    np.testing.assert_allclose(np.frombuffer(heard[0], np.float32), at_once, atol=1e-4, rtol=0)


async def test_a_resumed_reply_goes_on_with_the_very_samples(codec, random_codes) -> None:
    codes = random_codes(codec, 12).tolist()
    async with running(codec) as engine:
        whole = await decode(engine, codes)
        for played in range(len(codes) + 1):
            assert await decode(engine, codes, chunk=5, played=played) == whole[played * len(whole) // len(codes) :]


async def test_streams_at_once_equal_streams_alone(codec, random_codes) -> None:
    replies = [random_codes(codec, 10 + seed, seed).tolist() for seed in range(9)]
    async with running(codec, slot_count=3, queue_limit=9) as engine:
        alone = [await decode(engine, reply) for reply in replies]
        together = await asyncio.gather(*(decode(engine, reply, 1 + i % 4) for i, reply in enumerate(replies)))
    assert together == alone


async def test_an_error_in_a_round_fails_the_streams_of_that_round_only(codec, random_codes) -> None:
    codes = random_codes(codec, 4).tolist()
    async with running(codec) as engine:
        alone = await decode(engine, codes)
        healthy = engine._decoder

        class Broken:
            width = run = 1

            def reset(self, slot: int) -> None:
                healthy.reset(slot)

            def step(self, frames: Mapping[int, Sequence[Sequence[int]]]) -> dict[int, list[np.ndarray]]:
                raise RuntimeError("out of memory")

        async with engine.open(DecodeStream()) as waiting, engine.open(DecodeStream()) as unlucky:
            await waiting.send(codes[0])
            heard = [await anext(waiting)]
            await engine.call(lambda: setattr(engine, "_decoder", Broken()))
            await unlucky.send(codes[0])
            with pytest.raises(RuntimeError, match="out of memory"):
                await anext(unlucky)
            await engine.call(lambda: setattr(engine, "_decoder", healthy))
            for frame in codes[1:]:
                await waiting.send(frame)
                heard.append(await anext(waiting))
        assert b"".join(samples.tobytes() for samples in heard) == alone
        assert await decode(engine, codes) == alone


async def test_a_reader_that_lags_holds_up_nobody_else(codec, random_codes) -> None:
    codes = random_codes(codec, 200).tolist()
    async with running(codec) as engine:
        async with engine.open(DecodeStream()) as lagging:

            async def feed() -> None:
                for frame in codes:
                    await lagging.send(frame)
                lagging.end()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(feed())
                quick = await decode(engine, codes, chunk=7)
                assert lagging.unread_count < len(codes)
                assert not lagging.ended
                heard = [samples async for samples in lagging]
        assert b"".join(samples.tobytes() for samples in heard) == quick


async def test_a_reply_without_frames_is_silent(codec) -> None:
    async with running(codec) as engine:
        assert await decode(engine, []) == b""


async def test_all_slots_and_queue_places_taken_is_full(codec) -> None:
    async with running(codec, slot_count=1, queue_limit=1) as engine:
        async with engine.open(DecodeStream()):
            queued = asyncio.ensure_future(decode(engine, []))
            await asyncio.wait([queued], timeout=0)
            with pytest.raises(Full):
                await decode(engine, [])
        assert await queued == b""


async def test_encoding_is_bounded_and_runs_between_rounds(codec) -> None:
    sound = np.zeros(codec.samples_per_frame * 3, np.float32)
    async with running(codec, queue_limit=1) as engine:
        busy, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            busy.set()
            go_on.wait()

        held = asyncio.ensure_future(engine.call(hold))
        await asyncio.to_thread(busy.wait)
        waiting = [asyncio.ensure_future(engine.encode(sound)) for _ in range(2)]
        await asyncio.wait(waiting, timeout=0)
        with pytest.raises(Full):
            await engine.encode(sound)
        go_on.set()
        await held
        expected = codec.encode(torch.from_numpy(sound)).tolist()
        assert await asyncio.gather(*waiting) == [expected, expected]
        assert await engine.encode(sound) == expected
