"""An independent recogniser, pocketsphinx: what can be understood of speech."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from client.errors import ClientError, InputError
from client.pcm import Samples

RATE_HZ = 16_000
FIRST, LAST = 0, 1
"""States of a graph of words: before the first and after the last."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_BIGRAM_WEIGHT = 0.6
_SILENCE_SECONDS = 0.25
_NOISE = 2e-4
_WIDE = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-50}
"""By default the search drops what is right early on and ends in half a sentence: then nothing was chosen."""


def words(text: str) -> list[str]:
    """The words of a text as a recogniser writes them: in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("’", "'"))


class Recogniser:
    """Writes down what is said; how free it is in this is the constructor's matter."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @classmethod
    def of_sentences(cls, sentences: Sequence[str], pronunciations: Mapping[str, str]) -> "Recogniser":
        """Decides which of these sentences was said; `pronunciations` are of words that its dictionary lacks.

        InputError when a word has none.
        """
        spoken = [" ".join(words(sentence)) for sentence in sentences]
        with tempfile.TemporaryDirectory() as name:
            decoder = _decoder(lm=None, dict=_write_dictionary(Path(name), spoken, pronunciations), **_WIDE)
        transitions = choice_of({tuple(sentence.split()) for sentence in spoken} - {()})
        decoder.add_fsg("choice", decoder.create_fsg("choice", FIRST, LAST, transitions))
        decoder.activate_search("choice")
        return cls(decoder)

    @classmethod
    def of_words(cls, sentences: Sequence[str], pronunciations: Mapping[str, str]) -> "Recogniser":
        """Writes any words of these sentences, in an order that a bigram of them allows; otherwise `of_sentences`."""
        spoken = [" ".join(words(sentence)) for sentence in sentences]
        with tempfile.TemporaryDirectory() as name:
            model = Path(name) / "bigram.arpa"
            model.write_text(_bigrams(spoken), encoding="utf-8")
            return cls(_decoder(lm=str(model), dict=_write_dictionary(Path(name), spoken, pronunciations)))

    @classmethod
    def of_english(cls) -> "Recogniser":
        """Writes any English, with the model that pocketsphinx ships."""
        return cls(_decoder())

    def read(self, samples: Samples, rate_hz: int) -> str:
        """What was said, "" if nothing was understood. A little noise is added: it hears digital silence as speech."""
        if not len(samples):
            return ""
        sound = soxr.resample(samples, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else samples
        sound = np.pad(sound, round(_SILENCE_SECONDS * RATE_HZ))
        sound = sound + np.random.default_rng(0).normal(0, _NOISE, len(sound))
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), False, True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return str(found.hypstr) if found else ""


def word_errors(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Words to change, drop or add."""
    row = list(range(len(found) + 1))
    for index, word in enumerate(wanted, start=1):
        previous, row[0] = row[0], index
        for column, other in enumerate(found, start=1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (word != other))
    return row[-1]


def _decoder(**settings: Any) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ClientError("nothing can be recognised without pocketsphinx: pip install pocketsphinx") from None
    return Decoder(samprate=RATE_HZ, loglevel="FATAL", **settings)


def _write_dictionary(folder: Path, spoken: Sequence[str], pronunciations: Mapping[str, str]) -> str:
    known = _decoder(lm=None)
    lines = []
    for word in sorted({word for sentence in spoken for word in sentence.split()}):
        ways = [known.lookup_word(name) for name in (word, *(f"{word}({index})" for index in range(2, 5)))]
        found = [way for way in ways if way] or [pronunciations.get(word)]
        if found == [None]:
            raise InputError(f"the recogniser knows no word {word!r}: give it under pronunciations, as B L IY T")
        lines += [f"{word}{f'({index})' if index > 1 else ''} {way}" for index, way in enumerate(found, start=1)]
    file = folder / "words.dict"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def choice_of(sentences: Collection[tuple[str, ...]]) -> list[tuple[int, int, float, str]]:
    """Every sentence as likely as any other, as transitions from `FIRST` to `LAST`: (from, to, probability, word).

    Sentences share the states of what they begin with, so that each beginning is searched for once.
    """
    begun = Counter(sentence[:length] for sentence in sentences for length in range(len(sentence)))
    states = {beginning: index for index, beginning in enumerate(sorted(begun.keys() - {()}), start=LAST + 1)}
    states[()] = FIRST
    transitions = []
    for beginning in sorted(begun.keys() | set(sentences)):
        if beginning:
            *before, word = beginning
            source, total = states[tuple(before)], begun[tuple(before)]
            if beginning in begun:
                transitions.append((source, states[beginning], begun[beginning] / total, word))
            if beginning in sentences:
                transitions.append((source, LAST, 1 / total, word))
    return transitions


def _bigrams(spoken: Sequence[str]) -> str:
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence in spoken:
        pairs.update(pairwise(["<s>", *sentence.split(), "</s>"]))
    before: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        before[first] += count
    vocabulary = sorted({word for sentence in spoken for word in sentence.split()})
    backoff = math.log10(1 - _BIGRAM_WEIGHT)
    single = math.log10(0.9 / len(vocabulary))
    lines = ["\\data\\", f"ngram 1={len(vocabulary) + 2}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines += [f"-99 <s> {backoff:.4f}", "-1.0 </s>"]
    lines += [f"{single:.4f} {word} {backoff:.4f}" for word in vocabulary]
    lines += ["", "\\2-grams:"]
    lines += [
        f"{math.log10(_BIGRAM_WEIGHT * count / before[first]):.4f} {first} {second}"
        for (first, second), count in sorted(pairs.items())
    ]
    return "\n".join([*lines, "", "\\end\\", ""])
