"""How much is asked of the mesh: so many callers, or so many turns a second."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from client.bench.caller import Caller, Line
from client.bench.gpu_memory import GpuUse
from client.bench.process_use import ProcessUse
from client.bench.reply_record import Failure, ReplyRecord
from client.errors import MeshError

ARRIVAL_SEED = 0
START_SEED = 1
WARM_UP_SEED = 2**32
"""Where the seeds of warm-up replies begin, far from those that are counted."""


@dataclass(frozen=True)
class ClosedLoop:
    """So many callers, each of which takes its next turn when the last one is answered; live ones in real time."""

    session_count: int
    reply_count: int
    is_live: bool

    @property
    def label(self) -> str:
        """What tables call it."""
        noun = "live" if self.is_live else "session" if self.session_count == 1 else "sessions"
        return f"{self.session_count} {noun}"

    @property
    def turn_count(self) -> int:
        """Turns that are counted."""
        return self.session_count * self.reply_count

    @property
    def warm_up_count(self) -> int:
        """Turns before those, side by side."""
        return self.session_count


@dataclass(frozen=True)
class OpenLoop:
    """So many turns a second on average, whatever becomes of those before: Poisson arrivals, the same every time."""

    rate_hz: float
    duration_seconds: float

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.rate_hz:g} turn{'' if self.rate_hz == 1 else 's'}/s"

    @property
    def arrivals(self) -> list[float]:
        """When the turns arrive, in seconds from the start: their gaps are exponentially distributed."""
        return poisson_arrivals(self.rate_hz, self.duration_seconds)

    @property
    def turn_count(self) -> int:
        """Turns that arrive."""
        return len(self.arrivals)

    @property
    def warm_up_count(self) -> int:
        """One turn before those."""
        return 1


Load = ClosedLoop | OpenLoop


def poisson_arrivals(rate_hz: float, duration_seconds: float) -> list[float]:
    """Moments of a Poisson process within 0 ..= `duration_seconds`, always the same ones."""
    gaps = np.random.default_rng(ARRIVAL_SEED)
    arrivals: list[float] = []
    moment = float(gaps.exponential(1 / rate_hz))
    while moment <= duration_seconds:
        arrivals.append(moment)
        moment += float(gaps.exponential(1 / rate_hz))
    return arrivals


def live_starts(session_count: int, turn_seconds: float) -> list[float]:
    """When live callers begin: anywhere within a turn's length, as people do, the first of them at 0."""
    starts = np.random.default_rng(START_SEED).uniform(0, turn_seconds, session_count)
    return [float(start) for start in starts - starts.min()]


@dataclass
class LoadRecord:
    """What came of a load; `is_complete` once all of it was done. The driver is among the processes."""

    load: Load
    warm_ups: list[ReplyRecord] = field(default_factory=list)
    replies: list[ReplyRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    wall_seconds: float = 0.0
    processes: list[ProcessUse] = field(default_factory=list)
    gpu: GpuUse | None = None
    is_complete: bool = False


class LoadDriver:
    """Puts one load on a mesh; what is heard goes into the record at once, so that it is there when it is stopped."""

    def __init__(self, line: Line, record: LoadRecord, first_seed: int) -> None:
        self._line = line
        self._record = record
        self._first_seed = first_seed
        self._started_at = line.clock.now()

    async def warm_up(self) -> None:
        """A reply for every caller that is not counted: caches and code paths have been used when counting begins."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._record.load.warm_up_count):
                caller, seed = Caller(self._line, index, self._started_at), WARM_UP_SEED + index
                tasks.create_task(self._note(caller, seed, caller.take_turn, is_warm_up=True))

    async def run(self) -> None:
        """The load itself."""
        self._started_at = self._line.clock.now()
        try:
            async with asyncio.TaskGroup() as tasks:
                match self._record.load:
                    case ClosedLoop() as load:
                        for index, start in enumerate(self._starts(load)):
                            tasks.create_task(self._keep_talking(index, load, start))
                    case OpenLoop() as load:
                        for index, arrival in enumerate(load.arrivals):
                            caller, seed = Caller(self._line, index, self._started_at), self._first_seed + index
                            planned_at = self._started_at + arrival
                            turn = partial(caller.take_planned_turn, planned_at=planned_at)
                            tasks.create_task(self._note(caller, seed, turn, planned_at=planned_at))
            self._record.is_complete = True
        finally:
            self._record.wall_seconds = self._line.clock.now() - self._started_at

    def _starts(self, load: ClosedLoop) -> list[float]:
        if not load.is_live:
            return [0.0] * load.session_count
        reply_seconds = max((reply.audio_seconds for reply in self._record.warm_ups), default=0.0)
        return live_starts(load.session_count, self._line.shape.user_seconds + reply_seconds)

    async def _keep_talking(self, index: int, load: ClosedLoop, start: float) -> None:
        caller = Caller(self._line, index, self._started_at)
        await self._line.clock.sleep_until(self._started_at + start)
        first_seed = self._first_seed + index * load.reply_count
        for seed in range(first_seed, first_seed + load.reply_count):
            await self._note(caller, seed, caller.take_live_turn if load.is_live else caller.take_turn)

    async def _note(
        self,
        caller: Caller,
        seed: int,
        take: Callable[[int], Awaitable[ReplyRecord]],
        *,
        planned_at: float | None = None,
        is_warm_up: bool = False,
    ) -> None:
        """Keeps the reply, or what came instead."""
        asked_at = self._line.clock.now() if planned_at is None else planned_at
        try:
            reply = await take(seed)
        except MeshError as error:
            now = self._line.clock.now()
            failure = Failure.of(
                error,
                caller_index=caller.index,
                seed=seed,
                seconds=now - self._started_at,
                answer_seconds=now - asked_at,
                is_warm_up=is_warm_up,
            )
            self._record.failures.append(failure)
        else:
            (self._record.warm_ups if is_warm_up else self._record.replies).append(reply)
