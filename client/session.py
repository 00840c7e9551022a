"""One conversation with the mesh."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

from client.call_status import CallStatus
from client.errors import MeshError, from_rpc_error
from client.events import Event, ReplyEnded, read_event
from client.session_settings import ReplySettings, SessionSettings

CHUNK_SECONDS = 0.1
"""The most sound in one message: small enough to be heard early, large enough to be few."""


class Session:
    """A conversation: user turns go out, replies come back.

    Enter it with `async with`. Leaving says that no turn follows, lets a reply that is still being given finish, and
    raises MeshError if the mesh ended the session otherwise; leaving by an exception cancels the call. Any task may
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
        self._audio_index = 0
        self._is_ended = False

    async def __aenter__(self) -> Self:
        """Opens the session: returns when the mesh has accepted it."""
        open_message = self.settings.open_message()
        self._call = self._stub.Converse()
        self._status = CallStatus(self._call)
        try:
            await self._send(orchestrator_pb2.ConverseRequest(open=open_message))
            response = await self._receive()
            if response is None or response.WhichOneof("payload") != "opened":
                raise self._broken("did not open the session")
        except BaseException:
            await self._cancel()
            raise
        self.id = response.opened.session_id
        self.samples_per_frame = response.opened.samples_per_frame
        self.sample_rate_hz = response.opened.output_format.sample_rate_hz or self.settings.output_format.sample_rate_hz
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the session, or cancels it when an exception is on its way."""
        if error is not None:
            await self._cancel()
            return
        try:
            await self.end()
            while await self._receive() is not None:
                pass
        except BaseException:
            await self._cancel()
            raise

    async def send_audio(self, audio: np.ndarray[Any, Any] | bytes) -> None:
        """Sends something the user says, at once, in messages of at most 100 ms: a microphone's packets as they are.

        Mono samples of any number in the session's input format: float within -1 ..= 1, int16, or bytes of whole
        samples.
        """
        sound_format = self.settings.input_format
        encoding = sound_format.encoding
        data = encoding.encode(audio) if isinstance(audio, np.ndarray) else bytes(audio)
        if len(data) % encoding.sample_bytes:
            raise ValueError(f"bytes must hold whole samples of {encoding.sample_bytes} bytes; got {len(data)} bytes")
        chunk_bytes = round(CHUNK_SECONDS * sound_format.sample_rate_hz) * encoding.sample_bytes
        async with self._send_lock:
            for start in range(0, len(data), chunk_bytes):
                message = orchestrator_pb2.UserAudio(index=self._audio_index, data=data[start : start + chunk_bytes])
                self._audio_index += 1
                await self._write(orchestrator_pb2.ConverseRequest(audio=message))

    async def send_text(self, text: str) -> None:
        """Sends something the user types."""
        await self._send(orchestrator_pb2.ConverseRequest(text=orchestrator_pb2.UserText(text=text)))

    async def end_turn(self, reply: ReplySettings | None = None) -> None:
        """Says that the user turn is complete and is to be answered; `reply` is for the reply to this turn alone."""
        message = orchestrator_pb2.EndTurn(reply=reply.reply_message() if reply else None)
        await self._send(orchestrator_pb2.ConverseRequest(end_turn=message))

    async def cancel_reply(self, turn_index: int | None = None) -> None:
        """Stops the reply that is being given, which still ends with ReplyEnded; without one, nothing happens.

        With `turn_index` only if it answers that turn: the reply after one that has ended meanwhile goes on.
        """
        message = orchestrator_pb2.CancelReply(turn_index=turn_index)
        await self._send(orchestrator_pb2.ConverseRequest(cancel_reply=message))

    async def reply_played(self, turn_index: int, sample_count: int) -> None:
        """Says how many samples of a reply were played: the conversation remembers no more of it than that.

        To be said when a player is stopped before the end. Without it the mesh takes it that the reply was played from
        its first packet on without a pause.
        """
        message = orchestrator_pb2.ReplyPlayed(turn_index=turn_index, sample_count=sample_count)
        await self._send(orchestrator_pb2.ConverseRequest(reply_played=message))

    async def update(self, reply: ReplySettings) -> None:
        """Gives other settings from the next reply on that has not begun."""
        message = orchestrator_pb2.SessionUpdate(reply=reply.reply_message())
        await self._send(orchestrator_pb2.ConverseRequest(update=message))

    async def end(self) -> None:
        """Says that no turn follows: the mesh ends the session when all are answered. Nothing can be sent any more."""
        async with self._send_lock:
            if not self._is_ended:
                await self._write(orchestrator_pb2.ConverseRequest(end=orchestrator_pb2.ConverseEnd()))
                self._is_ended = True
                await self._open_call().done_writing()

    def reply(self) -> "Reply":
        """The events up to ReplyEnded of the next reply; of one that was read in part, those that remain."""
        return Reply(self)

    async def events(self) -> AsyncIterator[Event]:
        """All events, of replies and of the user's speech, until the session has ended, which it does after `end`."""
        while (event := await self._next_event()) is not None:
            yield event
        if not self._is_ended:
            raise self._broken("ended the session too early")

    async def next_event(self) -> Event:
        """The next event of any kind; MeshError when the mesh ended the session."""
        event = await self._next_event()
        if event is None:
            raise self._broken("ended the session too early")
        return event

    async def _next_event(self) -> Event | None:
        while (response := await self._receive()) is not None:
            event = read_event(response, self.settings.output_format.encoding, self.sample_rate_hz)
            if event is not None:
                return event
        return None

    async def _send(self, request: orchestrator_pb2.ConverseRequest) -> None:
        async with self._send_lock:
            await self._write(request)

    async def _write(self, request: orchestrator_pb2.ConverseRequest) -> None:
        """As `_send`, by one who holds the lock."""
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
