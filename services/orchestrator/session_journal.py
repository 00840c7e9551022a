"""What of one session is in the journal, and how it gets there."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from chroma_mesh.orchestrator.v1 import journal_pb2, orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2
from google.protobuf.message import DecodeError

from services.orchestrator.heard import Had
from services.orchestrator.journal import Entry, Journal, JournalError, Superseded, journal_key
from services.orchestrator.metrics import OrchestratorMetrics
from services.orchestrator.opening import SessionSetup
from services.orchestrator.reply_setup import ReplySetup
from services.orchestrator.turn_detection import VadSettings
from services.runtime.errors import Aborted

# A client may lose its call after the session's end has left here.
LINGER_SECONDS = 10.0

SESSION, HISTORY = "session", "history"


def new_token() -> str:
    """A secret that opens a session again: 256 random bits."""
    return secrets.token_urlsafe(32)


def turn_field(turn_index: int, part_index: int) -> str:
    """Where a part of what the user said in a turn is."""
    return f"turn/{turn_index}/{part_index}"


def reply_field(turn_index: int) -> str:
    """Where what is known of a turn's reply is."""
    return f"reply/{turn_index}"


def resumed_elsewhere() -> Aborted:
    """What a call ends with whose session goes on in another one."""
    return Aborted("the session goes on in another call", reason="RESUMED_ELSEWHERE")


class SessionJournal:
    """A session's entry. A journal that fails fails no session: what it did not take it is told again.

    Raises Aborted, reason RESUMED_ELSEWHERE, when another call has taken the session.
    """

    def __init__(
        self, journal: Journal, token: str, *, fence: int, kept_message_count: int, metrics: OrchestratorMetrics,
        seconds: float,
    ) -> None:  # fmt: skip
        self.kept_message_count = kept_message_count
        """Client messages that need not be sent again."""
        self._journal = journal
        self._key = journal_key(token)
        self._fence = fence
        self._metrics = metrics
        self._seconds = seconds
        self._changed: dict[str, bytes] = {}
        self._dropped: set[str] = set()
        self._noted = asyncio.Event()
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Writes what was noted, and keeps the entry from expiring, for as long as the session is open."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds / 3):
                    await self._noted.wait()
            if self._noted.is_set():
                await self.save({})
            else:
                with suppress(JournalError):
                    await self._keep(None)

    def note(self, changed: Mapping[str, bytes]) -> None:
        """Has this written soon."""
        self._changed |= changed
        self._noted.set()

    async def save(
        self, changed: Mapping[str, bytes], dropped: Iterable[str] = (), *, message_count: int | None = None
    ) -> None:
        """Returns when this is written, or cannot be; then `message_count` messages need not be sent again."""
        self._changed |= changed
        for name in dropped:
            self._dropped.add(name)
            self._changed.pop(name, None)
        async with self._writing:
            writing, dropping = dict(self._changed), tuple(self._dropped)
            self._noted.clear()
            began = time.perf_counter()
            try:
                await self._journal.write(self._key, self._fence, writing, dropping)
            except Superseded:
                raise resumed_elsewhere() from None
            except JournalError as failure:
                self._metrics.journal_failures.inc()
                structlog.get_logger().warning("the journal failed", detail=str(failure))
                return
            self._metrics.journal_write.observe(time.perf_counter() - began)
            self._changed = {name: data for name, data in self._changed.items() if writing.get(name) is not data}
            self._dropped.difference_update(dropping)
            if message_count is not None:
                self.kept_message_count = message_count

    async def finish(self) -> None:
        """The session is over: it is forgotten as soon as a client that lost its end cannot ask for it any more."""
        with suppress(JournalError, Aborted):
            await self._keep(LINGER_SECONDS)

    async def _keep(self, seconds: float | None) -> None:
        try:
            await self._journal.keep(self._key, self._fence, seconds)
        except Superseded:
            raise resumed_elsewhere() from None


@dataclass(frozen=True)
class KeptTurn:
    """A turn as it was kept; None for what is forgotten."""

    said: journal_pb2.TurnRecord | None
    reply: journal_pb2.ReplyRecord | None


@dataclass(frozen=True)
class KeptSession:
    """A session as it was kept, and what the client has of it."""

    record: journal_pb2.SessionRecord
    history: tuple[types_pb2.Message, ...]
    turns: tuple[KeptTurn, ...]
    position: orchestrator_pb2.ConverseResume

    @property
    def setup(self) -> SessionSetup:
        """The session's setup."""
        record, vad = self.record, None
        if record.HasField("server_vad"):
            vad = VadSettings(**{field.name: value for field, value in record.server_vad.ListFields()})
        return SessionSetup(
            input_format=record.input_format,
            output_format=record.output_format,
            history=self.history,
            setup=reply_setup(record.setup),
            ahead_seconds=record.ahead_seconds,
            vad=vad,
            joins_text=record.joins_text,
        )

    @property
    def had(self) -> Had:
        """What the client has of the first reply that it does not have to its end."""
        position = self.position
        return Had(position.is_started, position.text_count, position.frame_count, position.sample_count)


def kept_session(entry: Entry, position: orchestrator_pb2.ConverseResume) -> KeptSession | None:
    """The session of an entry; None where it is not whole."""
    try:
        record = journal_pb2.SessionRecord.FromString(entry.fields[SESSION])
        history = journal_pb2.HistoryRecord.FromString(entry.fields[HISTORY])
        turns = []
        for index in range(record.turn_count):
            if (kept := entry.fields.get(reply_field(index))) is None:
                turns.append(KeptTurn(None, None))
                continue
            reply = journal_pb2.ReplyRecord.FromString(kept)
            said = b"".join(entry.fields[turn_field(index, part)] for part in range(reply.turn_part_count))
            turns.append(KeptTurn(journal_pb2.TurnRecord.FromString(said), reply))
    except (KeyError, DecodeError):
        return None
    return KeptSession(record, tuple(history.messages), tuple(turns), position)


def session_record(setup: SessionSetup, *, session_id: str, key_id: str | None) -> journal_pb2.SessionRecord:
    """A session that has just opened."""
    return journal_pb2.SessionRecord(
        session_id=session_id,
        key_id=key_id,
        input_format=setup.input_format,
        output_format=setup.output_format,
        ahead_seconds=setup.ahead_seconds,
        server_vad=None if setup.vad is None else _server_vad(setup.vad),
        setup=setup_record(setup.setup),
        joins_text=setup.joins_text,
    )


def setup_record(setup: ReplySetup) -> journal_pb2.ReplySetupRecord:
    """The setup as it is kept."""
    return journal_pb2.ReplySetupRecord(
        voice_prompt=setup.voice_prompt,
        instructions=setup.instructions,
        sampling=setup.sampling,
        max_frame_count=setup.max_frame_count,
        max_step_count=setup.max_step_count,
    )


def reply_setup(record: journal_pb2.ReplySetupRecord) -> ReplySetup:
    """The setup that was kept."""
    return ReplySetup(
        voice_prompt=record.voice_prompt,
        instructions=record.instructions,
        sampling=record.sampling,
        max_frame_count=record.max_frame_count,
        max_step_count=record.max_step_count if record.HasField("max_step_count") else None,
    )


def _server_vad(vad: VadSettings) -> orchestrator_pb2.ServerVad:
    return orchestrator_pb2.ServerVad(
        threshold=vad.threshold,
        prefix_padding_ms=vad.prefix_padding_ms,
        silence_duration_ms=vad.silence_duration_ms,
        barge_in=vad.barge_in,
        ends_turns=vad.ends_turns,
    )
