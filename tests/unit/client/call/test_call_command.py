"""`chroma-mesh call` in a process of its own, hundreds of times as fast as a person."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from google.rpc import code_pb2

import client
from client.call.script import read_barge_in
from client.call.settings import CallFormat, session_settings
from client.cli import app
from client.errors import InputError

QUESTION = Path(__file__).parents[4] / "client" / "data" / "question.wav"


@pytest.fixture
def short(tmp_path):
    """A file of half a second at 16,000 Hz."""
    file = tmp_path / "short.wav"
    soundfile.write(file, np.full(8010, 0.25), 16000)
    return file


def flat(text):
    """The text in one line, without a table's frame."""
    return re.sub(r"[\s│┃]+", " ", text)


async def test_a_call_is_held_shown_and_written(orchestrator, cli, short, tmp_path):
    out, report = tmp_path / "call.wav", tmp_path / "call.json"
    result = await cli(
        *("call", str(short), "--repeat", "2", "--speed", "200", "--voice", "ash", "--max-frames", "3"),
        *("-o", str(out), "--json", str(report), "--address", orchestrator.address),
    )
    assert (result.status, result.err) == (0, "")
    kinds = [request.WhichOneof("payload") for request in orchestrator.requests]
    assert " ".join(kinds) == "open " + ("audio " * 26 + "end_turn ") * 2 + "end"
    packets = [len(audio.data) for audio in orchestrator.received("audio")]
    assert packets == ([640] * 25 + [20]) * 2
    (opened,) = orchestrator.received("open")
    assert (opened.voice_name, opened.max_frame_count, opened.ahead_seconds) == ("ash", 3, float("inf"))
    assert not opened.HasField("turn_detection")
    assert "caller: short.wav" in result.out
    assert re.search(r"reply 1: Hello.\n", result.out)
    assert "2 turns; TTFA" in flat(result.out)
    written = json.loads(report.read_text())
    assert [turn["reason"] for turn in written["turns"]] == ["STOP", "STOP"]
    assert written["output"] == {"encoding": "s16", "sample_rate_hz": 24000}
    assert (written["speed"], written["packet_ms"], written["turn_detection"]) == (200.0, 20, "manual")
    stereo, rate = soundfile.read(out)
    assert (rate, stereo.shape[1]) == (24000, 2)
    assert len(stereo) / rate > 2 * 0.5 + 1.0 + 2 * 0.24
    assert abs(stereo[6000, 0] - 0.25) < 0.01
    assert sorted(set(np.round(stereo[:, 1], 2))) == [0, 0.01, 0.02, 0.03]


async def test_an_error_in_the_middle_is_one_sentence_after_the_report(orchestrator, refusal, cli, short, tmp_path):
    orchestrator.refuse["end_turn"] = refusal(code_pb2.UNAVAILABLE, "QUEUE_FULL", "all replicas are full")
    report = tmp_path / "call.json"
    arguments = ("call", str(short), "--speed", "200", "--json", str(report), "--address", orchestrator.address)
    result = await cli(*arguments)
    assert (result.status, result.err) == (1, "chroma-mesh: all replicas are full\n")
    (turn,) = json.loads(report.read_text())["turns"]
    assert (turn["said"], turn["reason"], turn["first_audio_seconds"]) == ("short.wav", None, None)


async def test_ctrl_c_ends_a_call_with_its_report(orchestrator, start_cli, short):
    orchestrator.hold = True
    process = await start_cli("call", str(short), "--speed", "200", "--address", orchestrator.address)
    await orchestrator.turn_ended.wait()
    process.send_signal(2)
    out, err = await process.communicate()
    assert (process.returncode, err) == (130, b"chroma-mesh: stopped\n")
    assert b"1 turn;" in out
    await orchestrator.cancelled.wait()


async def test_no_mesh_is_said(cli, free_address, short):
    result = await cli("call", str(short), "--address", free_address)
    assert result.status == 1
    assert result.err.startswith(f"chroma-mesh: nothing answers at {free_address}")
    assert result.err.count("\n") == 1
    assert result.out == ""


async def test_a_wrong_option_is_said(cli):
    result = await cli("call", str(QUESTION), "--barge-in", "1,x")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("chroma-mesh: --barge-in: expected seconds or - with commas between them")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is nothing to say"),
        (("none.wav",), "none.wav: no such file"),
        (("--mic", str(QUESTION)), "not both"),
        (("--mic", "--manual"), "--mic is a person"),
        (("--mic", "--speed", "2"), "--mic is a person"),
        ((str(QUESTION), "--rate", "44100"), "--rate: pcm16 has 8000, 16000, 24000, 48000 Hz; got 44100"),
        ((str(QUESTION), "--format", "mulaw", "--rate", "16000"), "--rate: mulaw has 8000 Hz; got 16000"),
        ((str(QUESTION), "-o", "call.mp3"), r"ends in \.wav"),
        ((str(QUESTION), "--json", "/no/folder/call.json"), "there is no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(arguments, said):
    with pytest.raises(InputError, match=said):
        app(["call", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "schedule"), [("1.5,-,0.8", (1.5, None, 0.8)), ("-", (None,)), (" 0 , - ", (0.0, None))]
)
def test_a_schedule_is_read(text, schedule):
    assert read_barge_in(text) == schedule


@pytest.mark.parametrize("text", ["", "x", "-1", "1,,2", "nan", "inf", "1;2"])
def test_a_schedule_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="--barge-in: expected seconds or -"):
        read_barge_in(text)


@pytest.mark.parametrize(
    ("call_format", "rate", "rates"),
    [
        ("pcm16", None, (16000, 24000)),
        ("f32", 48000, (48000, 48000)),
        ("mulaw", None, (8000, 8000)),
        ("alaw", 8000, (8000, 8000)),
    ],
)
def test_formats_have_their_rates(call_format, rate, rates):
    settings = session_settings(
        CallFormat(call_format), rate, is_heard_by_mesh=True, speed=1, voice=None, max_frame_count=None
    )
    assert (settings.input_format.sample_rate_hz, settings.output_format.sample_rate_hz) == rates
    assert settings.input_format.encoding is settings.output_format.encoding
    assert settings.turn_detection == client.ServerVad()
    assert settings.ahead_seconds is None
