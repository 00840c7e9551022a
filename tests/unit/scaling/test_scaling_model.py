"""The laws of the model behind docs/scaling.md."""

import re
from math import exp, factorial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s.scaling.calls import (
    CALL_SECONDS,
    DAY_SECONDS,
    HELD_SHARE,
    MAKING_SHARE,
    TICK_SECONDS,
    TICKS,
    DayOfCalls,
    day_of_calls,
    shape,
)
from k8s.scaling.costs import CPU, H100, L4, ROUNDS, STAGES, StageCost, on_card
from k8s.scaling.mesh_day import MeshDay, run_day
from k8s.scaling.policy import (
    DEPLOYED,
    DOWN_SECONDS,
    DOWN_WINDOW_SECONDS,
    DRAIN_SECONDS,
    LATE,
    LEAST_REPLICAS,
    POLICIES,
    QUEUE,
    SESSIONS,
    SLOTS,
    UP_SECONDS,
    Policy,
    tail,
    wanted,
)

ROOT = Path(__file__).resolve().parents[3]
PLENTY = Policy("plenty", fixed_share=10.0)


@pytest.fixture(scope="module")
def calls() -> DayOfCalls:
    """A day with 500 sessions at the peak."""
    return day_of_calls(500)


@pytest.fixture(scope="module", params=POLICIES, ids=lambda policy: policy.name)
def day(request: pytest.FixtureRequest, calls: DayOfCalls) -> MeshDay:
    """The day under each policy."""
    return run_day(calls, on_card(H100, 128).costs, request.param, 500)


def test_the_same_seed_is_the_same_day(calls: DayOfCalls) -> None:
    again = day_of_calls(500)
    assert (again.arrival_counts == calls.arrival_counts).all()
    assert (again.length_ticks == calls.length_ticks).all()
    assert (day_of_calls(500, seed=1).arrival_counts != calls.arrival_counts).any()


def test_calls_last_as_long_as_they_should_and_are_as_many_as_expected(calls: DayOfCalls) -> None:
    assert calls.count == calls.arrival_counts.sum()
    assert float(calls.length_ticks.mean()) * TICK_SECONDS == pytest.approx(CALL_SECONDS, rel=0.05)
    assert shape(np.linspace(0, 24, 500)).max() == pytest.approx(1.0, abs=0.01)


def test_sessions_are_arrivals_times_their_length(calls: DayOfCalls) -> None:
    """Little's law, where nobody is refused: of the whole day, but for those that are open at its end."""
    day = run_day(calls, on_card(H100, 128).costs, PLENTY, 500)
    assert not day.refused_counts.any()
    ended = np.repeat(np.arange(TICKS), calls.arrival_counts) + calls.length_ticks
    inside = np.minimum(ended, TICKS) - np.repeat(np.arange(TICKS), calls.arrival_counts)
    assert day.session_counts.sum() == inside.sum()
    mean = calls.count / DAY_SECONDS * CALL_SECONDS
    assert float(day.session_counts.mean()) == pytest.approx(mean, rel=0.05)


def test_no_call_is_lost_or_made(day: MeshDay, calls: DayOfCalls) -> None:
    admitted = calls.arrival_counts - day.refused_counts
    assert (admitted >= 0).all()
    assert day.call_count == calls.count
    assert 0 <= day.refused_share <= 1
    assert (np.diff(day.session_counts, prepend=0) <= admitted).all(), "sessions come only from calls"


def test_no_call_is_admitted_beyond_what_the_narrowest_stage_can_carry(day: MeshDay, calls: DayOfCalls) -> None:
    """What a replica that goes had is kept, as its stage's others take it: only then are there more than fit."""
    beyond = day.session_counts > day.capacities
    admitted = calls.arrival_counts - day.refused_counts
    assert not admitted[beyond].any()


def test_whoever_is_refused_found_no_room(day: MeshDay) -> None:
    refused = day.refused_counts > 0
    assert (day.session_counts[refused] >= day.capacities[refused]).all()


def test_cards_are_paid_from_their_order_until_they_are_gone(day: MeshDay) -> None:
    costs = on_card(H100, 128).costs
    for stage, paid in day.paid.items():
        assert (paid >= LEAST_REPLICAS).all()
        assert (paid * costs[stage].slot_count >= day.capacities).all()
    assert day.card_hours >= 24 * len(STAGES) * LEAST_REPLICAS
    assert 0 <= day.c50 <= 1


@given(st.integers(0, 40), st.floats(0.1, 40))
def test_the_tail_is_poissons(count: int, mean: float) -> None:
    terms = sum(exp(-mean) * mean**index / factorial(index) for index in range(count + 1))
    assert tail(count, mean) == pytest.approx(1 - terms, abs=1e-9)


@given(st.integers(1, 1000), st.floats(0.05, 20))
def test_replicas_follow_a_signal_in_proportion(count: int, ratio: float) -> None:
    if abs(ratio - 1) <= 0.1:
        assert wanted(ratio, count) == count
    else:
        assert ratio * count <= wanted(ratio, count) < ratio * count + 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("card", [H100, L4], ids=lambda card: card.name)
def test_as_many_replies_as_a_replica_can_make_are_in_time(card, stage: str) -> None:
    cost = on_card(card, 128).costs[stage]
    assert cost.step_seconds(cost.most_streams) <= 1 / cost.step_hz < cost.step_seconds(cost.most_streams + 1)


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_measured_is_what_the_model_has(stage: str) -> None:
    one, eight = ROUNDS[stage]
    page = (ROOT / "docs/benchmarks.md").read_text()
    for seconds in (one, eight):
        assert f"| {seconds * 1000:.3f} |" in page
    assert CPU.costs[stage].step_seconds(1) == pytest.approx(one)
    assert CPU.costs[stage].step_seconds(8) == pytest.approx(eight)


def test_a_card_looks_busy_long_before_it_is_full() -> None:
    """Checked against steps that begin as soon as anybody's is due, one after the other."""
    cost = StageCost(0.01, 0.0, 12.5, 128)
    random = np.random.default_rng(0)
    for stream_count in (2, 8, 30):
        due = np.cumsum(random.exponential(1 / (stream_count * cost.step_hz), 20_000))
        busy, free_at, index = 0.0, 0.0, 0
        while index < len(due):
            begin = max(free_at, due[index])
            free_at = begin + cost.fixed_seconds
            busy += cost.fixed_seconds
            index = int(np.searchsorted(due, begin, side="right"))
        assert cost.busy_share(stream_count) == pytest.approx(busy / free_at, abs=0.02)


def test_a_policy_that_looks_at_sessions_refuses_few_and_costs_less_than_the_peak(calls: DayOfCalls) -> None:
    costs = on_card(H100, 128).costs
    days = {policy.name: run_day(calls, costs, policy, 500) for policy in POLICIES}
    assert days["as deployed"].refused_share < 0.01
    assert days["as deployed"].card_hours < days["fixed for the peak and a rush"].card_hours
    for blind in ("slots at 70 %", "queue wait", "frames late"):
        assert days[blind].refused_share > 0.1, "admission keeps everything else from being seen"


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_shares_of_a_call_are_shares(seed: int) -> None:
    assert all(0 < share < 1 for share in (*HELD_SHARE.values(), MAKING_SHARE))
    assert day_of_calls(5, seed).length_ticks.min() >= 1


def test_the_policy_as_deployed_is_the_one_that_is() -> None:
    by_name = {"sessions": SESSIONS, "slots": SLOTS, "queue": QUEUE, "lateness": LATE}
    assert set(DEPLOYED.targets) == set(by_name.values())
    for stage in STAGES:
        spec = yaml.safe_load((ROOT / f"k8s/components/autoscaling/{stage}.yaml").read_text())["spec"]
        for trigger in spec["triggers"]:
            assert float(trigger["metadata"]["threshold"]) == by_name[trigger["name"]][1]
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        up = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]
        assert spec["minReplicaCount"] == LEAST_REPLICAS
        assert down["stabilizationWindowSeconds"] == DOWN_WINDOW_SECONDS
        assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": DOWN_SECONDS}]
        assert up["policies"] == [{"type": "Percent", "value": 100, "periodSeconds": UP_SECONDS}]
        base = (ROOT / f"k8s/base/{stage}/kustomization.yaml").read_text()
        assert re.search(rf"GRACE_SECONDS={DRAIN_SECONDS}\b", base)
