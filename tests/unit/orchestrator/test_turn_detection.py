"""Turns begin and end where the user speaks, however the sound is cut into packets."""

import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import client
from services.orchestrator.turn_detection import (
    CHUNK_SAMPLES,
    MINIMUM_SPEECH_SAMPLES,
    SAMPLES_PER_MS,
    ServerVadDetector,
    SpeechBegan,
    SpeechEnded,
    TurnEdges,
    VadSettings,
    vad_settings,
)
from services.orchestrator.voices import BUILTIN_FOLDER
from services.runtime.errors import InvalidArgument

Sound = NDArray[np.float32]
Event = SpeechBegan | SpeechEnded

SECOND = 1000 * SAMPLES_PER_MS
# Silero's certainty lags behind a beginning and an end by some chunks.
TOLERANCE = 5 * CHUNK_SAMPLES
CLIPS = {
    "question": Path(client.__file__).parent / "data" / "question.wav",
    "ash": BUILTIN_FOLDER / "ash.wav",
    "birch": BUILTIN_FOLDER / "birch.wav",
}


def spoken(name: str) -> Sound:
    """A clip at 16 kHz, from its first loud sample to its last."""
    samples, rate = soundfile.read(CLIPS[name], dtype="float32")
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return soxr.resample(samples[loud[0] : loud[-1] + 1], rate, SECOND)


def pause(seconds: float) -> Sound:
    return np.zeros(round(seconds * SECOND), np.float32)


def noise(seconds: float, level: float) -> Sound:
    return np.random.default_rng(1).normal(0, level, round(seconds * SECOND)).astype(np.float32)


def heard(vad: ServerVadDetector, packets: Iterable[Sound]) -> list[Event]:
    return [event for packet in packets for event in vad.hear(packet)]


def events_of(sound: Sound, **chosen: float) -> list[Event]:
    return ServerVadDetector(VadSettings(**chosen)).hear(sound)


def alternate(events: list[Event]) -> bool:
    return all(isinstance(event, SpeechEnded if index % 2 else SpeechBegan) for index, event in enumerate(events))


@pytest.fixture(scope="module")
def conversation() -> Sound:
    """Two turns, the second unfinished."""
    return np.concatenate((pause(0.4), spoken("question"), pause(0.7), spoken("question")[:SECOND]))


@given(
    probabilities=st.lists(
        st.tuples(st.sampled_from((0.0, 0.2, 0.34, 0.36, 0.49, 0.5, 1.0)), st.integers(1, 40)), max_size=30
    ),
    padding=st.sampled_from((0, 300, 5000)),
    silence=st.sampled_from((100, 500, 512, 2000)),
)
def test_turns_alternate_ascend_and_last_until_silence(
    probabilities: list[tuple[float, int]], padding: int, silence: int
) -> None:
    row = [probability for probability, count in probabilities for _ in range(count)]
    edges = TurnEdges(VadSettings(prefix_padding_ms=padding, silence_duration_ms=silence))
    events, speech, last_speech, last_end = [], False, 0, 0
    for index, probability in enumerate(row):
        judged = (index + 1) * CHUNK_SAMPLES
        speech = probability >= (0.35 if speech else 0.5)
        last_speech = judged if speech else last_speech
        event = edges.judge(probability)
        if isinstance(event, SpeechBegan):
            assert speech
            assert max(last_end, judged - MINIMUM_SPEECH_SAMPLES - padding * SAMPLES_PER_MS) == event.sample
        elif isinstance(event, SpeechEnded):
            assert event.sample == judged
            assert judged - CHUNK_SAMPLES < last_speech + silence * SAMPLES_PER_MS <= judged
            last_end = event.sample
        if event is not None:
            events.append(event)
    assert alternate(events)
    assert all(before.sample <= after.sample for before, after in pairwise(events))


@pytest.mark.parametrize(
    ("row", "begins"),
    [
        ([0.5, 0.5], False),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.36, 0.36], True),
        ([0.49] * 20, False),
        ([0.5, 0.34, 0.49, 0.5, 0.34, 0.5, 0.5], False),
        ([0.5, 0.5, 0.34, 0.36, 0.36], False),
    ],
)
def test_speech_begins_after_three_chunks_in_a_row_and_fades_a_little(row: list[float], begins: bool) -> None:
    edges = TurnEdges(VadSettings())
    assert any(edges.judge(probability) for probability in row) == begins


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 6 * SECOND), max_size=60), packet=st.sampled_from((16, 37, 320, 512, SECOND)))
def test_packets_change_nothing(conversation: Sound, cuts: list[int], packet: int) -> None:
    whole = ServerVadDetector(VadSettings()).hear(conversation)
    assert [type(event) for event in whole] == [SpeechBegan, SpeechEnded, SpeechBegan]
    at = sorted(cuts) or list(range(packet, len(conversation), packet))
    assert heard(ServerVadDetector(VadSettings()), np.split(conversation, at)) == whole


@pytest.mark.parametrize("packet", [1, 20, 33, 1000])
def test_nothing_that_was_relayed_is_taken_back(conversation: Sound, packet: int) -> None:
    vad, before = ServerVadDetector(VadSettings()), 0
    for samples in np.split(conversation, range(packet * SAMPLES_PER_MS, len(conversation), packet * SAMPLES_PER_MS)):
        for event in vad.hear(samples):
            assert event.sample <= before + len(samples)
            assert event.sample > (before if isinstance(event, SpeechEnded) else before - vad.lookback_sample_count)
        before += len(samples)


@pytest.mark.parametrize("level", [0.0, 0.001, 0.01, 0.1])
def test_noise_is_no_speech(level: float) -> None:
    assert events_of(noise(10, level)) == []


def test_clicks_are_no_speech() -> None:
    sound = noise(8, 0.0005)
    for index, length in enumerate((1, 16, 80, 160, 320, 800, 1600)):
        start = (index + 1) * SECOND + 71 * index
        sound[start : start + length] += 9 * noise(0.1, 0.1)[:length]
    assert events_of(sound) == []


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("background", [0.0, 0.002])
def test_a_turn_is_found_where_it_is_spoken(name: str, background: float) -> None:
    clip, chosen = spoken(name), VadSettings()
    sound = np.concatenate((pause(1.3), clip, pause(1.5)))
    began, ended = events_of(sound + noise(len(sound) / SECOND, background))
    start, end = round(1.3 * SECOND), round(1.3 * SECOND) + len(clip)
    assert isinstance(began, SpeechBegan)
    assert isinstance(ended, SpeechEnded)
    assert abs(began.sample + chosen.prefix_padding_ms * SAMPLES_PER_MS - start) <= TOLERANCE
    assert abs(ended.sample - chosen.silence_duration_ms * SAMPLES_PER_MS - end) <= TOLERANCE


def test_each_of_many_turns_is_found() -> None:
    names = ["question", "ash", "question", "birch"]
    clips = [part for name in names for part in (pause(1), spoken(name))]
    edges = np.cumsum([0, *map(len, clips)])
    events = events_of(np.concatenate((*clips, pause(1))))
    assert alternate(events)
    assert len(events) == 2 * len(names)
    for event, edge in zip(events, edges[1:], strict=True):
        allowance = -300 if isinstance(event, SpeechBegan) else 500
        assert abs(event.sample - allowance * SAMPLES_PER_MS - edge) <= TOLERANCE


def test_speech_at_the_very_start_begins_at_zero() -> None:
    assert events_of(spoken("ash"))[0] == SpeechBegan(0)


def test_padding_reaches_back_as_far_as_it_says_but_not_into_the_turn_before() -> None:
    sound = np.concatenate((pause(2), spoken("question"), pause(1), spoken("question")))
    none = [event.sample for event in events_of(sound, prefix_padding_ms=0)]
    some = [event.sample for event in events_of(sound, prefix_padding_ms=100)]
    most = [event.sample for event in events_of(sound, prefix_padding_ms=5000)]
    assert some == [none[0] - 100 * SAMPLES_PER_MS, none[1], none[2] - 100 * SAMPLES_PER_MS]
    assert most == [0, none[1], none[1]]


def test_a_longer_silence_keeps_sentences_together() -> None:
    sound = np.concatenate((pause(0.5), spoken("question"), pause(0.6), spoken("question"), pause(2.3)))
    found = {ms: events_of(sound, silence_duration_ms=ms) for ms in (300, 1000, 2000)}
    assert [len(events) for events in found.values()] == [4, 2, 2]
    last = [events[-1].sample - ms * SAMPLES_PER_MS for ms, events in found.items()]
    # The end is noticed with a whole chunk, the same one but for that.
    assert max(last) - min(last) < CHUNK_SAMPLES


def test_a_higher_threshold_needs_plainer_speech() -> None:
    murmur = np.concatenate((pause(0.5), spoken("ash") * np.float32(0.001), pause(1)))
    assert events_of(murmur, threshold=0.2)
    assert events_of(murmur, threshold=0.5) == []


@pytest.mark.parametrize("before", [0, 100, CHUNK_SAMPLES, SECOND, 4 * SECOND])
def test_after_a_reset_it_is_as_new(conversation: Sound, before: int) -> None:
    vad = ServerVadDetector(VadSettings())
    vad.hear(conversation[:before])
    vad.reset()
    assert vad.hear(conversation) == ServerVadDetector(VadSettings()).hear(conversation)


def test_a_reset_forgets_the_sound_as_well() -> None:
    vad = ServerVadDetector(VadSettings(threshold=0.02))
    vad.hear(spoken("question"))
    # Without the reset the model would still be in the middle of a word.
    vad.reset()
    assert vad.hear(pause(1)) == []


def test_it_listens_on_the_thread_it_is_called_on_and_leaves_the_environment_alone() -> None:
    script = """
import os, psutil, numpy as np
from services.orchestrator.turn_detection import ServerVadDetector, VadSettings
environment, thread_count = dict(os.environ), psutil.Process().num_threads()
ServerVadDetector(VadSettings()).hear(np.zeros(16000, np.float32))
assert dict(os.environ) == environment, os.environ
assert psutil.Process().num_threads() == thread_count, psutil.Process().threads()
"""
    for limit in ({}, {"OMP_THREAD_LIMIT": "7"}):
        clean = {name: value for name, value in os.environ.items() if name != "OMP_THREAD_LIMIT"}
        subprocess.run([sys.executable, "-c", script], env=clean | limit, check=True, timeout=60)


def test_absent_settings_have_their_defaults() -> None:
    assert vad_settings(orchestrator_pb2.ServerVad()) == VadSettings(
        threshold=0.5, prefix_padding_ms=300, silence_duration_ms=500, barge_in=True
    )
    chosen = orchestrator_pb2.ServerVad(threshold=0.25, prefix_padding_ms=0, silence_duration_ms=700, barge_in=False)
    assert vad_settings(chosen) == VadSettings(0.25, 0, 700, False)


@pytest.mark.parametrize(
    "chosen",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"prefix_padding_ms": 5000},
        {"silence_duration_ms": 100},
        {"silence_duration_ms": 10_000},
    ],
)
def test_both_ends_of_a_range_are_allowed(chosen: dict[str, float]) -> None:
    given_settings = vad_settings(orchestrator_pb2.ServerVad(**chosen))
    assert {name: getattr(given_settings, name) for name in chosen} == chosen


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("threshold", -0.1, "threshold must be 0 to 1, got -0.1"),
        ("threshold", 1.5, "threshold must be 0 to 1, got 1.5"),
        ("threshold", float("nan"), "threshold must be 0 to 1, got nan"),
        ("prefix_padding_ms", 5001, "prefix_padding_ms must be 0 to 5000, got 5001"),
        ("silence_duration_ms", 99, "silence_duration_ms must be 100 to 10000, got 99"),
        ("silence_duration_ms", 10_001, "silence_duration_ms must be 100 to 10000, got 10001"),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: float, problem: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        vad_settings(orchestrator_pb2.ServerVad(**{name: value}))
    assert (raised.value.message, raised.value.reason) == (problem, "OUT_OF_RANGE")
    assert raised.value.field == f"open.turn_detection.server_vad.{name}"
