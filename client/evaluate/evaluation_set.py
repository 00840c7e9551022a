"""What a mesh is asked: a set of conversations with their right answers, or sound files alone.

A set is a folder with `questions.json` and the sound files that it names, relative to itself:

    {
      "name": "what the set is called",
      "sentences": ["every sentence that may be answered", ...],
      "pronunciations": {"bleat": "B L IY T"},
      "conversations": [
        {
          "group": "anew",
          "voice": "adam",
          "turns": [
            {"audio": "two-plus-two.flac", "asked": "what is two plus two",
             "answer": "two plus two is four", "reference_seconds": 1.84},
            {"text": "and minus one", "answer": "four minus one is three", "group": "follow-ups"}
          ]
        }
      ]
    }

Only `conversations` and their `turns` must be there, and in each turn either `audio` or `text`. `sentences` are for the
forced choice, `pronunciations` (in the phones of the CMU dictionary) for words of theirs that the recogniser lacks.
`group` is what results are summed up by; a turn may have one of its own. Without `voice` the mesh's default answers.
`asked` is what is said in the sound, for people who read the results; without `answer` nobody can say whether the reply
is right; `reference_seconds` is how long the right answer takes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from client.audio_file import read_audio
from client.errors import InputError
from client.pcm import USER_RATE_HZ
from client.talk import Turn

SET_FILE = "questions.json"
DEFAULT_GROUP = "all questions"
FILES_GROUP = "files"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Question:
    """One user turn: a sound file or what is typed, what is asked in it in words, and its right answer if it is known.

    `group`: what it is summed up with; `reference_seconds`: how long the right answer takes to say.
    """

    content: Path | str
    asked: str
    group: str
    answer: str | None = None
    reference_seconds: float | None = None

    def turn(self) -> Turn:
        """The turn as it is said; InputError when the file is no sound."""
        content = self.content
        return Turn(self.asked, content if isinstance(content, str) else read_audio(content, USER_RATE_HZ))


@dataclass(frozen=True)
class Conversation:
    """Questions that are asked one after the other in a session; `voice` None: the mesh's default answers."""

    voice: str | None
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class EvaluationSet:
    """Conversations, and every sentence that may be answered, where these are known."""

    name: str
    conversations: tuple[Conversation, ...]
    sentences: tuple[str, ...] = ()
    pronunciations: Mapping[str, str] = field(default_factory=dict)

    @property
    def question_count(self) -> int:
        """Questions of all conversations."""
        return sum(len(conversation.questions) for conversation in self.conversations)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in the order in which they appear."""
        return tuple(dict.fromkeys(question.group for it in self.conversations for question in it.questions))

    def check_sounds(self) -> None:
        """InputError when one of the sound files can't be heard."""
        for conversation in self.conversations:
            for question in conversation.questions:
                question.turn()


@contextmanager
def opened_set(inputs: Sequence[Path]) -> Iterator[EvaluationSet]:
    """The set of a folder or of its file, sound files as a set without answers, or the shipped set without inputs.

    Shipped files are there only inside the `with`. InputError when something is not in the format.
    """
    if not inputs:
        with resources.as_file(resources.files("mini") / "questions") as folder:
            yield read_set(folder)
        return
    sets = [path for path in inputs if path.is_dir() or path.suffix == ".json"]
    if sets and len(inputs) > 1:
        raise InputError(f"{sets[0]} is a whole set: give it alone, or sound files")
    found = read_set(sets[0]) if sets else set_of_files(inputs)
    found.check_sounds()
    yield found


def set_of_files(files: Sequence[Path]) -> EvaluationSet:
    """Sound files as a set: each is a conversation of its own, and no answers are known."""
    conversations = [Conversation(None, (Question(file, file.name, FILES_GROUP),)) for file in files]
    return EvaluationSet("files", tuple(conversations))


def read_set(path: Path) -> EvaluationSet:
    """The set of a folder or of its file; InputError says where it is not in the format and what was expected."""
    file = path / SET_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path}: {SET_FILE} is missing" if path.is_dir() else f"{file}: no such file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    entry = Entry(str(file), content, ("name", "sentences", "pronunciations", "conversations"))
    sentences = entry.texts("sentences")
    pronunciations = entry.value("pronunciations", dict, {})
    if not all(isinstance(phones, str) for phones in pronunciations.values()):
        raise InputError(f"{file}: pronunciations: expected phones as text for each word")
    conversations = [
        read_conversation(f"{file}: conversations[{index}]", item, file.parent)
        for index, item in enumerate(entry.needed("conversations", list))
    ]
    if not conversations:
        raise InputError(f"{file}: conversations: expected one or more, got none")
    return EvaluationSet(entry.value("name", str, file.parent.name), tuple(conversations), sentences, pronunciations)


def read_conversation(where: str, content: Any, folder: Path) -> Conversation:
    """One conversation; `where` is what errors call it, `folder` where its files are."""
    entry = Entry(where, content, ("group", "voice", "turns"))
    turns = entry.needed("turns", list)
    if not turns:
        raise InputError(f"{where}: turns: expected one or more, got none")
    group = entry.value("group", str, DEFAULT_GROUP)
    questions = [read_question(f"{where}.turns[{index}]", item, folder, group) for index, item in enumerate(turns)]
    return Conversation(entry.value("voice", str, None), tuple(questions))


def read_question(where: str, content: Any, folder: Path, group: str) -> Question:
    """One turn of a conversation of this group."""
    entry = Entry(where, content, ("group", "audio", "text", "asked", "answer", "reference_seconds"))
    audio, text = entry.value("audio", str, None), entry.value("text", str, None)
    if (audio is None) == (text is None):
        raise InputError(f"{where}: expected audio or text, got {'neither' if audio is None else 'both'}")
    seconds = entry.value("reference_seconds", (int, float), None)
    if seconds is not None and not (0 < seconds < float("inf")):
        raise InputError(f"{where}: reference_seconds: expected more than 0, got {seconds}")
    return Question(
        content=text if text is not None else folder / str(audio),
        asked=entry.value("asked", str, text if text is not None else audio),
        group=entry.value("group", str, group),
        answer=entry.value("answer", str, None),
        reference_seconds=None if seconds is None else float(seconds),
    )


class Entry:
    """An object of the file, whose names and kinds of values are checked; `where` is what errors call it."""

    def __init__(self, where: str, content: Any, names: Sequence[str]) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{where}: expected an object, got {kind_of(content)}")
        unknown = sorted(content.keys() - set(names))
        if unknown:
            raise InputError(f"{where}: expected only {', '.join(names)}; got {unknown[0]} too")
        self._where = where
        self._content = content

    def value(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value of that name if there is one."""
        return self.needed(name, kind) if self._content.get(name) is not None else default

    def needed(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """The value of that name."""
        if name not in self._content:
            raise InputError(f"{self._where}: {name} is missing")
        value = self._content[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = kind if isinstance(kind, type) else kind[-1]
            raise InputError(f"{self._where}: {name}: expected {KINDS[expected]}, got {kind_of(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, empty where there is none of that name."""
        values = self.value(name, list, [])
        wrong = [value for value in values if not isinstance(value, str)]
        if wrong:
            raise InputError(f"{self._where}: {name}: expected text only, got {kind_of(wrong[0])} in it")
        return tuple(values)


KINDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", float: "a number"}


def kind_of(value: Any) -> str:
    """What JSON calls a value, for errors."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return KINDS[float if isinstance(value, int) else type(value)]
