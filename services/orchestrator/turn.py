"""One reply: a stream to each stage, and everything relayed between them."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.clock import Clock
from services.orchestrator.heard import NOTHING, Had, Playback, SpokenReply, TextPiece
from services.orchestrator.making_speed import MakingSpeed
from services.orchestrator.metrics import OrchestratorMetrics, StopCause
from services.orchestrator.pacing import Pace, Packets
from services.orchestrator.recovery import Recovery, RecoveryRule
from services.orchestrator.reply_ending import CANCELLED, FAILED, LENGTH, STOP, ReplyEnding, Timings, stage_failure
from services.orchestrator.reply_setup import ReplySetup
from services.orchestrator.spoken_form import SpokenForm
from services.orchestrator.stage_requests import (
    FRAMES_PER_STEP,
    Fed,
    Opening,
    Relayed,
    codec_requests,
    reasoner_requests,
    speech_requests,
)
from services.orchestrator.stages import CodecFacts, StageCall, Stages
from services.orchestrator.turn_parts import TurnMarks
from services.orchestrator.under_run import UnderRun
from services.orchestrator.user_turn import SAMPLE_BYTES, UserTurn
from services.runtime.errors import InvalidArgument, MeshError
from services.runtime.tracing import Span, current_span


class Listener(Protocol):
    """The session's client. A method returns when the message is taken: a client that does not read stops the reply."""

    async def reply_started(self, turn_index: int) -> None:
        """A reply begins."""

    async def text(self, turn_index: int, pieces: Sequence[TextPiece]) -> None:
        """Pieces of its text, one or more."""

    async def audio(
        self, turn_index: int, frame_index: int, frame_count: int, data: bytes, timings: Timings | None
    ) -> None:
        """Sound of `frame_count` frames from `frame_index` on, in the output format; `timings` with the first of it."""

    def drop_reply(self, turn_index: int) -> list[orchestrator_pb2.ReplyAudio]:
        """Forgets what was taken of a reply and has not left yet; returns the sound that did not."""
        ...


class Conversation(Protocol):
    """What a reply asks of the conversation that it belongs to."""

    def learn_context(self, context_length: int) -> None:
        """The reasoner holds so many positions."""

    def learn_prompt(self, position_count: int) -> None:
        """The conversation with this turn took so many."""

    def shorten(self) -> tuple[types_pb2.Message, ...] | None:
        """A shorter conversation, for the reasoner cannot hold this one; None when there is nothing to leave out."""
        ...


class Reply:
    """The answer to one user turn, from the turn's first sound on.

    The reasoner's and the speech stage's streams open when `run` begins, be the turn complete or not: what was said and
    the voice are prefilled while the user speaks. The codec's opens when the turn is complete.

    Nothing between the client and the stages is unbounded. Frames are made no further ahead of a listener than its
    pace allows: steps are held back from the speech stage, which makes no frame without its step, and frames from the
    codec. A client that does not read fills what HTTP/2 buffers for it (some MB); then the codec's sound stays unread,
    frames stop at FRAMES_AHEAD and steps at STEPS_AHEAD, and the stages wait in their writes until the client reads,
    cancels, or the deadline of their calls.

    A stage's call that is lost is opened again, at another replica if there is one, and told all that the reply is made
    of so far: what follows is what would have followed. Where that is of no avail the reply ends as FAILED.
    """

    def __init__(
        self,
        turn_index: int,
        turn: UserTurn,
        form: SpokenForm,
        *,
        ahead_seconds: float,
        recovery: RecoveryRule,
        stages: Stages,
        listener: Listener,
        metrics: OrchestratorMetrics,
        clock: Clock,
        had: Had = NOTHING,
    ) -> None:
        """`had` is what the client has of a reply that is made again."""
        self.turn_index = turn_index
        self.turn = turn
        self.relayed = Relayed()
        self.playback = Playback(clock, form.audio_format.sample_rate_hz, had_sample_count=had.sample_count)
        self.spoken = SpokenReply(turn_index, self.playback, samples_per_frame=form.samples_per_frame)
        self._had = had
        self._form = form
        self._pace = Pace(clock, self.playback, frame_seconds=form.frame_seconds, ahead_seconds=ahead_seconds)
        self._stages = stages
        self.listener = listener
        self._metrics = metrics
        self._clock = clock
        self._recovery = Recovery(recovery, metrics, clock)
        self._failure: MeshError | None = None
        self._prompt: types_pb2.PromptSize | None = None
        self._opening: Opening | None = None
        # Set while the reasoner's and the speech stage's streams may be opened.
        self._context = contextvars.copy_context()
        self._tasks: asyncio.TaskGroup | None = None
        self._relaying: asyncio.Task[None] | None = None
        self._reasoning: asyncio.Task[None] | None = None
        self._speaking: asyncio.Task[None] | None = None
        # The client was told that the reply begins.
        self._is_told = asyncio.Event()
        self._stop_cause: StopCause | None = None
        self._late_stop_cause: StopCause | None = None
        self._stopped_at = 0.0
        self._marks = TurnMarks(clock)
        self._under_run = UnderRun()
        self._span: Span | None = None
        self._speed = MakingSpeed(frame_seconds=form.frame_seconds, free_seconds=ahead_seconds)
        self._last_audio_at: float | None = None

    @property
    def opening(self) -> Opening:
        """What the streams were opened with, last."""
        assert self._opening is not None, "run() comes first"
        return self._opening

    @property
    def is_settled(self) -> bool:
        """Whether what it is given with can no longer change: the turn is complete, and its streams are open."""
        return self._opening is not None and self.turn.is_complete

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped before its end."""
        return self._stop_cause is not None

    def cancel(self, cause: StopCause) -> bool:
        """Stops the reply, also one that is yet to begin; returns whether it went on until now."""
        if self._stop_cause is not None or (self._relaying is not None and self._relaying.done()):
            return False
        if self.playback.is_behind:
            # What the client has heard of it is to be known, and remembered, before it ends.
            self._late_stop_cause = cause
            return True
        self._stop_cause, self._stopped_at = cause, self._clock.now()
        self._metrics.count_stop(cause)
        if self._span is not None:
            self._span.event(cause)
        self.playback.stop()
        if self._relaying is not None:
            self._relaying.cancel()
        return True

    def reopen(self, opening: Opening) -> None:
        """Opens the streams anew that were opened with something else; the turn is not complete yet."""
        if self._opening is None:
            return
        assert not self.turn.is_ended, "what was said is being answered"
        before, self._opening = self._opening, opening
        if self._tasks is None or any(task is not None and task.done() for task in (self._reasoning, self._speaking)):
            return  # a stage was lost: all is opened when the turn is complete
        if opening.reasoner_differs(before):
            self._open_reasoner(opening)
        if opening.speech_differs(before):
            self._open_speech(opening)

    async def run(
        self,
        opening: Opening,
        conversation: Conversation,
        *,
        answering: Callable[[], AbstractContextManager[None]],
    ) -> ReplyEnding | None:
        """Gives the reply once the turn is complete; None when the turn was given up.

        `answering` makes the block in which the client waits for the reply. A stage's failure ends the reply; anything
        else that goes wrong is raised, in an exception group.
        """
        if self.turn.is_ended and not self.turn.is_complete:
            return None
        self._opening, self._conversation, self._span = opening, conversation, current_span()
        if self._stop_cause is None:
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._relaying = tasks.create_task(self._relay())
                    await self.turn.ended()
                    if not self.turn.is_complete:
                        self._relaying.cancel()
                    elif self._stop_cause is None:
                        with answering():
                            await self.listener.reply_started(self.turn_index)
                            self._is_told.set()
                            await asyncio.wait({self._relaying})
            except BaseExceptionGroup as failures:
                self._failure = stage_failure(failures)
                if self._failure is None:
                    raise
            finally:
                self.relayed.end()
                self._trace()
        if not self.turn.is_complete:
            return None
        if not self._is_told.is_set():
            await self.listener.reply_started(self.turn_index)
        return self._ending()

    def _ending(self) -> ReplyEnding:
        was_cut = self._relaying is None or self._relaying.cancelled()
        if was_cut:
            if self._relaying is not None:
                self._metrics.reply_stop.observe(self._clock.now() - self._stopped_at)
            for dropped in self.listener.drop_reply(self.turn_index):
                self.relayed.played_frame_count -= dropped.frame_count
                self.playback.take_back(len(dropped.data) // self._form.sample_bytes)
        elif self._failure is None:
            self.spoken.is_complete = True
        if self._under_run.packet_count > 1 and not self._had.sample_count:
            self._metrics.under_run.observe(self._under_run.seconds)
        if (rtf := self._speed.rtf) is not None:
            self._metrics.rtf.observe(rtf)
        heard = self.spoken.said() if self.spoken.is_complete else self.spoken.heard()
        return ReplyEnding(
            turn_index=self.turn_index,
            reason=CANCELLED if was_cut else FAILED if self._failure is not None else self._reason(),
            text=heard.text,
            frame_count=max(self.relayed.played_frame_count, self._had.frame_count),
            step_count=heard.step_count,
            timings=self._timings(self._marks.left_at),
            failure=self._failure,
            prompt=self._prompt,
            recovery_count=self._recovery.count,
        )

    async def _relay(self) -> None:
        while True:
            try:
                return await self._relay_once()
            except BaseExceptionGroup as failures:
                # Nothing is lost before the turn is complete, and by then the stage may be back.
                if stage_failure(failures) is None:
                    raise
                if self.turn.is_ended:
                    if self.turn.is_complete:
                        await self._is_told.wait()  # raised before, it would cut short what keeps the turn
                    raise
            await self.turn.ended()
            self._recovery.begin_anew()

    async def _relay_once(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._recovery.watch())
            async with asyncio.TaskGroup() as tasks:
                assert self._opening is not None
                self._tasks, self._context = tasks, contextvars.copy_context()
                try:
                    self._open_reasoner(self._opening)
                    self._open_speech(self._opening)
                    await self._is_told.wait()
                finally:
                    self._tasks = None
                await self._play()
            watching.cancel()

    def _open_reasoner(self, opening: Opening) -> None:
        self._reasoning = self._open(self._reasoning, self._reason_out(opening))

    def _open_speech(self, opening: Opening) -> None:
        speaking = self._recovery.keep("speech", partial(self._speak, opening.setup))
        self._speaking = self._open(self._speaking, speaking)

    def _open(self, before: asyncio.Task[None] | None, relaying: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A stream that is opened anew is this turn's, whichever task of the session says so.
        assert self._tasks is not None
        if before is not None:
            before.cancel()
        return self._tasks.create_task(relaying, context=self._context.copy())

    async def _reason_out(self, opening: Opening) -> None:
        while True:
            try:
                return await self._recovery.keep("reasoner", partial(self._generate, opening))
            except InvalidArgument as refusal:
                shorter = self._conversation.shorten() if self._is_too_long(refusal) else None
                if shorter is None:
                    raise
                opening = self._opening = replace(opening, messages=shorter)

    def _is_too_long(self, refusal: InvalidArgument) -> bool:
        return refusal.reason == "TOO_LONG" and not self.relayed.steps.items

    async def _generate(self, opening: Opening) -> None:
        steps, fed = self.relayed.steps, Fed()
        requests = reasoner_requests(
            self.relayed, fed, turn=self.turn, opening=opening, frame_seconds=self._form.frame_seconds
        )
        self._marks.called("reasoner")
        async with self._recovery.watched(self._stages.generate(requests), lambda: fed.is_complete) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        self._marks.opened("reasoner", payload.queue_seconds)
                        self._conversation.learn_context(payload.context_length)
                    case "steps":
                        self._recovery.went_on("reasoner")
                        if self._prompt is None and call.answer.HasField("prompt"):
                            self._prompt = call.answer.prompt
                        timing = call.answer.timing
                        work = (timing.encode_seconds, timing.prefill_seconds, timing.step_seconds)
                        self._marks.gave("reasoner", timing.queue_seconds, *work)
                        for step in payload.steps:
                            call.expect("step", len(steps.items), step.index)
                            steps.keep(step)
                        await steps.room()
                    case "finished":
                        call.expect("step count", len(steps.items), payload.step_count)
                        self._conversation.learn_prompt(payload.prompt_token_count)
                        self.relayed.reasoner_reason = payload.reason
                        steps.end()

    async def _speak(self, setup: ReplySetup) -> None:
        frames, facts, fed = self.relayed.frames, self._stages.codec_facts, Fed()

        def owes() -> bool:
            has_more = fed.is_complete or FRAMES_PER_STEP * fed.count > len(frames.items)
            return has_more and self.relayed.speech_reason is None

        requests = speech_requests(
            self.relayed, fed, setup=setup, pace=self._pace, frame_seconds=self._form.frame_seconds
        )
        self._marks.called("speech")
        async with self._recovery.watched(self._stages.generate_frames(requests), owes) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        call.expect("codebook count", facts.codebook_count, payload.codebook_count)
                        self._marks.opened("speech", payload.queue_seconds)
                    case "frames":
                        call.expect("frame", len(frames.items), payload.index)
                        call.expect("frames and step counts", len(payload.frames), len(payload.step_counts))
                        self._recovery.went_on("speech")
                        timing = call.answer.timing
                        self._marks.gave("speech", timing.queue_seconds, timing.prefill_seconds, timing.frame_seconds)
                        await self._tell_text(call, payload.step_counts)
                        for frame, step_count in zip(payload.frames, payload.step_counts, strict=True):
                            self._speak_steps(step_count)
                            self.spoken.speak_frame()
                            frames.keep(frame)
                        await frames.room()
                        await self._pace.until_due(len(frames.items))
                    case "finished":
                        call.expect("frame count", len(frames.items), payload.frame_count)
                        await self._tell_text(call, [payload.step_count])
                        self._speak_steps(payload.step_count)
                        self.relayed.speech_reason = payload.reason
                        frames.end()
                        # Whatever the reasoner still has to say will not be spoken.
                        self.relayed.steps.end()
                        assert self._reasoning is not None
                        self._reasoning.cancel()

    async def _tell_text(self, call: StageCall, step_counts: Sequence[int]) -> None:
        """Sends the text of the steps that begin to be spoken with the next frames, of which each has its step count.

        Not as soon as it is written: how far the reasoner is ahead when speech ends is a matter of time, and neither
        the client's text nor the next turn's history may be.
        """
        steps, told_count = self.relayed.steps, self.spoken.step_count
        pieces: list[TextPiece] = []
        for frame_index, step_count in enumerate(step_counts, len(self.relayed.frames.items)):
            call.expect("more steps than it was sent", False, step_count > len(steps.items))
            audio_sample = frame_index * self._form.samples_per_frame
            pieces += (TextPiece(step.text, audio_sample) for step in steps.items[told_count:step_count] if step.text)
            told_count = max(told_count, step_count)
        steps.use(told_count)
        await self._is_told.wait()
        if pieces:
            await self.listener.text(self.turn_index, pieces)

    def _speak_steps(self, step_count: int) -> None:
        for step in self.relayed.steps.items[self.spoken.step_count : step_count]:
            self.spoken.speak_step(step.text)

    async def _play(self) -> None:
        facts = self._stages.codec_facts
        frame_bytes = facts.samples_per_frame * SAMPLE_BYTES[self._form.codec_format.encoding]
        packets = Packets(
            self._clock,
            self.playback,
            self._form.encode(),
            self._send,
            frame_seconds=self._form.frame_seconds,
            frame_bytes=frame_bytes,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(packets.run())
            await self._recovery.keep("codec", partial(self._decode, packets, frame_bytes))
            packets.end()

    async def _decode(self, packets: Packets, frame_bytes: int) -> None:
        relayed, facts, fed = self.relayed, self._stages.codec_facts, Fed()

        def owes() -> bool:
            return fed.is_complete or fed.count > relayed.decoded_frame_count

        requests = codec_requests(relayed, fed, audio_format=self._form.codec_format)
        self._marks.called("codec")
        async with self._recovery.watched(self._stages.decode(requests), owes) as call:
            async for kind, payload in call:
                match kind:
                    case "opened":
                        call.expect("facts", facts, CodecFacts.of(payload))
                        self._marks.opened("codec", payload.queue_seconds)
                    case "audio":
                        call.expect("sound of frame", relayed.decoded_frame_count, payload.frame_index)
                        call.expect("sound without frames", False, payload.frame_count == 0)
                        call.expect("bytes of sound", payload.frame_count * frame_bytes, len(payload.data))
                        self._recovery.went_on("codec")
                        timing = call.answer.timing
                        self._marks.gave("codec", timing.queue_seconds, timing.decode_seconds)
                        self._observe_audio(payload.frame_count)
                        relayed.decoded_frame_count += payload.frame_count
                        await packets.add(payload.data)
                        relayed.frames.use(relayed.decoded_frame_count)
                    case "finished":
                        call.expect("frame count", len(relayed.frames.items), payload.frame_count)
                        call.expect("sound of frames in all", payload.frame_count, relayed.decoded_frame_count)

    async def _send(self, frame_index: int, frame_count: int, data: bytes) -> None:
        # What the client had of a reply that is made again left long ago.
        is_first = self._marks.left_at is None and not self._had.sample_count
        timings = self._timings(self._clock.now()) if is_first else None
        await self.listener.audio(self.turn_index, frame_index, frame_count, data, timings)
        self.relayed.played_frame_count += frame_count
        sample_count = len(data) // self._form.sample_bytes
        self.playback.send(sample_count)
        self._under_run.send(self._clock.now(), sample_count / self._form.audio_format.sample_rate_hz)
        if self._late_stop_cause is not None:
            self.cancel(self._late_stop_cause)
        self._marks.left()
        if is_first:
            timings = self._timings(self._marks.left_at)
            trace_id = None if self._span is None else self._span.context.trace_id
            self._metrics.count_first_audio(timings.first_audio_seconds, timings.parts, trace_id=trace_id)

    def _observe_audio(self, frame_count: int) -> None:
        now = self._clock.now()
        self._speed.made(now, frame_count)
        if self._last_audio_at is not None:
            self._metrics.frame_interval.observe((now - self._last_audio_at) / frame_count)
        self._last_audio_at = now

    def _reason(self) -> types_pb2.FinishReason:
        return LENGTH if LENGTH in (self.relayed.reasoner_reason, self.relayed.speech_reason) else STOP

    def _trace(self) -> None:
        """Tells the turn's span how the time from the turn's end went, if it was complete."""
        if self._span is None or not self.turn.is_complete:
            return
        span, marks, ended_at = self._span, self._marks, self.turn.ended_at
        span.began_at = ended_at
        span.parts(ended_at, *((part.name, part.seconds) for part in marks.parts(ended_at, marks.left_at)))
        if marks.left_at is not None:
            span.child("rest", marks.left_at, self._clock.now())

    def _timings(self, left_at: float | None) -> Timings:
        ended_at, marks = self.turn.ended_at, self._marks
        first_step_at, first_frame_at = marks.gave_at("reasoner"), marks.gave_at("speech")
        return Timings(
            queue_seconds=marks.queue_seconds,
            first_step_seconds=_between(ended_at, first_step_at),
            first_frame_seconds=_between(first_step_at, first_frame_at),
            first_codec_audio_seconds=_between(first_frame_at, left_at),
            first_audio_seconds=_between(ended_at, left_at),
            total_seconds=self._clock.now() - ended_at,
            parts=marks.parts(ended_at, left_at),
        )


def _between(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start
