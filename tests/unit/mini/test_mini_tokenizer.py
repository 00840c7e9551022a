"""The miniature's tokenizer: as many pieces as a word has steps, read by the services as any checkpoint's."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini.domain import answers, vocabulary
from mini.rhythm import natural_step_counts
from mini.tokenizer import AUDIO, AUDIO_END, AUDIO_START, TURN_END, TURN_START, build, save
from services.inference.tokenizer import Tokenizer

STEP_COUNTS = {word: 1 + len(word) // 4 for word in vocabulary()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save(build(STEP_COUNTS), folder)
    return Tokenizer(folder)


def test_every_word_has_as_many_pieces_as_steps(tokenizer: Tokenizer) -> None:
    for word, count in STEP_COUNTS.items():
        assert len(tokenizer.encode(word)) == count


def test_the_steps_that_words_take_can_all_be_cut() -> None:
    measured = natural_step_counts()
    made = build(measured)
    assert {word for answer in answers() for word in answer.split()} <= set(measured)
    assert {word: len(made.encode(word).ids) for word in measured} == measured


def test_answers_come_back_as_they_were(tokenizer: Tokenizer) -> None:
    for answer in answers():
        stream = tokenizer.text_stream()
        assert "".join(stream.read(token) for token in [*tokenizer.encode(answer), TURN_END]) == answer


@settings(max_examples=50)
@given(st.text())
def test_any_text_can_be_typed(tokenizer: Tokenizer, text: str) -> None:
    assert all(token < 2000 for token in tokenizer.encode(text))


def test_case_and_punctuation_do_not_count(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("What is two plus two?") == tokenizer.encode("what is two plus two")


def test_the_prompt_has_no_instructions(tokenizer: Tokenizer) -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "audio", "audio": ""}]}]
    user, assistant = tokenizer.encode("user"), tokenizer.encode("assistant")
    prompt = [TURN_START, *user, AUDIO_START, AUDIO, AUDIO_END, TURN_END, TURN_START, *assistant]
    assert tokenizer.encode(tokenizer.render(told)) == prompt


def test_words_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="no 4 letters"):
        build({"cat": 4})
