"""What is to be said of one reply."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.errors import ClientError
from client.evaluate.evaluation_set import EvaluationSet
from client.evaluate.examination import Answer
from client.evaluate.recogniser import Recogniser, word_errors, words
from client.evaluate.speaker_embedding import Embedding, SpeakerEmbedding
from client.events import FinishReason
from client.pcm import VOICE_RATE_HZ, Samples


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One reply, judged; None where nothing could be judged by.

    `exact`: its text is the right answer. `choice`: of the set's sentences the recogniser hears the one that the text
    is. `answered`: it hears the right answer. `voice`: it is nearer to its voice's example than to any other's.
    `ended`: by itself. `word_count` words are in the text, `error_count` are to be changed, dropped or added to get
    what the recogniser hears as free words, `heard`; `chosen` is the sentence that it chose. `similarities` are cosines
    by voice. `length_ratio` is the reply's length over the reference's.
    """

    exact: bool | None
    choice: bool | None
    answered: bool | None
    voice: bool | None
    ended: bool
    word_count: int
    error_count: int
    chosen: str | None
    heard: str
    similarities: Mapping[str, float]
    length_ratio: float | None

    @property
    def faults(self) -> list[str]:
        """Names of what is wrong."""
        return [name for name in ("exact", "choice", "answered", "voice", "ended") if getattr(self, name) is False]


class Judge:
    """Judges answers of a set; `examples` are of the mesh's voices, by name, at 24,000 Hz.

    InputError when the recogniser lacks a word of the set, ClientError when nobody speaks in an example.
    """

    def __init__(self, asked: EvaluationSet, examples: Mapping[str, Samples]) -> None:
        self._choice: Recogniser | None = None
        if asked.sentences:
            self._choice = Recogniser.of_sentences(asked.sentences, asked.pronunciations)
            self._words = Recogniser.of_words(asked.sentences, asked.pronunciations)
        else:
            self._words = Recogniser.of_english()
        self._speakers = SpeakerEmbedding()
        self._examples: dict[str, Embedding] = {}
        for name, samples in examples.items():
            embedding = self._speakers.of(samples, VOICE_RATE_HZ)
            if embedding is None:
                raise ClientError(f"nobody speaks in the example of the voice {name}")
            self._examples[name] = embedding

    @property
    def voices(self) -> list[str]:
        """Voices that can be told from each other."""
        return sorted(self._examples) if len(self._examples) > 1 else []

    def judge(self, answer: Answer) -> Judgement:
        """What is to be said of an answer; one that failed has nothing right."""
        question, reply = answer.question, answer.reply
        text = reply.ended.text if reply else ""
        samples = reply.samples if reply else np.zeros(0, np.float32)
        rate_hz = reply.sample_rate_hz if reply else VOICE_RATE_HZ
        chosen = self._choice.read(samples, rate_hz) if self._choice else None
        heard = self._words.read(samples, rate_hz)
        similarities = self._similarities(samples, rate_hz)
        is_voice_judged = answer.voice in self.voices
        return Judgement(
            exact=None if question.answer is None else reply is not None and text.strip() == question.answer.strip(),
            choice=None if chosen is None else is_same(chosen, text),
            answered=None if chosen is None or question.answer is None else is_same(chosen, question.answer),
            voice=is_nearest(answer.voice, similarities) if is_voice_judged else None,
            ended=reply is not None and reply.ended.reason is FinishReason.STOP,
            word_count=len(words(text)),
            error_count=word_errors(words(text), words(heard)),
            chosen=chosen,
            heard=heard,
            similarities=similarities,
            length_ratio=reply.audio_seconds / question.reference_seconds
            if reply is not None and question.reference_seconds
            else None,
        )

    def _similarities(self, samples: Samples, rate_hz: int) -> dict[str, float]:
        embedding = self._speakers.of(samples, rate_hz) if self.voices else None
        if embedding is None:
            return {}
        return {name: float(embedding @ self._examples[name]) for name in self.voices}


def is_same(heard: str, text: str) -> bool:
    """Whether two texts have the same words, and any at all."""
    return words(heard) == words(text) != []


def is_nearest(voice: str, similarities: Mapping[str, float]) -> bool:
    """Whether none of the others is as near as this voice."""
    own = similarities.get(voice)
    return own is not None and all(own > other for name, other in similarities.items() if name != voice)
