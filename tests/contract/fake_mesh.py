"""The orchestrator behind a real server, with three stages that are real servers of made-up, deterministic models."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.orchestrator.call_ending import CallEnding
from services.orchestrator.clock import Clock
from services.orchestrator.service import OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.runtime.errors import InvalidArgument, MeshError, from_rpc_error
from services.runtime.interceptors import CallInterceptor, Gate, Phase
from services.runtime.stream import RequestStream
from services.runtime.tracing import SpanWriter
from services.stage.capacity import CapacityService

S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
STOP, LENGTH, CANCELLED, FAILED = (
    types_pb2.FINISH_REASON_STOP,
    types_pb2.FINISH_REASON_LENGTH,
    types_pb2.FINISH_REASON_CANCELLED,
    types_pb2.FINISH_REASON_FAILED,
)
USER, ASSISTANT, SYSTEM = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_SYSTEM
INPUT_16 = types_pb2.AudioFormat(encoding=S16, sample_rate_hz=16_000)
INPUT_32 = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=16_000)
# Not the real codec's: what a frame is must be learned.
SAMPLES_PER_FRAME, CODEBOOK_COUNT, CODEBOOK_SIZE, HIDDEN_SIZE = 480, 5, 64, 4
FACTS = {"sample_rate_hz": 24_000, "samples_per_frame": SAMPLES_PER_FRAME, "codebook_count": CODEBOOK_COUNT}


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def tone(seconds: float, seed: int = 0) -> bytes:
    """16-bit sound at 16 kHz."""
    samples = np.random.default_rng(seed).integers(-3000, 3000, round(seconds * 16_000), dtype=np.int16)
    return samples.tobytes()


class Signal:
    """Waits for a condition over plain state, without polling."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def touch(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


async def no_hook(_index: int) -> None:
    pass


def fake_capacity(slot_count: int = 1000) -> CapacityService:
    """What a stage tells of its slots; more than any test has sessions."""
    capacity = CapacityService()
    capacity.slot_count = slot_count
    return capacity


@dataclass
class Heard:
    """What a stage was told in one stream."""

    metadata: dict[str, str]
    has_deadline: bool
    open: Any = None
    messages: list[types_pb2.Message] = field(default_factory=list)
    parts: list[reasoner_pb2.TurnPart] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    is_ended: bool = False


class FakeStage:
    """Counts streams and keeps what they were told; `hook(index)` runs before each output: a gate, or an error."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.open_count = 0
        self.heard: list[Heard] = []
        self.hook: Callable[[int], Awaitable[None]] = no_hook
        # The same before each part of a turn that is heard.
        self.input_hook: Callable[[int], Awaitable[None]] = no_hook
        self.sends_finished = True
        # What is told with the first output of where the time went.
        self.timing: Any = None
        self.capacity = fake_capacity()

    @asynccontextmanager
    async def stream(self, context: Any) -> AsyncIterator[Heard]:
        heard = Heard(
            metadata={key: value for key, value in context.invocation_metadata() if isinstance(value, str)},
            has_deadline=context.time_remaining() is not None,
        )
        self.heard.append(heard)
        self.open_count += 1
        self.signal.touch()
        try:
            yield heard
        finally:
            self.open_count -= 1
            self.signal.touch()

    async def feed(self, requests: RequestStream[Any], heard: Heard) -> None:
        async for kind, payload in requests:
            match kind:
                case "message":
                    heard.messages.append(payload)
                case "part":
                    await self.input_hook(len(heard.parts))
                    heard.parts.append(payload)
                case "steps":
                    heard.items += payload.steps
            self.signal.touch()
        heard.is_ended = True
        self.signal.touch()


class FakeReasoner(FakeStage, reasoner_pb2_grpc.ReasonerServiceServicer):
    """Writes `step_count` words that depend on the whole conversation, then an end token."""

    step_count = 4
    reason = STOP
    is_wordless = False
    queue_seconds = 0.25
    # Positions that it holds; a byte of text takes one, a second of sound 25. 0: any number, and it does not tell.
    context_length = 0

    async def Generate(self, request_iterator: Any, context: Any) -> None:
        async with self.stream(context) as heard:
            requests = RequestStream(request_iterator)
            heard.open = await requests.open()
            await context.write(
                reasoner_pb2.GenerateResponse(
                    opened=reasoner_pb2.GenerateOpened(
                        hidden_size=HIDDEN_SIZE,
                        queue_seconds=self.queue_seconds,
                        context_length=self.context_length,
                    )
                )
            )
            await self.feed(requests, heard)
            for part in heard.parts:
                if "<|" in part.text:
                    raise InvalidArgument(
                        "text must not have special tokens", reason="SPECIAL_TOKEN", field="part.text"
                    )
            positions = self.positions(heard)
            if self.context_length and positions >= self.context_length:
                raise InvalidArgument("the conversation is too long: it has too many positions", reason="TOO_LONG")
            audio = b"".join(part.audio for part in heard.parts)
            words = digest(audio, [part.text for part in heard.parts], [str(message) for message in heard.messages])
            tokens = [words[index % len(words)] for index in range(self.step_count + 1)]
            resumed = list(heard.open.resume.token_ids)
            assert resumed == tokens[: len(resumed)]
            for index in range(len(resumed), len(tokens)):
                await self.hook(index)
                is_end = index == self.step_count
                step = types_pb2.Step(
                    index=index,
                    token_id=tokens[index],
                    text="" if is_end or self.is_wordless else f"{words.hex()[:4]}.{index} ",
                    hidden_state=types_pb2.Tensor(
                        data_type=types_pb2.DATA_TYPE_FLOAT32, shape=[HIDDEN_SIZE], data=bytes(4 * HIDDEN_SIZE)
                    ),
                    is_end=is_end,
                )
                is_first = index == len(resumed)
                prompt, timing = (self.prompt_size(heard), self.timing) if is_first else (None, None)
                steps = types_pb2.Steps(steps=[step])
                await context.write(reasoner_pb2.GenerateResponse(steps=steps, prompt=prompt, timing=timing))
            if self.sends_finished:
                finished = reasoner_pb2.GenerateFinished(
                    reason=self.reason, step_count=self.step_count + 1, prompt_token_count=positions
                )
                await context.write(reasoner_pb2.GenerateResponse(finished=finished))

    def positions(self, heard: Heard) -> int:
        return self.prompt_size(heard).position_count

    def prompt_size(self, heard: Heard) -> types_pb2.PromptSize:
        parts = [*heard.parts, *(part for message in heard.messages for part in message.parts)]
        sounds = (part.audio if isinstance(part, reasoner_pb2.TurnPart) else part.audio.data for part in parts)
        audio = sum(25 * len(data) // 32_000 for data in sounds)
        text = sum(len(part.text.encode()) for part in parts)
        return types_pb2.PromptSize(position_count=text + audio, audio_position_count=audio)


class FakeSpeech(FakeStage, speech_pb2_grpc.SpeechServiceServicer):
    """Speaks two frames a step; a frame depends on the voice, the seed and all steps up to its own."""

    is_silent = False
    queue_seconds = 0.5
    # As the real one does for a while.
    waits_for_end = False
    frames_per_message = 1

    async def GenerateFrames(self, request_iterator: Any, context: Any) -> None:
        async with self.stream(context) as heard, asyncio.TaskGroup() as tasks:
            requests = RequestStream(request_iterator)
            heard.open = await requests.open()
            self.signal.touch()
            if "<|" in heard.open.voice_prompt.transcript:
                raise InvalidArgument("transcript must not have special tokens", reason="REFUSED")
            opened = speech_pb2.GenerateFramesOpened(
                hidden_size=HIDDEN_SIZE, codebook_count=CODEBOOK_COUNT, queue_seconds=self.queue_seconds
            )
            await context.write(speech_pb2.GenerateFramesResponse(opened=opened))
            feeding = tasks.create_task(self.feed(requests, heard))
            base = digest(heard.open.voice_prompt.SerializeToString(), heard.open.sampling.seed)
            limit = heard.open.max_frame_count
            reason, index, resumed = STOP, 0, heard.open.resume.frames
            spoken, timing = speech_pb2.SpokenFrames(), self.timing

            async def speak() -> None:
                nonlocal spoken, timing
                if spoken.frames:
                    await context.write(speech_pb2.GenerateFramesResponse(frames=spoken, timing=timing))
                    spoken, timing = speech_pb2.SpokenFrames(), None

            while not self.is_silent:
                step_index = index // 2
                await self.signal.until(lambda wanted=step_index: len(heard.items) > wanted or heard.is_ended)
                if step_index >= len(heard.items):
                    break
                if index >= limit:
                    reason = LENGTH
                    break
                base = digest(base, heard.items[step_index].token_id, index)
                frame = types_pb2.Frame(codes=[byte % CODEBOOK_SIZE for byte in base[:CODEBOOK_COUNT]])
                if index < len(resumed):
                    assert frame == resumed[index]
                else:
                    await self.hook(index)
                    spoken.index = spoken.index if spoken.frames else index
                    spoken.frames.append(frame)
                    spoken.step_counts.append(step_index + 1)
                    if len(spoken.frames) >= self.frames_per_message:
                        await speak()
                index += 1
            await speak()
            if self.is_silent:
                await self.signal.until(lambda: heard.is_ended)
            if self.sends_finished:
                spoken_steps = len(heard.items) if reason == STOP else (index + 1) // 2
                finished = speech_pb2.GenerateFramesFinished(reason=reason, frame_count=index, step_count=spoken_steps)
                await context.write(speech_pb2.GenerateFramesResponse(finished=finished))
            if self.waits_for_end:
                await self.signal.until(lambda: heard.is_ended)
            feeding.cancel()


def sound(frame: types_pb2.Frame, encoding: types_pb2.AudioEncoding) -> bytes:
    samples = np.resize(np.array(frame.codes), SAMPLES_PER_FRAME)
    return samples.astype("<i2").tobytes() if encoding == S16 else (samples / 100).astype("<f4").tobytes()


class FakeCodec(FakeStage, codec_pb2_grpc.CodecServiceServicer):
    """Turns codes into sound, frame by frame, and sound into as many frames as there are in it."""

    queue_seconds = 0.125

    def __init__(self, signal: Signal) -> None:
        super().__init__(signal)
        self.encoded: list[types_pb2.Audio] = []

    async def Encode(self, request: codec_pb2.EncodeRequest, context: Any) -> codec_pb2.EncodeResponse:
        self.encoded.append(request.audio)
        count = -(-len(request.audio.data) // (2 * SAMPLES_PER_FRAME))
        codes = digest(request.audio.data)
        frames = [types_pb2.Frame(codes=[codes[(i + k) % 32] % CODEBOOK_SIZE for k in range(5)]) for i in range(count)]
        return codec_pb2.EncodeResponse(frames=frames)

    async def Decode(self, request_iterator: Any, context: Any) -> None:
        async with self.stream(context) as heard:
            requests = RequestStream(request_iterator)
            heard.open = await requests.open()
            opened = codec_pb2.DecodeOpened(**FACTS, codebook_size=CODEBOOK_SIZE, queue_seconds=self.queue_seconds)
            await context.write(codec_pb2.DecodeResponse(opened=opened))
            played = heard.open.resume.played_frame_count
            heard.items += heard.open.resume.frames[:played]
            await self.decode(heard, heard.open.resume.frames[played:], context)
            async for _, payload in requests:
                assert payload.index == len(heard.items)
                await self.decode(heard, payload.frames, context)
            if self.sends_finished:
                finished = codec_pb2.DecodeFinished(frame_count=len(heard.items))
                await context.write(codec_pb2.DecodeResponse(finished=finished))

    async def decode(self, heard: Heard, frames: Iterable[types_pb2.Frame], context: Any) -> None:
        for frame in frames:
            count = len(heard.items)
            await self.hook(count)
            audio = codec_pb2.DecodedAudio(
                frame_index=count, frame_count=1, data=sound(frame, heard.open.audio_format.encoding)
            )
            heard.items.append(frame)
            self.signal.touch()
            timing = self.timing if count == heard.open.resume.played_frame_count else None
            await context.write(codec_pb2.DecodeResponse(audio=audio, timing=timing))


@asynccontextmanager
async def serving(
    *adders: Callable[[grpc.aio.Server], None],
    service: str = "",
    gate: Gate | None = None,
    writer: SpanWriter | None = None,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[str, Any]]:
    """A server of the mesh without the parts that cost a test time: metrics, signals, reflection."""
    gate = gate or Gate()
    gate.phase = Phase.SERVING
    interceptors = [CallInterceptor(gate, stage=service or "orchestrator", writer=writer)]
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.max_receive_message_length", 2**24)])
    for add in adders:
        add(server)
    checks = health.aio.HealthServicer()
    await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


@dataclass
class Answer:
    """A whole reply as the client got it."""

    text: str
    audio: bytes
    ended: pb.ReplyEnded


async def drain(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def sent_error(ending: CallEnding, raised: grpc.aio.AioRpcError) -> MeshError:
    sent = await ending.error(raised)
    assert sent is not None
    return from_rpc_error(sent)


class Conversation:
    """A client's session."""

    def __init__(self, stub: Any, **opening: Any) -> None:
        self._stub, self._opening = stub, opening
        self.audio_index = itertools.count()

    async def __aenter__(self) -> "Conversation":
        self.call = self._stub.Converse()
        self._ending = CallEnding(self.call)
        await self.call.write(pb.ConverseRequest(open=pb.ConverseOpen(**self._opening)))
        self.opened = (await self.call.read()).opened
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def say(self, *things: str | bytes) -> None:
        for thing in things:
            if isinstance(thing, str):
                await self.call.write(pb.ConverseRequest(text=pb.UserText(text=thing)))
            else:
                message = pb.UserAudio(index=next(self.audio_index), data=thing)
                await self.call.write(pb.ConverseRequest(audio=message))

    async def end_turn(self) -> None:
        await self.call.write(pb.ConverseRequest(end_turn=pb.EndTurn()))

    async def cancel_reply(self) -> None:
        await self.call.write(pb.ConverseRequest(cancel_reply=pb.CancelReply()))

    async def ask(self, *things: str | bytes) -> Answer:
        await self.say(*things)
        await self.end_turn()
        return await self.answer()

    async def answer(self, *, cancel_after: int | None = None) -> Answer:
        """The next reply, cancelled after some messages; checks the order of its messages."""
        if cancel_after == 0:
            await self.cancel_reply()
        started = await self.call.read()
        assert started.WhichOneof("payload") == "reply_started"
        index, text, audio, frame_count = started.reply_started.turn_index, "", b"", 0
        for read_count in itertools.count(1):
            if cancel_after == read_count:
                await self.cancel_reply()
            message = await self.call.read()
            kind = message.WhichOneof("payload")
            payload = getattr(message, kind)
            assert payload.turn_index == index
            if kind == "text":
                assert payload.text
                text += payload.text
            elif kind == "audio":
                assert payload.frame_index == frame_count
                assert payload.HasField("timings") == (not frame_count)
                frame_count += payload.frame_count
                audio += payload.data
            else:
                assert kind == "reply_ended"
                assert payload.frame_count == frame_count
                # Of a reply that was cut, what was heard of it counts.
                was_cut = payload.reason in (CANCELLED, FAILED)
                assert text.startswith(payload.text) if was_cut else payload.text == text
                assert payload.HasField("failure") == (payload.reason == FAILED)
                return Answer(text, audio, payload)
        raise AssertionError("a reply has an end")

    async def end(self) -> None:
        """Ends the session and sees that nothing else comes and that it was well."""
        await self.call.write(pb.ConverseRequest(end=pb.ConverseEnd()))
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK

    async def failure(self) -> MeshError:
        """The error that the session ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await drain(self.call)
        return await sent_error(self._ending, raised.value)


class Mesh:
    """The orchestrator and its three stages."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.reasoner, self.speech, self.codec = (kind(self.signal) for kind in (FakeReasoner, FakeSpeech, FakeCodec))
        self.registry = CollectorRegistry()

    @asynccontextmanager
    async def running(
        self, *, clock: Clock | None = None, writer: SpanWriter | None = None, **settings: Any
    ) -> AsyncIterator["Mesh"]:
        async with AsyncExitStack() as stack:
            addresses = {}
            self.servers = {}
            for stage, add, service in (
                ("reasoner", reasoner_pb2_grpc.add_ReasonerServiceServicer_to_server, "ReasonerService"),
                ("speech", speech_pb2_grpc.add_SpeechServiceServicer_to_server, "SpeechService"),
                ("codec", codec_pb2_grpc.add_CodecServiceServicer_to_server, "CodecService"),
            ):
                addresses[f"{stage}_address"], self.servers[stage] = await stack.enter_async_context(
                    serving(
                        lambda server, add=add, stage=stage: add(getattr(self, stage), server),
                        getattr(self, stage).capacity.add_to,
                        service=f"chroma_mesh.{stage}.v1.{service}",
                    )
                )
            self.settings = OrchestratorSettings(**{**addresses, **settings})
            self.service = OrchestratorService(self.settings, self.registry, clock)
            stack.push_async_callback(self.service.close)
            await self.service.prepare()
            self.gate = Gate()
            self.address, _ = await stack.enter_async_context(
                serving(
                    self.service.add_to,
                    service="chroma_mesh.orchestrator.v1.OrchestratorService",
                    gate=self.gate,
                    writer=writer,
                )
            )
            self.channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(self.address, options=[("grpc.max_send_message_length", 2**24)])
            )
            self.stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self.channel)
            for stage in (self.reasoner, self.speech, self.codec):
                stage.heard.clear()
            yield self

    def converse(self, **opening: Any) -> Conversation:
        return Conversation(self.stub, **opening)

    async def until_quiet(self) -> None:
        """Returns when no stage has an open stream."""
        await self.signal.until(
            lambda: not (self.reasoner.open_count or self.speech.open_count or self.codec.open_count)
        )

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"chroma_orchestrator_{name}", labels) or 0.0
