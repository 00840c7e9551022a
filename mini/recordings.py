"""Sets of sound in one file each: samples end to end, and what is said in them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mini.domain import answers, questions
from mini.espeak import Samples, espeak
from mini.rhythm import RATE_HZ, in_steps, natural_step_counts
from mini.speakers import STRANGERS, USERS, VOICES, User

USER_RATE_HZ = 16000
STEP_COUNTS = "step_counts.json"
RECORDINGS_OF_EACH = 40
"""Of a question that is trained on, each by another speaker."""


@dataclass(frozen=True)
class Recording:
    """One sentence of a set: by whom, and which samples."""

    sentence: str
    speaker: str
    first: int
    count: int


class Recordings:
    """A set that was written with `write`; its samples stay on disk until they are asked for."""

    def __init__(self, path: Path) -> None:
        self._samples = np.load(path.with_suffix(".npy"), mmap_mode="r")
        listed = json.loads(path.with_suffix(".json").read_text())
        self.items = [Recording(**item) for item in listed]

    @property
    def all(self) -> NDArray[np.int16]:
        """Every sample, one recording after the other, as 16-bit integers."""
        return np.asarray(self._samples)

    def samples(self, item: Recording) -> Samples:
        """What one recording sounds like."""
        return np.asarray(self._samples[item.first : item.first + item.count], np.float32) / np.float32(32768)


def write(path: Path, said: list[tuple[str, str, Samples]]) -> None:
    """Writes (sentence, speaker, samples) as one set."""
    items, first = [], 0
    for sentence, speaker, samples in said:
        items.append(asdict(Recording(sentence, speaker, first, len(samples))))
        first += len(samples)
    joined = np.concatenate([samples for _, _, samples in said])
    np.save(path.with_suffix(".npy"), np.clip(joined * 32767, -32768, 32767).astype(np.int16))
    path.with_suffix(".json").write_text(json.dumps(items))


def make_all(folder: Path) -> None:
    """Speaks everything that is trained on or scored with; sets that are there stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    counts_path = folder / STEP_COUNTS
    if not counts_path.exists():
        counts_path.write_text(json.dumps(natural_step_counts()))
    counts = step_counts(folder)
    if not (folder / "answers.json").exists():
        write(
            folder / "answers",
            [
                (sentence, name, in_steps(sentence, speaker, counts)[0])
                for sentence in answers()
                for name, speaker in VOICES.items()
            ],
        )
    _asked(folder / "questions", USERS, times=RECORDINGS_OF_EACH, seed=1)
    _asked(folder / "questions_anew", USERS, times=1, seed=2)
    _asked(folder / "questions_strangers", STRANGERS, times=1, seed=3)


def step_counts(folder: Path) -> dict[str, int]:
    """Steps of each word, as they were measured when the recordings were made."""
    counts: dict[str, int] = json.loads((folder / STEP_COUNTS).read_text())
    return counts


def _asked(path: Path, users: tuple[User, ...], *, times: int, seed: int) -> None:
    """Every question `times` times by speakers drawn at random, at USER_RATE_HZ."""
    if path.with_suffix(".json").exists():
        return
    chance = np.random.default_rng(seed)
    said = []
    for question in questions():
        for index in chance.choice(len(users), times, replace=times > len(users)):
            user = users[index]
            said.append((question, user.voice, espeak().say(question, user.mood(chance)).at(USER_RATE_HZ)))
    write(path, said)


__all__ = ["RATE_HZ", "USER_RATE_HZ", "Recording", "Recordings", "make_all", "step_counts", "write"]
