"""What the benchmark's users say, and the voice that answers them: cut from the bundled question."""

from importlib import resources

import numpy as np

from client.audio_file import read_audio
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Samples
from client.voice import VoiceExample

QUESTION = "How do I make a taco at home tonight?"
STRIDE = 7919
"""Samples between the starts of two users' sounds: a prime, so that they stay apart for as long as the question is."""


def question(sample_rate_hz: int) -> Samples:
    """The bundled question."""
    with resources.as_file(resources.files("client") / "data" / "question.wav") as file:
        return read_audio(file, sample_rate_hz)


def cut(samples: Samples, count: int, start: int = 0) -> Samples:
    """`count` samples from `start` on; after the last sample the first follows."""
    return np.take(samples, np.arange(start, start + count), mode="wrap")


def user_sound(said: Samples, seconds: float, seed: int) -> Samples:
    """What a user says, at 16,000 Hz: another cut for every seed, so that no cache knows it from another turn."""
    return cut(said, round(seconds * USER_RATE_HZ), seed * STRIDE % len(said))


def voice_example(seconds: float) -> VoiceExample:
    """A voice whose example is of exactly this length."""
    spoken = question(VOICE_RATE_HZ)
    count = round(seconds * VOICE_RATE_HZ)
    return VoiceExample(" ".join([QUESTION] * max(1, round(count / len(spoken)))), cut(spoken, count))
