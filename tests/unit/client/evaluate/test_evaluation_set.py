"""Sets of questions: what is read, and what is refused in which words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.audio_file import write_audio
from client.errors import InputError
from client.evaluate.evaluation_set import DEFAULT_GROUP, FILES_GROUP, Question, opened_set, read_set

TYPED = {"text": "hello", "answer": "hello to you"}


def written(folder: Path, content: Any) -> Path:
    """The folder with this set."""
    (folder / "questions.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def conversation(*turns: Any, **more: Any) -> dict[str, Any]:
    """A set of one conversation."""
    return {"conversations": [{"turns": list(turns), **more}]}


def tone(path: Path) -> Path:
    """A file with a second of a tone."""
    write_audio(path, np.sin(np.arange(16_000) / 10).astype(np.float32) / 2, 16_000)
    return path


def test_everything_is_read(tmp_path):
    tone(tmp_path / "plus.wav")
    spoken = {"audio": "plus.wav", "asked": "two plus two", "answer": "four", "reference_seconds": 2}
    later = {"text": "and three", "answer": "seven", "group": "later"}
    content = {
        "name": "sums",
        "sentences": ["four", "seven"],
        "pronunciations": {"bleat": "B L IY T"},
        "conversations": [
            {"group": "anew", "voice": "ash", "turns": [spoken, later]},
            {"turns": [{"text": "hello"}]},
        ],
    }
    with opened_set([written(tmp_path, content)]) as found:
        first, second = found.conversations
        assert (found.name, found.sentences, found.pronunciations) == ("sums", ("four", "seven"), {"bleat": "B L IY T"})
        assert first.voice == "ash"
        assert first.questions[0] == Question(tmp_path / "plus.wav", "two plus two", "anew", "four", 2.0)
        assert first.questions[1] == Question("and three", "and three", "later", "seven", None)
        assert (second.voice, second.questions) == (None, (Question("hello", "hello", DEFAULT_GROUP),))
        assert (found.question_count, found.groups) == (3, ("anew", "later", DEFAULT_GROUP))
        assert len(first.questions[0].turn().content) == 16_000
    assert read_set(tmp_path / "questions.json") == read_set(tmp_path)


def test_sound_files_are_a_set_without_answers(tmp_path):
    files = [tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav")]
    with opened_set(files) as found:
        assert [it.questions for it in found.conversations] == [
            (Question(file, file.name, FILES_GROUP),) for file in files
        ]
        assert found.sentences == ()


def test_the_shipped_set_is_there():
    with opened_set([]) as found:
        found.check_sounds()
        assert found.question_count > len(found.conversations) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "questions.json: not JSON (Expecting property name"),
        ([], "questions.json: expected an object, got a list"),
        ({}, "questions.json: conversations is missing"),
        ({"conversations": {}}, "questions.json: conversations: expected a list, got an object"),
        ({"conversations": []}, "questions.json: conversations: expected one or more, got none"),
        ({"conversations": [3]}, "conversations[0]: expected an object, got a number"),
        ({"questions": []}, "expected only name, sentences, pronunciations, conversations; got questions too"),
        (conversation(TYPED) | {"sentences": "four"}, "questions.json: sentences: expected a list, got text"),
        (conversation(TYPED) | {"sentences": ["four", 4]}, "sentences: expected text only, got a number in it"),
        (conversation(TYPED) | {"pronunciations": {"a": 1}}, "pronunciations: expected phones as text for each word"),
        (conversation(), "conversations[0]: turns: expected one or more, got none"),
        (conversation(TYPED, voice=True), "conversations[0]: voice: expected text, got true"),
        (conversation(TYPED, {}), "conversations[0].turns[1]: expected audio or text, got neither"),
        (conversation({"text": "a", "audio": "b"}), "conversations[0].turns[0]: expected audio or text, got both"),
        (conversation({"text": "a", "anser": "b"}), "reference_seconds; got anser too"),
        (conversation(TYPED | {"reference_seconds": 0}), "turns[0]: reference_seconds: expected more than 0, got 0"),
        (conversation(TYPED | {"reference_seconds": "1"}), "reference_seconds: expected a number, got text"),
        (conversation({"audio": "none.wav"}), "none.wav: no such file"),
    ],
)
def test_what_is_not_in_the_format_is_refused(tmp_path, content, message):
    with pytest.raises(InputError) as refused, opened_set([written(tmp_path, content)]):
        pass
    assert message in str(refused.value)


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "noise.wav").write_text("not sound")
    for inputs, message in (
        ([tmp_path], "questions.json is missing"),
        ([tmp_path / "none.json"], "none.json: no such file"),
        ([tmp_path, tmp_path / "noise.wav"], "is a whole set: give it alone, or sound files"),
        ([tmp_path / "noise.wav"], "not a WAV, FLAC, OGG or MP3 file"),
    ):
        with pytest.raises(InputError) as refused, opened_set(inputs):
            pass
        assert message in str(refused.value)
