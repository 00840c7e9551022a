"""The commands that talk to a mesh, in processes of their own."""

import asyncio
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from google.rpc import code_pb2

QUESTION = Path(__file__).parents[3] / "client" / "data" / "question.wav"


def flat(text: str) -> str:
    """The text in one line, without a table's frame."""
    return re.sub(r"[\s│┃]+", " ", text)


async def test_a_spoken_turn_is_answered_written_and_summed_up(orchestrator, cli, tmp_path):
    out = tmp_path / "reply.wav"
    result = await cli("talk", str(QUESTION), "-o", str(out), "--address", orchestrator.address)
    assert (result.status, result.err) == (0, "")
    samples, rate = soundfile.read(out, dtype="float32")
    assert rate == 24000
    assert np.abs(samples - np.repeat(np.float32([0.01, 0.02, 0.03]), 1920)).max() < 1e-4
    spoken, _ = soundfile.read(QUESTION, dtype="int16")
    assert orchestrator.heard == spoken.tobytes()
    for said in (
        "question.wav → Hello.",
        "0.2 s of audio",
        "RTF: end of turn sent → last sample received, divided by the length of the audio",
        "finish reason STOP",
        "frames 3",
        "reasoner, first step (TTFT) 10 ms",
        "TTFA at the mesh 20 ms",
        "audio 0.24 s",
    ):
        assert said in flat(result.out)
    assert re.search(r"TTFA at the client \d+ ms", flat(result.out))


async def test_files_and_texts_are_turns_of_one_session(orchestrator, cli, tmp_path):
    second = tmp_path / "second.flac"
    soundfile.write(second, np.zeros((4410, 2), np.float32), 44100)
    result = await cli(
        *("talk", str(QUESTION), str(second), "--text", "one", "--text", "two", "-o", str(tmp_path / "out.wav")),
        *("--voice", "ash", "--instructions", "", "--temperature", "0", "--top-k", "0", "--seed", "7"),
        *("--max-frames", "5", "--max-steps", "6"),
        CHROMA_MESH_ADDRESS=orchestrator.address,
        COLUMNS="1000",  # room for four long paths side by side
    )
    assert (result.status, result.err) == (0, "")
    kinds = [request.WhichOneof("payload") for request in orchestrator.requests]
    turns = " ".join(kind for kind in kinds if kind != "audio")
    assert turns == "open end_turn end_turn text end_turn text end_turn end"
    assert [text.text for text in orchestrator.received("text")] == ["one", "two"]
    names = ["out.wav", "out-1.wav", "out-2.wav", "out-3.wav"]
    assert {path.name for path in tmp_path.glob("*.wav")} == set(names)
    for name in names:
        assert str(tmp_path / name) in result.out
    (opened,) = orchestrator.received("open")
    assert opened.voice_name == "ash"
    assert opened.HasField("instructions")
    assert (opened.sampling.temperature, opened.sampling.top_k, opened.sampling.seed) == (0, 0, 7)
    assert (opened.max_frame_count, opened.max_step_count) == (5, 6)


async def test_a_voice_of_ones_own(orchestrator, cli, tmp_path):
    result = await cli(
        *("talk", "--text", "hi", "--voice-audio", str(QUESTION), "--voice-text", "How do I?"),
        *("-o", str(tmp_path / "out.wav"), "--address", orchestrator.address),
    )
    assert (result.status, result.err) == (0, "")
    (opened,) = orchestrator.received("open")
    assert opened.voice_example.transcript == "How do I?"
    assert opened.voice_example.audio.format.sample_rate_hz == 24000
    assert len(opened.voice_example.audio.data) == pytest.approx(4 * 44899 * 1.5, abs=8)


async def test_an_empty_reply_and_a_text_that_steers_the_terminal(orchestrator, cli, tmp_path):
    orchestrator.silent = True
    orchestrator.texts = ("\x1b[2J", "[bold]x[/wrong]")
    out = tmp_path / "out.wav"
    result = await cli("talk", "--text", "[/red]\x1b]0;t\x07", "-o", str(out), "--address", orchestrator.address)
    assert (result.status, result.err) == (0, "")
    assert soundfile.info(out).frames == 0
    assert "\x1b" not in result.out
    assert "[bold]x[/wrong]" in result.out
    assert "RTF –" in flat(result.out)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "there is nothing to say"),
        (("none.wav",), 2, "none.wav: no such file"),
        (("--text", "hi", "-o", "reply.mp3"), 2, "ends in .wav"),
        (("--text", "hi", "-o", "/no/folder/reply.wav"), 2, "there is no folder"),
        (("--text", "hi", "--voice-audio", "v.wav"), 2, "go together"),
        (("--text", "hi", "--voice", "a", "--voice-audio", "v.wav", "--voice-text", "t"), 2, "not both"),
        (("--text", "hi", "--temperature", "3"), 2, "temperature"),
        (("--text", "hi", "--seed", "-1"), 2, "seed"),
        (("--frequency", "3"), 2, "No such option"),
    ],
)
async def test_what_cannot_be_said_is_refused_at_once(cli, tmp_path, arguments, status, said):
    result = await cli("talk", *arguments)
    assert result.status == status
    assert said in flat(result.err)
    assert result.out == ""
    assert "Traceback" not in result.err


async def test_what_the_mesh_refuses_is_said_in_its_words(orchestrator, refusal, cli, tmp_path):
    orchestrator.refuse["open"] = refusal(code_pb2.NOT_FOUND, "VOICE_NOT_FOUND", "there is no voice eve", "voice_name")
    arguments = ("talk", "--text", "hi", "--voice", "eve", "-o", str(tmp_path / "out.wav"))
    result = await cli(*arguments, "--address", orchestrator.address)
    assert (result.status, result.err) == (1, "chroma-mesh: there is no voice eve\n")


async def test_of_several_addresses_one_that_answers_is_talked_to(orchestrator, cli, free_address, tmp_path):
    addresses = f"{free_address}, {orchestrator.address}"
    out = ("-o", str(tmp_path / "out.wav"))
    result = await cli("talk", "--text", "hi", *out, "--address", addresses)
    assert (result.status, result.err) == (0, "")
    result = await cli("call", str(QUESTION), "--speed", "100", *out, CHROMA_MESH_ADDRESS=addresses)
    assert (result.status, result.err) == (0, "")
    assert len(orchestrator.received("open")) == 2
    result = await cli("talk", "--text", "hi", *out, "--address", f"{free_address},")
    assert (result.status, "host:port, or several" in result.err) == (2, True)


async def test_no_mesh_is_said(cli, free_address, tmp_path):
    for arguments in (("talk", "--text", "hi", "-o", str(tmp_path / "out.wav")), ("voices",)):
        result = await cli(*arguments, "--address", free_address)
        assert result.status == 1
        assert result.err.startswith(f"chroma-mesh: nothing answers at {free_address}")
        assert result.err.count("\n") == 1


async def test_voices_are_listed_added_and_removed(orchestrator, cli):
    address = ("--address", orchestrator.address)
    result = await cli("voices", *address)
    assert result.status == 0
    assert "ash 2.5 s default, built in I am ash." in flat(result.out)
    result = await cli("voices", "add", "new", "--audio", str(QUESTION), "--text", "How?", *address)
    assert (result.status, result.out) == (0, "Added new, 2.5 s.\n")
    result = await cli("voices", *address, "add", "new", "--audio", str(QUESTION), "--text", "How?")
    assert (result.status, result.err) == (1, "chroma-mesh: there is a voice new already\n")
    result = await cli("voices", *address, "remove", "new")
    assert (result.status, result.out) == (0, "Removed new.\n")
    result = await cli("voices", "remove", "new", *address)
    assert (result.status, result.err) == (1, "chroma-mesh: there is no voice new\n")


async def test_ctrl_c_ends_a_conversation(orchestrator, start_cli, tmp_path):
    orchestrator.hold = True
    arguments = ("talk", "--text", "hi", "-o", str(tmp_path / "out.wav"), "--address", orchestrator.address)
    process = await start_cli(*arguments)
    await orchestrator.turn_ended.wait()
    process.send_signal(2)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"chroma-mesh: stopped\n")
    await orchestrator.cancelled.wait()


@pytest.mark.parametrize(
    "command", ["", "up", "talk", "call", "voices", "voices add", "weights", "checkpoint", "parity", "demo"]
)
async def test_every_command_has_help(cli, command):
    result = await cli(*command.split(), "--help")
    assert result.status == 0
    assert "Usage: " in result.out


async def test_the_client_needs_no_torch_and_no_service():
    code = (
        "import sys, client.cli\n"
        "heavy = {'torch', 'transformers', 'services', 'huggingface_hub'} & {n.split('.')[0] for n in sys.modules}\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
