"""CodecService: messages to frames and sound, and back."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import grpc
import numpy as np
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from services.codec.engine import CodecEngine, DecodeStream, Frame
from services.codec.metrics import CodecMetrics
from services.codec.model import Codec
from services.runtime.audio import check_duration, check_format, decode_pcm, encode_pcm
from services.runtime.errors import InvalidArgument
from services.runtime.stream import IndexCheck, RequestStream
from services.runtime.tensors import check_frame
from services.runtime.tracing import call_span, current_span
from services.stage.due import check_due
from services.stage.refusals import refusals

SERVICE_NAME = codec_pb2.DESCRIPTOR.services_by_name["CodecService"].full_name
MINIMUM_SOUND_SECONDS = 0.02
MAXIMUM_SOUND_SECONDS = 30.0
# Most frames whose sound leaves in one message: 2.6 s.
MESSAGE_FRAMES = 32

EncodeContext = grpc.aio.ServicerContext[codec_pb2.EncodeRequest, codec_pb2.EncodeResponse]
DecodeContext = grpc.aio.ServicerContext[codec_pb2.DecodeRequest, codec_pb2.DecodeResponse]


class CodecService(codec_pb2_grpc.CodecServiceServicer):
    """The servicer; `attach` gives it the engine before the first call."""

    _engine: CodecEngine

    def __init__(self, metrics: CodecMetrics) -> None:
        self._metrics = metrics

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the servicer on the server."""
        codec_pb2_grpc.add_CodecServiceServicer_to_server(self, server)

    def attach(self, engine: CodecEngine) -> None:
        """Gives the servicer its engine."""
        self._engine = engine
        self._metrics.slots.watch(lambda: engine.slots_in_use, engine.slot_count)
        self._metrics.slots.watch_memory(lambda: engine.memory().free_bytes, engine.memory().total_bytes)
        engine.on_cut = self._metrics.slots.release.observe
        engine.on_step = self._metrics.slots.batch_size.observe

    async def Encode(
        self,
        request: codec_pb2.EncodeRequest,
        context: EncodeContext,  # noqa: ARG002 - grpc gives it
    ) -> codec_pb2.EncodeResponse:
        """Encodes a voice's example."""
        rate = self._engine.codec.sample_rate_hz
        encoding = check_format(request.audio.format, sample_rate_hz=rate, field="audio.format")
        samples = decode_pcm(request.audio.data, encoding, field="audio.data")
        check_duration(
            len(samples),
            sample_rate_hz=rate,
            minimum_seconds=MINIMUM_SOUND_SECONDS,
            maximum_seconds=MAXIMUM_SOUND_SECONDS,
            field="audio.data",
        )
        with refusals(), self._metrics.encode.time():
            frames = await self._engine.encode(samples)
        return codec_pb2.EncodeResponse(frames=[types_pb2.Frame(codes=codes) for codes in frames])

    async def Decode(self, requests: AsyncIterator[codec_pb2.DecodeRequest], context: DecodeContext) -> None:
        """One reply's sound; the law of the stream is in the proto."""
        with self._metrics.slots.count_stream(), call_span("codec") as span, refusals():
            reader = RequestStream(requests)
            opening = _check_open(await reader.open(), self._engine.codec)
            stream = DecodeStream(opening.played_frame_count)
            stream.due_seconds = opening.due_seconds
            async with self._engine.open(stream):
                self._metrics.slots.queue_wait.observe(stream.queue_seconds)
                if span is not None:
                    span.parts(time.perf_counter() - stream.queue_seconds, ("queue", stream.queue_seconds))
                await context.write(self._opened(stream))
                reply = Reply(opening, stream, self._engine.codec, self._metrics)
                finished = await reply.relay(reader, context)
            await context.write(codec_pb2.DecodeResponse(finished=finished))

    def _opened(self, stream: DecodeStream) -> codec_pb2.DecodeResponse:
        codec = self._engine.codec
        return codec_pb2.DecodeResponse(
            opened=codec_pb2.DecodeOpened(
                sample_rate_hz=codec.sample_rate_hz,
                samples_per_frame=codec.samples_per_frame,
                codebook_count=codec.codebook_count,
                codebook_size=codec.codebook_size,
                queue_seconds=stream.queue_seconds,
            )
        )


@dataclass(frozen=True)
class Opening:
    """What `open` fixes for one reply."""

    encoding: types_pb2.AudioEncoding
    resumed: list[Frame]
    played_frame_count: int
    due_seconds: float


class Reply:
    """One stream that holds a slot: its frames are read while its sound is written."""

    def __init__(self, opening: Opening, stream: DecodeStream, codec: Codec, metrics: CodecMetrics) -> None:
        self._opening = opening
        self._stream = stream
        self._codec = codec
        self._metrics = metrics
        # Frames of each message of sound that is to be sent.
        self._message_sizes: deque[int] = deque()
        self._first_frame_at = 0.0
        self._last_sound_at = 0.0
        self._first_audio_seconds = 0.0

    async def relay(
        self, reader: RequestStream[codec_pb2.DecodeRequest], context: DecodeContext
    ) -> codec_pb2.DecodeFinished:
        """Decodes until the end of the input; returns the last message."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(reader))
            await self._write(context)
            reading.cancel()
        return codec_pb2.DecodeFinished(
            frame_count=self._stream.frame_count, first_audio_seconds=self._first_audio_seconds
        )

    async def _read(self, reader: RequestStream[codec_pb2.DecodeRequest]) -> None:
        resumed, played_count = self._opening.resumed, self._opening.played_frame_count
        self._first_frame_at = time.perf_counter()
        await self._decode(resumed, played_count)
        index = IndexCheck("frames.index", first=len(resumed))
        async for _, message in reader:
            index.expect(message.index, len(message.frames))
            if not message.frames:
                raise InvalidArgument("frames.frames must have at least one frame", field="frames.frames")
            frames = _check_frames(message.frames, self._codec, field="frames.frames")
            if message.index == played_count:
                self._first_frame_at = time.perf_counter()
            await self._decode(frames)
        self._stream.end()
        await reader.nothing_more()

    async def _decode(self, frames: list[Frame], played_count: int = 0) -> None:
        """Hands frames to the engine. Their sound leaves together, but for that of the first `played_count`."""
        for start in range(played_count, len(frames), MESSAGE_FRAMES):
            self._message_sizes.append(min(MESSAGE_FRAMES, len(frames) - start))
        await self._stream.send(*frames)

    async def _write(self, context: DecodeContext) -> None:
        frame_index = self._opening.played_frame_count
        async for samples in self._stream:
            count = self._message_sizes.popleft()
            await self._stream.arrived(count - 1)
            sound = np.concatenate([samples, *[await anext(self._stream) for _ in range(count - 1)]])
            timing = self._time(count)
            audio = codec_pb2.DecodedAudio(
                frame_index=frame_index, frame_count=count, data=encode_pcm(sound, self._opening.encoding)
            )
            await context.write(codec_pb2.DecodeResponse(audio=audio, timing=timing))
            frame_index += count

    def _time(self, frame_count: int) -> codec_pb2.FirstSoundTiming | None:
        timing = None
        now = time.perf_counter()
        self._metrics.frames.inc(frame_count)
        if self._last_sound_at:
            self._metrics.frame_interval.observe(now - self._last_sound_at)
        else:
            self._first_audio_seconds = now - self._first_frame_at
            self._metrics.first_audio.observe(self._first_audio_seconds)
            worked_seconds = self._stream.decode_seconds
            timing = codec_pb2.FirstSoundTiming(
                queue_seconds=max(0.0, self._first_audio_seconds - worked_seconds), decode_seconds=worked_seconds
            )
            if (span := current_span()) is not None:
                parts = ("queue", timing.queue_seconds), ("decode", timing.decode_seconds)
                span.parts(self._first_frame_at, *parts)
        for _ in range(frame_count - 1):
            self._metrics.frame_interval.observe(0.0)
        self._last_sound_at = now
        return timing


def _check_open(message: codec_pb2.DecodeOpen, codec: Codec) -> Opening:
    encoding = check_format(message.audio_format, sample_rate_hz=codec.sample_rate_hz, field="open.audio_format")
    resume = message.resume
    frames = _check_frames(resume.frames, codec, field="open.resume.frames")
    if resume.played_frame_count > len(frames):
        raise InvalidArgument(
            f"open.resume.played_frame_count must be at most {len(frames)}, the frames given, "
            f"got {resume.played_frame_count}",
            field="open.resume.played_frame_count",
        )
    return Opening(encoding, frames, resume.played_frame_count, check_due(message.due_seconds))


def _check_frames(frames: Iterable[types_pb2.Frame], codec: Codec, *, field: str) -> list[Frame]:
    return [
        check_frame(
            frame,
            codebook_count=codec.codebook_count,
            codebook_size=codec.codebook_size,
            field=f"{field}[{index}]",
        )
        for index, frame in enumerate(frames)
    ]
