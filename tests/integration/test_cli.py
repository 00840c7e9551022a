"""The command line against a real mesh."""

import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

import client
from client.audio_file import read_audio
from client.checkpoint_folder import check_folder
from client.events import Audio, FinishReason, ReplyEnded, Text

DEMO = (
    ("what is the capital of france", "the capital of france is paris", "reply.wav"),
    ("and of spain", "the capital of spain is madrid", "reply-1.wav"),
)
QUESTION = Path(client.__file__).parent / "data" / "question.wav"


def flat(text: str) -> str:
    """The text in one line, without a table's frame."""
    return re.sub(r"[\s│┃]+", " ", text)


def test_a_spoken_turn_is_answered(mesh, cli, tmp_path):
    replies = []
    for name in ("one.wav", "two.wav"):
        arguments = ("talk", str(QUESTION), "-o", str(tmp_path / name), "--max-frames", "12", "--seed", "3")
        result = cli(*arguments, "--address", mesh.address)
        assert (result.returncode, result.stderr) == (0, "")
        assert re.search(r"TTFA at the client \d+ ms", flat(result.stdout))
        samples, rate = soundfile.read(tmp_path / name, dtype="int16")
        assert rate == 24000
        assert 0 < len(samples) <= 12 * 1920
        assert len(samples) % 1920 == 0
        replies.append(samples)
    assert np.array_equal(*replies)


def test_several_turns_are_one_conversation(mesh, cli, tmp_path):
    arguments = ("talk", str(QUESTION), "--text", "And now?", "--temperature", "0", "--max-frames", "6")
    result = cli(*arguments, "-o", str(tmp_path / "out.wav"), "--address", mesh.address)
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"out.wav", "out-1.wav"}


def test_voices_come_and_go(mesh, cli, golden, tmp_path):
    address = ("--address", mesh.address)
    voice = golden / "cases" / "text_only" / "voice.wav"
    result = cli("voices", *address)
    assert result.returncode == 0
    assert "default" in result.stdout
    assert "mine" not in result.stdout
    result = cli("voices", "add", "odd", "--audio", str(voice), "--text", "I say <|text_end|>.", *address)
    assert (result.returncode, "special tokens; it has <|text_end|>" in result.stderr) == (1, True)
    result = cli("voices", "add", "mine", "--audio", str(voice), "--text", "I use this every day.", *address)
    assert (result.returncode, result.stderr) == (0, "")
    assert "mine" in cli("voices", *address).stdout
    talk = ("talk", "--text", "Hello?", "--voice", "mine", "--max-frames", "3", "-o", str(tmp_path / "out.wav"))
    assert cli(*talk, *address).returncode == 0
    assert cli("voices", "remove", "mine", *address).returncode == 0
    result = cli(*talk, *address)
    assert result.returncode == 1
    assert "mine" in result.stderr
    assert result.stderr.count("\n") == 1


async def test_the_sdk_holds_a_conversation(mesh):
    async with client.connect(mesh.address) as connected:
        assert await connected.is_ready()
        heard = client.SoundFormat(client.Encoding.F32, client.VOICE_RATE_HZ)
        async with connected.session(temperature=0, max_frame_count=8, output_format=heard) as session:
            await session.send_audio(read_audio(QUESTION, client.USER_RATE_HZ))
            await session.end_turn()
            events = [event async for event in session.reply()]
            ended = events[-1]
            assert isinstance(ended, ReplyEnded)
            audio = [event for event in events if isinstance(event, Audio)]
            assert sum(len(event.samples) for event in audio) == ended.frame_count * session.samples_per_frame
            assert "".join(event.text for event in events if isinstance(event, Text)) == ended.text
            await session.send_text("And now?")
            await session.end_turn()
            await session.cancel_reply()
            reasons = [event.reason async for event in session.reply() if isinstance(event, ReplyEnded)]
            assert reasons == [FinishReason.CANCELLED]


async def test_what_the_mesh_refuses_comes_back_as_it_said_it(mesh):
    async with client.connect(mesh.address) as connected:
        with pytest.raises(client.MeshError) as caught:
            await connected.session(voice="nobody").__aenter__()
        assert caught.value.code.name == "NOT_FOUND"
        with pytest.raises(client.MeshError) as caught:
            await connected.session(temperature=9).__aenter__()
        assert caught.value.code.name == "INVALID_ARGUMENT"
        assert caught.value.field


def test_a_killed_service_is_named_and_started_again_where_it_was(own_mesh, cli, tmp_path):
    speech = own_mesh.services["speech"]
    psutil.Process(speech.pid).kill()
    lines = iter(own_mesh.process.stdout.readline, "")
    lost = next(line for line in lines if "starts again" in line)
    assert lost.startswith(f"speech        pid {speech.pid}  was killed by SIGKILL")
    ready = next(line for line in lines if "ready at" in line)
    assert f"ready at {speech.address} after" in ready
    spoken = cli(
        "talk", str(QUESTION), "--max-frames", "8", "-o", str(tmp_path / "a.wav"), "--address", own_mesh.address
    )
    assert spoken.returncode == 0, spoken.stderr
    own_mesh.process.terminate()
    _, err = own_mesh.process.communicate(timeout=60)
    assert (own_mesh.process.returncode, err) == (0, "")
    assert not any(psutil.pid_exists(other.pid) for other in own_mesh.services.values())


def test_a_mesh_that_cannot_start_says_why(cli, tmp_path):
    result = cli("up", "--port", "0", "--no-gateway", "--checkpoint", str(tmp_path / "none"))
    assert result.returncode == 1
    assert re.match(r"chroma-mesh: the (reasoner|speech|codec) service exited with status \d: .*none", result.stderr)
    assert result.stderr.count("\n") == 1


def test_the_demo_answers_and_leaves(cli, tmp_path):
    out = tmp_path / "reply.wav"
    result = cli("demo", "--out", str(out))
    assert (result.returncode, result.stderr) == (0, "")
    text = flat(result.stdout)
    for asked, answered, name in DEMO:
        assert text.index(asked) < text.index(answered)
        samples, rate = soundfile.read(tmp_path / name)
        assert rate == 24000
        assert 1 < len(samples) / rate < 4
        assert np.abs(samples).max() > 0.1
    pids = [int(pid) for pid in re.findall(r"pid (\d+)  starting", result.stdout)]
    assert len(pids) == 4
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_random_checkpoint_is_a_whole_one(cli, tmp_path):
    result = cli("checkpoint", "random:tiny", "--out", str(tmp_path / "random"))
    assert result.returncode == 0, result.stderr
    held, problems = check_folder(tmp_path / "random")
    assert problems == []
    assert held.tensor_count > 0
    assert cli("checkpoint", "random:none", "--out", str(tmp_path / "other")).returncode != 0


def test_the_mesh_equals_the_reference(cli, golden):
    result = cli("parity", str(golden))
    case_count = len(list((golden / "cases").iterdir()))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{case_count} of {case_count} cases equal" in result.stdout


def test_a_wrong_expectation_is_found(cli, golden, tmp_path):
    case = tmp_path / "cases" / "wrong"
    shutil.copytree(golden / "cases" / "text_only", case)
    (tmp_path / "checkpoint").symlink_to(golden / "checkpoint")
    with np.load(case / "expected.npz") as file:
        arrays = dict(file)
    arrays["frames"][5, 2] += 1
    np.savez(case / "expected.npz", **arrays)
    result = cli("parity", str(tmp_path))
    assert (result.returncode, result.stderr) == (1, "")
    got = arrays["frames"][5, 2] - 1
    assert f"frame 5, codebook 2: expected {got + 1}, got {got}" in flat(result.stdout)
    assert "0 of 1 cases equal" in result.stdout
