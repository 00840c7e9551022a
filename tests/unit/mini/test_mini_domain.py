"""The miniature's domain: enough of it, and nothing that contradicts itself."""

import re

from mini.domain import answers, follow_ups, questions, single_exchanges, vocabulary


def test_there_is_enough_to_ask() -> None:
    assert len(single_exchanges()) >= 400
    assert {"sum", "day", "month", "capital", "colour", "legs", "sound", "opposite", "talk", "unknown"} == {
        exchange.kind for exchange in single_exchanges()
    }


def test_a_question_has_one_answer() -> None:
    assert len({exchange.question for exchange in single_exchanges()}) == len(single_exchanges())
    asked = [(exchange.before, exchange.question) for exchange in follow_ups()]
    assert len(set(asked)) == len(asked)


def test_follow_ups_need_the_turn_before() -> None:
    by_question: dict[str, set[str]] = {}
    for exchange in follow_ups():
        assert exchange.before is not None
        by_question.setdefault(exchange.question, set()).add(exchange.answer)
    assert len(by_question["and minus two"]) > 5
    assert len(by_question["and a cat"]) == 2


def test_follow_ups_are_answered_with_taught_sentences() -> None:
    assert {exchange.answer for exchange in follow_ups()} <= set(answers())


def test_everything_is_plain_words() -> None:
    for sentence in (*questions(), *answers()):
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", sentence)
    assert len(vocabulary()) < 400
