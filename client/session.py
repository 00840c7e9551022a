"""One conversation with the mesh."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import grpc
import numpy as np
from chroma_mesh.orchestrator.v1 import orchestrator_pb2

from client.errors import MeshError, from_rpc_error
from client.events import Event, ReplyEnded, read_events
from client.front import Front, Line
from client.session_settings import ReplySettings, SessionSettings
from client.unkept import HEARD_SECONDS, Unkept

CHUNK_SECONDS = 0.1
"""The most sound in one message: small enough to be heard early, large enough to be few."""


FULL_REASONS = ("NO_CAPACITY", "SESSIONS_IN_USE")
"""An orchestrator has no room for another session; the next one may."""

LOST_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""The call was lost, or refused for the moment; CANCELLED is gRPC's own answer of a server that is being shut down."""

FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.1, 2.0
"""Between two attempts to go on with a session, or rounds of attempts to open one; doubled each time."""

OPEN_SECONDS = 3.0
"""How long a session that no orchestrator took is offered to all of them again, if one of them could not be reached:
gRPC goes back to one that was just lost after up to 2 s."""

RESUME_ANSWER_SECONDS = 5
"""The longest that an attempt may take."""

STEADY_SECONDS = 10
"""A call that lived so long was a good one, even if nothing came of it: nothing may have been owed."""

REPLY_ANSWER_SECONDS, ANSWER_SECONDS = 1.5, 5.0
"""What an orchestrator that is silent gets to say that it is there: while its reply is played, and before, when what
was sent may still be on its way to it."""

LONGEST_ANSWER_DOUBLINGS = 4
"""That time may be too short: it is doubled for each attempt that came to nothing, up to so often."""

Value = TypeVar("Value")
Failure: TypeAlias = grpc.aio.AioRpcError | asyncio.InvalidStateError


class Session:
    """A conversation: user turns go out, replies come back.

    Enter it with `async with`. Leaving says that no turn follows, lets a reply that is still being given finish, and
    raises MeshError if the mesh ended the session otherwise; leaving by an exception cancels the call. Any task may
    send while another reads. Cancelling a task inside one of these methods (also by a timeout) ends the session.

    A session whose connection is lost goes on by itself: in a new call, at the next of the mesh's addresses, without a
    gap in its replies or a repeat. What the mesh has not got yet is sent again. MeshError is raised when that fails.
    """

    def __init__(self, fronts: Sequence[Front], settings: SessionSettings) -> None:
        """`fronts` are the mesh's orchestrators, the first of which is tried first."""
        self.settings = settings
        self.id = ""
        self.samples_per_frame = 0
        self.sample_rate_hz = 0
        self._fronts = tuple(fronts)
        self._front_index = 0
        self._line: Line | None = None
        self._send_lock = asyncio.Lock()
        self._resume_lock = asyncio.Lock()
        hears = settings.turn_detection is not None
        sound_format = settings.input_format
        heard_bytes = HEARD_SECONDS * sound_format.sample_rate_hz * sound_format.encoding.sample_bytes
        self._unkept = Unkept(settings.output_format.encoding.sample_bytes, heard_bytes if hears else None)
        # Events that came with one that was read already.
        self._arrived: deque[Event] = deque()
        # Attempts since anything came.
        self._try_count = 0
        self._resumed_at = self._give_up_at = 0.0
        self._is_ended = False
        self._is_cancelled = False

    @property
    def address(self) -> str:
        """Where the session's call goes, "host:port": another one after the connection was lost."""
        return self._open_line().address

    async def __aenter__(self) -> Self:
        """Opens the session: returns when the mesh has accepted it."""
        line, opened = await self._opened_anywhere(self.settings.open_message())
        self._line, self._try_count = line, 0
        self._unkept.token = opened.resume_token if self.settings.resume_seconds > 0 else ""
        self.id = opened.session_id
        self.samples_per_frame = opened.samples_per_frame
        self.sample_rate_hz = opened.output_format.sample_rate_hz or self.settings.output_format.sample_rate_hz
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
                message = orchestrator_pb2.UserAudio(data=data[start : start + chunk_bytes])
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

    def reply(self) -> "Reply":
        """The events up to ReplyEnded of the next reply; of one that was read in part, those that remain."""
        return Reply(self)

    async def events(self) -> AsyncIterator[Event]:
        """All events, of replies and of the user's speech, until the session has ended, which it does after `end`."""
        while (event := await self._next_event()) is not None:
            yield event
        if not self._is_ended:
            raise self._broken(self._open_line(), "ended the session too early")

    async def next_event(self) -> Event:
        """The next event of any kind; MeshError when the mesh ended the session."""
        event = await self._next_event()
        if event is None:
            raise self._broken(self._open_line(), "ended the session too early")
        return event

    async def _next_event(self) -> Event | None:
        while not self._arrived:
            if (response := await self._receive()) is None:
                return None
            self._arrived += read_events(response, self.settings.output_format.encoding, self.sample_rate_hz)
        return self._arrived.popleft()

    async def _send(self, request: orchestrator_pb2.ConverseRequest) -> None:
        async with self._send_lock:
            await self._write(request)

    async def _write(self, request: orchestrator_pb2.ConverseRequest) -> None:
        """As `_send`, by one who holds the lock."""
        line = self._open_line()
        self._unkept.send(request)
        try:
            await self._put(line, request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:  # the latter: the call has ended before
            await self._go_on(line, error)  # and with it this message

    async def _receive(self) -> orchestrator_pb2.ConverseResponse | None:
        """The next server message; None after the last one of a call that ended well."""
        while True:
            line = self._open_line()
            try:
                response = await self._watched(line, line.call.read())
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                await self._go_on(line, error)
                continue
            if not isinstance(response, orchestrator_pb2.ConverseResponse):  # EOF
                return None
            self._try_count = 0
            if self._unkept.receive(response):
                return response

    async def _opened_anywhere(
        self, message: orchestrator_pb2.ConverseOpen
    ) -> tuple[Line, orchestrator_pb2.ConverseOpened]:
        """A call in which a new session is open, at the first orchestrator that takes it."""
        loop = asyncio.get_running_loop()
        give_up_at = 0.0
        while True:
            refusals: list[MeshError] = []
            for _ in self._fronts:
                line = self._new_line()
                try:
                    return line, await self._open(line, message)
                except MeshError as error:
                    if not (error.code in LOST_CODES or error.reason in FULL_REASONS):
                        raise
                    refusals.append(error)
                self._front_index += 1
            give_up_at = give_up_at or loop.time() + OPEN_SECONDS
            self._try_count += 1
            may_come_back = len(self._fronts) > 1 and any(map(_is_lost, refusals))
            if not may_come_back or loop.time() + self._retry_seconds() > give_up_at:
                # One that has no room says more than one that says nothing.
                raise next((error for error in refusals if error.reason in FULL_REASONS), refusals[-1])
            await asyncio.sleep(self._retry_seconds())

    async def _go_on(self, line: Line, error: Failure) -> None:
        """Goes on with the session in another call, unless that has been done; MeshError when it cannot be."""
        lost = self._ended(line, error)
        async with self._resume_lock:
            if self._line is not line:
                return
            if not self._may_go_on(lost):
                raise lost from None
            loop = asyncio.get_running_loop()
            if loop.time() - self._resumed_at > STEADY_SECONDS and not line.silence.is_given_up:
                self._try_count = 0
            if not self._try_count:
                self._give_up_at = loop.time() + self.settings.resume_seconds
            refusal: MeshError | None = None
            while True:
                wait_seconds = max(self._retry_seconds(), (refusal and refusal.retry_seconds) or 0.0)
                if loop.time() + wait_seconds > self._give_up_at:
                    raise lost from refusal
                await asyncio.sleep(wait_seconds)
                self._try_count += 1
                self._front_index += 1
                try:
                    self._line = await self._resumed()
                    self._resumed_at = loop.time()
                    if self._is_cancelled:
                        await _hang_up(self._line)
                    return
                except MeshError as refused:
                    if not _may_try_again(refused):
                        raise lost from refused
                    refusal = refused

    def _retry_seconds(self) -> float:
        return min(FIRST_RETRY_SECONDS * 2 ** (self._try_count - 1), MOST_RETRY_SECONDS) if self._try_count else 0.0

    def _may_go_on(self, lost: MeshError) -> bool:
        is_able = bool(self._unkept.token) and not self._is_cancelled
        return is_able and lost.code is not grpc.StatusCode.RESOURCE_EXHAUSTED and _may_try_again(lost)

    async def _resumed(self) -> Line:
        line = self._new_line()
        opened = await self._open(line, self._unkept.open_message())
        try:
            for request in self._unkept.resend(opened):
                await self._put(line, request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise self._ended(line, error) from None
        except BaseException:
            await _hang_up(line)
            raise
        return line

    def _new_line(self) -> Line:
        return self._fronts[self._front_index % len(self._fronts)].call(self.id)

    async def _put(self, line: Line, request: orchestrator_pb2.ConverseRequest) -> None:
        await self._watched(line, line.call.write(request))
        if request.HasField("end"):
            await line.call.done_writing()

    async def _watched(self, line: Line, action: Awaitable[Value]) -> Value:
        """Reads or writes; the call is given up when the orchestrator owes something and is not there any more."""
        with line.silence.watched(self._answer_seconds):
            try:
                return await action
            except asyncio.CancelledError:
                if not line.silence.is_given_up or _is_being_cancelled():
                    raise
        raise asyncio.InvalidStateError

    def _answer_seconds(self) -> float | None:
        if self.id and not self._unkept.is_owed:  # without an id it owes one
            return None
        seconds = REPLY_ANSWER_SECONDS if self._unkept.is_in_reply else ANSWER_SECONDS
        return seconds * 2 ** min(self._try_count, LONGEST_ANSWER_DOUBLINGS)

    async def _open(self, line: Line, message: orchestrator_pb2.ConverseOpen) -> orchestrator_pb2.ConverseOpened:
        try:
            async with asyncio.timeout(RESUME_ANSWER_SECONDS if message.HasField("resume") else None):
                await self._watched(line, line.call.write(orchestrator_pb2.ConverseRequest(open=message)))
                response = await self._watched(line, line.call.read())
            if not isinstance(response, orchestrator_pb2.ConverseResponse) or not response.HasField("opened"):
                raise self._broken(line, "did not open the session")
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise self._ended(line, error) from None
        except TimeoutError:
            await _hang_up(line)
            message_text = f"the mesh at {line.address} did not answer within {RESUME_ANSWER_SECONDS} s"
            raise MeshError(grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", message_text) from None
        except BaseException:
            await _hang_up(line)
            raise
        return response.opened

    def _ended(self, line: Line, error: Failure) -> MeshError:
        if line.silence.is_given_up:
            message = f"the mesh at {line.address} does not answer{' any more' if self.id else ''}"
            return MeshError(grpc.StatusCode.UNAVAILABLE, "UNREACHABLE", message)
        status = line.status.peers_error
        if status is None and isinstance(error, grpc.aio.AioRpcError):
            status = error
        return (
            from_rpc_error(status, line.address, was_open=bool(self.id))
            if status
            else self._broken(line, "ended the session too early")
        )

    def _broken(self, line: Line, what: str) -> MeshError:
        return MeshError(grpc.StatusCode.INTERNAL, "PROTOCOL", f"the mesh at {line.address} {what}")

    def _open_line(self) -> Line:
        if self._line is None:
            raise RuntimeError("the session is not open: use 'async with mesh.session() as session'")
        return self._line

    async def _cancel(self) -> None:
        """Cancels the call and waits until nothing of it is left."""
        self._is_cancelled = True
        await _hang_up(self._open_line())


async def _hang_up(line: Line) -> None:
    line.call.cancel()
    with suppress(asyncio.CancelledError):
        await line.call.code()


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_try_again(error: MeshError) -> bool:
    """Whether the call was lost, or refused for the moment, rather than answered."""
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_seconds is not None
    return _is_lost(error)


def _is_lost(error: MeshError) -> bool:
    """Whether the mesh may well be there the next time; who has no good certificate stays so."""
    return error.code in LOST_CODES and error.reason != "UNTRUSTED"


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
