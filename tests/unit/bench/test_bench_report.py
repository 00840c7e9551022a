"""What is made of the rounds."""

import pytest

from services.bench.direct import Burst
from services.bench.measurement import Round
from services.bench.report import Summary, tables
from services.bench.shape import Cost, ReplyShape

SHAPE = ReplyShape(frame_count=8, step_count=2, voice_seconds=1.0, user_seconds=1.0)
SLOTS = 4


def cost(frame_seconds: float) -> Cost:
    """Half of it speech, a quarter each reasoner and codec."""
    return Cost(frame_seconds / 2, frame_seconds / 4 / SHAPE.steps_per_frame, frame_seconds / 4)


def one_round(scale: float) -> Round:
    return Round(
        floor=cost(1 * scale),
        engine=cost(3 * scale),
        engine_greedy=cost(2 * scale),
        baseline=cost(12 * scale),
        baseline_greedy=cost(10 * scale),
        floor_batch=cost(2 * scale),
        engine_lone=cost(6 * scale),
        engine_batch=cost(8 * scale),
        direct=Burst([0.5 * scale], total_seconds=40 * scale, frame_count=8),
        direct_batch=Burst([1.0 * scale] * SLOTS, total_seconds=32 * scale, frame_count=32),
    )


@pytest.fixture
def values() -> dict[str, float]:
    rounds = [one_round(scale) for scale in (4.0, 1.0, 2.0)]
    return Summary(rounds, SHAPE, SLOTS, frame_audio_seconds=0.08).values()


def test_values_are_medians_and_least_ones(values: dict[str, float]) -> None:
    expected = {
        "floor_frame_seconds": 2.0,
        "floor_least_frame_seconds": 1.0,
        "engine_frame_seconds": 6.0,
        "engine_speech_frame_seconds": 3.0,
        "engine_reasoner_step_seconds": 6.0,
        "engine_codec_frame_seconds": 1.5,
        "baseline_frame_seconds": 24.0,
        "engine_batch_round_seconds": 16.0,
        "engine_batch_frame_seconds": 4.0,
        "direct_frame_seconds": 10.0,
        "direct_first_audio_seconds": 1.0,
        "direct_batch_frame_seconds": 2.0,
        "direct_batch_most_first_audio_seconds": 4.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_ratios_are_those_of_the_values(values: dict[str, float]) -> None:
    expected = {
        "engine_floor_ratio": 3.0,
        "engine_greedy_floor_ratio": 2.0,
        "engine_batch_floor_ratio": 4.0,
        "engine_baseline_ratio": 0.25,
        "engine_greedy_baseline_ratio": 0.2,
        "invariance_cost_ratio": 2.0,
        "direct_throughput_ratio": 5.0,
        "direct_audio_time_ratio": 0.008,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_names_end_with_their_unit(values: dict[str, float]) -> None:
    assert all(name.endswith(("_seconds", "_ratio")) for name in values)


def test_tables_are_whole(values: dict[str, float]) -> None:
    made = tables(values, SLOTS)
    assert len(made) == 4
    for table in made:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert made[0].rows[1] == [
        "engines, sampled",
        "6000.000",
        "3000.000",
        "3000.000",
        "6000.000",
        "1500.000",
        "3.00",
        "0.25",
    ]
