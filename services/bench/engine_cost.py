"""What an output of each engine costs, the engine alone and its input always there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from services.bench.clock import Clock
from services.bench.conversation import Conversation
from services.bench.direct import Spoken, speech_step, speech_stream
from services.bench.engines import StageEngines
from services.bench.shape import CannotMeasure, Cost
from services.codec.engine import DecodeStream
from services.inference.slots import SlotEngine, Stream
from services.reasoner.engine import ReasonerStream
from services.speech.engine import Sampling

PROMPT_PIECES = 12
"""At least as many as a prompt of the benchmark is read in: features, identities, blocks of sound, chunks."""


@dataclass(frozen=True)
class EngineCost:
    """Measures a set of engines with what a reply was made of: one step and one frame more than the shape has.

    Times run from the first output to the last, so no prefill is in them, and the first output is the one too many.
    """

    engines: StageEngines
    conversation: Conversation
    spoken: Spoken
    clock: Clock

    async def measure(self, sampling: Sampling, stream_count: int) -> Cost:
        """The time of a round, which gives each of so many streams its next output."""
        return Cost(
            speech_frame_seconds=await self.speech(sampling, stream_count),
            reasoner_step_seconds=await self.reasoner(stream_count),
            codec_frame_seconds=await self.codec(stream_count),
        )

    async def speech(self, sampling: Sampling, stream_count: int) -> float:
        """The time of a frame of each stream, all in step with each other."""
        voice, frame_count = self.conversation.voice(), len(self.spoken.frames)
        streams = [
            speech_stream(self.engines, voice, replace(sampling, seed=sampling.seed + index), frame_count)
            for index in range(stream_count)
        ]
        steps = [speech_step(step) for step in self.spoken.steps]
        return await _round_seconds(
            self.engines.speech,
            self.clock,
            streams,
            steps,
            frame_count,
            lambda: all(stream.speaking or stream.done for stream in streams),
        )

    async def reasoner(self, stream_count: int) -> float:
        """The time of a step of each stream."""
        # Prompts are read in turn, a piece a round: the first stream that writes has to go on until the last one does.
        step_count = len(self.spoken.steps) + PROMPT_PIECES * (stream_count - 1)
        streams = [ReasonerStream(max_step_count=step_count) for _ in range(stream_count)]
        return await _round_seconds(
            self.engines.reasoner, self.clock, streams, [self.conversation.turns(0)], step_count
        )

    async def codec(self, stream_count: int) -> float:
        """The time of the sound of a frame of each stream."""
        frames = [frame.codes for frame in self.spoken.frames]
        streams = [DecodeStream() for _ in range(stream_count)]
        return await _round_seconds(self.engines.codec, self.clock, streams, frames, len(frames))


async def _round_seconds(
    engine: SlotEngine[Any],
    clock: Clock,
    streams: Sequence[Stream[Any, Any]],
    inputs: Sequence[Any],
    output_count: int,
    prefilled: Callable[[], bool] = lambda: True,
) -> float:
    """The mean time in which every stream gives an output, while all of them do; each gets the same inputs."""
    async with AsyncExitStack() as slots:
        for stream in streams:
            await slots.enter_async_context(engine.open(stream))
        while not await engine.call(prefilled):
            pass  # between two calls is a round
        async with asyncio.TaskGroup() as tasks:
            async with _held(engine):
                for stream in streams:
                    tasks.create_task(_feed(stream, inputs))
                await asyncio.sleep(0)  # each sends what its inbox holds
            reading = [tasks.create_task(_read(stream, clock)) for stream in streams]
    times = [reader.result() for reader in reading]
    if (fewest := min(map(len, times))) < output_count:
        raise CannotMeasure(f"a stream ended after {fewest} of {output_count} outputs: its context is shorter")
    began, ended = max(own[0] for own in times), min(own[-1] for own in times)
    if began >= ended:
        raise CannotMeasure(f"{len(streams)} streams of {output_count} outputs were never live at once: ask for more")
    within = [sum(began < moment <= ended for moment in own) for own in times]
    return (ended - began) * len(streams) / sum(within)


async def _feed(stream: Stream[Any, Any], inputs: Sequence[Any]) -> None:
    for item in inputs:
        await stream.send(item)
    stream.end()


async def _read(stream: Stream[Any, Any], clock: Clock) -> list[float]:
    return [clock() async for _ in stream]


@asynccontextmanager
async def _held(engine: SlotEngine[Any]) -> AsyncIterator[None]:
    """Keeps the device thread between two rounds for the block, so that all streams go on together."""
    arrived, released = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        released.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.call(wait))
        try:
            await asyncio.to_thread(arrived.wait)
            yield
        finally:
            released.set()
