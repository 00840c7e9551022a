"""What is known of the stages' slots, whichever replicas answer and in whatever order."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator import capacity as capacity_module
from services.orchestrator.capacity import EMPTY_WAIT_SECONDS, MISSED_ROUNDS, Capacity
from services.orchestrator.stages import ReplicaSlots, Stages
from services.orchestrator.turn_parts import STAGES, Stage
from services.runtime.errors import Unavailable
from tests.contract.still_clock import StillClock
from tests.unit.orchestrator.fake_clock import FakeClock

Replicas = dict[str, int]
REPLICAS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 64), min_size=1)


class AnsweringStages:
    """Replicas that answer in turn; an answer in between may go to somebody else."""

    def __init__(self, replicas: Mapping[Stage, Replicas]) -> None:
        self.replicas = {stage: dict(replicas.get(stage, {"only": 1000})) for stage in STAGES}
        self.others: Iterator[bool] = itertools.repeat(False)
        self.ask_count = 0
        self._turns = dict.fromkeys(STAGES, 0)

    async def ask_slots(self, stage: Stage) -> ReplicaSlots:
        self.ask_count += 1
        if not self.replicas[stage]:
            raise Unavailable("nobody is there")
        self._turns[stage] += 1 + next(self.others)
        names = list(self.replicas[stage])
        name = names[self._turns[stage] % len(names)]
        return ReplicaSlots(name, self.replicas[stage][name])


def capacity_of(
    stages: AnsweringStages, told: dict[Stage, tuple[int, int]] | None = None, share_count: int = 1
) -> Capacity:
    told = {} if told is None else told

    def on_round(stage: Stage, slot_count: int, replica_count: int) -> None:
        told[stage] = slot_count, replica_count

    return Capacity(cast(Stages, stages), share_count=share_count, on_round=on_round)


@given(replicas=st.fixed_dictionaries(dict.fromkeys(STAGES, REPLICAS)), share_count=st.integers(1, 5))
async def test_the_mesh_carries_what_its_narrowest_stage_does(
    replicas: dict[Stage, Replicas], share_count: int
) -> None:
    told: dict[Stage, tuple[int, int]] = {}
    capacity = capacity_of(AnsweringStages(replicas), told, share_count)
    await capacity.learn()
    sums = {stage: sum(slots.values()) for stage, slots in replicas.items()}
    assert told == {stage: (sums[stage], len(slots)) for stage, slots in replicas.items()}
    stage, count = capacity.narrowest()
    assert sums[stage] == min(sums.values())
    assert count == max(1, sums[stage] // share_count)


async def test_before_anybody_has_answered_nothing_is_carried() -> None:
    stages = AnsweringStages({"codec": {}})
    capacity = capacity_of(stages)
    assert capacity.narrowest()[1] == 0
    await capacity.learn()
    assert capacity.narrowest() == ("codec", 0)


async def test_an_orchestrator_is_not_ready_before_every_stage_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity_module, "EMPTY_ROUND_SECONDS", 0)
    stages = AnsweringStages({"codec": {}, "speech": {"a": 4}})
    capacity = capacity_of(stages)
    learning = asyncio.create_task(capacity.learn_first())
    for _ in range(100):
        await asyncio.sleep(0)
    assert stages.ask_count > 20
    assert not learning.done()
    stages.replicas["codec"]["late"] = 3
    await learning
    assert capacity.narrowest() == ("codec", 3)


async def test_who_waits_for_a_stage_without_a_replica_waits_until_one_is_there_or_the_time_is_up() -> None:
    stages, clock = AnsweringStages({"codec": {}}), FakeClock()
    capacity = capacity_of(stages)
    await capacity.learn()
    await capacity.until_whole(clock)
    assert clock.waits == [EMPTY_WAIT_SECONDS]
    waiting = asyncio.create_task(capacity.until_whole(StillClock()))
    await asyncio.sleep(0)
    assert not waiting.done()
    stages.replicas["codec"]["late"] = 3
    await capacity.learn()
    await waiting
    await capacity.until_whole(clock)
    assert clock.waits == [EMPTY_WAIT_SECONDS]


async def test_a_new_replica_takes_part_and_a_lost_one_leaves() -> None:
    stages = AnsweringStages({"speech": {"a": 4}})
    capacity = capacity_of(stages)
    await capacity.learn()
    assert capacity.narrowest() == ("speech", 4)
    stages.replicas["speech"]["b"] = 2
    await capacity.learn()
    assert capacity.narrowest() == ("speech", 6)
    del stages.replicas["speech"]["a"]
    counts = []
    for _ in range(MISSED_ROUNDS):
        await capacity.learn()
        counts.append(capacity.narrowest()[1])
    assert counts == [6] * (MISSED_ROUNDS - 1) + [2]
    stages.replicas["speech"].clear()
    for _ in range(MISSED_ROUNDS):
        await capacity.learn()
    assert capacity.narrowest() == ("speech", 0)
    stages.replicas["speech"]["a"] = 4
    await capacity.learn()
    assert capacity.narrowest() == ("speech", 4)


async def test_a_replica_that_comes_back_with_other_slots_has_those() -> None:
    stages = AnsweringStages({"reasoner": {"a": 4, "b": 4}})
    capacity = capacity_of(stages)
    await capacity.learn()
    stages.replicas["reasoner"]["a"] = 1
    await capacity.learn()
    assert capacity.narrowest() == ("reasoner", 5)


@pytest.mark.parametrize("replica_count", [2, 3, 8])
@given(others=st.lists(st.booleans(), min_size=1, max_size=20))
async def test_other_calls_between_make_no_replica_come_or_go(replica_count: int, others: list[bool]) -> None:
    """Where every second answer went to another call for ever, some replicas would not be heard: not by accident."""
    stages = AnsweringStages({"codec": {str(index): 1 for index in range(replica_count)}})
    capacity = capacity_of(stages)
    await capacity.learn()
    stages.others = itertools.chain(others, itertools.repeat(False))
    for _ in range(2 * MISSED_ROUNDS):
        await capacity.learn()
        assert capacity.narrowest() == ("codec", replica_count)


async def test_a_round_asks_no_more_than_it_needs() -> None:
    stages = AnsweringStages({"reasoner": {"a": 1}, "speech": {"a": 1, "b": 1}, "codec": {"a": 1}})
    capacity = capacity_of(stages)
    for _ in range(3):
        stages.ask_count = 0
        await capacity.learn()
        assert stages.ask_count == 2 + 4 + 2
