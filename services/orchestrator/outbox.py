"""What waits to be written to a session's client."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2

from services.orchestrator.heard import TextPiece
from services.orchestrator.reply_ending import ReplyEnding, Timings
from services.runtime.errors import MeshError, Unavailable
from services.runtime.tracing import current_traceparent

# Pieces of a reply that may wait to be written; a reply waits when the client does not read them.
OUTBOX_LIMIT = 8

Responses = grpc.aio.ServicerContext[orchestrator_pb2.ConverseRequest, orchestrator_pb2.ConverseResponse]


class Outbox:
    """Writes a session's messages, one at a time, in the order in which they came.

    All go through one task: a write that is cancelled half-way, as a cancelled reply's would be, spoils the call.
    """

    def __init__(self, context: Responses, *, on_sound: Callable[[int], None] = lambda _: None) -> None:
        """`on_sound` is told how many bytes of sound have left."""
        self._context = context
        self._on_sound = on_sound
        self._waiting: deque[orchestrator_pb2.ConverseResponse] = deque()
        self._is_ended = False
        self._put = asyncio.Event()
        self._taken = asyncio.Event()

    async def run(self) -> None:
        """Writes until the end."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                self._taken.set()
                await self._context.write(message)
                if message.WhichOneof("payload") == "audio":
                    self._on_sound(len(message.audio.data))
            if self._is_ended:
                return
            self._put.clear()
            await self._put.wait()

    def end(self) -> None:
        """Lets `run` return when everything is written."""
        self._is_ended = True
        self._put.set()

    def opened(self, opened: orchestrator_pb2.ConverseOpened) -> None:
        """The session is open."""
        self._keep(orchestrator_pb2.ConverseResponse(opened=opened))

    def speech_started(self, turn_index: int, audio_sample: int) -> None:
        """The user begins to speak.

        It waits for no room, for the stop of a reply is to be told before its end: turns are few, and their number is
        bounded as replies are.
        """
        started = orchestrator_pb2.SpeechStarted(turn_index=turn_index, audio_sample=audio_sample)
        self._keep(orchestrator_pb2.ConverseResponse(speech_started=started))

    def speech_stopped(self, turn_index: int, audio_sample: int) -> None:
        """The user has stopped to speak."""
        stopped = orchestrator_pb2.SpeechStopped(turn_index=turn_index, audio_sample=audio_sample)
        self._keep(orchestrator_pb2.ConverseResponse(speech_stopped=stopped))

    async def reply_started(self, turn_index: int, kept_message_count: int = 0) -> None:
        """A reply begins; so many of the client's messages need not be sent again."""
        started = orchestrator_pb2.ReplyStarted(
            turn_index=turn_index, kept_message_count=kept_message_count, traceparent=current_traceparent()
        )
        await self._append(orchestrator_pb2.ConverseResponse(reply_started=started))

    async def text(self, turn_index: int, pieces: Sequence[TextPiece]) -> None:
        """Pieces of its text, one or more."""
        message = orchestrator_pb2.ReplyText(
            turn_index=turn_index, text="".join(it.text for it in pieces), audio_sample=pieces[0].audio_sample
        )
        if len(pieces) > 1:
            message.pieces.extend(orchestrator_pb2.ReplyTextPiece(**it._asdict()) for it in pieces)
        await self._append(orchestrator_pb2.ConverseResponse(text=message))

    async def audio(
        self, turn_index: int, frame_index: int, frame_count: int, data: bytes, timings: Timings | None
    ) -> None:
        """A piece of its sound; the first says how it came to be."""
        piece = orchestrator_pb2.ReplyAudio(
            turn_index=turn_index,
            frame_index=frame_index,
            frame_count=frame_count,
            data=data,
            timings=None if timings is None else _timings(timings),
        )
        await self._append(orchestrator_pb2.ConverseResponse(audio=piece))

    def drop_reply(self, turn_index: int) -> list[orchestrator_pb2.ReplyAudio]:
        """Forgets the text and sound of a reply that were not written yet; returns the latter."""
        dropped = []
        for _ in range(len(self._waiting)):
            message = self._waiting.popleft()
            if message.WhichOneof("payload") == "audio" and message.audio.turn_index == turn_index:
                dropped.append(message.audio)
            elif message.WhichOneof("payload") != "text" or message.text.turn_index != turn_index:
                self._waiting.append(message)
        self._taken.set()
        return dropped

    async def reply_ended(self, ended: orchestrator_pb2.ReplyEnded) -> None:
        """The reply is complete."""
        await self._append(orchestrator_pb2.ConverseResponse(reply_ended=ended))

    async def _append(self, message: orchestrator_pb2.ConverseResponse) -> None:
        while len(self._waiting) >= OUTBOX_LIMIT:
            self._taken.clear()
            await self._taken.wait()
        self._keep(message)

    def _keep(self, message: orchestrator_pb2.ConverseResponse) -> None:
        self._waiting.append(message)
        self._put.set()


def ended_message(ending: ReplyEnding) -> orchestrator_pb2.ReplyEnded:
    """The ending as the client is told."""
    return orchestrator_pb2.ReplyEnded(
        turn_index=ending.turn_index,
        reason=ending.reason,
        text=ending.text,
        frame_count=ending.frame_count,
        step_count=ending.step_count,
        timings=_timings(ending.timings),
        failure=_failure(ending.failure) if ending.failure is not None else None,
        prompt=ending.prompt,
        recovery_count=ending.recovery_count,
    )


def _timings(timings: Timings) -> orchestrator_pb2.ReplyTimings:
    # Not asdict, which copies deeply: the first sound waits for this.
    parts = [orchestrator_pb2.TurnPart(name=part.name, seconds=part.seconds) for part in timings.parts]
    return orchestrator_pb2.ReplyTimings(**{**vars(timings), "parts": parts})


def _failure(error: MeshError) -> orchestrator_pb2.ReplyFailure:
    return orchestrator_pb2.ReplyFailure(
        stage=error.metadata.get("stage", ""),
        reason=error.reason,
        message=error.message,
        may_retry=isinstance(error, Unavailable),
    )
