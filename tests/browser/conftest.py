"""Browsers, one for each way to start it, and sound for their microphones."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
import soundfile

import client

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserType

QUESTION = Path(client.__file__).parent / "data" / "question.wav"
TONE_HZ = 1000
SPOKEN_SECONDS, SILENT_SECONDS = 1.2, 1.6


class Browsers:
    """Chromium, started when it is asked for, once for each set of arguments."""

    def __init__(self, kind: "BrowserType", path: str, stack: AsyncExitStack) -> None:
        self._kind = kind
        self._path = path
        self._stack = stack
        self._started: dict[tuple[str, ...], Browser] = {}

    async def get(self, *arguments: str) -> "Browser":
        if arguments not in self._started:
            # Without its sandbox, for whoever runs tests in a container is root there.
            browser = await self._kind.launch(executable_path=self._path, args=["--no-sandbox", *arguments])
            self._stack.push_async_callback(browser.close)
            self._started[arguments] = browser
        return self._started[arguments]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browsers() -> AsyncIterator[Browsers]:
    """Debian's Chromium."""
    playwright = pytest.importorskip("playwright.async_api", reason="there is no playwright: make browser")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    async with playwright.async_playwright() as started, AsyncExitStack() as stack:
        yield Browsers(started.chromium, path, stack)


@pytest.fixture(scope="session")
def said_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody speaks, and is silent."""
    return _recording(tmp_path_factory.mktemp("once"), 1)


@pytest.fixture(scope="session")
def said_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody speaks, is silent for a moment, speaks again, and is silent."""
    return _recording(tmp_path_factory.mktemp("twice"), 2)


@pytest.fixture(scope="session")
def said_tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tone of 1 kHz."""
    path = tmp_path_factory.mktemp("tone") / "said.wav"
    tone = 8000 * np.sin(2 * np.pi * TONE_HZ * np.arange(48_000 * 20) / 48_000)
    soundfile.write(path, tone.astype(np.int16), 48_000)
    return path


def _recording(folder: Path, count: int) -> Path:
    question, rate_hz = soundfile.read(QUESTION, dtype="int16")
    speech = question[: round(SPOKEN_SECONDS * rate_hz)]
    silence = np.zeros(round(SILENT_SECONDS * rate_hz), np.int16)
    path = folder / "said.wav"
    soundfile.write(path, np.concatenate([*[speech, silence] * count, np.zeros(60 * rate_hz, np.int16)]), rate_hz)
    return path
