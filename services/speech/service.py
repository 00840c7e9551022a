"""SpeechService: messages to engine inputs, engine frames to messages."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from services.runtime.errors import Cancelled, InvalidArgument
from services.runtime.stream import IndexCheck, RequestStream
from services.runtime.tensors import check_frame, decode_tensor
from services.runtime.tracing import call_span, current_span
from services.speech.engine import Codes, Sampling, SpeechEngine, SpeechFrame, SpeechStep, SpeechStream, Voice
from services.speech.metrics import SpeechMetrics
from services.speech.model import SpeechConfig
from services.speech.sampling_defaults import MAXIMUM_TEMPERATURE
from services.stage.due import check_due
from services.stage.gathering import Gathering, check_lasts
from services.stage.refusals import refusals

SERVICE_NAME = speech_pb2.DESCRIPTOR.services_by_name["SpeechService"].full_name
SETTLE_SECONDS = 5.0
_REASONS = {"stop": types_pb2.FINISH_REASON_STOP, "length": types_pb2.FINISH_REASON_LENGTH}

Context = grpc.aio.ServicerContext[speech_pb2.GenerateFramesRequest, speech_pb2.GenerateFramesResponse]


class SpeechService(speech_pb2_grpc.SpeechServiceServicer):
    """The servicer; `attach` gives it the engine before the first call."""

    _engine: SpeechEngine

    def __init__(self, metrics: SpeechMetrics) -> None:
        self._metrics = metrics

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the servicer on the server."""
        speech_pb2_grpc.add_SpeechServiceServicer_to_server(self, server)

    def attach(self, engine: SpeechEngine) -> None:
        """Gives the servicer its engine."""
        self._engine = engine
        self._metrics.slots.watch(lambda: engine.slots_in_use, engine.slot_count)
        self._metrics.slots.watch_memory(lambda: engine.memory().free_bytes, engine.memory().total_bytes)
        engine.on_cut = self._metrics.slots.release.observe
        engine.on_step = self._metrics.slots.batch_size.observe

    async def GenerateFrames(self, requests: AsyncIterator[speech_pb2.GenerateFramesRequest], context: Context) -> None:
        """One reply's frames; the law of the stream is in the proto."""
        with self._metrics.slots.count_stream() as outcome, call_span("speech") as span, refusals():
            reader = RequestStream(requests)
            opening: speech_pb2.GenerateFramesOpen = await reader.open()
            stream = self._stream(opening)
            feed = StepFeed(reader, stream, self._engine.model.config)
            gathering = Gathering(stream, check_lasts(opening.frame_seconds, field="open.frame_seconds"))
            async with asyncio.TaskGroup() as tasks:
                # Within the group: one that it let out would be wrapped and taken for a bug.
                with refusals():
                    async with self._engine.open(stream):
                        self._metrics.slots.queue_wait.observe(stream.queue_seconds)
                        if span is not None:
                            span.parts(time.perf_counter() - stream.queue_seconds, ("queue", stream.queue_seconds))
                        await context.write(self._opened(stream))
                        feeding = tasks.create_task(feed.run())
                        first_frame_seconds = await self._send_frames(stream, gathering, feed, context)
                outcome.reason = stream.finish_reason
                finished = speech_pb2.GenerateFramesFinished(
                    reason=_REASONS[stream.finish_reason],
                    frame_count=stream.frame_count,
                    transcript_token_ids=stream.transcript_ids if opening.return_prompt else (),
                    first_frame_seconds=first_frame_seconds,
                    step_count=stream.step_count,
                )
                await context.write(speech_pb2.GenerateFramesResponse(finished=finished))
                await feed.settle()
                feeding.cancel()

    async def _send_frames(
        self, stream: SpeechStream, gathering: Gathering[SpeechFrame], feed: "StepFeed", context: Context
    ) -> float:
        """Sends frames until the reply ends; returns the time to the first one, in seconds."""
        first_frame_seconds, last = 0.0, 0.0
        timing: speech_pb2.FirstFrameTiming | None = None
        while frames := await gathering.message():
            for frame in frames:
                if last:
                    self._metrics.frame_interval.observe(frame.made_at - last)
                else:
                    first_frame_seconds = time.perf_counter() - feed.first_step_at
                    self._metrics.first_frame.observe(first_frame_seconds)
                    self._metrics.voices.count(stream.found_voice)
                    timing = _timing(stream, first_frame_seconds)
                    if (span := current_span()) is not None:
                        span.parts(
                            feed.first_step_at,
                            ("queue", timing.queue_seconds),
                            ("voice_prefill", timing.prefill_seconds),
                            ("first_frame", timing.frame_seconds),
                        )
                last = frame.made_at
            spoken = speech_pb2.SpokenFrames(
                index=frames[0].index,
                frames=[types_pb2.Frame(codes=frame.codes) for frame in frames],
                step_counts=[frame.step_count for frame in frames],
            )
            await context.write(speech_pb2.GenerateFramesResponse(frames=spoken, timing=timing))
            timing = None
            self._metrics.frames.inc(len(frames))
        return first_frame_seconds

    def _stream(self, opening: speech_pb2.GenerateFramesOpen) -> SpeechStream:
        limit = opening.max_frame_count if opening.HasField("max_frame_count") else None
        if limit == 0:
            raise InvalidArgument("open.max_frame_count must be at least 1, got 0", field="open.max_frame_count")
        prompt = opening.voice_prompt
        if not prompt.transcript.strip():
            raise InvalidArgument(
                "open.voice_prompt.transcript must say what is said in the voice's example, got nothing",
                reason="NO_TRANSCRIPT",
                field="open.voice_prompt.transcript",
            )
        if not prompt.frames:
            raise InvalidArgument("open.voice_prompt.frames must have a frame", field="open.voice_prompt.frames")
        voice = Voice(prompt.transcript, self._codes(prompt.frames, "open.voice_prompt.frames"))
        resumed = self._codes(opening.resume.frames, "open.resume.frames")
        stream = SpeechStream(voice, self._sampling(opening.sampling), limit, resumed)
        stream.due_seconds = check_due(opening.due_seconds)
        stream.transcript_ids = self._engine.transcript_ids(voice)
        return stream

    def _codes(self, frames: Iterable[types_pb2.Frame], field: str) -> list[Codes]:
        config = self._engine.model.config
        return [
            check_frame(
                frame,
                codebook_count=config.codebook_count,
                codebook_size=config.code_count,
                field=f"{field}[{index}]",
            )
            for index, frame in enumerate(frames)
        ]

    def _sampling(self, sampling: types_pb2.Sampling) -> Sampling:
        defaults = self._engine.sampling_defaults
        temperature = sampling.temperature if sampling.HasField("temperature") else defaults.temperature
        top_k = sampling.top_k if sampling.HasField("top_k") else defaults.top_k
        if not (math.isfinite(temperature) and 0 <= temperature <= MAXIMUM_TEMPERATURE):
            raise InvalidArgument(
                f"sampling.temperature must be 0 to {MAXIMUM_TEMPERATURE:g}, got {temperature:g}",
                field="sampling.temperature",
            )
        code_count = self._engine.model.config.code_count
        if top_k > code_count:
            raise InvalidArgument(f"sampling.top_k must be 0 to {code_count}, got {top_k}", field="sampling.top_k")
        return Sampling(temperature, top_k, sampling.seed)

    def _opened(self, stream: SpeechStream) -> speech_pb2.GenerateFramesResponse:
        config = self._engine.model.config
        return speech_pb2.GenerateFramesResponse(
            opened=speech_pb2.GenerateFramesOpened(
                hidden_size=config.backbone.hidden_size,
                codebook_count=config.codebook_count,
                codebook_size=config.code_count,
                context_length=self._engine.context_length,
                queue_seconds=stream.queue_seconds,
            )
        )


def _timing(stream: SpeechStream, first_frame_seconds: float) -> speech_pb2.FirstFrameTiming:
    waited_seconds = first_frame_seconds - stream.prefill_seconds - stream.frame_seconds
    return speech_pb2.FirstFrameTiming(
        queue_seconds=max(0.0, waited_seconds),
        prefill_seconds=stream.prefill_seconds,
        frame_seconds=stream.frame_seconds,
    )


class StepFeed:
    """Hands the client's steps to the engine, in order, until `end`."""

    def __init__(
        self, reader: RequestStream[speech_pb2.GenerateFramesRequest], stream: SpeechStream, config: SpeechConfig
    ) -> None:
        self.first_step_at = time.perf_counter()
        self._reader = reader
        self._stream = stream
        self._config = config
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Returns when the client half-closes after `end`, or in any way once the reply is spoken."""
        try:
            await self._feed()
        except Cancelled:
            if not self._stream.done:
                raise
        self._ended.set()

    async def _feed(self) -> None:
        index = IndexCheck("step.index")
        text_ended = False
        async for _, message in self._reader:
            if not message.steps:
                raise InvalidArgument("steps.steps must have at least one step", field="steps.steps")
            steps = []
            for step in message.steps:
                index.expect(step.index)
                if step.index == 0:
                    self.first_step_at = time.perf_counter()
                if text_ended:
                    raise InvalidArgument("no step may follow the one with is_end", reason="OUT_OF_ORDER", field="step")
                steps.append(self._step(step))
                text_ended = step.is_end
            await self._stream.send(*steps)
        self._stream.end()
        self._ended.set()
        await self._reader.nothing_more()

    def _step(self, step: types_pb2.Step) -> SpeechStep:
        if step.token_id >= self._config.vocabulary_size:
            raise InvalidArgument(
                f"step.token_id must be below {self._config.vocabulary_size}, got {step.token_id}",
                field="step.token_id",
            )
        shape = (self._config.backbone.hidden_size,)
        hidden = decode_tensor(step.hidden_state, shape=shape, field="step.hidden_state")
        return SpeechStep(step.token_id, hidden, step.is_end)

    async def settle(self) -> None:
        """Gives a client whose reply ended before its steps did the time to say `end`.

        A call that ends under a client that is just writing looks to some gRPC libraries like a broken one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._ended.wait()
