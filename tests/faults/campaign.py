"""Hundreds of replies, four at a time, with failures at random moments of them; and what became of them."""

import asyncio
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.faults.fault import Fault, Kind
from tests.faults.faulty_mesh import FaultyMesh
from tests.faults.script import FRAME_COUNT, FRAME_SECONDS, HeardReply, Nobody, Script, Watcher, hold

SESSIONS = 4
SCRIPTS = tuple(Script(seed) for seed in range(SESSIONS))
# A failure comes this long after the packet that it waits for, at most: it may hit the time between two.
LATER_SECONDS = 0.15
# The part of failures that come before the user turn is complete.
EARLY_SHARE = 0.15
ORCHESTRATOR = "orchestrator"
# Replies that are told one by one.
LATEST = 10
# The part of failures that are an orchestrator's, where they are asked for and none of them fails already.
ORCHESTRATOR_SHARE = 0.5


@dataclass
class Outcome:
    """A reply, and the failure that was meant for it, if any.

    `added_seconds` is how much later than undisturbed the next packet came, None where none was to come or came;
    `in_hand_seconds` what the listener had not played yet, None before the first packet. `met` are the failures of
    other services from that one until the next packet.
    """

    heard: HeardReply
    is_equal: bool
    fault: Fault | None
    added_seconds: float | None = None
    in_hand_seconds: float | None = None
    met: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        beside = ", ".join(map(str, self.met)) or "nothing else"
        return f"{self.fault}: later by {self.added_seconds or 0:.3f} s, beside {beside}"


@dataclass
class Report:
    """What a campaign found."""

    outcomes: list[Outcome]
    seconds: float

    @property
    def struck(self) -> list[Outcome]:
        """Replies with a failure at a moment of their own."""
        return [outcome for outcome in self.outcomes if outcome.fault is not None]

    @property
    def failed(self) -> list[Outcome]:
        """Replies that did not end as they should."""
        return [outcome for outcome in self.outcomes if outcome.heard.error]

    @property
    def unequal(self) -> list[Outcome]:
        """Replies whose sound is not the undisturbed run's, failed ones included."""
        return [outcome for outcome in self.outcomes if not outcome.is_equal]

    def __str__(self) -> str:
        lines = [
            f"{len(self.outcomes)} replies in {self.seconds:.0f} s, {SESSIONS} sessions at a time, {len(self.struck)} "
            f"failures: {len(self.failed)} replies failed, {len(self.unequal)} differ from the undisturbed run"
        ]
        for where, is_front in (("a stage", False), ("the orchestrator", True)):
            for kind in Kind:
                alike = [
                    outcome
                    for outcome in self.struck
                    if outcome.fault is not None
                    and (outcome.fault.kind, outcome.fault.service == ORCHESTRATOR) == (kind, is_front)
                ]
                lines += [f"  {kind} of {where}, {len(alike)} times", *described(alike)]
        late = sorted(self.struck, key=lambda outcome: outcome.added_seconds or 0.0, reverse=True)
        lines += ["  the latest:", *(f"    {outcome}" for outcome in late[:LATEST])]
        errors = Counter(outcome.heard.error for outcome in self.failed)
        lines += [f"  {count:4} × {error}" for error, count in errors.most_common(10)]
        return "\n".join(lines)


def described(outcomes: Sequence[Outcome]) -> list[str]:
    """The delays of some replies, before their first packet and after it."""
    early = [one.added_seconds for one in outcomes if one.added_seconds is not None and one.in_hand_seconds is None]
    late = [
        (one.added_seconds, one.in_hand_seconds)
        for one in outcomes
        if one.added_seconds is not None and one.in_hand_seconds is not None
    ]
    lines = []
    if early:
        lines.append(
            f"    before the first sound, which came later by {statistics.median(early):.3f} s (median), "
            f"{max(early):.3f} s (worst)"
        )
    if late:
        added, in_hand = [seconds for seconds, _ in late], [seconds for _, seconds in late]
        dry_count = sum(seconds > held for seconds, held in late)
        lines.append(
            f"    within the sound, which went on later by {statistics.median(added):.3f} s (median), "
            f"{max(added):.3f} s (worst); in the listener's hand {statistics.median(in_hand):.2f} s (median), "
            f"{min(in_hand):.2f} s (least); {dry_count} ran dry"
        )
    return lines


class Strike:
    """Follows a reply and lets a replica fail when a certain part of its sound has come, or never if it is over.

    An orchestrator that fails is the one that the reply's session is at.
    """

    def __init__(self, mesh: FaultyMesh, fault: Fault, after_seconds: float, later_seconds: float) -> None:
        self.fault = fault
        self.at: float | None = None
        self.healed_at = math.inf
        self.pid: int | None = None
        self.over = asyncio.Event()
        self._mesh = mesh
        self._after_seconds = after_seconds
        self._later_seconds = later_seconds
        self._timer: asyncio.TimerHandle | None = None

    def said(self, reply: HeardReply) -> None:
        """The turn is said, but not complete."""
        if self._after_seconds < 0:
            self._start(reply)

    def heard(self, reply: HeardReply) -> None:
        """A packet came."""
        if reply.heard_seconds >= self._after_seconds:
            self._start(reply)

    def ended(self, reply: HeardReply) -> None:
        """The reply is over."""
        if self._timer is not None:
            self._timer.cancel()
        self.over.set()

    def _start(self, reply: HeardReply) -> None:
        if self._timer is None:
            if self.fault.service == ORCHESTRATOR:
                self.fault = replace(self.fault, replica=self._mesh.orchestrator_at(reply.address))
            self._timer = asyncio.get_running_loop().call_later(self._later_seconds, self._strike)

    def _strike(self) -> None:
        self.at = time.monotonic()
        self.pid = self.fault.strike(self._mesh)
        self.over.set()


class Campaign:
    """Runs sessions on a mesh. One replica of a service fails at a time, so that another one is there."""

    def __init__(self, mesh: FaultyMesh, services: Sequence[str], kinds: Sequence[Kind], *, seed: int) -> None:
        self._mesh = mesh
        self._services = services
        self._kinds = kinds
        self._random = random.Random(seed)
        self._healthy: list[str] = list(services)
        self._kinds_to_come: dict[str, list[Kind]] = {service: [] for service in services}
        self._strikes: list[Strike] = []

    async def run(self, strike_count: int) -> Report:
        """Replies until so many had a failure; a few more do, and many are hit by that of another one."""
        started = time.monotonic()
        undisturbed = await asyncio.gather(*(hold(self._mesh.addresses, script) for script in SCRIPTS))
        errors = [reply.error for replies in undisturbed for reply in replies if reply.error]
        assert not errors, errors
        async with asyncio.TaskGroup() as tasks:
            sessions = [
                tasks.create_task(self._sessions(script, replies, strike_count, tasks))
                for script, replies in zip(SCRIPTS, undisturbed, strict=True)
            ]
        outcomes = [outcome for session in sessions for outcome in session.result()]
        return Report(outcomes, time.monotonic() - started)

    async def _sessions(
        self, script: Script, undisturbed: list[HeardReply], strike_count: int, tasks: asyncio.TaskGroup
    ) -> list[Outcome]:
        outcomes = []
        while len(self._strikes) < strike_count:
            strikes: dict[int, Strike] = {}

            def watch(turn: int, strikes: dict[int, Strike] = strikes) -> Watcher:
                if not self._healthy:
                    return Nobody()
                strikes[turn] = strike = self._draw()
                tasks.create_task(self._heal(strike))
                return strike

            addresses = self._random.sample(self._mesh.addresses, len(self._mesh.addresses))
            replies = await hold(addresses, script, watch)
            outcomes += [
                compare(reply, undisturbed[turn], strikes.get(turn), self._strikes)
                for turn, reply in enumerate(replies)
            ]
        return outcomes

    def _draw(self) -> Strike:
        is_front = ORCHESTRATOR in self._healthy and self._random.random() < ORCHESTRATOR_SHARE
        service = ORCHESTRATOR if is_front else self._random.choice(self._healthy)
        self._healthy.remove(service)
        if not self._kinds_to_come[service]:
            self._kinds_to_come[service] = self._random.sample(self._kinds, len(self._kinds))
        fault = Fault(service, self._kinds_to_come[service].pop(), self._random.choice(self._mesh.replicas(service)))
        is_early = self._random.random() < EARLY_SHARE
        after_seconds = -1.0 if is_early else self._random.uniform(0, (FRAME_COUNT - 1) * FRAME_SECONDS)
        return Strike(self._mesh, fault, after_seconds, self._random.uniform(0, LATER_SECONDS))

    async def _heal(self, strike: Strike) -> None:
        await strike.over.wait()
        if strike.pid is not None:
            self._strikes.append(strike)
            await strike.fault.heal(self._mesh, strike.pid)
            strike.healed_at = time.monotonic()
        self._healthy.append(strike.fault.service)


def compare(
    heard: HeardReply, undisturbed: HeardReply, strike: Strike | None, strikes: Sequence[Strike] = ()
) -> Outcome:
    """What became of a reply, with a strike of its own and those of others."""
    outcome = Outcome(heard, heard.sound == undisturbed.sound and not heard.error, None)
    if strike is None or strike.at is None:
        return outcome
    outcome.fault = strike.fault
    count = heard.packet_count_at(strike.at)
    outcome.in_hand_seconds = heard.in_hand_at(strike.at) if count else None
    seconds, usual_seconds = heard.next_packet_seconds(count), undisturbed.next_packet_seconds(count)
    if seconds is not None and usual_seconds is not None:
        outcome.added_seconds = max(0.0, seconds - usual_seconds)
        until = strike.at + outcome.added_seconds
        outcome.met = tuple(
            other.fault
            for other in strikes
            if other is not strike and other.at is not None and other.at <= until and other.healed_at >= strike.at
        )
    return outcome
