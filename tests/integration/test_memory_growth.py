"""Reply after reply through the three engines of one process: what a reply took is given back.

CHROMA_GROWTH_REPLIES sets how many; the full run has 2000. pytest -rP shows the figures.
"""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from services.codec.__main__ import build as build_codec
from services.codec.engine import CodecEngine, DecodeStream
from services.codec.settings import CodecSettings
from services.inference.slots import Stream
from services.reasoner.__main__ import build as build_reasoner
from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.prompt import Clip, Turn
from services.reasoner.settings import ReasonerSettings
from services.speech.__main__ import build as build_speech
from services.speech.engine import Sampling, SpeechEngine, SpeechStep, SpeechStream, Voice
from services.speech.settings import SpeechSettings
from tests.conftest import until_idle

REPLY_COUNT = int(os.environ.get("CHROMA_GROWTH_REPLIES", "200"))
WARM_UP_COUNT = 40
FRAME_COUNT = 3
STEP_COUNT = 2
VOICE_FRAME_COUNT = 20
CLIP_SAMPLES = 4000

GROWTH_BYTES = 8 * 2**20
"""What an allocator may keep beyond what it kept after the warm-up; 4 kB a reply would be as much in the full run."""

SLOT_COUNT = 2
VOICE_CACHE_MIB = 1
STAGE = {"checkpoint": "random:tiny", "device": "cpu", "slots": SLOT_COUNT}


@dataclass(frozen=True)
class Engines:
    """The three stages, running."""

    reasoner: ReasonerEngine
    speech: SpeechEngine
    codec: CodecEngine


@dataclass(frozen=True)
class Living:
    """What a process holds when nothing is going on."""

    tensor_count: int
    tensor_bytes: int
    task_count: int
    thread_count: int
    resident_bytes: int
    storages: dict[StorageWeakRef, int] = field(repr=False)


@asynccontextmanager
async def running_engines() -> AsyncIterator[Engines]:
    """Builds, starts and warms the engines, and ends them."""
    engines = Engines(
        build_reasoner(ReasonerSettings(**STAGE, context_length=512)),
        build_speech(SpeechSettings(**STAGE, context_length=512, voice_cache_mib=VOICE_CACHE_MIB)),
        build_codec(CodecSettings(**STAGE)),
    )
    async with AsyncExitStack() as stack:
        for engine in (engines.reasoner, engines.speech, engines.codec):
            engine.start()
            stack.push_async_callback(asyncio.to_thread, engine.close)
            await engine.call(engine.warm)
        yield engines


def random_voice(seed: int) -> Voice:
    """A voice prompt."""
    return Voice("A voice.", np.random.default_rng(seed).integers(0, 2048, (VOICE_FRAME_COUNT, 8)).tolist())


async def relay(source: Stream[Any, Any], target: Stream[Any, Any], change: Any) -> None:
    """Hands what one stage gives to the next."""
    async for output in source:
        await target.send(change(output))
    target.end()


async def reply(engines: Engines, index: int, voice: Voice) -> int:
    """Answers a turn that nobody else has said; the samples that are heard."""
    noise = np.random.default_rng(index)
    turns = [Turn("user", (f"Say {index}.", Clip(noise.uniform(-0.1, 0.1, CLIP_SAMPLES).astype(np.float32))))]
    reasoning = ReasonerStream(max_step_count=STEP_COUNT)
    speaking = SpeechStream(voice, Sampling(0.7, 50, index), max_frame_count=FRAME_COUNT)
    speaking.transcript_ids = engines.speech.transcript_ids(voice)
    decoding = DecodeStream()
    async with (
        engines.reasoner.open(reasoning),
        engines.speech.open(speaking),
        engines.codec.open(decoding),
        asyncio.TaskGroup() as tasks,
    ):
        await reasoning.send(turns)
        reasoning.end()
        tasks.create_task(relay(reasoning, speaking, lambda s: SpeechStep(s.token_id, s.hidden_state, s.is_end)))
        tasks.create_task(relay(speaking, decoding, lambda frame: frame.codes))
        return sum([len(samples) async for samples in decoding])


async def living(engines: Engines) -> Living:
    """Takes stock."""
    for engine in (engines.reasoner, engines.speech, engines.codec):
        await until_idle(engine)
    gc.collect()
    # The type, not isinstance: some libraries' objects warn of their end when they are asked for their class.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return Living(
        tensor_count=len(tensors),
        tensor_bytes=sum(tensor.nbytes for tensor in tensors),
        task_count=len(asyncio.all_tasks()),
        thread_count=threading.active_count(),
        resident_bytes=psutil.Process().memory_info().rss,
        storages={
            StorageWeakRef(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)
        },
    )


async def test_what_lasts_is_allocated_when_an_engine_is_warm() -> None:
    """So memory that is not there is missed at the start, and not in a reply."""
    async with running_engines() as engines:
        warm = await living(engines)
        for index in range(2 * SLOT_COUNT):
            await reply(engines, index, random_voice(index))
        after = await living(engines)
    added = sum(count for storage, count in after.storages.items() if storage not in warm.storages)
    assert warm.storages
    assert added <= VOICE_CACHE_MIB * 2**20


@pytest.mark.timeout(240 + REPLY_COUNT)
async def test_replies_leave_nothing_behind() -> None:
    voice = random_voice(0)
    async with running_engines() as engines:
        for index in range(WARM_UP_COUNT):
            await reply(engines, index, voice)
        before = await living(engines)
        for index in range(WARM_UP_COUNT, WARM_UP_COUNT + REPLY_COUNT):
            sample_count = await reply(engines, index, voice)
            assert 0 < sample_count <= FRAME_COUNT * engines.codec.codec.samples_per_frame
        after = await living(engines)
    sys.stdout.write(f"{REPLY_COUNT} replies\nbefore: {before}\nafter:  {after}\n")
    assert (after.tensor_count, after.tensor_bytes) == (before.tensor_count, before.tensor_bytes)
    assert (after.task_count, after.thread_count) == (before.task_count, before.thread_count)
    assert after.resident_bytes - before.resident_bytes < GROWTH_BYTES
