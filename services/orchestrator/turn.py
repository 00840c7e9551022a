"""One reply: a stream to each stage, and everything relayed between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from chroma_mesh.codec.v1 import codec_pb2
from chroma_mesh.reasoner.v1 import reasoner_pb2
from chroma_mesh.speech.v1 import speech_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.metrics import OrchestratorMetrics
from services.orchestrator.stages import CodecFacts, StageCall, Stages
from services.orchestrator.user_turn import SAMPLE_BYTES, UserTurn

STOP = types_pb2.FINISH_REASON_STOP
LENGTH = types_pb2.FINISH_REASON_LENGTH
CANCELLED = types_pb2.FINISH_REASON_CANCELLED

# How far a stage may run ahead of the next one: about 10 s of speech.
STEPS_AHEAD = 64
FRAMES_AHEAD = 128
# A listener takes this much silence after the end of the turn for a natural pause.
FIRST_AUDIO_SECONDS = 0.3

Item = TypeVar("Item")


class Track(Generic[Item]):
    """What one stage gave during a reply, in order, kept until the reply ends.

    The writer waits while the next stage has `ahead` items still to use. That is counted by what the next stage gave in
    turn: HTTP/2 alone would take thousands of small messages ahead of a stage that has stopped. The reader may begin
    again at any index, so that what a lost replica was told can be told to the next.
    """

    def __init__(self, ahead: int) -> None:
        self.items: list[Item] = []
        self._ahead = ahead
        self._used_count = 0
        self._is_ended = False
        self._written = asyncio.Event()
        self._used = asyncio.Event()

    @property
    def unused_count(self) -> int:
        """Items that the next stage has still to use."""
        return len(self.items) - self._used_count

    async def append(self, item: Item) -> None:
        """Keeps the item, then waits while the next stage is behind."""
        self.items.append(item)
        self._written.set()
        while self.unused_count >= self._ahead and not self._is_ended:
            self._used.clear()
            await self._used.wait()

    def use(self, count: int) -> None:
        """The next stage has used the first `count` items."""
        self._used_count = min(count, len(self.items))
        self._used.set()

    def end(self) -> None:
        """No item follows: the reader stops after the last one, and the writer waits no more."""
        self._is_ended = True
        self._written.set()
        self._used.set()

    async def read(self, first: int = 0) -> AsyncIterator[Item]:
        """The items from index `first` on, those to come included, until the end."""
        index = first
        while True:
            while index < len(self.items):
                yield self.items[index]
                index += 1
            if self._is_ended:
                return
            self._written.clear()
            await self._written.wait()


@dataclass
class Relayed:
    """All that was relayed for one reply: enough to begin again at any stage."""

    steps: Track[types_pb2.Step] = field(default_factory=lambda: Track(STEPS_AHEAD))
    frames: Track[types_pb2.Frame] = field(default_factory=lambda: Track(FRAMES_AHEAD))
    # The pieces of text, and the frames whose sound, that the client was sent.
    texts: list[str] = field(default_factory=list)
    spoken_step_count: int = 0
    played_frame_count: int = 0
    # How each stage finished; None while it has not.
    reasoner_reason: types_pb2.FinishReason | None = None
    speech_reason: types_pb2.FinishReason | None = None

    @property
    def text(self) -> str:
        """The text that the client was sent."""
        return "".join(self.texts)

    def end(self) -> None:
        """Ends both tracks: nobody waits for them any more."""
        self.steps.end()
        self.frames.end()


@dataclass(frozen=True)
class ReplySetup:
    """What all replies of a session have in common."""

    voice_prompt: types_pb2.VoicePrompt
    input_format: types_pb2.AudioFormat
    output_format: types_pb2.AudioFormat
    sampling: types_pb2.Sampling
    max_frame_count: int
    max_step_count: int | None


@dataclass(frozen=True)
class Timings:
    """Where a reply's time went, in seconds; a part that did not happen is 0.

    First step, first frame and first codec audio add up to first audio.
    """

    queue_seconds: float
    first_step_seconds: float
    first_frame_seconds: float
    first_codec_audio_seconds: float
    first_audio_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class ReplyEnding:
    """How a reply ended; its text and frames are those that were sent."""

    turn_index: int
    reason: types_pb2.FinishReason
    text: str
    frame_count: int
    step_count: int
    timings: Timings


class Listener(Protocol):
    """The session's client. A method returns when the message is taken: a client that does not read stops the reply."""

    async def reply_started(self, turn_index: int) -> None:
        """A reply begins."""

    async def text(self, turn_index: int, text: str) -> None:
        """A piece of its text."""

    async def audio(self, turn_index: int, frame_index: int, frame_count: int, data: bytes) -> None:
        """Sound of `frame_count` frames from `frame_index` on, PCM in the output format."""

    async def reply_ended(self, ending: ReplyEnding) -> None:
        """The reply is complete."""


class Reply:
    """The answer to one user turn, which ended when this is made.

    Nothing between the client and the stages is unbounded. A client that does not read fills what HTTP/2 buffers for
    it (some MB); then the codec's sound stays unread, frames stop at FRAMES_AHEAD and steps at STEPS_AHEAD, and the
    stages wait in their writes until the client reads, cancels, or the deadline of their calls.
    """

    def __init__(
        self,
        turn_index: int,
        turn: UserTurn,
        setup: ReplySetup,
        *,
        stages: Stages,
        listener: Listener,
        metrics: OrchestratorMetrics,
    ) -> None:
        self.turn_index = turn_index
        self.turn = turn
        self.relayed = Relayed()
        self._setup = setup
        self._stages = stages
        self._listener = listener
        self._metrics = metrics
        self._is_cancelled = False
        self._relaying: asyncio.Task[None] | None = None
        self._queue_seconds = 0.0
        self._turn_ended_at = time.perf_counter()
        self._first_step_at: float | None = None
        self._first_frame_at: float | None = None
        self._first_audio_at: float | None = None
        self._last_audio_at: float | None = None

    def cancel(self) -> None:
        """Stops the reply, also one that is yet to begin; one that has ended stays as it is."""
        self._is_cancelled = True
        if self._relaying is not None:
            self._relaying.cancel()

    async def run(self, history: Sequence[types_pb2.Message]) -> ReplyEnding:
        """Gives the reply to a conversation; raises what a stage raised, in an exception group."""
        await self._listener.reply_started(self.turn_index)
        if not self._is_cancelled:
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._relaying = tasks.create_task(self._relay(history))
            finally:
                self.relayed.end()
        was_cut = self._is_cancelled and (self._relaying is None or self._relaying.cancelled())
        return ReplyEnding(
            turn_index=self.turn_index,
            reason=CANCELLED if was_cut else self._reason(),
            text=self.relayed.text,
            frame_count=self.relayed.played_frame_count,
            step_count=self.relayed.spoken_step_count,
            timings=self._timings(),
        )

    async def _relay(self, history: Sequence[types_pb2.Message]) -> None:
        async with asyncio.TaskGroup() as tasks:
            reasoning = tasks.create_task(self._reason_out(history))
            tasks.create_task(self._speak(reasoning))
            tasks.create_task(self._play())

    async def _reason_out(self, history: Sequence[types_pb2.Message]) -> None:
        steps = self.relayed.steps
        async with self._stages.generate(self._reasoner_requests(history)) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        self._queue_seconds = max(self._queue_seconds, payload.queue_seconds)
                    case "step":
                        call.expect("step", len(steps.items), payload.index)
                        self._first_step_at = self._first_step_at or time.perf_counter()
                        await steps.append(payload)
                    case "finished":
                        call.expect("step count", len(steps.items), payload.step_count)
                        self.relayed.reasoner_reason = payload.reason
                        steps.end()

    async def _speak(self, reasoning: asyncio.Task[None]) -> None:
        frames, facts = self.relayed.frames, self._stages.codec_facts
        async with self._stages.generate_frames(self._speech_requests()) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        call.expect("codebook count", facts.codebook_count, payload.codebook_count)
                        self._queue_seconds = max(self._queue_seconds, payload.queue_seconds)
                    case "frame":
                        call.expect("frame", len(frames.items), payload.index)
                        self._first_frame_at = self._first_frame_at or time.perf_counter()
                        await self._tell_text(call, payload.step_count)
                        await frames.append(payload.frame)
                    case "finished":
                        call.expect("frame count", len(frames.items), payload.frame_count)
                        await self._tell_text(call, payload.step_count)
                        self.relayed.speech_reason = payload.reason
                        frames.end()
                        # Whatever the reasoner still has to say will not be spoken.
                        self.relayed.steps.end()
                        reasoning.cancel()

    async def _tell_text(self, call: StageCall, spoken_step_count: int) -> None:
        """Sends the text of the steps that are being spoken.

        Not as soon as it is written: how far the reasoner is ahead when speech ends is a matter of time, and neither
        the client's text nor the next turn's history may be.
        """
        relayed = self.relayed
        call.expect("more steps than it was sent", False, spoken_step_count > len(relayed.steps.items))
        relayed.steps.use(spoken_step_count)
        for step in relayed.steps.items[relayed.spoken_step_count : spoken_step_count]:
            if step.text:
                await self._listener.text(self.turn_index, step.text)
                relayed.texts.append(step.text)
            relayed.spoken_step_count += 1

    async def _play(self) -> None:
        relayed, facts = self.relayed, self._stages.codec_facts
        frame_bytes = facts.samples_per_frame * SAMPLE_BYTES[self._setup.output_format.encoding]
        async with self._stages.decode(self._codec_requests()) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        call.expect("facts", facts, CodecFacts.of(payload))
                        self._queue_seconds = max(self._queue_seconds, payload.queue_seconds)
                    case "audio":
                        call.expect("sound of frame", relayed.played_frame_count, payload.frame_index)
                        call.expect("sound without frames", False, payload.frame_count == 0)
                        call.expect("bytes of sound", payload.frame_count * frame_bytes, len(payload.data))
                        await self._listener.audio(
                            self.turn_index, payload.frame_index, payload.frame_count, payload.data
                        )
                        relayed.played_frame_count += payload.frame_count
                        relayed.frames.use(relayed.played_frame_count)
                        self._observe_audio(payload.frame_count)
                    case "finished":
                        call.expect("frame count", len(relayed.frames.items), payload.frame_count)
                        call.expect("sound of frames in all", payload.frame_count, relayed.played_frame_count)

    async def _reasoner_requests(
        self, history: Sequence[types_pb2.Message]
    ) -> AsyncIterator[reasoner_pb2.GenerateRequest]:
        yield reasoner_pb2.GenerateRequest(
            open=reasoner_pb2.GenerateOpen(
                audio_format=self._setup.input_format,
                max_step_count=self._setup.max_step_count,
                due_seconds=FIRST_AUDIO_SECONDS,
            )
        )
        for message in history:
            yield reasoner_pb2.GenerateRequest(message=message)
        for index, piece in enumerate(self.turn.pieces()):
            part = reasoner_pb2.TurnPart(index=index)
            if isinstance(piece, str):
                part.text = piece
            else:
                part.audio = piece
            yield reasoner_pb2.GenerateRequest(part=part)
        yield reasoner_pb2.GenerateRequest(end=reasoner_pb2.GenerateEnd())

    async def _speech_requests(self) -> AsyncIterator[speech_pb2.GenerateFramesRequest]:
        # The voice goes out at once, so that its prefill is done while the reasoner is at its own.
        yield speech_pb2.GenerateFramesRequest(
            open=speech_pb2.GenerateFramesOpen(
                voice_prompt=self._setup.voice_prompt,
                sampling=self._setup.sampling,
                max_frame_count=self._setup.max_frame_count,
                due_seconds=FIRST_AUDIO_SECONDS,
            )
        )
        async for step in self.relayed.steps.read():
            yield speech_pb2.GenerateFramesRequest(step=step)
        yield speech_pb2.GenerateFramesRequest(end=speech_pb2.GenerateFramesEnd())

    async def _codec_requests(self) -> AsyncIterator[codec_pb2.DecodeRequest]:
        yield codec_pb2.DecodeRequest(
            open=codec_pb2.DecodeOpen(audio_format=self._setup.output_format, due_seconds=FIRST_AUDIO_SECONDS)
        )
        index = 0
        async for frame in self.relayed.frames.read():
            yield codec_pb2.DecodeRequest(frame=codec_pb2.DecodeFrame(index=index, frame=frame))
            index += 1
        yield codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())

    def _observe_audio(self, frame_count: int) -> None:
        now = time.perf_counter()
        if self._last_audio_at is None:
            self._first_audio_at = now
            self._metrics.first_audio.observe(now - self._turn_ended_at)
        else:
            self._metrics.frame_interval.observe((now - self._last_audio_at) / frame_count)
        self._last_audio_at = now

    def _reason(self) -> types_pb2.FinishReason:
        return LENGTH if LENGTH in (self.relayed.reasoner_reason, self.relayed.speech_reason) else STOP

    def _timings(self) -> Timings:
        return Timings(
            queue_seconds=self._queue_seconds,
            first_step_seconds=_between(self._turn_ended_at, self._first_step_at),
            first_frame_seconds=_between(self._first_step_at, self._first_frame_at),
            first_codec_audio_seconds=_between(self._first_frame_at, self._first_audio_at),
            first_audio_seconds=_between(self._turn_ended_at, self._first_audio_at),
            total_seconds=time.perf_counter() - self._turn_ended_at,
        )


def _between(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start
