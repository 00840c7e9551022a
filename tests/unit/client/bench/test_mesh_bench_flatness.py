"""Flatness: what is said in which order, and what is counted."""

from collections import Counter
from itertools import pairwise

from client.bench import flatness
from client.bench.flatness import Flatness, FlatnessDriver, flatness_tables
from client.bench.reply_record import ReplyRecord
from client.bench.tables import first_audio_table
from tests.unit.client.bench.test_mesh_bench_load import line_to


async def test_lengths_and_turns_take_turns_and_the_first_round_does_not_count(orchestrator, clock, monkeypatch):
    monkeypatch.setattr(flatness, "UTTERANCE_SECONDS", (1, 2))
    monkeypatch.setattr(flatness, "TURNS", (1, 3))
    monkeypatch.setattr(flatness, "TURN_SECONDS", 0.5)
    monkeypatch.setattr(flatness, "LIVE_SECONDS", 0.4)
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
    gaps = Counter(round(later - earlier, 6) for earlier, later in pairwise(clock.slept_until) if later > earlier)
    assert gaps[0.02] == 3 * 20 * (2 + 2)  # the last of both lengths, and of the two turns that count
    assert gaps.keys() == {0.02, 0.02 / flatness.SPEED}


def test_tables_say_how_much_longer_each_takes(new_reply):
    def replies(*waits: float) -> list[ReplyRecord]:
        return [new_reply(seconds) for seconds in waits]

    found = Flatness(
        {2: replies(0.03, 0.02, 0.5), 60: replies(0.033, 0.033, 0.033)}, {1: replies(0.02), 20: replies(0.02)}
    )
    lengths, turns = flatness_tables(found)
    assert [list(row) for row in lengths.rows] == [
        ["2", "30.0", "20.0", "500", "1.00 ×"],
        ["60", "33.0", "33.0", "33.0", "1.10 ×"],
    ]
    assert [row[-1] for row in turns.rows] == ["1.00 ×", "1.00 ×"]
    assert [row[0] for row in first_audio_table([], found).rows] == [
        "2 s of speech",
        "60 s of speech",
        "turn 1",
        "turn 20",
    ]
    assert not any(table.rows for table in flatness_tables(Flatness()))
