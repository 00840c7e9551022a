"""`chroma-mesh evaluate` against a mesh of made-up replies, which all say "Hello."."""

import asyncio
import json

import pytest
from google.rpc import code_pb2

SET = {
    "name": "greetings",
    "sentences": ["hello", "goodbye", "see you soon"],
    "conversations": [
        {
            "group": "first",
            "voice": "ash",
            "turns": [
                {"text": "hi", "answer": "Hello.", "reference_seconds": 0.12},
                {"text": "and again", "answer": "goodbye", "group": "later"},
            ],
        },
        {"group": "first", "turns": [{"text": "hello robin"}]},
    ],
}


@pytest.fixture
def greetings(tmp_path) -> str:
    """The file of a set."""
    path = tmp_path / "greetings.json"
    path.write_text(json.dumps(SET))
    return str(path)


async def test_a_set_is_asked_and_judged(orchestrator, cli, greetings, tmp_path):
    out, report = tmp_path / "new" / "out", tmp_path / "report.json"
    arguments = ("--address", orchestrator.address, "--temperature", "0", "--json", str(report), "--out", str(out))
    result = await cli("evaluate", greetings, *arguments, "--require", "exact=0.5,first:exact=1,ended=1,longest=2")
    assert (result.status, result.err) == (0, "")
    assert "greetings: 3 questions in 2 conversations" in result.out
    assert "Voices were not compared" in result.out
    content = json.loads(report.read_text())
    assert content["is_partial"] is False
    assert content["command"].startswith("chroma-mesh evaluate ")
    assert [turn["asked"] for turn in content["turns"]] == ["hi", "and again", "hello robin"]
    assert [turn["judgement"]["exact"] for turn in content["turns"]] == [True, False, None]
    assert {turn["text"] for turn in content["turns"]} == {"Hello."}
    assert {turn["voice_name"] for turn in content["turns"]} == {"ash"}
    assert content["turns"][0]["judgement"]["length_ratio"] == 2
    everything, groups = content["scores"], content["groups"]
    assert (everything["question_count"], everything["exact"], everything["ended"]) == (3, 0.5, 1)
    assert (everything["voice"], everything["longest"], everything["ttfa"]["count"]) == (None, 2, 3)
    assert {name: group["question_count"] for name, group in groups.items()} == {"first": 2, "later": 1}
    assert content["shortfalls"] == []
    # One more for the warm-up, of a frame; each question has its index for a seed.
    warm_up, *sessions = orchestrator.received("open")
    assert (warm_up.max_frame_count, [it.HasField("max_frame_count") for it in sessions]) == (1, [False] * 2)
    sampled = [it.reply.sampling for it in orchestrator.received("end_turn")[1:]]
    assert [(it.seed, it.temperature) for it in sampled] == [(0, 0), (1, 0), (2, 0)]
    names = {path.name for path in out.iterdir()}
    assert names == {"evaluation.png", "0000-ash-hi.wav", "0001-ash-and-again.wav", "0002-ash-hello-robin.wav"}


async def test_less_than_required_is_an_error(orchestrator, cli, greetings):
    arguments = ("--address", orchestrator.address, "--sessions", "2", "--require", "exact=0.9,longest=1.5")
    result = await cli("evaluate", greetings, *arguments)
    assert result.status == 1
    missing = "exact is 0.5, required is at least 0.9; longest is 2, required is at most 1.5"
    assert result.err == f"chroma-mesh: {missing}\n"
    assert "Replies with something wrong" in result.out


async def test_a_conversation_that_breaks_off_has_failed(orchestrator, refusal, cli, greetings, tmp_path):
    ended, report = iter(range(100)), tmp_path / "report.json"
    begin = orchestrator.begin_reply

    async def begin_once(*arguments):
        await begin(*arguments)
        if next(ended) == 1:  # after the warm-up
            orchestrator.refuse["end_turn"] = refusal(code_pb2.INTERNAL, "BROKEN", "it broke")

    orchestrator.begin_reply = begin_once
    result = await cli("evaluate", greetings, "--address", orchestrator.address, "--json", str(report))
    assert (result.status, result.err) == (0, "")
    assert "2 of 3 questions got no whole reply." in result.out
    content = json.loads(report.read_text())
    assert [turn["failure"] for turn in content["turns"]] == [None, "it broke", "it broke"]
    assert (content["scores"]["failure_count"], content["scores"]["exact"]) == (2, 0.5)


async def test_what_does_not_fit_is_said(orchestrator, cli, greetings, free_address, tmp_path):
    at = ("--address", orchestrator.address)
    (tmp_path / "noise.wav").write_text("no sound")
    stranger = tmp_path / "stranger.json"
    stranger.write_text(json.dumps({"conversations": [{"voice": "eve", "turns": [{"text": "hi"}]}]}))
    for arguments, status, message in (
        ((greetings, *at, "--voice", "eve"), 2, "--voice: the mesh has no voice eve; it has ash"),
        ((str(stranger), *at), 2, f"{tmp_path.name}: the mesh has no voice eve; it has ash"),
        ((str(tmp_path / "noise.wav"), *at), 2, "not a WAV, FLAC, OGG or MP3 file"),
        (
            (greetings, *at, "--require", "other:exact=1"),
            2,
            "there is no group other in the set; there are first, later",
        ),
        ((greetings, *at, "--voices", str(tmp_path)), 2, "has the example of none of the mesh's voices (ash)"),
        ((greetings, *at, "--slots", "1"), 2, "--address is a mesh that runs already"),
        ((greetings, "--address", free_address), 1, f"nothing answers at {free_address}"),
    ):
        result = await cli("evaluate", *arguments)
        assert (result.status, message in result.err) == (status, True), result.err
        assert result.out == ""


async def test_a_mesh_that_is_lost_is_judged_up_to_there(orchestrator, refusal, cli, greetings, tmp_path):
    report, stopping = tmp_path / "report.json", []
    begun, begin = iter(range(100)), orchestrator.begin_reply

    async def begin_and_stop(*arguments):
        await begin(*arguments)
        if next(begun) == 1:  # after the warm-up: what runs may end, nothing else begins
            orchestrator.refuse["end_turn"] = refusal(code_pb2.INTERNAL, "BROKEN", "it broke")
            stopping.append(asyncio.create_task(orchestrator.stop.func(10)))

    orchestrator.begin_reply = begin_and_stop
    result = await cli("evaluate", greetings, "--address", orchestrator.address, "--json", str(report))
    await asyncio.gather(*stopping)
    assert result.status == 1
    assert result.err.startswith(f"chroma-mesh: nothing answers at {orchestrator.address}")
    assert "This is partial: 1 of 3 questions were asked." in result.out
    content = json.loads(report.read_text())
    assert (content["is_partial"], [turn["asked"] for turn in content["turns"]]) == (True, ["hi"])
