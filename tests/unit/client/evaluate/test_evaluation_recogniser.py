"""What is understood of speech, by words."""

import importlib.util
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import ClientError, InputError
from client.evaluate.packages import check_evaluate_installed
from client.evaluate.recogniser import FIRST, LAST, Recogniser, choice_of, word_errors, words

SENTENCE = st.lists(st.sampled_from("abc"), max_size=6)


@pytest.mark.parametrize(
    ("wanted", "found", "errors"),
    [
        ("", "", 0),
        ("two plus two", "two plus two", 0),
        ("two plus two", "two plus", 1),
        ("two plus two", "two plus plus two", 1),
        ("two plus two", "two minus two", 1),
        ("two plus two", "", 3),
        ("", "two", 1),
        ("a b c d", "b c d e", 2),
    ],
)
def test_words_that_differ_are_counted(wanted, found, errors):
    assert word_errors(wanted.split(), found.split()) == errors


@given(SENTENCE, SENTENCE, SENTENCE)
def test_word_errors_are_a_distance(one, two, three):
    assert word_errors(one, one) == 0
    assert word_errors(one, two) == word_errors(two, one)
    assert abs(len(one) - len(two)) <= word_errors(one, two) <= max(len(one), len(two))
    assert word_errors(one, three) <= word_errors(one, two) + word_errors(two, three)


def test_words_have_neither_case_nor_punctuation():
    assert words(" I'm Robin – a small, talking machine! ") == ["i'm", "robin", "a", "small", "talking", "machine"]
    assert words("I’m 7") == ["i'm", "7"]
    assert words("?!") == []


def test_a_word_that_nobody_can_pronounce_is_refused():
    with pytest.raises(InputError, match="knows no word 'xqz': give it under pronunciations"):
        Recogniser.of_sentences(["hello xqz"], {})
    assert Recogniser.of_sentences(["hello xqz"], {"xqz": "Z IY"})


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12))
def test_a_choice_has_every_sentence_once_and_as_likely_as_any_other(sentences):
    leaving = defaultdict(list)
    for source, target, probability, word in choice_of(sentences):
        leaving[source].append((target, probability, word))
    said = {}
    pending = [(FIRST, (), 1.0)]
    while pending:
        state, words_before, likelihood = pending.pop()
        for target, probability, word in leaving[state]:
            path = (target, (*words_before, word), likelihood * probability)
            if target != LAST:
                pending.append(path)
            else:
                assert path[1] not in said
                said[path[1]] = path[2]
    assert said == {sentence: pytest.approx(1 / len(sentences)) for sentence in sentences}


def test_missing_packages_are_named(monkeypatch):
    check_evaluate_installed()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pocketsphinx" else find(name))
    with pytest.raises(ClientError, match=r"without pocketsphinx: pip install 'chroma-mesh\[evaluate\]'"):
        check_evaluate_installed()
