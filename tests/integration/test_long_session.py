"""A session of sixty turns through a real mesh: it ends with the memory it had after the first five.

CHROMA_TEST_SESSION_MINUTES sets how much sound it is, spoken and answered, in minutes; the full run has 30. It takes
as long as the mesh takes, not as long as the sound does. pytest -rP shows the figures.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest
import soundfile

import client
from client.events import Audio, Event, ReplyEnded, ReplyStarted, SpeechStarted
from tests.integration.conftest import RealMesh, start_mesh, stop_mesh

QUESTION = Path(__file__).parents[2] / "client" / "data" / "question.wav"
MINUTES = float(os.environ.get("CHROMA_TEST_SESSION_MINUTES", "3"))
TURN_COUNT, WARM_UP_COUNT = 60, 5
# Half of a turn is spoken, half is answered.
SPOKEN_SECONDS = REPLY_SECONDS = MINUTES * 60 / TURN_COUNT / 2
RATE_HZ, PACKET_SAMPLES, FRAME_SECONDS = 16_000, 320, 0.08
PAUSE_SECONDS = 2.0

GROWTH_BYTES = 16 * 2**20
"""What an allocator may keep beyond what it kept after the first turns: it goes up and down by some MB. The speech of
the full run is 29 MB in 16 bits; the objects of a short one are counted in tests/contract/test_live_stages.py."""

TURN_POSITIONS = 25 * (SPOKEN_SECONDS + 1) + REPLY_SECONDS / FRAME_SECONDS / 2 + 30
CONTEXT_LENGTH = round(256 + 3 * TURN_POSITIONS)
"""So that the conversation is as long as it ever is within the first turns, and is cut from then on."""


@dataclass
class Caller:
    """Speaks in packets without a pause, silence between the turns, and hears what comes."""

    session: client.Session
    sent_sample_count: int = 0
    heard_sample_count: int = 0
    events: list[Event] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Takes in what the mesh says, until the session ends."""
        async for event in self.session.events():
            if isinstance(event, Audio):
                self.heard_sample_count += len(event.samples)
            self.events.append(event)
            self._news.set()

    async def until(self, condition: Callable[[Event], bool]) -> None:
        """Returns when something of the kind has come."""
        while not any(map(condition, self.events)):
            self._news.clear()
            await self._news.wait()

    async def be_silent(self, seconds: float) -> None:
        """Nothing is said, and a microphone goes on."""
        await self.say(np.zeros(round(seconds * RATE_HZ), np.int16))

    async def say(self, samples: np.ndarray) -> None:
        """Something is said, in packets of 20 ms."""
        for start in range(0, len(samples), PACKET_SAMPLES):
            await self.session.send_audio(samples[start : start + PACKET_SAMPLES])
        self.sent_sample_count += len(samples)

    async def take_turn(self, turn_index: int, said: np.ndarray) -> None:
        """A turn and its reply: every seventh is typed, every fifth spoken over the reply before, which was begun."""
        self.events = [event for event in self.events if event.turn_index >= turn_index]
        if turn_index % 7 == 3:
            await self.be_silent(len(said) / RATE_HZ + PAUSE_SECONDS)
            await self.session.send_text(f"This is turn {turn_index}.")
            await self.session.end_turn()
        else:
            await self.say(said)
            await self.be_silent(PAUSE_SECONDS)
            await self.until(lambda it: isinstance(it, SpeechStarted) and it.turn_index == turn_index)
        if (turn_index + 1) % 5 == 0 and (turn_index + 1) % 7 != 3:
            await self.until(lambda it: isinstance(it, ReplyStarted | Audio) and it.turn_index == turn_index)
        else:
            await self.until(lambda it: isinstance(it, ReplyEnded) and it.turn_index == turn_index)
            sample_count = sum(len(it.samples) for it in self.events if isinstance(it, Audio))
            await self.be_silent(sample_count / self.session.sample_rate_hz)
            await self.session.reply_played(turn_index, sample_count)  # the mesh's time is not the caller's


@pytest.fixture
def short_mesh(golden: Path) -> Iterator[RealMesh]:
    """A mesh of a short memory."""
    context_length = str(CONTEXT_LENGTH)
    mesh = start_mesh("--checkpoint", str(golden / "checkpoint"), CHROMA_REASONER_CONTEXT_LENGTH=context_length)
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


def resident_bytes(mesh: RealMesh) -> dict[str, int]:
    """What each process of the mesh has in memory."""
    return {name: psutil.Process(service.pid).memory_info().rss for name, service in mesh.services.items()}


def shown(memory: Mapping[str, int]) -> str:
    """For people."""
    return ", ".join(f"{name} {count / 2**20:.1f} MiB" for name, count in memory.items())


@pytest.mark.timeout(240 + 60 * MINUTES)
async def test_a_session_ends_with_the_memory_it_had_after_its_first_turns(short_mesh: RealMesh) -> None:
    question, rate_hz = soundfile.read(QUESTION, dtype="int16")
    assert rate_hz == RATE_HZ
    said = np.resize(question, round(SPOKEN_SECONDS * RATE_HZ))
    memory: list[dict[str, int]] = []
    async with (
        client.connect(short_mesh.address) as connection,
        connection.session(
            turn_detection=client.ServerVad(),
            max_frame_count=round(REPLY_SECONDS / FRAME_SECONDS),
            ahead_seconds=float("inf"),
        ) as session,
    ):
        caller = Caller(session)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(caller.listen())
            for turn_index in range(TURN_COUNT):
                await caller.take_turn(turn_index, said)
                memory.append(resident_bytes(short_mesh))
            await session.end()
    seconds = caller.sent_sample_count / RATE_HZ
    heard_seconds = caller.heard_sample_count / session.sample_rate_hz
    sys.stdout.write(f"{TURN_COUNT} turns, {seconds:.0f} s of a microphone, {heard_seconds:.0f} s of replies\n")
    for count in (WARM_UP_COUNT, 20, 40, TURN_COUNT):
        sys.stdout.write(f"after {count:2} turns: {shown(memory[count - 1])}\n")
    assert seconds > 0.95 * MINUTES * 60
    before = memory[WARM_UP_COUNT - 1]
    after = {name: median(moment[name] for moment in memory[-WARM_UP_COUNT:]) for name in before}
    assert {name for name in before if after[name] - before[name] >= GROWTH_BYTES} == set()
