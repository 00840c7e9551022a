"""What the miniature is asked to find out what it knows: a set of `chroma-mesh evaluate`, from recordings kept back."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mini.domain import PRONUNCIATIONS, Exchange, answers, follow_ups, single_exchanges
from mini.hearing import surrounded
from mini.recordings import RATE_HZ, USER_RATE_HZ, Recordings
from mini.speakers import VOICES

GROUPS = {"anew": "questions_anew", "strangers": "questions_strangers"}
"""Groups of questions, and which recordings they are asked with: known speakers in another mood, and unknown ones."""

SMALL = {
    "anew": (
        ("what is seven plus five",),
        ("what is the opposite of happy",),
        ("what colour is the sky",),
        ("who are you",),
        ("how many legs does a spider have",),
        ("what month comes after april",),
        ("why is the train late",),
        ("what can you do",),
        ("what is two plus two", "and minus one"),
        ("what is the capital of france", "and of spain"),
        ("what does a dog say", "and a cat"),
        ("what day comes after monday", "and after that"),
    ),
    "strangers": (
        ("what day comes before friday",),
        ("what is the capital of japan",),
        ("what does a cow say",),
        ("how are you",),
        ("what is fourteen minus six",),
        ("what colour is grass",),
        ("what do bees make",),
        ("who won the game",),
        ("what is ten minus three", "and plus two"),
        ("what is the opposite of hot", "and of big"),
        ("how many legs does a bird have", "and a horse"),
        ("what month comes before march", "and before that"),
    ),
}
"""What is asked of the shipped set, a conversation each."""

_TIMES_FOLLOWED = 2
_SEED = 11


@dataclass(frozen=True)
class Asked:
    """A conversation by its exchanges, the group of its speakers, and who is to answer."""

    group: str
    voice: str
    exchanges: tuple[Exchange, ...]


def small() -> list[Asked]:
    """The shipped set: every kind of question, in both groups, in all voices."""
    single = {exchange.question: exchange for exchange in single_exchanges()}
    following = {(it.before.question, it.question): it for it in follow_ups() if it.before}
    found = []
    for group, conversations in SMALL.items():
        for questions, voice in zip(conversations, cycle(VOICES)):
            later = [following[pair] for pair in pairwise(questions)]
            found.append(Asked(group, voice, (single[questions[0]], *later)))
    return found


def full() -> list[Asked]:
    """Everything that can be asked first, and every follow-up after two that come before it, in both groups."""
    chance = np.random.default_rng(_SEED)
    following: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in follow_ups():
        following[exchange.question].append(exchange)
    found = []
    for group in GROUPS:
        conversations: list[tuple[Exchange, ...]] = [(exchange,) for exchange in single_exchanges()]
        for exchanges in following.values():
            for index in chance.choice(len(exchanges), min(_TIMES_FOLLOWED, len(exchanges)), replace=False):
                chosen = exchanges[index]
                conversations.append((chosen.before, chosen) if chosen.before else (chosen,))
        found += [Asked(group, voice, it) for it, voice in zip(conversations, cycle(VOICES))]
    return found


def write(state: Path, out: Path, name: str, conversations: Sequence[Asked]) -> int:
    """Writes a set from the recordings in `state`; returns its bytes."""
    out.mkdir(parents=True, exist_ok=True)
    clips = _Clips(state, out)
    lengths = {item.sentence: item.count / RATE_HZ for item in Recordings(state / "answers").items}
    content = {
        "name": name,
        "sentences": answers(),
        "pronunciations": PRONUNCIATIONS,
        "conversations": [
            {
                "group": asked.group,
                "voice": asked.voice,
                "turns": [_turn(asked.group, exchange, clips, lengths) for exchange in asked.exchanges],
            }
            for asked in conversations
        ],
    }
    (out / "questions.json").write_text(json.dumps(content, indent=1) + "\n")
    return sum(path.stat().st_size for path in out.iterdir())


def _turn(group: str, exchange: Exchange, clips: "_Clips", lengths: dict[str, float]) -> dict[str, Any]:
    turn = {
        "audio": clips.name(group, exchange.question),
        "asked": exchange.question,
        "answer": exchange.answer,
        "reference_seconds": round(lengths[exchange.answer], 3),
    }
    return {"group": f"{group} follow-ups", **turn} if exchange.before else turn


class _Clips:
    """Writes a question's recording when it is first needed, with silence around it and a little noise."""

    def __init__(self, state: Path, out: Path) -> None:
        self._recordings = {group: Recordings(state / name) for group, name in GROUPS.items()}
        self._out = out
        self._written: set[str] = set()

    def name(self, group: str, question: str) -> str:
        """The file of a question as a group of speakers asks it."""
        name = f"{group}-{re.sub('[^a-z]+', '-', question)}.flac"
        if name not in self._written:
            recordings = self._recordings[group]
            item = next(it for it in recordings.items if it.sentence == question)
            clip = surrounded(
                recordings.samples(item),
                before_seconds=0.25,
                after_seconds=0.3,
                noise=1e-4,
                chance=np.random.default_rng((_SEED, item.first)),
            )
            soundfile.write(self._out / name, clip, USER_RATE_HZ, subtype="PCM_16")
            self._written.add(name)
        return name
