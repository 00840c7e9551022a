"""The state of one Converse call: what was said, what waits for an answer, and what is remembered."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog
from chroma_mesh.orchestrator.v1 import journal_pb2, orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.clock import Clock
from services.orchestrator.heard import NOTHING, Had, SpokenReply
from services.orchestrator.history import History
from services.orchestrator.idle_limit import IdleLimit
from services.orchestrator.listening import (
    DetectedListening,
    Event,
    Listening,
    ManualListening,
    TurnBegan,
    TurnEnded,
    TurnHeard,
)
from services.orchestrator.metrics import OrchestratorMetrics, ReplyOutcome, ReplyReason, reason_of
from services.orchestrator.opening import SessionSetup, reply_changes
from services.orchestrator.outbox import Outbox, ended_message
from services.orchestrator.reply_ending import CANCELLED, FAILED, LENGTH, STOP, ReplyEnding
from services.orchestrator.reply_listener import ReplyListener
from services.orchestrator.reply_setup import ReplyChanges, ReplySetup
from services.orchestrator.session_journal import KeptSession, KeptTurn, SessionJournal, reply_setup
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.sound_formats import HEARD_RATE_HZ
from services.orchestrator.spoken_form import SpokenForm
from services.orchestrator.stage_requests import FRAMES_PER_STEP, Opening
from services.orchestrator.stages import Stages
from services.orchestrator.turn import Reply
from services.orchestrator.turn_detection import ServerVadDetector
from services.orchestrator.turns_journal import Boundary, TurnsJournal
from services.orchestrator.user_turn import MAXIMUM_SECONDS, SAMPLE_BYTES, UserTurn, relayed_format
from services.orchestrator.voices import Voices
from services.runtime.errors import InvalidArgument, ResourceExhausted
from services.runtime.interceptors import with_ids
from services.runtime.stream import IndexCheck
from services.runtime.tracing import current_span, current_traceparent, turn_span

REASON_LABELS: dict[types_pb2.FinishReason, ReplyReason] = {STOP: "stop", LENGTH: "length", CANCELLED: "cancelled"}
# A packet is heard in pieces of this size, between which others have their turn: it may hold minutes of sound.
PIECE_BYTES = 2 * HEARD_RATE_HZ * 2
# A turn that has less room left hears nothing more.
LEAST_ROOM_SECONDS = 1.0


class Session:
    """One conversation: the client's messages come in by the methods; `answer` gives the replies in order.

    A turn and its reply are one `Reply` from the turn's beginning on. They stand in `_replies`, oldest first; the first
    one's streams are open, and only the last one's turn may be incomplete:

        (nobody speaks) ──sound or text──► open turn ──end_turn or silence──► waits ──► reply is given ──► remembered

    While one is given, what the user says next is kept; its streams open when that reply has ended, for the
    conversation that they are told is not known before. A barge-in stops all that are complete.

    Bad input raises InvalidArgument; more waiting turns than allowed, ResourceExhausted. Where the mesh itself listens
    for turns neither may be the end: an empty turn is none, and without barge-in what is said while as many turns wait
    as may is not heard.

    Before a reply begins to leave, the session is kept in the journal as it was when its turn ended; and again, with
    what was heard, before the client is told that the reply has ended. A session that is taken up from there (`kept`)
    gives the replies that the client does not have to their end, the same ones again.
    """

    def __init__(
        self,
        opening: SessionSetup,
        *,
        settings: OrchestratorSettings,
        stages: Stages,
        voices: Voices,
        outbox: Outbox,
        metrics: OrchestratorMetrics,
        idle_limit: IdleLimit,
        clock: Clock,
        record: journal_pb2.SessionRecord,
        journal: SessionJournal,
        kept: KeptSession | None = None,
    ) -> None:
        """`record` is what is kept of the session so far."""
        self.form = SpokenForm.of(opening.output_format, stages.codec_facts)
        self._setup = opening.setup
        self._ahead_seconds = opening.ahead_seconds
        self._vad = opening.vad
        self._joins_text = opening.joins_text
        self._settings = settings
        self._stages = stages
        self._voices = voices
        self._outbox = outbox
        self._metrics = metrics
        self._idle_limit = idle_limit
        self._clock = clock
        self._relayed_format = relayed_format(opening.input_format)
        self._listening = self._new_listening(opening)
        self._history = History(
            opening.history,
            limit_bytes=settings.history_limit_bytes,
            max_message_bytes=settings.max_message_bytes,
        )
        self._turn_count = 0
        self._audio_index = IndexCheck("audio.index")
        # A reply stays until the client was told that it ended.
        self._replies: deque[Reply] = deque()
        # The settings of replies for which their turns asked.
        self._changes: dict[int, ReplyChanges] = {}
        # What was spoken last, until the next reply begins.
        self._last: SpokenReply | None = None
        # A detector hears the user speak, and what it hears is taken.
        self._is_hearing = False
        # What the turn had when the user began to speak, in a turn that silence does not end.
        self._said_seconds = 0.0
        self._is_ended = False
        self._news = asyncio.Event()
        self._session_id = record.session_id
        self._turns = TurnsJournal(journal, record, self._history)
        self._input_sample_bytes = SAMPLE_BYTES.get(opening.input_format.encoding, 1)
        self._message_count = record.message_count
        self._input_origin = self._input_sample_count = record.input_sample_count
        # Turns that are answered again, by index.
        self._kept: dict[int, KeptTurn] = {}
        if kept is not None:
            self._take_up(kept, record)

    def count_message(self) -> None:
        """The client has sent a message: what it says comes next."""
        self._message_count += 1

    async def audio(self, index: int, data: bytes) -> None:
        """The user says something."""
        self._audio_index.expect(index)
        self._idle_limit.touch()
        self._input_sample_count += len(data) // self._input_sample_bytes
        for start in range(0, len(data), PIECE_BYTES):
            if start:
                await asyncio.sleep(0)
            self._take(self._listening.hear(data[start : start + PIECE_BYTES]))

    def text(self, text: str) -> None:
        """The user types something."""
        self._idle_limit.touch()
        self._take(self._listening.end_clip())
        self._open_turn().turn.add_text(text)
        self._make_room()

    async def end_turn(self, message: orchestrator_pb2.EndTurn) -> None:
        """The user turn is complete; it is answered after those before it."""
        self._idle_limit.touch()
        changes = await self._changes_of(message.reply, "end_turn.reply")
        index = self._turn_count if (reply := self._speaking) is None else reply.turn_index
        self._changes[index] = changes
        self._take(self._listening.end_turn())
        if (reply := self._speaking) is not None:
            self._complete(reply)
        elif self._vad is None:
            UserTurn(self._relayed_format, self._clock).complete()  # refuses it
        if not any(reply.turn_index == index for reply in self._replies):
            del self._changes[index]

    def cancel_reply(self, message: orchestrator_pb2.CancelReply) -> None:
        """Stops the reply that is being given or comes next; without one, nothing happens."""
        self._idle_limit.touch()
        reply = self._answered
        if reply is not None and (not message.HasField("turn_index") or message.turn_index == reply.turn_index):
            reply.cancel("cancel_reply")

    def reply_played(self, message: orchestrator_pb2.ReplyPlayed) -> None:
        """The listener has played so much of the reply that is given, or of the last one before the next begins."""
        self._idle_limit.touch()
        if self._last is not None and self._last.turn_index == message.turn_index:
            self._last.playback.report(message.sample_count)
            self._remember_heard(self._last)
        elif (reply := self._answered) is not None and reply.turn_index == message.turn_index:
            reply.playback.report(message.sample_count)

    async def update(self, message: orchestrator_pb2.SessionUpdate) -> None:
        """Other settings for the replies that have not begun."""
        self._idle_limit.touch()
        self._setup = (await self._changes_of(message.reply, "update.reply")).over(self._setup)
        self._reopen()

    def end(self) -> None:
        """No turn follows; a turn that was not ended is not answered."""
        self._idle_limit.touch()
        if (reply := self._speaking) is not None:
            reply.turn.abandon()
        self._is_ended = True
        self._news.set()

    async def answer(self) -> None:
        """Gives the replies in the order of their turns; returns after `end` when all are given."""
        while True:
            while self._replies:
                await self._give_traced(self._replies[0])
                given = self._replies.popleft()
                self._changes.pop(given.turn_index, None)
                self._kept.pop(given.turn_index, None)
            if self._is_ended:
                return
            self._news.clear()
            await self._news.wait()

    # What a reply asks of its conversation.

    def learn_context(self, context_length: int) -> None:
        """The reasoner holds so many positions."""
        self._stages.context_length = context_length or None
        self._make_room()

    def learn_prompt(self, position_count: int) -> None:
        """The conversation with the turn that is being answered took so many."""
        reply = self._replies[0]
        self._history.learn_density(position_count, reply.opening.setup.instructions, reply.turn)

    def shorten(self) -> tuple[types_pb2.Message, ...] | None:
        """A shorter conversation, for the reasoner cannot hold this one."""
        if not self._history.forget_half():
            return None
        self._metrics.history_cuts.inc()
        return self._history.messages(self._replies[0].opening.setup.instructions)

    async def _give_traced(self, reply: Reply) -> None:
        with turn_span("turn") as span, with_ids(turn_index=reply.turn_index, traceparent=current_traceparent()):
            if span is not None:
                span.attributes["chroma.turn_index"] = reply.turn_index
                span.attributes["chroma.session_id"] = self._session_id
            await self._give(reply)

    async def _give(self, reply: Reply) -> None:
        kept = self._kept.get(reply.turn_index)
        if kept is not None and (ended := _only_told(reply.turn_index, kept)) is not None:
            self._history.add(reply.turn, "" if kept.reply is None else kept.reply.heard_text)
            await reply.listener.reply_started(reply.turn_index)
            await self._outbox.reply_ended(ended)
            return
        with self._metrics.count_reply() as outcome:
            self._make_room()
            ending = await reply.run(self._opening_of(reply), self, answering=lambda: self._answering(outcome))
            outcome.reason = _label(ending) if ending is not None else None
        if ending is None:
            return
        with self._idle_limit.busy():
            self._last = reply.spoken
            # What was heard of a reply that is only made again is known.
            heard_text = reply.spoken.heard().text
            if kept is not None and kept.reply is not None and kept.reply.HasField("ended"):
                heard_text = kept.reply.heard_text
            self._history.add(reply.turn, heard_text)
            _log_ending(ending)
            _trace_ending(ending)
            ended = ended_message(ending)
            await self._turns.end_reply(reply.turn_index, ended, None if kept is None else kept.reply)
            await self._outbox.reply_ended(ended)

    def _take_up(self, kept: KeptSession, record: journal_pb2.SessionRecord) -> None:
        first = kept.position.turn_index
        for turn in kept.turns[:first]:
            self._history.add(self._turn_of(turn), "" if turn.reply is None else turn.reply.heard_text)
        for index, turn in enumerate(kept.turns[first:], first):
            self._kept[index] = turn
            self._replies.append(self._new_reply(index, self._turn_of(turn), kept.had if index == first else NOTHING))
        self._turn_count = len(kept.turns)
        self._turns.take_up(kept)
        began = kept.turns[first].reply if self._replies else None
        self._recall(record.memory if began is None else began.memory)

    def _turn_of(self, kept: KeptTurn) -> UserTurn:
        parts = () if kept.said is None else kept.said.pieces
        return UserTurn.restored(parts, self._relayed_format, self._clock)

    def _recall(self, memory: journal_pb2.MemoryRecord) -> None:
        self._history.recall(memory.forgotten_count, memory.density)

    async def _keep_begun(self, turn_index: int) -> int:
        """Sees that the turn outlives this call; returns how many messages the client need not send again."""
        if turn_index not in self._kept:
            reply = self._replies[0]
            assert reply.turn_index == turn_index, "replies are given in order"
            await self._turns.begin_reply(turn_index, reply.opening.setup)
        return self._turns.kept_message_count

    @contextmanager
    def _answering(self, outcome: ReplyOutcome) -> Iterator[None]:
        outcome.begin()
        self._last = None
        with self._idle_limit.busy():
            yield

    @property
    def _speaking(self) -> Reply | None:
        """The turn that is not complete yet."""
        return self._replies[-1] if self._replies and not self._replies[-1].turn.is_ended else None

    @property
    def _answered(self) -> Reply | None:
        """The reply that is given or comes next."""
        return self._replies[0] if self._replies and self._replies[0].turn.is_complete else None

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case TurnBegan():
                    self._begin(event)
                case TurnHeard():
                    if len(event.samples) and (self._vad is None or self._is_hearing):
                        self._open_turn().turn.add_audio(event.samples)
                        self._make_room()
                case TurnEnded():
                    if self._is_hearing and (reply := self._speaking) is not None:
                        self._is_hearing = False
                        self._outbox.speech_stopped(reply.turn_index, self._input_origin + event.input_sample)
                        if self._vad is not None and self._vad.ends_turns:
                            self._complete(reply)

    def _begin(self, event: TurnBegan) -> None:
        assert self._vad is not None, "only a detector says that a turn begins"
        is_full = self._waiting_count >= max(1, self._settings.turn_queue_limit)
        if is_full and self._speaking is None and not self._vad.barge_in:
            structlog.get_logger().warning("a turn was not heard: too many wait for their answer")
            return
        self._said_seconds = 0.0 if self._speaking is None else self._speaking.turn.seconds
        if self._said_seconds and self._longest_seconds() <= LEAST_ROOM_SECONDS:
            structlog.get_logger().warning("nothing more was heard of a turn: it has no room")
            return
        self._is_hearing = True
        reply = self._open_turn()
        self._outbox.speech_started(reply.turn_index, self._input_origin + event.input_sample)
        if self._vad.barge_in:
            self._barge_in()

    def _barge_in(self) -> None:
        # Turns that wait are stopped as well: nobody listens to their replies.
        were_stopped = [reply.cancel("barge_in") for reply in self._replies if reply.turn.is_complete]
        if not any(were_stopped) and self._last is not None and self._last.playback.ahead_seconds > 0:
            self._last.playback.stop()
            self._metrics.count_stop("barge_in")
            self._remember_heard(self._last)

    @property
    def _waiting_count(self) -> int:
        """Turns that are complete and still to be answered, but the one that is."""
        mine = (reply for reply in self._replies if reply.turn_index not in self._kept)
        return max(0, sum(reply.turn.is_complete and not reply.is_stopped for reply in mine) - 1)

    def _open_turn(self) -> Reply:
        if (reply := self._speaking) is not None:
            return reply
        index = self._turn_count
        record = self._turns.open_turn(index)
        reply = self._new_reply(index, UserTurn(self._relayed_format, self._clock, record.add), NOTHING)
        self._replies.append(reply)
        self._turn_count += 1
        self._news.set()
        return reply

    def _new_reply(self, turn_index: int, turn: UserTurn, had: Had) -> Reply:
        return Reply(
            turn_index,
            turn,
            self.form,
            ahead_seconds=self._ahead_seconds,
            recovery=self._settings.recovery_rule,
            stages=self._stages,
            listener=ReplyListener(
                self._outbox,
                partial(self._keep_begun, turn_index),
                sample_bytes=self.form.sample_bytes,
                joins_text=self._joins_text,
                had=had,
            ),
            metrics=self._metrics,
            clock=self._clock,
            had=had,
        )

    def _complete(self, reply: Reply) -> None:
        self._make_room()
        said = sum(reply.turn.size_bytes for reply in self._replies)
        if said > self._settings.history_limit_bytes:
            raise InvalidArgument(
                f"a turn, with those that wait, may have at most {self._settings.history_limit_bytes} bytes, "
                f"got {said}",
                reason="HISTORY_TOO_LONG",
                field="end_turn",
            )
        is_full = self._answered is not None and self._waiting_count >= self._settings.turn_queue_limit
        if is_full and self._vad is None:
            raise ResourceExhausted(
                f"at most {self._settings.turn_queue_limit} turns may wait for their answer, got one more",
                reason="TURN_QUEUE_FULL",
                field="end_turn",
            )
        self._reopen()
        reply.turn.complete()
        boundary = Boundary(self._message_count, self._input_sample_count, self._setup)
        self._turns.complete_turn(reply.turn_index, boundary)

    def _new_listening(self, opening: SessionSetup) -> Listening:
        if (vad := opening.vad) is None:
            return ManualListening(opening.input_format)
        return DetectedListening(
            opening.input_format,
            lambda: ServerVadDetector(vad),
            padding_ms=vad.prefix_padding_ms,
            longest_seconds=self._longest_seconds,
        )

    def _longest_seconds(self) -> float:
        # Nobody has ended a turn that the mesh itself takes for one: it may not be more than can be answered.
        context_length, most = self._stages.context_length, MAXIMUM_SECONDS
        if context_length is None:
            longest = most
        else:
            longest = min(most, self._history.longest_clip_seconds(context_length, self._setup.instructions))
        return max(LEAST_ROOM_SECONDS, longest - self._said_seconds) if self._said_seconds else longest

    def _setup_of(self, reply: Reply) -> ReplySetup:
        if (kept := self._kept.get(reply.turn_index)) is not None and kept.reply is not None:
            return reply_setup(kept.reply.setup)
        return self._changes.get(reply.turn_index, ReplyChanges()).over(self._setup)

    def _opening_of(self, reply: Reply) -> Opening:
        setup = self._setup_of(reply)
        return Opening(self._history.messages(setup.instructions), setup)

    def _reopen(self) -> None:
        """Sees that the streams of a turn that is not complete were opened with what is known now."""
        if self._replies and self._replies[0] is self._speaking:
            self._replies[0].reopen(self._opening_of(self._replies[0]))

    def _make_room(self) -> None:
        """Forgets what is oldest before the turn that is next, and its reply, go beyond what can be held."""
        reply = self._replies[0] if self._replies else None
        if reply is None or reply.is_settled:
            return
        if (kept := self._kept.get(reply.turn_index)) is not None and kept.reply is not None:
            self._recall(kept.reply.memory)  # as the first time
            return
        setup = self._setup_of(reply)
        step_count = setup.max_frame_count // FRAMES_PER_STEP
        if self._history.make_room(
            reply.turn,
            context_length=self._stages.context_length,
            instructions=setup.instructions,
            reply_step_count=min(step_count, setup.max_step_count or step_count),
            waiting_bytes=sum(other.turn.size_bytes for other in self._replies if other is not reply),
        ):
            self._metrics.history_cuts.inc()
            self._reopen()

    def _remember_heard(self, spoken: SpokenReply) -> None:
        if self._history.correct(spoken.heard().text):
            self._reopen()
            self._turns.correct_heard(spoken.turn_index)

    async def _changes_of(self, fields: orchestrator_pb2.ReplySettings, field: str) -> ReplyChanges:
        with self._idle_limit.busy():
            return await reply_changes(fields, field=field, facts=self._stages.codec_facts, voices=self._voices)


def _only_told(turn_index: int, kept: KeptTurn) -> orchestrator_pb2.ReplyEnded | None:
    """The end of a reply that is not made again: it was cut short, or it is forgotten what it was made of."""
    if kept.said is None or kept.reply is None:
        lost = orchestrator_pb2.ReplyFailure(reason="REPLY_LOST", message="the reply can't be made again any more")
        return orchestrator_pb2.ReplyEnded(turn_index=turn_index, reason=FAILED, failure=lost)
    was_cut = kept.reply.HasField("ended") and kept.reply.ended.reason not in (STOP, LENGTH)
    return kept.reply.ended if was_cut else None


def _label(ending: ReplyEnding) -> ReplyReason:
    return REASON_LABELS[ending.reason] if ending.failure is None else reason_of(ending.failure)


def _log_ending(ending: ReplyEnding) -> None:
    structlog.get_logger().info(
        "reply ended",
        reason=_label(ending),
        frame_count=ending.frame_count,
        step_count=ending.step_count,
        first_audio_seconds=round(ending.timings.first_audio_seconds, 4),
        total_seconds=round(ending.timings.total_seconds, 3),
    )


def _trace_ending(ending: ReplyEnding) -> None:
    if (span := current_span()) is None:
        return
    span.attributes |= {
        "chroma.reason": _label(ending),
        "chroma.frame_count": ending.frame_count,
        "chroma.step_count": ending.step_count,
        "chroma.first_audio_seconds": ending.timings.first_audio_seconds,
    }
    if ending.failure is not None:
        span.failure = f"{ending.failure.code.name} {ending.failure.reason}"
