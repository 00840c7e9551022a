"""The state of one Converse call: what was said, what waits for an answer, and whether anything happens at all."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.metrics import OrchestratorMetrics, ReplyReason
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.stages import Stages
from services.orchestrator.turn import CANCELLED, LENGTH, STOP, Listener, Reply, ReplyEnding, ReplySetup
from services.orchestrator.user_turn import UserTurn
from services.runtime.audio import decode_pcm, encode_pcm
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from services.runtime.interceptors import with_ids
from services.runtime.stream import IndexCheck

REASON_LABELS: dict[types_pb2.FinishReason, ReplyReason] = {STOP: "stop", LENGTH: "length", CANCELLED: "cancelled"}
# What a message's envelope may add to its content.
ENVELOPE_BYTES = 4096


class IdleLimit:
    """Ends a block in which for some time nothing came from the client and nothing was done for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_busy = False
        self._timeout = asyncio.timeout(None)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Raises DeadlineExceeded, reason IDLE, out of the block when the limit is reached; once."""
        try:
            async with self._timeout:
                self.touch()
                yield
        except TimeoutError:
            if not self._timeout.expired():
                raise
            raise DeadlineExceeded(
                f"the session was idle for {self._seconds:g} s: no message came and no reply was given", reason="IDLE"
            ) from None

    @property
    def deadline(self) -> float | None:
        """When the block ends if nothing happens, on the loop's clock; None while something is done for the client."""
        return self._timeout.when()

    def touch(self) -> None:
        """The client did something."""
        if not self._is_busy and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Something is done for the client within the block, however long it takes."""
        self._is_busy = True
        if not self._timeout.expired():
            self._timeout.reschedule(None)
        try:
            yield
        finally:
            self._is_busy = False
            self.touch()


class Session:
    """One conversation: the client's messages come in by the methods; `answer` gives the replies in order.

    Bad input raises InvalidArgument; more waiting turns than allowed, ResourceExhausted.
    """

    def __init__(
        self,
        setup: ReplySetup,
        messages: Sequence[types_pb2.Message],
        *,
        settings: OrchestratorSettings,
        stages: Stages,
        listener: Listener,
        metrics: OrchestratorMetrics,
        idle_limit: IdleLimit,
    ) -> None:
        self._setup = setup
        self._history = list(messages)
        self._settings = settings
        self._stages = stages
        self._listener = listener
        self._metrics = metrics
        self._idle_limit = idle_limit
        self._turn = UserTurn(setup.input_format)
        self._turn_count = 0
        self._audio_index = IndexCheck("audio.index")
        # The first is being answered, or about to be; it stays until the client was told that it ended.
        self._replies: deque[Reply] = deque()
        self._is_ended = False
        self._news = asyncio.Event()

    def audio(self, index: int, data: bytes) -> None:
        """The user says something; during a reply it is kept for the next turn."""
        self._audio_index.expect(index)
        self._turn.add_audio(data)
        self._idle_limit.touch()

    def text(self, text: str) -> None:
        """The user types something."""
        self._turn.add_text(text)
        self._idle_limit.touch()

    def end_turn(self) -> None:
        """The user turn is complete; it is answered after those before it."""
        self._turn.complete()
        self._check_size()
        waiting_count = len(self._replies) - 1
        if waiting_count >= self._settings.turn_queue_limit:
            raise ResourceExhausted(
                f"at most {self._settings.turn_queue_limit} turns may wait for their answer, got one more",
                reason="TURN_QUEUE_FULL",
                field="end_turn",
            )
        self._replies.append(
            Reply(
                self._turn_count,
                self._turn,
                self._setup,
                stages=self._stages,
                listener=self._listener,
                metrics=self._metrics,
            )
        )
        self._turn_count += 1
        self._turn = UserTurn(self._setup.input_format)
        self._news.set()
        self._idle_limit.touch()

    def cancel_reply(self) -> None:
        """Stops the reply that is being given or comes next; without one, nothing happens."""
        if self._replies:
            self._replies[0].cancel()
        self._idle_limit.touch()

    def end(self) -> None:
        """No turn follows; what was said without `end_turn` is not answered."""
        self._is_ended = True
        self._news.set()
        self._idle_limit.touch()

    async def answer(self) -> None:
        """Gives the replies in the order of their turns; returns after `end` when all are given."""
        while True:
            while self._replies:
                with self._idle_limit.busy():
                    await self._give(self._replies[0])
            if self._is_ended:
                return
            self._news.clear()
            await self._news.wait()

    async def _give(self, reply: Reply) -> None:
        with with_ids(turn_index=reply.turn_index):
            with self._metrics.count_reply() as outcome:
                ending = await reply.run(self._history)
                outcome.reason = REASON_LABELS[ending.reason]
            self._history.append(self._portable(reply.turn.message()))
            if ending.text:
                self._history.append(
                    types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=[types_pb2.ContentPart(text=ending.text)])
                )
            _log_ending(ending)
            await self._listener.reply_ended(ending)
            self._replies.popleft()

    def _check_size(self) -> None:
        said = sum(message.ByteSize() for message in self._history)
        said += sum(reply.turn.size_bytes for reply in self._replies) + self._turn.size_bytes
        if said > self._settings.history_limit_bytes:
            raise InvalidArgument(
                f"a session may have at most {self._settings.history_limit_bytes} bytes of conversation, got {said}",
                reason="HISTORY_TOO_LONG",
                field="end_turn",
            )

    def _portable(self, message: types_pb2.Message) -> types_pb2.Message:
        # Each turn of the history is one message. 300 s of floats do not fit into one; as 16-bit integers they do.
        if message.ByteSize() + ENVELOPE_BYTES <= self._settings.max_message_bytes:
            return message
        for part in message.parts:
            if part.audio.format.encoding == types_pb2.AUDIO_ENCODING_PCM_F32LE:
                samples = decode_pcm(part.audio.data, part.audio.format.encoding, field="audio.data")
                part.audio.format.encoding = types_pb2.AUDIO_ENCODING_PCM_S16LE
                part.audio.data = encode_pcm(samples, types_pb2.AUDIO_ENCODING_PCM_S16LE)
        return message


def _log_ending(ending: ReplyEnding) -> None:
    structlog.get_logger().info(
        "reply ended",
        reason=REASON_LABELS[ending.reason],
        frame_count=ending.frame_count,
        step_count=ending.step_count,
        first_audio_seconds=round(ending.timings.first_audio_seconds, 4),
        total_seconds=round(ending.timings.total_seconds, 3),
    )
