"""One reply judged, by the recogniser and the speaker embedding as they are."""

import json
from importlib import resources

import numpy as np
import pytest

from client.audio_file import read_audio
from client.errors import ClientError
from client.evaluate.evaluation_set import EvaluationSet
from client.evaluate.judgement import Judge, is_nearest, is_same
from client.events import FinishReason
from client.pcm import VOICE_RATE_HZ

OTHERS = ("goodbye see you soon", "seven plus five is twelve", "fish live in water")


@pytest.fixture(scope="module")
def examples():
    """The shipped voices, by name: what they say, and how it sounds."""
    with resources.as_file(resources.files("mini") / "voices") as folder:
        return {
            path.stem: (json.loads(path.with_suffix(".json").read_text())["transcript"], read_audio(path, 24_000))
            for path in sorted(folder.glob("*.wav"))
        }


@pytest.fixture(scope="module")
def judge(examples):
    """A judge of sentences, one of which the voices say, who has met them."""
    sentences = {text for text, _ in examples.values()}
    asked = EvaluationSet("set", (), (*sorted(sentences), *OTHERS))
    return Judge(asked, {name: samples for name, (_, samples) in examples.items()})


def test_a_perfect_reply_has_everything_right(judge, examples, new_answer):
    assert judge.voices == sorted(examples)
    for name, (text, samples) in examples.items():
        seconds = len(samples) / VOICE_RATE_HZ
        found = judge.judge(new_answer(text, samples, expected=text, voice=name, reference_seconds=seconds))
        assert (found.exact, found.choice, found.answered, found.voice, found.ended) == (True,) * 5
        assert (found.faults, found.chosen, found.length_ratio) == ([], text, 1)
        assert found.word_count == len(text.split()) > found.error_count
        assert found.similarities[name] == pytest.approx(1, abs=1e-3)


def test_each_fault_is_found_alone(judge, examples, new_answer):
    (name, (text, samples)), (other, _), *_ = examples.items()
    heard = {"samples": samples, "expected": text, "voice": name}
    assert judge.judge(new_answer(text, **heard, reason=FinishReason.LENGTH)).faults == ["ended"]
    assert judge.judge(new_answer(text, **heard | {"voice": other})).faults == ["voice"]
    assert judge.judge(new_answer(text, **heard | {"expected": OTHERS[0]})).faults == ["exact", "answered"]
    assert judge.judge(new_answer(OTHERS[0], **heard)).faults == ["exact", "choice"]
    assert judge.judge(new_answer(f"{text}.".capitalize(), **heard)).faults == ["exact"]


def test_a_reply_without_sound_or_that_failed_has_little_right(judge, examples, new_answer):
    name, (text, _) = next(iter(examples.items()))
    silent = judge.judge(new_answer(text, expected=text, voice=name, reference_seconds=2))
    assert silent.faults == ["choice", "answered", "voice"]
    assert (silent.heard, silent.error_count, silent.length_ratio) == ("", len(text.split()), 0)
    zeros = judge.judge(new_answer(text, np.zeros(24_000, np.float32), expected=text, voice=name))
    assert zeros.faults == ["choice", "answered", "voice"]
    failed = judge.judge(new_answer(expected=text, voice=name, reference_seconds=2, failure="the stage is lost"))
    assert failed.faults == ["exact", "choice", "answered", "voice", "ended"]
    assert (failed.word_count, failed.length_ratio) == (0, None)


def test_nothing_is_judged_where_nothing_is_known(examples, new_answer):
    name, (text, samples) = next(iter(examples.items()))
    judge = Judge(EvaluationSet("files", ()), {name: samples})
    assert judge.voices == []
    found = judge.judge(new_answer(text, samples, expected=None, voice=name))
    assert (found.exact, found.choice, found.answered, found.voice) == (None,) * 4
    assert (found.chosen, found.length_ratio, found.faults) == (None, None, [])
    assert found.heard
    with pytest.raises(ClientError, match="nobody speaks in the example of the voice quiet"):
        Judge(EvaluationSet("files", ()), {"quiet": np.zeros(24_000, np.float32)})


def test_a_tie_of_voices_is_nobodys():
    assert is_nearest("ash", {"ash": 0.9, "birch": 0.8})
    assert not is_nearest("ash", {"ash": 0.9, "birch": 0.9})
    assert not is_nearest("ash", {})


def test_texts_are_the_same_by_their_words():
    assert is_same("hello robin", "Hello, Robin.")
    assert not is_same("hello robin", "hello")
    assert not is_same("", "…")
