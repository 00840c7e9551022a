"""`chroma-mesh bench` against a mesh of made-up replies."""

import asyncio
import json
import re
import sys

import pytest
from google.rpc import code_pb2

SMALL = ("--sessions", "1,2", "--replies", "2", "--frames", "3", "--steps", "2", "--user-seconds", "0.2")


async def test_a_mesh_that_runs_is_measured(orchestrator, cli, tmp_path):
    arguments = ("--rate", "20", "--duration", "0.2", "--out", str(tmp_path / "new" / "out"))
    result = await cli("bench", "--address", orchestrator.address, *SMALL, *arguments)
    assert (result.status, result.err) == (0, "")
    assert sorted(orchestrator.voices) == ["ash"]  # the voice of the run is gone
    content = json.loads((tmp_path / "new" / "out" / "bench.json").read_text())
    one, two, opened = content["loads"]
    assert [load["summary"]["reply_count"] for load in (one, two)] == [2, 4]
    assert opened["summary"]["reply_count"] == opened["summary"]["turn_count"] > 0
    assert all(load["is_complete"] and not load["failures"] for load in content["loads"])
    assert [use["name"] for use in one["processes"]] == ["driver"]
    assert content["command"].startswith("chroma-mesh bench --address ")
    assert content["sameness"] == {"compared_count": 2, "different_count": 0}
    sessions = len(orchestrator.received("open"))
    assert sessions == 3 + 6 + 1 + opened["summary"]["turn_count"]  # warm-ups too
    assert "1 session " in result.out
    assert "Latency from the end of the user's turn, ms" in result.out
    assert "bench.json, bench.md, bench.png" in result.out
    assert "Throughput" in (tmp_path / "new" / "out" / "bench.md").read_text()
    assert (tmp_path / "new" / "out" / "bench.png").stat().st_size > 1000


async def test_a_voice_of_the_mesh_can_answer(orchestrator, cli):
    result = await cli("bench", "--address", orchestrator.address, *SMALL, "--sessions", "1", "--voice", "ash")
    assert (result.status, result.err) == (0, "")
    assert {opened.voice_name for opened in orchestrator.received("open")} == {"ash"}
    assert "voice: 2.5 s, the mesh's" in result.out
    result = await cli("bench", "--address", orchestrator.address, *SMALL, "--voice", "eve")
    assert (result.status, result.err) == (2, "chroma-mesh: --voice: there is no voice eve; there are ash\n")


async def test_a_mesh_that_answers_nothing_is_an_error(orchestrator, refusal, cli, tmp_path):
    orchestrator.refuse["end_turn"] = refusal(code_pb2.RESOURCE_EXHAUSTED, "QUOTA", "too much")
    result = await cli("bench", "--address", orchestrator.address, *SMALL, "--out", str(tmp_path))
    assert result.status == 1
    assert result.err == "chroma-mesh: no turn got a reply: 6 of 6 ended with RESOURCE_EXHAUSTED QUOTA\n"
    assert sorted(orchestrator.voices) == ["ash"]


async def test_ctrl_c_shows_what_was_measured_so_far(orchestrator, start_cli, tmp_path, monkeypatch):
    held = asyncio.Event()
    begin, counts = orchestrator.begin_reply, iter(range(100))

    async def begin_and_hold_the_fourth(*arguments):
        orchestrator.hold = next(counts) >= 3
        await begin(*arguments)
        if orchestrator.hold:
            held.set()

    monkeypatch.setattr(orchestrator, "begin_reply", begin_and_hold_the_fourth)
    arguments = ("--address", orchestrator.address, *SMALL, "--out", str(tmp_path))
    process = await start_cli("bench", *arguments)
    await held.wait()
    process.send_signal(2)
    out, err = await process.communicate()
    assert (process.returncode, err) == (130, b"chroma-mesh: stopped\n")
    assert "1 session " in out.decode()
    assert "2 sessions (cut)" in out.decode() or "1 session (cut)" in out.decode()
    assert "This is partial: the run was stopped before its end." in out.decode()
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["is_partial"] is True
    assert content["loads"][0]["summary"]["reply_count"] == 2
    assert sorted(orchestrator.voices) == ["ash"]


async def test_nothing_at_the_address_is_said(cli, free_address):
    result = await cli("bench", "--address", free_address, *SMALL)
    assert result.status == 1
    assert result.err.startswith(f"chroma-mesh: nothing answers at {free_address}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sessions", "a"), "--sessions: expected numbers of 1 or more"),
        (("--voice-seconds", "31"), "voice-seconds"),
        (("--address", "x:1", "--checkpoint", "random:small"), "--address is a mesh that runs already"),
        (("--address", "x:1", "--out", "/proc/none"), "--out: /proc/none cannot be made a folder"),
    ],
)
async def test_options_that_do_not_fit_are_refused_at_once(cli, arguments, said):
    result = await cli("bench", *arguments)
    assert result.status == 2
    assert said in re.sub(r"[\s│]+", " ", result.err)
    assert "Traceback" not in result.err
    assert result.out == ""


async def test_the_command_has_help(cli):
    result = await cli("bench", "--help")
    assert result.status == 0
    assert "--sessions" in result.out


async def test_the_client_needs_neither_psutil_nor_matplotlib():
    code = (
        "import sys, client.cli\n"
        "sys.exit(', '.join(sorted({'psutil', 'matplotlib'} & {n.split('.')[0] for n in sys.modules})) or None)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
