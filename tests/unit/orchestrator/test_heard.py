"""What counts as heard, and the text that belongs to it."""

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.heard import Playback, SpokenReply
from tests.unit.orchestrator.fake_clock import FakeClock

RATE_HZ, FRAME = 24_000, 1_920


def spoken_reply(steps: int, frames: int, *, is_complete: bool = False) -> tuple[FakeClock, SpokenReply]:
    """A reply of which step j is spoken from frame 2j on."""
    clock = FakeClock()
    reply = SpokenReply(0, Playback(clock, RATE_HZ), samples_per_frame=FRAME)
    told = 0
    for frame in range(frames):
        if frame % 2 == 0 and told < steps:
            reply.speak_step(f"{told} ")
            told += 1
        reply.speak_frame()
        reply.playback.send(FRAME)
    if is_complete:
        for step in range(told, steps):
            reply.speak_step(f"{step} ")
        reply.is_complete = True
    return clock, reply


@given(steps=st.integers(0, 20), frames=st.integers(0, 60), played=st.integers(0, 70 * FRAME), complete=st.booleans())
def test_the_text_is_that_of_the_steps_that_were_heard(steps: int, frames: int, played: int, complete: bool) -> None:
    _, reply = spoken_reply(steps, frames, is_complete=complete)
    reply.playback.report(played)
    heard = reply.heard()
    heard_frames = min(played // FRAME, frames)
    expected = steps if complete and played >= frames * FRAME else min(steps, -(-heard_frames // 2))
    assert heard.step_count == expected
    assert heard.text == "".join(f"{step} " for step in range(expected))


def test_without_a_word_from_the_client_a_reply_that_is_not_stopped_was_heard() -> None:
    _, reply = spoken_reply(5, 14, is_complete=True)
    assert reply.heard() == reply.said()


def test_a_stop_leaves_what_a_player_without_a_pause_had_played() -> None:
    clock, reply = spoken_reply(10, 40)
    clock.time += 0.5  # six frames, and a quarter of the next
    reply.playback.stop()
    clock.time += 100
    assert reply.playback.ahead_seconds == 0
    assert reply.playback.heard_sample_count == 12_000
    assert reply.heard().step_count == 3
    reply.playback.report(2 * FRAME)  # the client knows better
    assert reply.heard().step_count == 1


def test_a_player_that_runs_dry_stands_still() -> None:
    clock = FakeClock()
    playback = Playback(clock, RATE_HZ)
    playback.send(FRAME)
    clock.time += 10
    playback.send(FRAME)
    clock.time += 0.04
    playback.stop()
    assert playback.heard_sample_count == FRAME + FRAME // 2


@given(sent=st.integers(1, 50), dropped=st.integers(0, 50), seconds=st.floats(0, 5))
def test_what_was_not_sent_after_all_was_not_heard(sent: int, dropped: int, seconds: float) -> None:
    clock, reply = spoken_reply(50, sent)
    clock.time += seconds
    reply.playback.stop()
    reply.playback.take_back(min(sent, dropped) * FRAME)
    assert reply.playback.heard_sample_count <= (sent - min(sent, dropped)) * FRAME
