"""An independent recogniser, pocketsphinx, on the domain's sentences: what can be understood of a reply."""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr
from pocketsphinx import Decoder  # type: ignore[import-untyped]

from mini.espeak import Samples

RATE_HZ = 16000
PRONUNCIATIONS = {"bleat": "B L IY T"}
"""Of words that the recogniser's own dictionary lacks."""

_BIGRAM_WEIGHT = 0.6
_SILENCE_SECONDS = 0.25
_NOISE = 2e-4


class Recogniser:
    """Decides which sentence was said, or with `free` which of their words, in any order that a bigram allows."""

    def __init__(self, sentences: Sequence[str], *, free: bool = False) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            dictionary = folder / "words.dict"
            dictionary.write_text(_dictionary(sorted({word for it in sentences for word in it.split()})))
            settings = {"dict": str(dictionary), "samprate": RATE_HZ, "loglevel": "FATAL"}
            if free:
                model = folder / "bigram.arpa"
                model.write_text(_bigrams(sentences))
                self._decoder = Decoder(lm=str(model), **settings)
            else:
                self._decoder = Decoder(lm=None, **settings)
                choice = " | ".join(sentences)
                self._decoder.add_jsgf_string("choice", f"#JSGF V1.0; grammar choice; public <said> = {choice} ;")
                self._decoder.activate_search("choice")

    def read(self, samples: Samples, rate_hz: int) -> str:
        """What was said, "" if nothing was understood. A little noise is added: it hears digital silence as speech."""
        sound = soxr.resample(samples, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else samples
        sound = np.pad(sound, round(_SILENCE_SECONDS * RATE_HZ))
        sound = sound + np.random.default_rng(0).normal(0, _NOISE, len(sound))
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), False, True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


def word_errors(wanted: str, found: str) -> int:
    """Words to change, drop or add."""
    reference, words = wanted.split(), found.split()
    row = list(range(len(words) + 1))
    for index, word in enumerate(reference, start=1):
        previous, row[0] = row[0], index
        for column, other in enumerate(words, start=1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (word != other))
    return row[-1]


def _dictionary(words: Sequence[str]) -> str:
    known = Decoder(lm=None, samprate=RATE_HZ, loglevel="FATAL")
    lines = []
    for word in words:
        ways = [known.lookup_word(name) for name in (word, *(f"{word}({index})" for index in range(2, 5)))]
        found = [way for way in ways if way] or [PRONUNCIATIONS[word]]
        lines += [f"{word}{f'({index})' if index > 1 else ''} {way}" for index, way in enumerate(found, start=1)]
    return "\n".join(lines) + "\n"


def _bigrams(sentences: Sequence[str]) -> str:
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        words = ["<s>", *sentence.split(), "</s>"]
        pairs.update(pairwise(words))
    before: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        before[first] += count
    vocabulary = sorted({word for sentence in sentences for word in sentence.split()})
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
