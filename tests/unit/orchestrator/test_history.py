"""A conversation is cut by its rule: whole exchanges, oldest first, to half of what can be held."""

import numpy as np
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.history import CAUTIOUS_DENSITY, History, extent_of_message, extent_of_turn
from services.orchestrator.user_turn import UserTurn
from tests.unit.orchestrator.fake_clock import FakeClock

USER, ASSISTANT, SYSTEM = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_SYSTEM
S16 = types_pb2.AUDIO_ENCODING_PCM_S16LE


def turn(seconds: float = 0.0, text: str = "") -> UserTurn:
    said = UserTurn(types_pb2.AudioFormat(encoding=S16, sample_rate_hz=16_000), FakeClock())
    if text:
        said.add_text(text)
    said.add_audio(np.zeros(round(seconds * 16_000), np.float32))
    said.complete()
    return said


def new_history(**limits: int) -> History:
    return History([], **{"limit_bytes": 10**9, "max_message_bytes": 10**9, **limits})


def room(history: History, said: UserTurn, context_length: int | None, steps: int = 100) -> bool:
    return history.make_room(said, context_length=context_length, instructions="be kind", reply_step_count=steps)


def texts(history: History) -> list[str]:
    return [message.parts[0].text for message in history.messages("be kind")]


@given(lengths=st.lists(st.tuples(st.floats(0.1, 20), st.integers(1, 200)), min_size=1, max_size=30))
def test_it_never_outgrows_the_context_and_forgets_the_oldest_first(lengths: list[tuple[float, int]]) -> None:
    context, history, said = 1000, new_history(), []
    cuts = 0
    for index, (seconds, length) in enumerate(lengths):
        next_turn = turn(seconds)
        before = len(history.messages(""))
        is_cut = room(history, next_turn, context)
        after = history.messages("be kind")
        positions = sum(extent_of_message(message).positions(CAUTIOUS_DENSITY) for message in after)
        taken = positions + extent_of_turn(next_turn).positions(CAUTIOUS_DENSITY) + 100
        assert after[0].role == SYSTEM
        kept = [message.parts[0].text for message in after if message.role == ASSISTANT]
        assert kept == said[len(said) - len(kept) :]
        assert is_cut == (len(after) - 1 < before)
        if is_cut:
            cuts += 1
            assert taken <= context / 2 or len(after) == 1
        elif len(after) > 1:
            assert taken <= context
        reply = f"{index} " + "x" * length
        history.add(next_turn, reply)
        said.append(reply)
    assert cuts <= 1 + sum(seconds * 25 + length / 2 + 120 for seconds, length in lengths) / (context / 4)


def test_the_reasoners_own_count_replaces_the_guess() -> None:
    history = new_history()
    for _ in range(10):
        history.add(turn(text="a" * 100), "b" * 100)
    said = turn(text="a" * 100)
    assert not room(history, said, 1500)
    history.learn_density(6000, "be kind", said)
    assert room(history, said, 1500)


def test_without_knowing_the_context_only_bytes_count() -> None:
    history = new_history(limit_bytes=1000)
    for index in range(4):
        history.add(turn(text=str(index) * 200), "")
    assert not room(history, turn(text="x" * 100), None)
    assert room(history, turn(text="x" * 300), None)
    assert [text[0] for text in texts(history)] == ["b", "3"]


def test_a_reasoner_that_cannot_hold_it_gets_half_until_nothing_is_left() -> None:
    history = new_history()
    for index in range(8):
        history.add(turn(text=str(index)), "")
    counts = []
    while history.forget_half():
        counts.append(len(texts(history)) - 1)
    assert counts == [4, 2, 1, 0]
    assert texts(history) == ["be kind"]


def test_what_was_heard_of_the_last_reply_can_be_corrected() -> None:
    history = new_history()
    history.add(turn(text="one"), "first")
    history.add(turn(text="two"), "second reply")
    before = history.messages("be kind")
    assert not history.correct("second reply")
    assert history.correct("second")
    assert texts(history) == ["be kind", "one", "first", "two", "second"]
    assert history.correct("")
    assert texts(history) == ["be kind", "one", "first", "two"]
    assert all(one is other for one, other in zip(before[:4], history.messages("be kind"), strict=True))
    assert history.correct("sec")
    assert texts(history)[-1] == "sec"


def test_what_a_session_opens_with_is_told_whole_and_cut_by_exchanges() -> None:
    given_messages = [
        types_pb2.Message(role=role, parts=[types_pb2.ContentPart(text=text)])
        for role, text in ((ASSISTANT, "hi"), (USER, "a"), (USER, "b"), (ASSISTANT, "c"), (ASSISTANT, "d"))
    ]
    history = History(given_messages, limit_bytes=10**6, max_message_bytes=10**6)
    assert list(history.messages("")) == given_messages
    counts = []
    while history.forget_half():
        counts.append(len(history.messages("")))
    assert counts[-1] == 0
    assert set(counts) <= {4, 3, 0}
