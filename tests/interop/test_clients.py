"""Clients of OpenAI's protocols as their makers publish them, each against a real mesh by its base URL alone.

`make interop` installs them and runs this; without CHROMA_TEST_INTEROP, the folder with them, it is skipped.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tests.contract.certificates import Authority
from tests.contract.gateway_server import running_gateway
from tests.interop.up import RunningMesh, running_mesh

HERE = Path(__file__).parent
QUESTION = Path(__file__).parents[2] / "client" / "data" / "question.wav"
FOLDER = os.environ.get("CHROMA_TEST_INTEROP")
CLIENT_SECONDS = 200

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="make interop installs the clients"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh("--checkpoint", "random:tiny") as mesh:
        yield mesh


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded question as a WAV at 24,000 Hz."""
    samples, rate_hz = soundfile.read(QUESTION)
    path = tmp_path_factory.mktemp("question") / "question.wav"
    with wave.open(str(path), "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(24_000)
        spoken = np.clip(soxr.resample(samples, rate_hz, 24_000), -1, 1)
        written.writeframes((spoken * 32_767).astype("<i2").tobytes())
    return path


def run(*words: str | Path, **environment: str) -> None:
    """Runs a client, and shows what it says."""
    done = subprocess.run(
        list(map(str, words)),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip().splitlines()[-1])


def test_openai_for_python(mesh: RunningMesh, question: Path) -> None:
    run(sys.executable, HERE / "realtime_openai.py", mesh.url, question)


def test_pipecat(mesh: RunningMesh, question: Path) -> None:
    run(_folder() / "pipecat/bin/python", HERE / "realtime_pipecat.py", mesh.url, question)


def test_livekit(mesh: RunningMesh, question: Path) -> None:
    run(_folder() / "livekit/bin/python", HERE / "realtime_livekit.py", mesh.url, question)


async def test_openai_for_node(mesh: RunningMesh, question: Path, tmp_path: Path) -> None:
    script = shutil.copy(HERE / "realtime.mjs", _folder() / "node")  # where its packages are
    authority = Authority(tmp_path)
    shown = authority.issue("gateway")
    # It knows no other Realtime sockets than `wss:`.
    async with running_gateway(mesh.address, tls_certificate=shown.certificate, tls_key=shown.key) as gateway:
        client = await _started("node", script, f"{gateway.url}/v1", question, authority=authority.ca)
        out, err = await client.communicate()
    assert client.returncode == 0, (out + err).decode()
    print(out.decode().strip())


def test_chat_with_openai_for_node(mesh: RunningMesh, question: Path) -> None:
    run("node", shutil.copy(HERE / "chat.mjs", _folder() / "node"), mesh.url, question)


def test_chat_with_curl(mesh: RunningMesh, question: Path) -> None:
    run("bash", HERE / "chat.sh", mesh.url, question)


def _folder() -> Path:
    assert FOLDER is not None
    return Path(FOLDER).absolute()


async def _started(*words: str | Path, authority: Path) -> asyncio.subprocess.Process:
    environment = os.environ | {"NODE_EXTRA_CA_CERTS": str(authority)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*map(str, words), env=environment, stdout=pipe, stderr=pipe)
