"""What the journal has of a session's turns and of their replies."""

from dataclasses import dataclass

from chroma_mesh.orchestrator.v1 import journal_pb2, orchestrator_pb2

from services.orchestrator.history import History
from services.orchestrator.reply_setup import ReplySetup
from services.orchestrator.session_journal import (
    SESSION,
    KeptSession,
    SessionJournal,
    reply_field,
    setup_record,
    turn_field,
)
from services.orchestrator.turn_record import TurnRecordParts


@dataclass(frozen=True)
class Boundary:
    """Where a turn ends: client messages, and samples of input, to there, and the session's settings then."""

    message_count: int
    input_sample_count: int
    setup: ReplySetup


class TurnsJournal:
    """Keeps what a turn and its reply are made of, so that whoever takes the session up gives the same reply again.

    What is said in a turn is kept while it is said; when its reply begins, the rest of it, its settings and what the
    conversation remembers by then; when the reply has ended, its end and what was heard. Turns that the conversation
    has forgotten are dropped.
    """

    def __init__(self, journal: SessionJournal, record: journal_pb2.SessionRecord, history: History) -> None:
        """`record` is what is kept of the session so far, and `history` has no turn of it yet."""
        self._journal = journal
        self._record = record
        self._history = history
        # The reply whose record can still change.
        self._last: journal_pb2.ReplyRecord | None = None
        self._boundaries: dict[int, Boundary] = {}
        # How what was said is kept: of turns that were not answered yet; and in how many parts those are that were.
        self._unanswered: dict[int, TurnRecordParts] = {}
        self._part_counts: dict[int, int] = {}
        # The first turn that the journal has, and how many were forgotten when the last reply began.
        self._first_kept_turn = self._forgotten_turn_count = 0
        self._opening_exchange_count = history.exchange_count

    @property
    def kept_message_count(self) -> int:
        """Client messages that need not be sent again."""
        return self._journal.kept_message_count

    def take_up(self, kept: KeptSession) -> None:
        """The session goes on that was kept so."""
        for index, turn in enumerate(kept.turns):
            if turn.reply is not None:
                self._part_counts[index] = turn.reply.turn_part_count
        if first := kept.position.turn_index:
            self._last = kept.turns[first - 1].reply

    def open_turn(self, turn_index: int) -> TurnRecordParts:
        """A turn begins; what is said in it goes there."""
        parts = TurnRecordParts(lambda part, data: self._journal.note({turn_field(turn_index, part): data}))
        self._unanswered[turn_index] = parts
        return parts

    def complete_turn(self, turn_index: int, boundary: Boundary) -> None:
        """A turn is complete."""
        self._boundaries[turn_index] = boundary

    async def begin_reply(self, turn_index: int, setup: ReplySetup) -> None:
        """A reply is about to leave: returns when its turn outlives this call, or cannot be kept."""
        boundary, said = self._boundaries.pop(turn_index), self._unanswered.pop(turn_index)
        memory = self._memory()
        self._part_counts[turn_index] = said.full_count + 1
        self._last = journal_pb2.ReplyRecord(
            setup=setup_record(setup), memory=memory, turn_part_count=said.full_count + 1
        )
        self._record.turn_count = turn_index + 1
        self._record.message_count = boundary.message_count
        self._record.input_sample_count = boundary.input_sample_count
        self._record.setup.CopyFrom(setup_record(boundary.setup))
        self._record.memory.CopyFrom(memory)
        # One turn later than it could be: until then the reply before this one may have to be made again.
        forgotten = range(self._first_kept_turn, max(self._first_kept_turn, self._forgotten_turn_count))
        self._first_kept_turn = forgotten.stop
        self._forgotten_turn_count = memory.forgotten_count - self._opening_exchange_count
        await self._journal.save(
            {
                turn_field(turn_index, said.full_count): bytes(said.rest),
                reply_field(turn_index): self._last.SerializeToString(),
                SESSION: self._record.SerializeToString(),
            },
            dropped=[field for index in forgotten for field in self._fields(index)],
            message_count=boundary.message_count,
        )

    async def end_reply(
        self, turn_index: int, ended: orchestrator_pb2.ReplyEnded, kept: journal_pb2.ReplyRecord | None
    ) -> None:
        """A reply has ended, and history has what was heard of it; `kept` is its record if it was made again."""
        if kept is not None:
            self._last = kept
            if kept.HasField("ended"):
                return
        assert self._last is not None, "begin_reply() comes first"
        self._last.ended.CopyFrom(ended)
        self._last.heard_text = self._history.reply_text
        self._record.memory.CopyFrom(self._memory())
        changed = {reply_field(turn_index): self._last, SESSION: self._record}
        await self._journal.save({name: record.SerializeToString() for name, record in changed.items()})

    def correct_heard(self, turn_index: int) -> None:
        """History has something else for what was heard of the last reply."""
        if self._last is not None:
            self._last.heard_text = self._history.reply_text
            self._journal.note({reply_field(turn_index): self._last.SerializeToString()})

    def _fields(self, turn_index: int) -> list[str]:
        """Where a turn that is forgotten was kept."""
        parts = range(self._part_counts.pop(turn_index, 0))
        return [reply_field(turn_index), *(turn_field(turn_index, part) for part in parts)]

    def _memory(self) -> journal_pb2.MemoryRecord:
        return journal_pb2.MemoryRecord(forgotten_count=self._history.forgotten_count, density=self._history.density)
