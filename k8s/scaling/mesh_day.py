"""A day of a mesh, in ticks: calls come, are admitted or refused, and end; replicas are ordered, load, serve and go."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from k8s.scaling.calls import MAKING_SHARE, TICK_SECONDS, TICKS, DayOfCalls
from k8s.scaling.costs import StageCost
from k8s.scaling.policy import (
    DOWN_SECONDS,
    DOWN_WINDOW_SECONDS,
    DRAIN_SECONDS,
    LAG_SECONDS,
    LEAST_REPLICAS,
    LOAD_SECONDS,
    SYNC_SECONDS,
    UP_FACTOR,
    UP_SECONDS,
    Load,
    Policy,
    late_share,
)

SYNC_TICKS = SYNC_SECONDS // TICK_SECONDS
LAG_TICKS = LAG_SECONDS // TICK_SECONDS


@dataclass
class Fleet:
    """A stage's replicas: those that serve, those that load until a tick, and those that drain until one."""

    serving_count: int
    loading: deque[tuple[int, int]] = field(default_factory=deque)
    draining: deque[tuple[int, int]] = field(default_factory=deque)
    wishes: deque[tuple[int, int]] = field(default_factory=deque)
    may_go_up_at: int = 0
    may_go_down_at: int = 0

    @property
    def ordered_count(self) -> int:
        """Replicas that serve or will."""
        return self.serving_count + sum(count for _, count in self.loading)

    @property
    def paid_count(self) -> int:
        """Cards that are held."""
        return self.ordered_count + sum(count for _, count in self.draining)

    def advance(self, tick: int) -> None:
        """What is loaded serves, what is drained is gone."""
        while self.loading and self.loading[0][0] <= tick:
            self.serving_count += self.loading.popleft()[1]
        while self.draining and self.draining[0][0] <= tick:
            self.draining.popleft()

    def steer(self, tick: int, wanted: int, down_share: float) -> None:
        """Orders replicas at once, lets them go only when no wish of the last minutes needs them."""
        self.wishes.append((tick, wanted))
        while self.wishes[0][0] <= tick - DOWN_WINDOW_SECONDS // TICK_SECONDS:
            self.wishes.popleft()
        have = self.ordered_count
        if wanted > have and tick >= self.may_go_up_at:
            more = min(wanted, ceil(have * UP_FACTOR)) - have
            self.loading.append((tick + LOAD_SECONDS // TICK_SECONDS, more))
            self.may_go_up_at = tick + UP_SECONDS // TICK_SECONDS
        needed = max(LEAST_REPLICAS, *(wish for _, wish in self.wishes))
        if needed < self.serving_count and have == self.serving_count and tick >= self.may_go_down_at:
            less = min(self.serving_count - needed, max(1, int(down_share * self.serving_count)))
            self.serving_count -= less
            self.draining.append((tick + DRAIN_SECONDS // TICK_SECONDS, less))
            self.may_go_down_at = tick + DOWN_SECONDS // TICK_SECONDS


@dataclass(frozen=True)
class MeshDay:
    """What became of a day; arrays have a value for each tick.

    `refused_counts` calls, `session_counts` open at the end of a tick, `capacities` sessions that could be, `paid`
    cards by stage, `broken_share` of replies with a gap, `call_count` calls that came.
    """

    call_count: int
    refused_counts: NDArray[np.int64]
    session_counts: NDArray[np.int64]
    capacities: NDArray[np.int64]
    paid: dict[str, NDArray[np.int64]]
    broken_share: NDArray[np.float64]
    busy: dict[str, NDArray[np.float64]]

    @property
    def card_hours(self) -> float:
        """Hours of cards that were paid for."""
        return float(sum(counts.sum() for counts in self.paid.values())) * TICK_SECONDS / 3600

    @property
    def refused_share(self) -> float:
        """Calls that were turned away, of all."""
        return float(self.refused_counts.sum()) / max(1, self.call_count)

    @property
    def c50(self) -> float:
        """Replies without a gap, of those that were given."""
        given = self.session_counts.sum()
        return 1.0 - float((self.broken_share * self.session_counts).sum()) / max(1, given)

    @property
    def used_share(self) -> float:
        """Sessions, of those that the paid cards of the narrowest stage could have carried."""
        return float(self.session_counts.sum()) / max(1, int(self.capacities.sum()))


def run_day(calls: DayOfCalls, costs: Mapping[str, StageCost], policy: Policy, peak_sessions: int) -> MeshDay:
    """Runs the day; the same calls and policy give the same day."""
    firsts = calls.firsts()
    ends = np.zeros(TICKS + int(calls.length_ticks.max(initial=0)) + 2, np.int64)
    fleets = {stage: first_fleet(policy, peak_sessions, cost) for stage, cost in costs.items()}
    refused, sessions, capacities = (np.zeros(TICKS, np.int64) for _ in range(3))
    paid = {stage: np.zeros(TICKS, np.int64) for stage in costs}
    serving = {stage: np.zeros(TICKS, np.int64) for stage in costs}
    open_count = 0
    for tick in range(TICKS):
        for fleet in fleets.values():
            fleet.advance(tick)
        open_count -= int(ends[tick])
        capacity = min(fleet.serving_count * costs[stage].slot_count for stage, fleet in fleets.items())
        first, last = int(firsts[tick]), int(firsts[tick + 1])
        admitted = max(0, min(last - first, capacity - open_count))
        refused[tick] = last - first - admitted
        if admitted:
            np.add.at(ends, tick + calls.length_ticks[first : first + admitted], 1)
            open_count += admitted
        sessions[tick], capacities[tick] = open_count, capacity
        if policy.targets and tick % SYNC_TICKS == 0:
            seen = int(sessions[max(0, tick - LAG_TICKS)])
            for stage, fleet in fleets.items():
                load = Load(stage, costs[stage], seen, fleet.serving_count)
                fleet.steer(tick, policy.wanted(load), policy.down_share)
        for stage, fleet in fleets.items():
            paid[stage][tick], serving[stage][tick] = fleet.paid_count, fleet.serving_count
    return MeshDay(
        calls.count,
        refused,
        sessions,
        capacities,
        paid,
        broken_shares(costs, sessions, serving),
        {stage: busy_shares(cost, sessions, serving[stage]) for stage, cost in costs.items()},
    )


def first_fleet(policy: Policy, peak_sessions: int, cost: StageCost) -> Fleet:
    """What serves at midnight."""
    return Fleet(policy.fixed_count(peak_sessions, cost.slot_count) or LEAST_REPLICAS)


def broken_shares(
    costs: Mapping[str, StageCost], sessions: NDArray[np.int64], serving: dict[str, NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Replies with a gap, of each tick: those for which any stage is late."""
    whole = np.ones(TICKS)
    for stage, cost in costs.items():
        each = np.rint(sessions / serving[stage]).astype(np.int64)
        table = np.array([late_share(Load(stage, cost, count, 1)) for count in range(int(each.max()) + 1)])
        whole *= 1 - table[each]
    return np.asarray(1 - whole)


def busy_shares(cost: StageCost, sessions: NDArray[np.int64], serving: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much of what it could make a replica makes, of each tick: the streams that need frames, of the most."""
    return np.asarray(sessions * MAKING_SHARE / (serving * max(1, cost.most_streams)))
