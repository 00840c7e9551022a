"""What is heard of a turn does not depend on the packets."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.listening import DetectedListening, Event, ManualListening, TurnBegan, TurnEnded, TurnHeard
from services.orchestrator.turn_detection import CHUNK_SAMPLES, SpeechBegan, SpeechEnded, TurnEdges, VadSettings
from services.orchestrator.user_turn import MAXIMUM_SECONDS

S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
SETTINGS = VadSettings(prefix_padding_ms=100, silence_duration_ms=200)


class LoudnessDetector:
    """Takes what is loud for speech."""

    def __init__(self) -> None:
        self.reset()

    def hear(self, samples: np.ndarray) -> list[SpeechBegan | SpeechEnded]:
        self._rest = np.concatenate((self._rest, samples))
        events = []
        while len(self._rest) >= CHUNK_SAMPLES:
            chunk, self._rest = self._rest[:CHUNK_SAMPLES], self._rest[CHUNK_SAMPLES:]
            events.append(self._edges.judge(float(np.abs(chunk).mean() > 0.1)))
        return [event for event in events if event is not None]

    def reset(self) -> None:
        self._edges, self._rest = TurnEdges(SETTINGS), np.empty(0, np.float32)


def detected(
    rate_hz: int = 16_000, *, longest_seconds: Callable[[], float] = lambda: MAXIMUM_SECONDS
) -> DetectedListening:
    audio_format = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate_hz)
    padding_ms = SETTINGS.prefix_padding_ms
    return DetectedListening(audio_format, LoudnessDetector, padding_ms=padding_ms, longest_seconds=longest_seconds)


def sound(*seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    """Silence, speech, silence and so on; every sample is another."""
    parts = [np.full(round(each * rate_hz), 0.5 * (index % 2)) for index, each in enumerate(seconds)]
    whole = np.concatenate(parts)
    return (whole + np.arange(len(whole)) * 1e-7).astype(np.float32)


def joined(events: list[Event]) -> list[Event | bytes]:
    """The events, with neighbouring sound as one."""
    out: list[Event | bytes] = []
    for event in events:
        if not isinstance(event, TurnHeard):
            out.append(event)
        elif len(event.samples):
            data = event.samples.tobytes()
            if out and isinstance(out[-1], bytes):
                out[-1] += data
            else:
                out.append(data)
    return out


def heard(listener: DetectedListening, samples: np.ndarray, at: list[int]) -> list[Event | bytes]:
    edges = sorted({0, len(samples), *(edge for edge in at if edge < len(samples))})
    return joined([event for a, b in pairwise(edges) for event in listener.hear(samples[a:b].tobytes())])


@given(at=st.lists(st.integers(0, 80_000), max_size=30), rate_hz=st.sampled_from([8_000, 16_000, 48_000]))
def test_turns_are_the_same_for_any_packets(at: list[int], rate_hz: int) -> None:
    samples = sound(0.5, 0.7, 0.6, 0.4, 0.9, 0.8, rate_hz=rate_hz)
    whole = heard(detected(rate_hz), samples, [])
    assert heard(detected(rate_hz), samples, at) == whole
    assert [type(event) for event in whole] == [TurnBegan, bytes, TurnEnded] * 2 + [TurnBegan, bytes]


def test_a_turn_is_the_sound_between_its_offsets() -> None:
    samples = sound(1.0, 0.5, 1.0)
    began, said, ended = heard(detected(), samples, list(range(0, 40_000, 320)))
    assert isinstance(began, TurnBegan)
    assert isinstance(ended, TurnEnded)
    assert said == samples[began.input_sample : ended.input_sample].tobytes()
    assert 16_000 - 1600 - 512 <= began.input_sample <= 16_000 - 1600
    assert 24_000 + 3200 <= ended.input_sample <= 24_000 + 3200 + 2 * 512


def test_offsets_count_the_input_at_its_own_rate_across_turns_that_the_client_ends() -> None:
    listener = detected(8_000)
    first = sound(0.5, 0.7, rate_hz=8_000)
    events = [*listener.hear(first.tobytes()), *listener.end_turn()]
    assert isinstance(events[-1], TurnEnded)
    assert events[-1].input_sample == len(first)
    second = sound(0.5, 0.7, rate_hz=8_000)
    (began, *_) = [event for event in listener.hear(second.tobytes()) if isinstance(event, TurnBegan)]
    assert abs(began.input_sample - len(first) - 0.4 * 8_000) <= 300
    assert not list(detected().end_turn())


def test_a_turn_that_is_too_long_ends_and_the_next_begins_anew() -> None:
    samples = sound(0.5, 2.5, 0.5)
    for at in ([], list(range(0, 56_000, 320))):
        events = heard(detected(longest_seconds=lambda: 1.0), samples, at)
        turns = [event for event in events if isinstance(event, bytes)]
        assert all(len(said) <= 4 * 16_000 for said in turns)
        assert [type(event) for event in events] == [TurnBegan, bytes, TurnEnded] * len(turns)
        assert len(turns) == 3


@pytest.mark.parametrize("is_ended_by_client", [False, True])
def test_a_turn_that_is_longer_than_one_may_be_from_now_on_ends_where_it_is(is_ended_by_client: bool) -> None:
    longest = [10.0]
    listener = detected(longest_seconds=lambda: longest[0])
    samples = sound(0.5, 3.5)
    heard(listener, samples[:48_000], [])
    longest[0] = 1.0
    events = listener.end_turn() if is_ended_by_client else listener.hear(samples[48_000:48_320].tobytes())
    ended, *rest = (event for event in events if not isinstance(event, TurnHeard))
    assert ended == TurnEnded(48_000)
    began = [event for event in (*rest, *listener.hear(samples[48_320:].tobytes())) if isinstance(event, TurnBegan)]
    assert began[0].input_sample >= 48_000


def test_silence_is_not_kept() -> None:
    listener = detected()
    for _ in range(100):
        assert not list(listener.hear(np.zeros(16_000, np.float32).tobytes()))
    assert len(listener._recent) <= 1.1 * 16_000


def test_the_clients_turn_is_all_that_it_sends() -> None:
    listener = ManualListening(types_pb2.AudioFormat(encoding=S16, sample_rate_hz=8_000))
    data = np.arange(8000, dtype="<i2").tobytes()
    events = [*listener.hear(data[:320]), *listener.hear(data[320:]), *listener.end_turn()]
    assert sum(len(event.samples) for event in events if isinstance(event, TurnHeard)) == 16_000
