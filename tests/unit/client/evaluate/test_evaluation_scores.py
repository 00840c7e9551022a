"""Scores: what holds of all of them, and what is required of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import InputError
from client.evaluate.requirement import Requirement, read_requirements
from client.evaluate.scores import SHARES, scores, scores_by_group

MAYBE = st.sampled_from([True, False, None])
DIFFERING = st.fixed_dictionaries(
    {
        "exact": MAYBE,
        "choice": MAYBE,
        "answered": MAYBE,
        "voice": MAYBE,
        "ended": st.booleans(),
        "word_count": st.integers(0, 9),
        "error_count": st.integers(0, 20),
        "length_ratio": st.none() | st.floats(0.1, 9),
    }
)
GROUPS = ("anew", "strangers")


@given(
    several=st.lists(st.tuples(DIFFERING, st.sampled_from(GROUPS), st.booleans()), min_size=1, max_size=12),
    data=st.data(),
)
def test_the_order_does_not_matter_and_groups_add_up(new_answer, new_judgement, several, data):
    judged = [
        (new_answer(index=index, group=group, failure="lost" if failed else None), new_judgement(**differing))
        for index, (differing, group, failed) in enumerate(several)
    ]
    found = scores(judged)
    assert scores(data.draw(st.permutations(judged))) == found
    assert all(share is None or 0 <= share <= 1 for share in (getattr(found, name) for name in SHARES))
    by_group = scores_by_group(judged, GROUPS)
    assert by_group[None] == found
    assert sum(by_group[group].question_count for group in GROUPS) == found.question_count == len(judged)
    assert sum(by_group[group].failure_count for group in GROUPS) == found.failure_count
    right = [differing["ended"] for differing, _, _ in several]
    assert found.ended == pytest.approx(sum(right) / len(right))


def test_perfect_replies_score_1(new_answer, new_judgement):
    found = scores([(new_answer(index=index), new_judgement()) for index in range(3)])
    assert [getattr(found, name) for name in SHARES] == [1.0] * len(SHARES)
    assert (found.question_count, found.failure_count, found.longest) == (3, 0, 1.0)


def test_words_are_counted_together_and_never_below_0(new_answer, new_judgement):
    counted = [new_judgement(word_count=9, error_count=1), new_judgement(word_count=1, error_count=1)]
    assert scores([(new_answer(), it) for it in counted]).words == 0.8
    assert scores([(new_answer(), new_judgement(word_count=1, error_count=5))]).words == 0
    assert scores([(new_answer(), new_judgement(word_count=0, error_count=5))]).words is None


def test_what_could_not_be_judged_does_not_count(new_answer, new_judgement):
    judged = [(new_answer(), new_judgement(exact=it)) for it in (True, None, False, None)]
    assert scores(judged).exact == 0.5
    nothing = scores([])
    assert [getattr(nothing, name) for name in (*SHARES, "longest", "ttfa", "rtf")] == [None] * 9


def test_requirements_are_read():
    assert read_requirements(None) == ()
    assert read_requirements("exact=0.9, a:b:words=1,longest=2") == (
        Requirement(None, "exact", 0.9),
        Requirement("a:b", "words", 1.0),
        Requirement(None, "longest", 2.0),
    )


@pytest.mark.parametrize("text", ["", "exact", "exact=", "exact=2", "exact=-1", "exact=nan", "ttfa=1", "exact=1,,"])
def test_what_is_no_requirement_is_refused(text):
    with pytest.raises(InputError, match="--require: expected"):
        read_requirements(text)


@pytest.mark.parametrize(
    ("text", "shortfall"),
    [
        ("exact=0.5", None),
        ("anew:exact=0.5,longest=3", None),
        ("exact=0.6", "exact is 0.5, required is at least 0.6"),
        ("anew:exact=0.6", "anew:exact is 0.5, required is at least 0.6"),
        ("longest=2", "longest is 3, required is at most 2"),
        ("voice=0", "voice is not known, required is at least 0"),
    ],
)
def test_what_is_missing_is_said(new_answer, new_judgement, text: str, shortfall: Any):
    replies = [new_judgement(exact=True, voice=None), new_judgement(exact=False, voice=None, length_ratio=3.0)]
    found = scores_by_group([(new_answer(), it) for it in replies], ["anew"])
    missing = [it for requirement in read_requirements(text) if (it := requirement.shortfall(found))]
    assert missing == ([shortfall] if shortfall else [])
