"""What the orchestrator counts."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from services.orchestrator.turn_parts import PART_NAMES, STAGE_PARTS, STAGES, Stage, TurnPart
from services.runtime.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    most_telling,
)
from services.runtime.metrics import FIRST_AUDIO_BUCKETS, FRAME_INTERVAL_BUCKETS

REPLY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 600.0)

# A stop is to take less than a frame; the finest buckets are what cancelling three calls takes.
STOP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.5, 1.0, 5.0)

# A wire takes half a millisecond, a process that is busy more.
HOP_BUCKETS = (0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
# With 50 and 100 ms: how many replies stayed within is the continuity.
UNDER_RUN_BUCKETS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

# What stops a reply.
StopCause = Literal["barge_in", "cancel_reply"]
STOP_CAUSES: tuple[StopCause, ...] = ("barge_in", "cancel_reply")

# What is lost is taken up again at another replica.
RecoveryOutcome = Literal["recovered", "gave_up"]
RECOVERY_OUTCOMES: tuple[RecoveryOutcome, ...] = ("recovered", "gave_up")
RECOVERY_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

# Why a session is refused at once.
Refusal = Literal["SESSIONS_IN_USE", "NO_CAPACITY"]
REFUSALS: tuple[Refusal, ...] = ("SESSIONS_IN_USE", "NO_CAPACITY")

# What comes of a call that is to go on with a session.
Resumption = Literal["resumed", "refused"]
RESUMPTIONS: tuple[Resumption, ...] = ("resumed", "refused")
# Below 1 the sound comes faster than it is played.
RTF_BUCKETS = (
    0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0,
)  # fmt: skip

# Why a call to a stage came to nothing.
LossCause = Literal["stalled", "draining", "gone"]
LOSS_CAUSES: tuple[LossCause, ...] = ("stalled", "draining", "gone")

JOURNAL_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)

# `abandoned`: the session ended under the reply. `late`: a stage took longer than its deadline.
ReplyReason = Literal["stop", "length", "cancelled", "abandoned", "invalid", "unavailable", "late", "failed"]
REASONS: tuple[ReplyReason, ...] = (
    "stop", "length", "cancelled", "abandoned", "invalid", "unavailable", "late", "failed",
)  # fmt: skip

HOPS = {names.hop: stage for stage, names in STAGE_PARTS.items()}


@dataclass
class ReplyOutcome:
    """How a reply ended; the block that gives it sets `reason`, to None when there was none, and `begin`s it."""

    reason: ReplyReason | None = "stop"
    started_at: float | None = None

    def begin(self) -> None:
        """The user turn is complete: the reply begins."""
        self.started_at = time.perf_counter()


class OrchestratorMetrics:
    """Sessions, and the replies that they were given."""

    def __init__(self, registry: CollectorRegistry, *, session_limit: int) -> None:
        self._first_audio = Histogram(
            "chroma_orchestrator_first_audio_seconds",
            "From the end of a user turn to the reply's first sound leaving the orchestrator, in seconds.",
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        # Without buckets: for all its parts they would be more than half of what a scrape reads.
        self._turn_parts = Summary(
            "chroma_orchestrator_turn_part_seconds",
            "The parts of chroma_orchestrator_first_audio_seconds, which they add up to, in seconds; 0 for a part that "
            "did not happen.",
            labelnames=["part"],
            registry=registry,
        )
        for name in PART_NAMES:
            self._turn_parts.labels(name)
        self._hops = Histogram(
            "chroma_orchestrator_hop_seconds",
            "Until a reply's first output, from one service to the other and back, in seconds: what the other's own "
            "times do not explain.",
            labelnames=["from", "to"],
            buckets=HOP_BUCKETS,
            registry=registry,
        )
        for stage in STAGES:
            self._hops.labels("orchestrator", stage)
        self.under_run = Histogram(
            "chroma_orchestrator_under_run_seconds",
            "The greatest shortfall of a player that starts at a reply's first packet, of replies of two packets or "
            "more, in seconds.",
            buckets=UNDER_RUN_BUCKETS,
            registry=registry,
        )
        self.frame_interval = Histogram(
            "chroma_orchestrator_frame_interval_seconds",
            "Time between pieces of a reply's sound, for each frame in the later one, in seconds.",
            buckets=FRAME_INTERVAL_BUCKETS,
            registry=registry,
        )
        self.rtf = Histogram(
            "chroma_orchestrator_reply_rtf",
            "Time in which a reply's sound was made ÷ how long the sound lasts, from its first piece on and as far as "
            "nothing held it back.",
            buckets=RTF_BUCKETS,
            registry=registry,
        )
        self._reply_seconds = Histogram(
            "chroma_orchestrator_reply_seconds",
            "From a reply's start to its end, in seconds.",
            buckets=REPLY_BUCKETS,
            registry=registry,
        )
        self._replies = Counter(
            "chroma_orchestrator_replies_total", "Replies that ended, by how.", labelnames=["reason"], registry=registry
        )
        for reason in REASONS:  # a rate needs the zero before the first one
            self._replies.labels(reason)
        self.reply_stop = Histogram(
            "chroma_orchestrator_reply_stop_seconds",
            "From what stopped a reply to the end of the last of its calls to the stages, in seconds.",
            buckets=STOP_BUCKETS,
            registry=registry,
        )
        self._reply_stops = Counter(
            "chroma_orchestrator_reply_stops_total",
            "Replies that were stopped, by what; those whose sound was still being played among them.",
            labelnames=["cause"],
            registry=registry,
        )
        for cause in STOP_CAUSES:
            self._reply_stops.labels(cause)
        self._recoveries = Counter(
            "chroma_orchestrator_recoveries_total",
            "Times that a reply lost a stage's replica, by what came of it.",
            labelnames=["stage", "outcome"],
            registry=registry,
        )
        self._lost_calls = Counter(
            "chroma_orchestrator_lost_calls_total",
            "Calls to a stage that came to nothing, by why: silent for too long, drained, or gone; each is made again "
            "elsewhere, up to a limit.",
            labelnames=["stage", "cause"],
            registry=registry,
        )
        self._recovery_seconds = Histogram(
            "chroma_orchestrator_recovery_seconds",
            "From the loss of a stage's replica to what another one gave next, or to giving up, in seconds.",
            labelnames=["stage", "outcome"],
            buckets=RECOVERY_BUCKETS,
            registry=registry,
        )
        for stage in STAGES:
            for how in RECOVERY_OUTCOMES:
                self._recoveries.labels(stage, how)
            for why in LOSS_CAUSES:
                self._lost_calls.labels(stage, why)
        self.history_cuts = Counter(
            "chroma_orchestrator_history_cuts_total",
            "Times that the oldest exchanges of a conversation were forgotten.",
            registry=registry,
        )
        self._resumes = Counter(
            "chroma_orchestrator_resumes_total",
            "Calls that were to go on with a session whose call was lost, by what came of it.",
            labelnames=["outcome"],
            registry=registry,
        )
        for resumption in RESUMPTIONS:
            self._resumes.labels(resumption)
        self.journal_write = Histogram(
            "chroma_orchestrator_journal_write_seconds",
            "Time that a write to the journal of sessions took, in seconds.",
            buckets=JOURNAL_BUCKETS,
            registry=registry,
        )
        self.journal_failures = Counter(
            "chroma_orchestrator_journal_failures_total",
            "Writes that the journal of sessions did not take.",
            registry=registry,
        )
        self._sessions_in_use = Gauge("chroma_orchestrator_sessions_in_use", "Open sessions.", registry=registry)
        sessions = Gauge("chroma_orchestrator_sessions", "Most sessions at a time.", registry=registry)
        sessions.set(session_limit)
        self._capacity = Gauge(
            "chroma_orchestrator_capacity_sessions",
            "Sessions that a stage's replicas can carry together, for all orchestrators.",
            labelnames=["stage"],
            registry=registry,
        )
        self._replicas = Gauge(
            "chroma_orchestrator_replicas",
            "Replicas of a stage that answer.",
            labelnames=["stage"],
            registry=registry,
        )
        self._sessions_refused = Counter(
            "chroma_orchestrator_sessions_refused_total",
            "Sessions that were not admitted, by why.",
            labelnames=["reason"],
            registry=registry,
        )
        for refusal in REFUSALS:
            self._sessions_refused.labels(refusal)

    @contextmanager
    def count_session(self) -> Iterator[None]:
        """Counts one session as open within the block."""
        with self._sessions_in_use.track_inprogress():
            yield

    def count_refusal(self, reason: Refusal) -> None:
        """Counts a session that was not admitted."""
        self._sessions_refused.labels(reason).inc()

    def tell_capacity(self, stage: Stage, session_count: int, replica_count: int) -> None:
        """A stage has so many replicas, which together can carry so many sessions."""
        self._capacity.labels(stage).set(session_count)
        self._replicas.labels(stage).set(replica_count)

    def count_resume(self, outcome: Resumption) -> None:
        """Counts a call that was to go on with a session."""
        self._resumes.labels(outcome).inc()

    def count_first_audio(self, seconds: float, parts: Iterable[TurnPart], *, trace_id: str | None) -> None:
        """Counts a reply's first sound: its time from the end of the turn, and what that was made of.

        trace_id: of the turn's trace, where there is one.
        """
        self._first_audio.observe(seconds, None if trace_id is None else {"trace_id": trace_id})
        for part in parts:
            self._turn_parts.labels(part.name).observe(part.seconds)
            if (to := HOPS.get(part.name)) is not None:
                self._hops.labels("orchestrator", to).observe(part.seconds)

    def count_stop(self, cause: StopCause) -> None:
        """Counts a reply that was stopped."""
        self._reply_stops.labels(cause).inc()

    def count_loss(self, stage: Stage, reason: str) -> None:
        """Counts a call to a stage that came to nothing, by its error's reason."""
        cause: LossCause = "stalled" if reason == "STALLED" else "draining" if reason == "DRAINING" else "gone"
        self._lost_calls.labels(stage, cause).inc()

    def count_recovery(self, stage: Stage, outcome: RecoveryOutcome, seconds: float) -> None:
        """Counts a loss, and the time until the reply went on or was given up."""
        self._recoveries.labels(stage, outcome).inc()
        self._recovery_seconds.labels(stage, outcome).observe(seconds)

    @contextmanager
    def count_reply(self) -> Iterator[ReplyOutcome]:
        """Counts and times one reply: by `reason` when the block ended well, by its exception otherwise.

        One that failed before it began counts too, with no time; one that was given up before it began does not.
        """
        outcome = ReplyOutcome()
        try:
            yield outcome
        except BaseException as failure:
            reason = reason_of(failure)
            outcome.reason = None if reason == "abandoned" and outcome.started_at is None else reason
            raise
        finally:
            if outcome.reason is not None:
                self._replies.labels(outcome.reason).inc()
                now = time.perf_counter()
                self._reply_seconds.observe(now - (outcome.started_at or now))


def reason_of(failure: BaseException) -> ReplyReason:
    """The label of what a reply failed with."""
    match most_telling(failure):
        case Cancelled() | Aborted():
            return "abandoned"
        case InvalidArgument():
            return "invalid"
        case Unavailable() | ResourceExhausted():
            return "unavailable"
        case DeadlineExceeded():
            return "late"
        case _:
            return "failed"
