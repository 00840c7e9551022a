"""What must not be in any log line: keys, their digests, sound, and what was said."""

import asyncio
import base64
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from client import Access, MeshError, VoiceExample, connect
from services.runtime.errors import Internal
from services.runtime.logs import configure
from services.runtime.settings import ServiceSettings
from tests.contract.fake_mesh import no_hook
from tests.contract.keyed_mesh import KeyedMesh, KeyFile, keyed_mesh

SAID = "the codeword is xylophone"
# Sound that has a look of its own in every way of writing bytes.
SOUND = np.tile(np.frombuffer(b"Q7zK", "<i2"), 4000)
SAMPLES = SOUND.astype(np.float32) / 32768


async def fail(_index: int) -> None:
    raise Internal("a hidden state is not finite")


async def live(mesh: KeyedMesh) -> None:
    """All that may happen to a session and a voice, well and badly."""
    async with mesh.connect("alice") as alice:
        await alice.add_voice("mine", VoiceExample(SAID, SAMPLES))
        async with alice.session(voice="mine", instructions=SAID) as session:
            await session.send_audio(SOUND)
            await session.send_text(SAID)
            await session.end_turn()
            async for _ in session.reply():
                pass
        mesh.fakes.speech.hook = fail
        await ask(alice, SAID)
        mesh.fakes.speech.hook = no_hook
        await ask(alice, f"<|{SAID}|>")
        for name in (SAID, "mine"):
            with pytest.raises(MeshError):
                await alice.add_voice(name, VoiceExample(SAID, SAMPLES))
        await alice.remove_voice("mine")
    for key in (None, f"{mesh.keys.secrets['alice']}A", "chroma_alice_guess"):
        async with connect(mesh.address, Access(api_key=key)) as stranger:
            with pytest.raises(MeshError):
                await stranger.voices()
    secret = mesh.keys.add("carol", sessions=1, audio_seconds_per_day=0.1)
    async with mesh.connect("carol") as carol:
        await carol.add_voice("mine", VoiceExample(SAID, SAMPLES))
        await ask(carol, SAID)
    mesh.keys.path.write_text(f'[keys.carol]\nsha256 = ["{secret}"]\nscopes = []')
    async with mesh.connect("carol") as carol:
        await carol.voices()


async def ask(mesh: Any, text: str) -> None:
    """A turn, which may fail."""
    with suppress(MeshError):
        await ask_in(mesh.session(), text)


async def ask_in(opening: Any, text: str) -> None:
    async with opening as session:
        await session.send_text(text)
        await session.end_turn()
        async for _ in session.reply():
            pass


def traces(data: bytes) -> list[str]:
    """How bytes would look in a log line."""
    return [data.hex(), base64.b64encode(data).decode(), repr(data)[2:-1]]


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_nothing_secret_is_logged_at_any_level(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], log_format: Any
) -> None:
    with logging_restored():
        configure("orchestrator", ServiceSettings(log_level="debug", log_format=log_format))
        async with keyed_mesh(tmp_path) as mesh:
            await live(mesh)
            secrets = list(mesh.keys.secrets.values())
        said, failed = capfd.readouterr()
    logged = said + failed
    for event in (
        "session opened",
        "call refused",
        "WRONG_KEY",
        "NO_KEY",
        "KEY_AUDIO_USED",
        "can't be used",
        "INTERNAL",
    ):
        assert event in logged  # or nothing was tested
    assert "key_id" in logged
    assert "alice" in logged
    for secret in secrets:
        assert secret not in logged
        assert secret.removeprefix("chroma_")[-43:] not in logged
        assert hashlib.sha256(secret.encode()).hexdigest() not in logged
    assert "guess" not in logged
    assert "xylophone" not in logged.replace(f"got '{SAID}'", "")  # a name that is refused is repeated
    for data in (SOUND.tobytes()[:12], SAMPLES.tobytes()[:12]):
        for trace in traces(data):
            assert trace not in logged


@contextmanager
def logging_restored() -> Iterator[None]:
    """Puts logging back as it was."""
    root, structured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
        structlog.configure(**structured)


async def orchestrator(*flags: str) -> tuple[int, list[dict[str, Any]]]:
    """The status and the log lines of an orchestrator that gives up because no stage is there."""
    addresses = [f"--{stage}-address=127.0.0.1:1" for stage in ("reasoner", "speech", "codec")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.orchestrator", *addresses, "--start-deadline-seconds=0.1", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert not re.search(rb"Traceback", err)
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in out.splitlines()]


async def test_the_start_says_whether_keys_are_asked_for(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    secret = keys.add("alice")
    for flags, event, level in (
        ([], "open to everybody: no file of API keys was given", "warning"),
        ([f"--api-keys={keys.path}"], "API keys are asked for", "info"),
    ):
        status, lines = await orchestrator(*flags)
        assert status == 1
        assert [line["level"] for line in lines if line["event"] == event] == [level]
    keys.path.write_text(secret)
    for flag in (f"--api-keys={keys.path}", f"--stages-tls-ca={keys.path}"):
        status, lines = await orchestrator(flag)
        assert (status, [line["event"] for line in lines]) == (1, ["failed"])
        assert secret not in str(lines)
        assert str(keys.path) in lines[0]["reason"]
