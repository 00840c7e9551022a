"""The sessions that have a call here, and those that could have one again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from chroma_mesh.orchestrator.v1 import journal_pb2, orchestrator_pb2

from services.orchestrator.journal import Journal, JournalError, journal_key
from services.orchestrator.metrics import OrchestratorMetrics
from services.orchestrator.opening import SessionSetup
from services.orchestrator.session_journal import (
    HISTORY,
    SESSION,
    KeptSession,
    SessionJournal,
    kept_session,
    new_token,
    resumed_elsewhere,
    session_record,
)
from services.runtime.api_keys import current_caller
from services.runtime.errors import Aborted, Cancelled, InvalidArgument, NotFound, Unavailable, most_telling


@dataclass(frozen=True)
class RunningSession:
    """A session while it has a call: `kept` is where it goes on, None for one that begins."""

    token: str
    setup: SessionSetup
    record: journal_pb2.SessionRecord
    journal: SessionJournal
    kept: KeptSession | None = None
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Raises Aborted, reason RESUMED_ELSEWHERE, when another call takes the session."""
        await self.taken.wait()
        raise resumed_elsewhere()


class RunningSessions:
    """Gives each session its entry in the journal, and takes it from the call that had it before."""

    def __init__(self, journal: Journal, metrics: OrchestratorMetrics, *, seconds: float) -> None:
        self._journal = journal
        self._metrics = metrics
        self._seconds = seconds
        self._here: dict[str, RunningSession] = {}

    @asynccontextmanager
    async def begin(self, setup: SessionSetup, session_id: str) -> AsyncIterator[RunningSession]:
        """A new session, for the block."""
        token = new_token()
        record = session_record(setup, session_id=session_id, key_id=current_caller().key_id)
        journal = self._session_journal(token, fence=0, kept_message_count=0)
        history = journal_pb2.HistoryRecord(messages=setup.history)
        await journal.save({SESSION: record.SerializeToString(), HISTORY: history.SerializeToString()})
        async with self._running(RunningSession(token, setup, record, journal)) as running:
            yield running

    @asynccontextmanager
    async def resume(self, opening: orchestrator_pb2.ConverseOpen) -> AsyncIterator[RunningSession]:
        """The session of the opening's `resume`, for the block; the call that it had here before is over by then.

        Raises NotFound, reason NO_SUCH_SESSION, for a token that opens nothing to this caller, whatever the cause;
        InvalidArgument for an opening that says more, and Unavailable when the journal can't be asked.
        """
        try:
            running = await self._take(opening)
        except (NotFound, InvalidArgument, Unavailable):
            self._metrics.count_resume("refused")
            raise
        self._metrics.count_resume("resumed")
        structlog.get_logger().info("session resumed", resumed_session_id=running.record.session_id)
        async with self._running(running) as it:
            yield it

    async def _take(self, opening: orchestrator_pb2.ConverseOpen) -> RunningSession:
        if others := [it.name for it, _ in opening.ListFields() if it.name != "resume"]:
            raise InvalidArgument(
                f"open must have nothing beside resume, got {others[0]}",
                reason="RESUME_IS_ALL",
                field=f"open.{others[0]}",
            )
        position = opening.resume
        key, refusal = journal_key(position.token), NotFound("there is no such session", reason="NO_SUCH_SESSION")
        try:
            peeked = await self._journal.peek(key, SESSION)
            # Nobody takes what is not theirs: not even from its owner's hand.
            if peeked is None or _owner(journal_pb2.SessionRecord.FromString(peeked)) != current_caller().key_id:
                raise refusal
            entry = await self._journal.take(key)
        except JournalError as failure:
            structlog.get_logger().warning("the journal failed", detail=str(failure))
            raise Unavailable("the journal of sessions does not answer", reason="NO_JOURNAL") from None
        while (older := self._here.get(key)) is not None:
            older.taken.set()
            await older.over.wait()
        kept = None if entry is None else kept_session(entry, position)
        if entry is None or kept is None:
            raise refusal
        if position.turn_index > kept.record.turn_count:
            raise InvalidArgument(
                f"open.resume.turn_index must be at most {kept.record.turn_count}, got {position.turn_index}",
                reason="OUT_OF_RANGE",
                field="open.resume.turn_index",
            )
        journal = self._session_journal(position.token, fence=entry.fence, kept_message_count=kept.record.message_count)
        return RunningSession(position.token, kept.setup, kept.record, journal, kept)

    @asynccontextmanager
    async def _running(self, running: RunningSession) -> AsyncIterator[RunningSession]:
        key = journal_key(running.token)
        self._here[key] = running
        try:
            yield running
        except BaseException as failure:
            # A call that was lost, here or with this process, may be followed by another.
            if not isinstance(most_telling(failure), Cancelled | Unavailable | Aborted):
                await running.journal.finish()
            raise
        else:
            await running.journal.finish()
        finally:
            running.over.set()
            if self._here.get(key) is running:
                del self._here[key]

    def _session_journal(self, token: str, *, fence: int, kept_message_count: int) -> SessionJournal:
        return SessionJournal(
            self._journal,
            token,
            fence=fence,
            kept_message_count=kept_message_count,
            metrics=self._metrics,
            seconds=self._seconds,
        )


def _owner(record: journal_pb2.SessionRecord) -> str | None:
    return record.key_id if record.HasField("key_id") else None
