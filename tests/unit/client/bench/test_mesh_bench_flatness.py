"""Flatness: what is said in which order, and what is counted."""

from itertools import pairwise

import pytest

from client.bench import flatness
from client.bench.flatness import Flatness, FlatnessDriver, flatness_tables
from tests.unit.client.bench.test_mesh_bench_load import line_to


async def test_lengths_and_turns_take_turns_and_the_first_round_does_not_count(orchestrator, clock, monkeypatch):
    monkeypatch.setattr(flatness, "UTTERANCE_SECONDS", (1, 2))
    monkeypatch.setattr(flatness, "TURNS", (1, 3))
    monkeypatch.setattr(flatness, "TURN_SECONDS", 0.5)
    monkeypatch.setattr(flatness, "ROUNDS", 2)
    found, said = Flatness(), []
    async with line_to(orchestrator.address, clock) as line:
        await FlatnessDriver(line, found, said.append).run()
    assert len(said) == 3
    assert {seconds: len(times) for seconds, times in found.by_utterance_seconds.items()} == {1: 2, 2: 2}
    assert {turn: len(times) for turn, times in found.by_turn.items()} == {1: 2, 3: 2}
    opened = orchestrator.received("open")
    assert len(opened) == 3 * 3
    assert {message.max_frame_count for message in opened} == {flatness.FRAMES}
    assert len(orchestrator.received("end_turn")) == 3 * (2 + 3)
    packets = orchestrator.received("audio")
    assert {len(packet.data) for packet in packets} == {640}
    assert len(packets) == 3 * (50 + 100 + 3 * 25)
    gaps = {round(later - earlier, 6) for earlier, later in pairwise(clock.slept_until)}
    assert min(gap for gap in gaps if gap > 0) == pytest.approx(0.02 / flatness.SPEED)


def test_tables_say_how_much_longer_each_takes():
    found = Flatness({2: [0.03, 0.02, 0.5], 60: [0.033, 0.033, 0.033]}, {1: [0.02], 20: [0.02]})
    lengths, turns = flatness_tables(found)
    assert [list(row) for row in lengths.rows] == [
        ["2", "30.0", "20.0", "500", "1.00 ×"],
        ["60", "33.0", "33.0", "33.0", "1.10 ×"],
    ]
    assert [row[-1] for row in turns.rows] == ["1.00 ×", "1.00 ×"]
    assert not any(table.rows for table in flatness_tables(Flatness()))
