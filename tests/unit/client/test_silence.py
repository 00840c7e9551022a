"""When a call of which nothing comes is given up."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from client import silence
from client.silence import Silence


class Question:
    """A call for an answer, which the test gives."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._code = grpc.StatusCode.OK
        self._hear: Callable[[Any], None] = lambda _: None

    def add_done_callback(self, hear: Callable[[Any], None]) -> None:
        self._hear = hear

    async def code(self) -> grpc.StatusCode:
        return self._code

    def cancel(self) -> None:
        self.is_cancelled = True

    def answer(self, code: grpc.StatusCode) -> None:
        """The answer comes."""
        self._code = code
        self._hear(self)


class Server:
    """What is asked, and whether the call goes on."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue[Question] = asyncio.Queue()
        self.answer_seconds: list[float] = []
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def ask(self, answer_seconds: float) -> Any:
        self.answer_seconds.append(answer_seconds)
        self.questions.put_nowait(question := Question())
        return question


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(silence, "QUIET_SECONDS", 0.0)
    return Server()


async def test_a_server_that_answers_is_asked_again_and_one_that_does_not_is_given_up(server: Server) -> None:
    quiet = Silence(server, server.ask)  # type: ignore[arg-type]
    with quiet.watched(lambda: 3.0):
        for code in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE):
            (await server.questions.get()).answer(code)
            assert not quiet.is_given_up
        (await server.questions.get()).answer(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert quiet.is_given_up
    assert server.is_cancelled
    assert server.answer_seconds == [3.0] * 4


async def test_what_comes_of_the_call_meanwhile_is_an_answer(server: Server) -> None:
    quiet = Silence(server, server.ask)  # type: ignore[arg-type]
    with quiet.watched(lambda: 1.0):
        question = await server.questions.get()
        with quiet.watched(lambda: None):
            pass
        question.answer(grpc.StatusCode.DEADLINE_EXCEEDED)
        assert not quiet.is_given_up
        (await server.questions.get()).answer(grpc.StatusCode.DEADLINE_EXCEEDED)
        assert quiet.is_given_up


async def test_nobody_is_asked_while_no_answer_is_owed_nor_afterwards(server: Server) -> None:
    quiet, is_owed, rounds = Silence(server, server.ask), False, 0  # type: ignore[arg-type]
    asked_thrice = asyncio.Event()

    def answer_seconds() -> float | None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            asked_thrice.set()
        return 1.0 if is_owed else None

    with quiet.watched(answer_seconds):
        await asked_thrice.wait()
        assert server.questions.empty()
        is_owed = True
        question = await server.questions.get()
    assert question.is_cancelled
    question.answer(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not quiet.is_given_up
    assert server.questions.empty()
