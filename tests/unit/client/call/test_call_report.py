"""What is shown and written of a call."""

import json
from dataclasses import replace

import grpc
import pytest
from rich.console import Console

import client
from client.call.display import CallDisplay, ending
from client.call.record import CallRecord, CallTurn
from client.call.report import call_json, call_table, sums
from client.errors import MeshError
from client.events import FinishReason, ReplyEnded, Timings

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def shown(what, width=200):
    """What it looks like on a terminal, by default a wide one."""
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@pytest.fixture
async def call(hold, planned):
    """A call with a turn that is spoken over, and one that is heard to its end with a gap."""
    return await hold(
        [0.06, 0.06],
        plan=lambda turn: planned([(0.3, 1), (0.38, 1), (0.56, 1), (0.6, 20)], [("Hel", 0), ("lo.\x1b[2J", 3840)]),
        barge_in_seconds=[0.5],
    )


async def test_the_table_has_what_happened(call):
    table = shown(call_table(call.caller.record).rich())
    for said in ("0.wav", "1.wav", " 300 ", " 100 ", "STOP", " 0.50 ", "over"):
        assert said in table
    assert "off, ms" not in table
    assert sums(call.caller.record).startswith("2 turns; TTFA 300 ms in the median, 300 ms at most; packets left")


async def test_a_table_of_all_columns_fits_a_terminal():
    timings = Timings(0, 0, 0, 0, 0, 0)
    turn = CallTurn(10, "q1.wav", 24000, 0.0, 5.0, noticed_at=0.5, stopped_at=5.5, first_audio_at=5.6, barge_in_at=10.6)
    turn.is_cut, turn.received_sample_count, turn.played_sample_count = True, 10 * 24000, 5 * 24000
    turn.ended_at, turn.ended = 10.8, ReplyEnded(10, FinishReason.CANCELLED, "", 1, 1, timings)
    lines = shown(call_table(CallRecord({10: turn})).rich(), width=80).splitlines()
    assert lines[4].split() == [
        "10",
        "q1.wav",
        "500",
        "500",
        "600",
        "0.00",
        "5.00",
        "10.00",
        "5.00",
        "200",
        "CANCELLED",
    ]


async def test_a_call_of_no_turn_is_said():
    assert sums(CallRecord()) == "0 turns; packets left at most 0.00 ms late."


async def test_the_report_has_every_number(call):
    report = json.loads(call_json(call.caller.record, {"speed": 1.0}))
    assert report["speed"] == 1.0
    assert report["median_first_audio_seconds"] == pytest.approx(0.3)
    cut, whole = report["turns"]
    assert cut["said"] == "0.wav"
    assert cut["first_audio_seconds"] == pytest.approx(0.3)
    assert cut["gaps"] == [{"audio_seconds": 0.16, "seconds": pytest.approx(0.1)}]
    assert cut["under_run_seconds"] == pytest.approx(0.1)
    assert cut["barge_in_seconds"] == pytest.approx(0.5, abs=0.021)
    assert cut["played_seconds"] == pytest.approx(cut["barge_in_seconds"] - 0.1, abs=1e-4)
    assert [(piece["text"], piece["audio_sample"]) for piece in cut["pieces"]] == [("Hel", 0), ("lo.\x1b[2J", 3840)]
    assert cut["stop_seconds"] is None  # the mesh had given all of it before
    assert whole["played_sample_count"] == 23 * 1920
    assert whole["barge_in_at"] is None
    assert whole["timings"]["total_seconds"] == 0


async def test_what_happens_is_told_line_by_line(call):
    console = Console(width=200)
    display = CallDisplay(console)
    with console.capture() as capture:
        for happening in call.happenings:
            display.watch(happening)
        display.finish()
    lines = capture.get().splitlines()
    assert [line[:10].strip() == f"{float(line[:8]):.2f}" for line in lines] == [True] * len(lines)
    assert [line[10:] for line in lines] == [
        "caller: 0.wav",
        "caller: has finished",
        "reply 0: first sound after 300 ms",
        "reply 0: Hello.[2J",
        "caller: speaks over reply 0, 0.50 s into it",
        "caller: 1.wav",
        "reply 0: stopped, 0.40 s of it were heard (STOP)",
        "caller: has finished",
        "reply 1: first sound after 300 ms",
        "reply 1: Hello.[2J",
        "reply 1: heard to its end, 1.84 s, 0.10 s of silence in it (STOP)",
    ]


async def test_why_a_reply_failed_is_told(call):
    turn = call.caller.record.turns[1]
    turn.ended = replace(
        turn.ended, reason=FinishReason.FAILED, failure=MeshError(UNAVAILABLE, "STALLED", "it is gone")
    )
    assert ending(turn) == "failed after 1.84 s of it: it is gone"
    assert json.loads(call_json(call.caller.record, {}))["turns"][1]["failure"] == "it is gone"


async def test_what_the_mesh_hears_is_told(hold):
    call = await hold([0.1], turn_detection=client.ServerVad())
    console = Console(width=200)
    with console.capture() as capture:
        for happening in call.happenings:
            CallDisplay(console).watch(happening)
    assert "turn 0: the mesh hears that it begins" in capture.get()
    assert "turn 0: the mesh hears that it is over" in capture.get()
    assert "off, ms" in shown(call_table(call.caller.record).rich())
