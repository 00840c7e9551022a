"""A mesh that needs no models: real servers, whose replies are made up."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from client.golden_case import GoldenCase
from client.pcm import Encoding, Samples

SAMPLES_PER_FRAME = 1920
CLI = (sys.executable, "-c", "from client.cli import main; main()")


def refusal(code: int, reason: str, message: str, field_path: str | None = None) -> status_pb2.Status:
    """A status as the mesh makes them."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="chroma-mesh")]
    if field_path:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def voice(name: str, *, is_builtin: bool = False) -> orchestrator_pb2.Voice:
    """A voice as the fake mesh lists it."""
    return orchestrator_pb2.Voice(
        name=name, transcript=f"I am {name}.", example_seconds=2.5, is_default=name == "ash", is_builtin=is_builtin
    )


@dataclass
class FakeOrchestrator(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Answers every user turn with the same reply and keeps what it was sent.

    `refuse` ends a session with a status when a message of that kind comes; a reply whose `hold` is set goes on after
    its first frame only when it is cancelled.
    """

    address: str = ""
    frame_count: int = 3
    # The last samples of a reply at another rate, which are no frame of their own.
    tail: Samples | None = None
    texts: Sequence[str] = ("Hel", "lo.")
    joins_texts: bool = False
    refuse: dict[str, status_pb2.Status] = field(default_factory=dict)
    hold: bool = False
    stop: Callable[[], Awaitable[Any]] | None = None
    silent: bool = False
    requests: list[orchestrator_pb2.ConverseRequest] = field(default_factory=list)
    half_closed: asyncio.Event = field(default_factory=asyncio.Event)
    turn_ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    voices: dict[str, orchestrator_pb2.Voice] = field(default_factory=lambda: {"ash": voice("ash", is_builtin=True)})

    def received(self, kind: str) -> list[Any]:
        """The payloads of one kind, in order."""
        return [getattr(request, kind) for request in self.requests if request.WhichOneof("payload") == kind]

    @property
    def heard(self) -> bytes:
        """All sound that the user sent."""
        return b"".join(audio.data for audio in self.received("audio"))

    def frame(self, index: int, encoding: Encoding) -> bytes:
        """The sound of a frame: a constant that tells its index."""
        return encoding.encode(np.full(SAMPLES_PER_FRAME, (index + 1) / 100, np.float32))

    async def Converse(self, requests: AsyncIterator[orchestrator_pb2.ConverseRequest], context: Any) -> None:
        """One session."""
        turn_index = 0
        encoding = Encoding.S16
        ended = False
        try:
            async for request in requests:
                self.requests.append(request)
                kind = request.WhichOneof("payload")
                ended = kind == "end"
                if kind in self.refuse:
                    await context.abort_with_status(rpc_status.to_status(self.refuse[kind]))
                if kind == "open":
                    encoding = next(e for e in Encoding if e.wire == request.open.output_format.encoding)
                    opened = orchestrator_pb2.ConverseOpened(
                        session_id="s-1",
                        input_format=request.open.input_format,
                        output_format=request.open.output_format,
                        samples_per_frame=SAMPLES_PER_FRAME,
                    )
                    await context.write(orchestrator_pb2.ConverseResponse(opened=opened))
                elif kind == "end_turn":
                    await self.begin_reply(context, turn_index, encoding)
                    self.turn_ended.set()
                    if not self.hold:
                        await self.end_reply(context, turn_index, encoding, cancelled=False)
                        turn_index += 1
                elif kind == "cancel_reply" and self.hold:
                    await self.end_reply(context, turn_index, encoding, cancelled=True)
                    turn_index += 1
            if ended:
                self.half_closed.set()
        finally:
            if not ended:
                self.cancelled.set()

    async def begin_reply(self, context: Any, turn_index: int, encoding: Encoding) -> None:
        """The reply up to its first frame."""
        response = orchestrator_pb2.ConverseResponse
        await context.write(response(reply_started=orchestrator_pb2.ReplyStarted(turn_index=turn_index)))
        pieces = [orchestrator_pb2.ReplyTextPiece(text=text) for text in self.texts]
        for run in [pieces] if self.joins_texts else [[piece] for piece in pieces]:
            joined = "".join(piece.text for piece in run)
            text = orchestrator_pb2.ReplyText(turn_index=turn_index, text=joined, pieces=run if len(run) > 1 else ())
            await context.write(response(text=text))
        if not self.silent:
            await self.write_audio(context, turn_index, [0], encoding)

    async def end_reply(self, context: Any, turn_index: int, encoding: Encoding, *, cancelled: bool) -> None:
        """The rest of the reply."""
        frame_count = 0 if self.silent else 1 if cancelled else self.frame_count
        if frame_count > 1:
            await self.write_audio(context, turn_index, range(1, frame_count), encoding)
        if self.tail is not None:
            tail = orchestrator_pb2.ReplyAudio(
                turn_index=turn_index, frame_index=frame_count, frame_count=0, data=encoding.encode(self.tail)
            )
            await context.write(orchestrator_pb2.ConverseResponse(audio=tail))
        ended = orchestrator_pb2.ReplyEnded(
            turn_index=turn_index,
            reason=types_pb2.FINISH_REASON_CANCELLED if cancelled else types_pb2.FINISH_REASON_STOP,
            text="".join(self.texts),
            frame_count=frame_count,
            step_count=2,
            timings=orchestrator_pb2.ReplyTimings(
                queue_seconds=0.001, first_step_seconds=0.01, first_audio_seconds=0.02, total_seconds=0.03
            ),
        )
        await context.write(orchestrator_pb2.ConverseResponse(reply_ended=ended))

    async def write_audio(self, context: Any, turn_index: int, frames: Sequence[int], encoding: Encoding) -> None:
        """One message with the sound of consecutive frames."""
        audio = orchestrator_pb2.ReplyAudio(
            turn_index=turn_index,
            frame_index=frames[0],
            frame_count=len(frames),
            data=b"".join(self.frame(index, encoding) for index in frames),
        )
        await context.write(orchestrator_pb2.ConverseResponse(audio=audio))

    async def ListVoices(self, request: Any, context: Any) -> orchestrator_pb2.ListVoicesResponse:
        """The voices by name."""
        return orchestrator_pb2.ListVoicesResponse(voices=[self.voices[name] for name in sorted(self.voices)])

    async def CreateVoice(self, request: Any, context: Any) -> orchestrator_pb2.CreateVoiceResponse:
        """Adds a voice."""
        if request.name in self.voices:
            status = refusal(
                code_pb2.ALREADY_EXISTS, "VOICE_EXISTS", f"there is a voice {request.name} already", "name"
            )
            await context.abort_with_status(rpc_status.to_status(status))
        self.voices[request.name] = voice(request.name)
        return orchestrator_pb2.CreateVoiceResponse(voice=self.voices[request.name])

    async def DeleteVoice(self, request: Any, context: Any) -> orchestrator_pb2.DeleteVoiceResponse:
        """Removes a voice."""
        if request.name not in self.voices:
            status = refusal(code_pb2.NOT_FOUND, "VOICE_NOT_FOUND", f"there is no voice {request.name}", "name")
            await context.abort_with_status(rpc_status.to_status(status))
        del self.voices[request.name]
        return orchestrator_pb2.DeleteVoiceResponse()


@asynccontextmanager
async def serving(add: Callable[[grpc.aio.Server], None]) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """A server on any free port, and its address."""
    server = grpc.aio.server()
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
async def orchestrator() -> AsyncIterator[FakeOrchestrator]:
    """A fake orchestrator that listens at its `address`."""
    fake = FakeOrchestrator()
    servicer = health.aio.HealthServicer()

    def add(server: grpc.aio.Server) -> None:
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(fake, server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    async with serving(add) as (server, fake.address):
        fake.stop = partial(server.stop, None)
        yield fake


@dataclass
class FakeStages(
    reasoner_pb2_grpc.ReasonerServiceServicer,
    speech_pb2_grpc.SpeechServiceServicer,
    codec_pb2_grpc.CodecServiceServicer,
):
    """Three stages that give exactly what a golden case expects, and keep what they were sent."""

    case: GoldenCase
    addresses: tuple[str, str, str] = ("", "", "")
    requests: dict[str, list[Any]] = field(default_factory=dict)

    async def gather(self, stage: str, requests: AsyncIterator[Any]) -> None:
        """Keeps a stream's input."""
        self.requests[stage] = [request async for request in requests]

    async def Encode(self, request: Any, context: Any) -> codec_pb2.EncodeResponse:
        """The voice's codes."""
        frames = [types_pb2.Frame(codes=codes.tolist()) for codes in self.case.expected.voice_codes]
        return codec_pb2.EncodeResponse(frames=frames)

    async def Generate(self, requests: AsyncIterator[Any], context: Any) -> None:
        """The expected steps and one more, as a reasoner that runs ahead."""
        await self.gather("reasoner", requests)
        expected, response = self.case.expected, reasoner_pb2.GenerateResponse
        await context.write(response(opened=reasoner_pb2.GenerateOpened()))
        tokens = [*expected.reasoner_tokens.tolist(), 7]
        for index, token in enumerate(tokens):
            row = expected.reasoner_hidden[min(index, len(expected.reasoner_hidden) - 1)]
            tensor = types_pb2.Tensor(data_type=types_pb2.DATA_TYPE_FLOAT32, shape=[len(row)], data=row.tobytes())
            step = types_pb2.Step(index=index, token_id=token, hidden_state=tensor)
            await context.write(response(steps=types_pb2.Steps(steps=[step])))
        finished = reasoner_pb2.GenerateFinished(
            reason=types_pb2.FINISH_REASON_LENGTH, prompt_token_ids=expected.reasoner_input_ids.tolist()
        )
        await context.write(response(finished=finished))

    async def GenerateFrames(self, requests: AsyncIterator[Any], context: Any) -> None:
        """The expected frames."""
        await self.gather("speech", requests)
        expected, response = self.case.expected, speech_pb2.GenerateFramesResponse
        await context.write(response(opened=speech_pb2.GenerateFramesOpened()))
        for index, codes in enumerate(expected.frames):
            frames = [types_pb2.Frame(codes=codes.tolist())]
            await context.write(response(frames=speech_pb2.SpokenFrames(index=index, frames=frames, step_counts=[1])))
        finished = speech_pb2.GenerateFramesFinished(transcript_token_ids=expected.voice_text_ids.tolist())
        await context.write(response(finished=finished))

    async def Decode(self, requests: AsyncIterator[Any], context: Any) -> None:
        """The expected sound."""
        await self.gather("codec", requests)
        response = codec_pb2.DecodeResponse
        await context.write(response(opened=codec_pb2.DecodeOpened()))
        await context.write(response(audio=codec_pb2.DecodedAudio(data=self.case.expected.audio.tobytes())))
        await context.write(response(finished=codec_pb2.DecodeFinished()))


@dataclass(frozen=True)
class CommandResult:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Cli = Callable[..., Awaitable[CommandResult]]


@pytest.fixture
async def start_cli() -> AsyncIterator[Callable[..., Awaitable[asyncio.subprocess.Process]]]:
    """Starts `chroma-mesh` with its output piped, and makes sure that it ends."""
    processes = []

    async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *CLI,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "COLUMNS": "200", **environment},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def cli(start_cli: Callable[..., Awaitable[asyncio.subprocess.Process]]) -> Cli:
    """Runs `chroma-mesh` to its end: `await cli("voices", "--address", address)`."""

    async def run(*arguments: str, **environment: str) -> CommandResult:
        process = await start_cli(*arguments, **environment)
        out, err = await process.communicate()
        assert process.returncode is not None
        return CommandResult(process.returncode, out.decode(), err.decode())

    return run


@pytest.fixture(name="refusal")
def refusal_fixture() -> Callable[..., status_pb2.Status]:
    """Makes a status as the mesh makes them."""
    return refusal


@pytest.fixture
def free_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def fake_stages() -> type[FakeStages]:
    """Makes stages that give what a golden case expects."""
    return FakeStages


@pytest.fixture(name="serving")
def serving_fixture() -> Callable[..., Any]:
    """Runs a server on any free port: `async with serving(add) as (server, address)`."""
    return serving
