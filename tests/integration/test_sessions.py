"""Sessions through a real mesh: together as alone, and from a client that has nothing but the stubs."""

import asyncio
import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from client import Audio, ReplyEnded, Text, connect

README = Path(__file__).parents[2] / "README.md"
QUESTION = Path(__file__).parents[2] / "client" / "data" / "question.wav"


@dataclass(frozen=True)
class Said:
    """What one session says, and how it wants to be answered."""

    seed: int
    voice: str
    turns: tuple[str | float, ...]


# A number is a turn that is spoken: seconds of the question.
EIGHT = [
    Said(seed, "ash" if seed % 2 else "birch", turns)
    for seed, turns in enumerate(
        [("How are you?",), (0.7,), (2.3, "And now?"), ("One.", "Two."), (1.1,), ("A longer question than that.",),
         ("Say something.", 0.5), (2.0,)]
    )
]  # fmt: skip


async def replies(address: str, said: Said) -> list[tuple[str, bytes]]:
    """Text and sound of a session's replies."""
    sound, _ = soundfile.read(QUESTION, dtype="float32")
    heard = []
    temperature = 0.0 if said.seed % 3 == 0 else 0.9
    async with (
        connect(address) as mesh,
        mesh.session(voice=said.voice, seed=said.seed, temperature=temperature, max_frame_count=12) as session,
    ):
        for turn in said.turns:
            if isinstance(turn, str):
                await session.send_text(turn)
            else:
                await session.send_audio(sound[: int(turn * 16000)])
            await session.end_turn()
            text, samples = "", []
            async for event in session.reply():
                match event:
                    case Text():
                        text += event.text
                    case Audio():
                        samples.append(event.samples)
                    case ReplyEnded():
                        assert event.text == text
            heard.append((text, np.concatenate(samples).tobytes()))
    return heard


async def test_eight_sessions_at_once_each_equal_their_own_run(mesh):
    alone = [await replies(mesh.address, said) for said in EIGHT]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(replies(mesh.address, said)) for said in EIGHT]
    together = [task.result() for task in running]
    assert together == alone
    assert len({sound for heard in alone for _, sound in heard}) == sum(len(said.turns) for said in EIGHT)


async def test_the_readmes_client_gets_a_reply(mesh):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    program = example.replace("127.0.0.1:50050", mesh.address).replace(
        "ConverseOpen(", "ConverseOpen(max_frame_count=3, "
    )
    printed = io.StringIO()
    with redirect_stdout(printed):
        await asyncio.to_thread(exec, program, {})
    lines = [line.split() for line in printed.getvalue().splitlines()]
    assert [lines[0][0], lines[1][0], lines[-1][0]] == ["opened", "reply_started", "reply_ended"]
    assert sum(int(count) for kind, count in lines if kind == "audio") == 3 * 1920 * 2
