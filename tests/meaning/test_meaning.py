"""What the miniature says, from sound to sound through a real mesh: the right thing, to be understood, in its voice."""

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import psutil
import pytest

from client import USER_RATE_HZ, Audio, FinishReason, ReplyEnded, Samples, Session, Text, connect
from client.audio_file import read_audio
from client.evaluate.evaluation_set import read_set
from client.evaluate.recogniser import Recogniser
from client.mesh_settings import STAGES

LEAST = {"exact": 0.9, "choice": 0.93, "answered": 0.9, "words": 0.75, "voice": 0.95, "ended": 1}
"""Of the shipped set's 32 replies, greedily: two replies below what the shipped checkpoint does. What it is to reach is
in mini/README.md with the figures of the whole evaluation."""

QUESTIONS = Path(str(resources.files("mini") / "questions"))


@dataclass(frozen=True)
class Reply:
    """What came of a turn: its text in pieces, each with the sample that it is spoken from, and its sound."""

    pieces: list[tuple[str, int]]
    samples: Samples
    ended: ReplyEnded

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece for piece, _ in self.pieces)


async def hear(session: Session) -> Reply:
    """The next reply."""
    pieces: list[tuple[str, int]] = []
    sound = [np.zeros(0, np.float32)]
    async for event in session.reply():
        match event:
            case Text():
                pieces.append((event.text, event.audio_sample))
            case Audio():
                sound.append(event.samples)
            case ReplyEnded():
                ended = event
    return Reply(pieces, np.concatenate(sound), ended)


async def ask(session: Session, question: Samples | str) -> Reply:
    """Says or types a question and hears the reply to its end."""
    await (session.send_text(question) if isinstance(question, str) else session.send_audio(question))
    await session.end_turn()
    return await hear(session)


def said(name: str) -> Samples:
    """A question of the shipped set."""
    return read_audio(QUESTIONS / f"{name}.flac", USER_RATE_HZ)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    """Hears which of the domain's sentences is said."""
    asked = read_set(QUESTIONS)
    return Recogniser.of_sentences(asked.sentences, asked.pronunciations)


def test_answers_are_right_and_understood_and_in_their_voices(mesh, cli, tmp_path):
    required = ",".join(f"{measure}={share}" for measure, share in LEAST.items())
    report = tmp_path / "report.json"
    arguments = ("--address", mesh.address, "--temperature", "0", "--json", str(report))
    result = cli("evaluate", *arguments, "--require", f"{required},longest=2")
    assert result.returncode == 0, f"{result.stderr}\n{result.stdout}"
    content = json.loads(report.read_text())
    assert content["is_partial"] is False
    assert content["scores"]["failure_count"] == 0
    assert len(content["voices"]) >= 4


async def test_a_follow_up_needs_the_turn_before(mesh, recogniser):
    heard = []
    async with connect(mesh.address) as connected:
        for first in ("what is two plus two", "what is three plus three"):
            async with connected.session(temperature=0) as session:
                await ask(session, first)
                heard.append(await ask(session, said("anew-and-minus-one")))
    assert [reply.text for reply in heard] == ["four minus one is three", "six minus one is five"]
    assert [recogniser.read(it.samples, 24_000) for it in heard] == [it.text for it in heard]


async def test_barge_in_cuts_a_reply_at_a_word(mesh):
    async with connect(mesh.address) as connected:
        async with connected.session(temperature=0) as session:
            whole = await ask(session, said("anew-what-can-you-do"))
        assert whole.ended.reason is FinishReason.STOP
        begun = [sample for piece, sample in whole.pieces if piece.startswith(" ")]
        assert len(begun) > 3
        played = begun[2]
        before = "".join(piece for piece, sample in whole.pieces if sample < played)
        async with connected.session(temperature=0) as session:
            await session.send_audio(said("anew-what-can-you-do"))
            await session.end_turn()
            heard_count = 0
            async for event in session.reply():
                heard_count += len(event.samples) if isinstance(event, Audio) else 0
                if heard_count >= played:
                    break
            await session.reply_played(0, played)
            await session.cancel_reply(0)
            cut = await hear(session)
            assert cut.ended.reason is FinishReason.CANCELLED
            assert cut.ended.text.split() == before.split()
            assert (await ask(session, said("anew-who-are-you"))).ended.reason is FinishReason.STOP


async def test_the_same_is_said_after_a_stage_was_killed(own_mesh):
    first, then = said("anew-what-is-two-plus-two"), said("anew-and-minus-one")
    async with connect(own_mesh.address) as connected, AsyncExitStack() as stack:
        undisturbed, *killed = [await stack.enter_async_context(connected.session(seed=3)) for _ in (None, *STAGES)]
        for session in (undisturbed, *killed):
            assert (await ask(session, first)).text == "two plus two is four"
        expected = await ask(undisturbed, then)
        assert expected.text == "four minus one is three"
        lines = iter(own_mesh.process.stdout.readline, "")
        for stage, session in zip(STAGES, killed, strict=True):
            psutil.Process(own_mesh.services[stage].pid).kill()
            assert stage in next(line for line in lines if "starts again" in line)
            assert stage in next(line for line in lines if "ready at" in line)
            reply = await ask(session, then)
            assert reply.text == expected.text
            assert np.array_equal(reply.samples, expected.samples)
