"""How long each word takes in the model's steps: a step is one token of text and two frames of sound, 160 ms."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from mini.domain import answers, questions
from mini.espeak import Samples, Speaker, espeak
from mini.speakers import VOICES

RATE_HZ = 24000
FRAME_SAMPLES = 1920
STEP_SECONDS = 2 * FRAME_SAMPLES / RATE_HZ
LEAD_SECONDS = FRAME_SAMPLES / RATE_HZ
"""Words sound one frame after their first token was read, so that the frame which leads over to the next word is made
with that word's token at hand."""

FINAL_SECONDS = STEP_SECONDS
"""By which a sentence's last word is longer than its steps, as speakers draw it out; nothing has to follow in time."""

_ROUNDS = 8
_LEAST_RATE, _GREATEST_RATE = 0.5, 2.5
_QUIET = 0.002
_FADE_SAMPLES = 240


def natural_step_counts() -> dict[str, int]:
    """Steps of every word of the domain: what its usual length is nearest to, at least one and fewer than its letters.

    A word cut into single letters would leave no other word a piece that begins like it.
    """
    heard = defaultdict(list)
    for sentence in (*answers(), *questions()):
        for speaker in VOICES.values():
            spoken = espeak().say(sentence, speaker)
            ends = [*spoken.word_seconds[1:], len(spoken.samples) / spoken.rate_hz]
            for word, start, end in zip(sentence.split(), spoken.word_seconds, ends, strict=False):
                heard[word].append(end - start)
    natural = {word: round(float(np.median(heard[word])) / STEP_SECONDS) for word in sorted(heard)}
    return {word: max(1, min(count, len(word) - 1)) for word, count in natural.items()}


def frame_count(step_count: int) -> int:
    """Frames of a sentence of so many tokens: those of its tokens, two of its end and two to fade."""
    return 2 * (step_count + 2)


def in_steps(sentence: str, speaker: Speaker, step_counts: Mapping[str, int]) -> tuple[Samples, float]:
    """A sentence said so that each word begins where its first token is due.

    Returns the samples [frame_count * FRAME_SAMPLES] at RATE_HZ and how far the words are off, the worst one's seconds.
    """
    words = sentence.split()
    due = np.cumsum([0, *(step_counts[word] for word in words)]) * STEP_SECONDS
    due[-1] += FINAL_SECONDS
    rates = np.ones(len(words))
    best: tuple[float, Samples] = (np.inf, np.zeros(0, np.float32))
    for _ in range(_ROUNDS):
        spoken = espeak().say(sentence, speaker, tuple(np.round(rates, 2)))
        if len(spoken.word_seconds) < len(words):
            raise ValueError(f"espeak-ng runs words of {sentence!r} together; expected a sentence where it does not")
        samples = spoken.at(RATE_HZ)
        loud = np.flatnonzero(np.abs(samples) > _QUIET)
        end = (loud[-1] + 1) / RATE_HZ
        starts = np.array([*spoken.word_seconds[: len(words)], end])
        off = np.abs(starts - due)
        if off.max() < best[0]:
            best = float(off.max()), samples[: loud[-1] + 1]
        # What a word should last, given where it really began: errors do not add up.
        wanted = np.maximum(0.04, due[1:] - starts[:-1])
        lasted = np.maximum(0.02, np.diff(starts))
        rates = np.clip(rates * (lasted / wanted) ** 0.8, _LEAST_RATE, _GREATEST_RATE)
    return _placed(best[1], frame_count(sum(step_counts[word] for word in words))), best[0]


def _placed(samples: Samples, frames: int) -> Samples:
    whole = np.zeros(frames * FRAME_SAMPLES, np.float32)
    lead = round(LEAD_SECONDS * RATE_HZ)
    samples = samples[: len(whole) - lead].copy()
    samples[-_FADE_SAMPLES:] *= np.linspace(1, 0, _FADE_SAMPLES, dtype=np.float32)
    whole[lead : lead + len(samples)] = samples
    return whole
