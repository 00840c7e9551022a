"""One conversation with the mesh."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

from client.call_status import CallStatus
from client.errors import MeshError, from_rpc_error
from client.events import Event, ReplyEnded, read_event
from client.message import Message
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding
from client.voice import VoiceExample

CHUNK_SECONDS = 0.1
"""Sound is sent in messages of this length: small enough to be heard early, large enough to be few."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What does not change during a session; None takes the mesh's default.

    `voice` is a name or an example; `instructions` is the system message, where "" is none at all; `history` holds
    earlier user and assistant messages; `temperature` 0 ..= 2 with 0 for the most likely code; `top_k` 0 for all codes;
    `max_frame_count` limits a reply in frames of 80 ms, `max_step_count` its text in tokens; `encoding` is that of the
    sound in both directions.
    """

    voice: str | VoiceExample | None = None
    instructions: str | None = None
    history: Sequence[Message] = ()
    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_frame_count: int | None = None
    max_step_count: int | None = None
    encoding: Encoding = Encoding.S16

    def open_message(self) -> orchestrator_pb2.ConverseOpen:
        """The message that opens the session."""
        return orchestrator_pb2.ConverseOpen(
            voice_name=self.voice if isinstance(self.voice, str) else None,
            voice_example=self.voice.message() if isinstance(self.voice, VoiceExample) else None,
            instructions=self.instructions,
            history=[message.wire(self.encoding) for message in self.history],
            input_format=self.encoding.wire_format(USER_RATE_HZ),
            output_format=self.encoding.wire_format(VOICE_RATE_HZ),
            sampling=types_pb2.Sampling(temperature=self.temperature, top_k=self.top_k, seed=self.seed),
            max_frame_count=self.max_frame_count,
            max_step_count=self.max_step_count,
        )


class Session:
    """A conversation: user turns go out, replies come back.

    Enter it with `async with`. Leaving says that no turn follows, lets a reply that is still being given finish, and
    raises MeshError if the mesh ended the session otherwise; leaving by an exception cancels the call. One task may
    send while another reads. Cancelling a task inside one of these methods (also by a timeout) ends the session.
    """

    def __init__(
        self, stub: orchestrator_pb2_grpc.OrchestratorServiceStub, address: str, settings: SessionSettings
    ) -> None:
        self.settings = settings
        self.id = ""
        self.samples_per_frame = 0
        self.sample_rate_hz = 0
        self._stub = stub
        self._address = address
        self._call: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._status: CallStatus | None = None
        self._send_lock = asyncio.Lock()
        self._unsent = bytearray()
        self._audio_index = 0
        self._chunk_bytes = round(CHUNK_SECONDS * USER_RATE_HZ) * settings.encoding.sample_bytes

    async def __aenter__(self) -> Self:
        """Opens the session: returns when the mesh has accepted it."""
        open_message = self.settings.open_message()
        self._call = self._stub.Converse()
        self._status = CallStatus(self._call)
        try:
            async with self._send_lock:
                await self._send(orchestrator_pb2.ConverseRequest(open=open_message))
            response = await self._receive()
            if response is None or response.WhichOneof("payload") != "opened":
                raise self._broken("did not open the session")
        except BaseException:
            await self._cancel()
            raise
        self.id = response.opened.session_id
        self.samples_per_frame = response.opened.samples_per_frame
        self.sample_rate_hz = response.opened.output_format.sample_rate_hz or VOICE_RATE_HZ
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the session, or cancels it when an exception is on its way."""
        if error is not None:
            await self._cancel()
            return
        try:
            async with self._send_lock:
                await self._send(orchestrator_pb2.ConverseRequest(end=orchestrator_pb2.ConverseEnd()))
            await self._open_call().done_writing()
            while await self._receive() is not None:
                pass
        except BaseException:
            await self._cancel()
            raise

    async def send_audio(self, audio: np.ndarray[Any, Any] | bytes) -> None:
        """Sends something the user says, in pieces of 100 ms; what is left of a piece waits for more or the turn's end.

        Mono samples at 16,000 Hz of any number: float within -1 ..= 1, int16, or bytes of whole samples in the
        session's encoding.
        """
        encoding = self.settings.encoding
        data = encoding.encode(audio) if isinstance(audio, np.ndarray) else bytes(audio)
        if len(data) % encoding.sample_bytes:
            raise ValueError(f"bytes must hold whole samples of {encoding.sample_bytes} bytes; got {len(data)} bytes")
        async with self._send_lock:
            self._unsent += data
            while len(self._unsent) >= self._chunk_bytes:
                await self._send_chunk()

    async def send_text(self, text: str) -> None:
        """Sends something the user types."""
        async with self._send_lock:
            await self._send_chunk()
            await self._send(orchestrator_pb2.ConverseRequest(text=orchestrator_pb2.UserText(text=text)))

    async def end_turn(self) -> None:
        """Says that the user turn is complete and is to be answered."""
        async with self._send_lock:
            await self._send_chunk()
            await self._send(orchestrator_pb2.ConverseRequest(end_turn=orchestrator_pb2.EndTurn()))

    async def cancel_reply(self) -> None:
        """Stops the reply that is being given, which still ends with ReplyEnded; without one, nothing happens."""
        async with self._send_lock:
            await self._send(orchestrator_pb2.ConverseRequest(cancel_reply=orchestrator_pb2.CancelReply()))

    def reply(self) -> "Reply":
        """The events of the next reply, ReplyEnded last; of a reply that was read in part, those that remain."""
        return Reply(self)

    async def next_event(self) -> Event:
        """The next event of any reply; MeshError when the mesh ended the session."""
        while (response := await self._receive()) is not None:
            event = read_event(response, self.settings.encoding, self.sample_rate_hz)
            if event is not None:
                return event
        raise self._broken("ended the session too early")

    async def _send_chunk(self) -> None:
        """Sends at most one piece of the sound that waits."""
        if not self._unsent:
            return
        data = bytes(self._unsent[: self._chunk_bytes])
        del self._unsent[: self._chunk_bytes]
        audio = orchestrator_pb2.UserAudio(index=self._audio_index, data=data)
        self._audio_index += 1
        await self._send(orchestrator_pb2.ConverseRequest(audio=audio))

    async def _send(self, request: orchestrator_pb2.ConverseRequest) -> None:
        try:
            await self._open_call().write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:  # the latter: the call has ended before
            raise self._ended(error) from None

    async def _receive(self) -> orchestrator_pb2.ConverseResponse | None:
        """The next server message; None after the last one of a call that ended well."""
        try:
            response = await self._open_call().read()
        except grpc.aio.AioRpcError as error:
            raise self._ended(error) from None
        return response if isinstance(response, orchestrator_pb2.ConverseResponse) else None  # else: EOF

    def _ended(self, error: grpc.aio.AioRpcError | asyncio.InvalidStateError) -> MeshError:
        status = self._status.peers_error if self._status else None
        if status is None and isinstance(error, grpc.aio.AioRpcError):
            status = error
        return (
            from_rpc_error(status, self._address, was_open=bool(self.id))
            if status
            else self._broken("ended the session too early")
        )

    def _broken(self, what: str) -> MeshError:
        return MeshError(grpc.StatusCode.INTERNAL, "PROTOCOL", f"the mesh at {self._address} {what}")

    def _open_call(self) -> "grpc.aio.StreamStreamCall[Any, Any]":
        if self._call is None:
            raise RuntimeError("the session is not open: use 'async with mesh.session() as session'")
        return self._call

    async def _cancel(self) -> None:
        """Cancels the call and waits until nothing of it is left."""
        call = self._open_call()
        call.cancel()
        await call.code()


class Reply:
    """The events of one reply, to be read with `async for`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        event = await self._session.next_event()
        self._ended = isinstance(event, ReplyEnded)
        return event
