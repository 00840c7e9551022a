"""How many sessions the stages can carry, learned from their replicas.

A session counts as one slot in each stage, so the mesh carries as many as the stage with the fewest slots, over all of
its replicas; where several orchestrators run, each admits its share of them. A replica tells its slots in GetCapacity,
which takes none, so that one that is full answers as well, and one that drains or is gone does not. gRPC gives the
calls of a channel to the replicas in turn, but other calls come between: a round asks until all that are known have
answered and as many answers in a row as there are replicas told nothing new, or further asks are not likely to help.
A replica that was not heard in some rounds is gone. So a loss is noticed within seconds; replies that it meets before
wait in the queues of the other replicas.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.orchestrator.clock import Clock
from services.orchestrator.stages import ReplicaSlots, Stages
from services.orchestrator.turn_parts import STAGES, Stage
from services.runtime.errors import MeshError

ROUND_SECONDS = 2.0
# The same while a stage has no replica: the first one that is back is to be of use at once.
EMPTY_ROUND_SECONDS = 0.2
# Asks of a round, for each replica; were they answered at random, one of eight would be left out of three rounds in a
# row once in 20,000 times.
ASKS_EACH = 3
# Rounds without an answer after which a replica is gone.
MISSED_ROUNDS = 3
# How long a stage without a replica is waited for, below the stall limit's two seconds. One that says that it is ready
# again is found within this time: a channel that leads to nobody is opened anew every 1.5 seconds.
EMPTY_WAIT_SECONDS = 1.9


@dataclass
class KnownReplica:
    """A replica's slots, and how many rounds in a row it has left without an answer."""

    slot_count: int
    missed_count: int = 0


class Capacity:
    """What is known of the stages' slots; `share_count` orchestrators share them.

    `on_round` is told of every round: the stage, its slots and its replicas.
    """

    def __init__(self, stages: Stages, *, share_count: int, on_round: Callable[[Stage, int, int], None]) -> None:
        self._stages = stages
        self._share_count = share_count
        self._on_round = on_round
        self._known: dict[Stage, dict[str, KnownReplica]] = {stage: {} for stage in STAGES}
        self._is_whole = asyncio.Event()

    def narrowest(self) -> tuple[Stage, int]:
        """The stage that carries the fewest sessions of this orchestrator, and how many that are.

        A stage with fewer slots than there are orchestrators is lent to each of them once, rather than to none.
        """
        slots = {stage: self._slot_count(stage) for stage in STAGES}
        stage = min(slots, key=slots.__getitem__)
        return stage, max(slots[stage] // self._share_count, min(slots[stage], 1))

    async def learn(self) -> None:
        """Asks the replicas of all stages."""
        async with asyncio.TaskGroup() as tasks:
            for stage in STAGES:
                tasks.create_task(self._round(stage))

    async def until_whole(self, clock: Clock) -> None:
        """Returns when every stage has a replica, or after `EMPTY_WAIT_SECONDS`; at once if none lacks one."""
        if not self._is_whole.is_set():
            await clock.wait(self._is_whole, EMPTY_WAIT_SECONDS)

    async def learn_first(self) -> None:
        """Asks until a replica of every stage has answered: before, there is room for nobody."""
        await self.learn()
        while not self._is_whole.is_set():
            await asyncio.sleep(EMPTY_ROUND_SECONDS)
            await self.learn()

    async def watch(self) -> None:
        """Goes on asking until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS if self._is_whole.is_set() else EMPTY_ROUND_SECONDS)
            await self.learn()

    async def _round(self, stage: Stage) -> None:
        known, before = self._known[stage], self._slot_count(stage)
        heard: dict[str, KnownReplica] = {}
        ask_count = same_count = 0
        while ask_count < 1 + ASKS_EACH * max(len(known), len(heard)):
            if heard and heard.keys() >= known.keys() and same_count >= len(heard):
                break
            ask_count += 1
            answer = await self._ask(stage)
            if answer is None or answer.replica in heard:
                same_count += 1
            else:
                heard[answer.replica], same_count = KnownReplica(answer.slot_count), 0
        for name in known.keys() - heard.keys():
            known[name].missed_count += 1
            if known[name].missed_count == MISSED_ROUNDS:
                del known[name]
        known.update(heard)
        if all(self._known.values()):
            self._is_whole.set()
        else:
            self._is_whole.clear()
        now = self._slot_count(stage)
        if now != before:
            structlog.get_logger().info("slots counted", of=stage, slot_count=now, replica_count=len(known))
        self._on_round(stage, now, len(known))

    def _slot_count(self, stage: Stage) -> int:
        return sum(replica.slot_count for replica in self._known[stage].values())

    async def _ask(self, stage: Stage) -> ReplicaSlots | None:
        try:
            return await self._stages.ask_slots(stage)
        except MeshError:  # what can't be asked is not heard
            return None
