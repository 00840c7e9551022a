"""What a reply does when a replica of a stage is lost, and how it notices one that has fallen silent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from services.orchestrator.clock import Clock
from services.orchestrator.metrics import OrchestratorMetrics
from services.orchestrator.stages import StageCall
from services.orchestrator.turn_parts import Stage
from services.runtime.errors import Unavailable
from services.runtime.tracing import current_span

# The second attempt in a row that fails is followed by this wait, each further one by twice the last.
FIRST_WAIT_SECONDS = 0.1
# Looks at the calls in the time that one may be silent.
LOOKS = 4


@dataclass(frozen=True)
class RecoveryRule:
    """How often a reply may be taken up again, and how long a stage may owe an answer.

    stall_seconds: for one that has given something for this reply; first_stall_seconds: for one that has a prompt to
    run, or a reply to go through again.
    """

    limit_count: int
    stall_seconds: float
    first_stall_seconds: float


@dataclass
class Watched:
    """A call that may fall silent."""

    call: StageCall
    owes: Callable[[], bool]
    answer_count: int = 0
    silent_since: float | None = None


class Recovery:
    """One reply's recoveries: each stage's stream is opened again where it broke off, until the rule says no."""

    def __init__(self, rule: RecoveryRule, metrics: OrchestratorMetrics, clock: Clock) -> None:
        self._rule = rule
        self._metrics = metrics
        self._clock = clock
        self.count = 0
        """How often a call was lost and opened again."""
        # Failures of a stage since it last gave something, and when the first of them was.
        self._failures: Counter[Stage] = Counter()
        self._lost_at: dict[Stage, float] = {}
        self._watched: list[Watched] = []
        self._never = asyncio.Event()

    async def keep(self, stage: Stage, attempt: Callable[[], Awaitable[None]]) -> None:
        """Attempts until one succeeds; what is not Unavailable is raised at once, and Unavailable at the rule's limit.

        An attempt goes on where those before it ended.
        """
        while True:
            try:
                await attempt()
            except Unavailable as failure:
                wait_seconds = self._lose(stage, failure)
            else:
                return self.went_on(stage)
            if wait_seconds:
                await self._clock.wait(self._never, wait_seconds)

    def went_on(self, stage: Stage) -> None:
        """The stage gave something."""
        if (lost_at := self._lost_at.pop(stage, None)) is not None:
            self._failures[stage] = 0
            if (span := current_span()) is not None:
                span.event("recovered", stage=stage)
            self._metrics.count_recovery(stage, "recovered", self._clock.now() - lost_at)

    def begin_anew(self) -> None:
        """Nothing of what was attempted counts any more."""
        self.count = 0
        self._failures.clear()
        self._lost_at.clear()

    @asynccontextmanager
    async def watched(self, call: StageCall, owes: Callable[[], bool]) -> AsyncIterator[StageCall]:
        """The call, open; it is ended as if its replica were lost when it is silent while `owes` says so."""
        async with call:
            watched = Watched(call, owes)
            self._watched.append(watched)
            try:
                yield call
            finally:
                self._watched.remove(watched)

    async def watch(self) -> None:
        """Looks at the watched calls until cancelled."""
        while True:
            await self._clock.wait(self._never, self._rule.stall_seconds / LOOKS)
            for watched in self._watched:
                self._look(watched)

    def _look(self, watched: Watched) -> None:
        call, now = watched.call, self._clock.now()
        if call.answer_count != watched.answer_count or not (call.is_awaited and watched.owes()):
            watched.answer_count, watched.silent_since = call.answer_count, None
            return
        if watched.silent_since is None:
            watched.silent_since = now
        # `opened` says that there is a slot, not that the stage can use it.
        has_given = call.answer_count > 1
        limit_seconds = self._rule.stall_seconds if has_given else self._rule.first_stall_seconds
        if now - watched.silent_since >= limit_seconds:
            call.give_up(f"sent nothing for {limit_seconds:g} s")

    def _lose(self, stage: Stage, failure: Unavailable) -> float:
        """Counts the loss → the time to wait before the next attempt, in seconds."""
        lost_at = self._lost_at.setdefault(stage, self._clock.now())
        self._metrics.count_loss(stage, failure.reason)
        if (span := current_span()) is not None:
            span.event("lost", stage=stage, reason=failure.reason)
        log = structlog.get_logger().bind(lost=stage, reason=failure.reason, detail=failure.message)
        if self.count >= self._rule.limit_count:
            self._metrics.count_recovery(stage, "gave_up", self._clock.now() - lost_at)
            log.error("reply given up", recovery_count=self.count)
            raise failure
        self.count += 1
        self._failures[stage] += 1
        log.warning("reply goes on at another replica", recovery_count=self.count)
        repeated = self._failures[stage] - 2
        return FIRST_WAIT_SECONDS * 2**repeated if repeated >= 0 else 0.0
