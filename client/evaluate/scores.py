"""What the judgements of many replies amount to."""

from collections.abc import Sequence
from dataclasses import dataclass

from client.bench.summary import Spread, spread
from client.evaluate.examination import Answer
from client.evaluate.judgement import Judgement

SHARES = ("exact", "choice", "answered", "words", "voice", "ended")

Judged = tuple[Answer, Judgement]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares of the replies of which a thing could be judged, as `Judgement` has them; None of none.

    `words` is the share of the texts' words that were heard, all replies taken together, and 0 when more were to be
    changed than there are. `longest` is the greatest length over its reference's. `ttfa` is in seconds.
    """

    question_count: int
    failure_count: int
    exact: float | None
    choice: float | None
    answered: float | None
    words: float | None
    voice: float | None
    ended: float | None
    longest: float | None
    ttfa: Spread | None
    rtf: Spread | None


def scores(judged: Sequence[Judged]) -> Scores:
    """The scores of some answers."""
    replies = [answer.reply for answer, _ in judged if answer.reply is not None]
    judgements = [judgement for _, judgement in judged]
    word_count = sum(it.word_count for it in judgements)
    return Scores(
        question_count=len(judged),
        failure_count=len(judged) - len(replies),
        exact=share([it.exact for it in judgements]),
        choice=share([it.choice for it in judgements]),
        answered=share([it.answered for it in judgements]),
        words=max(0.0, 1 - sum(it.error_count for it in judgements) / word_count) if word_count else None,
        voice=share([it.voice for it in judgements]),
        ended=share([it.ended for it in judgements]),
        longest=max((it.length_ratio for it in judgements if it.length_ratio is not None), default=None),
        ttfa=spread(reply.first_audio_seconds for reply in replies),
        rtf=spread(reply.rtf for reply in replies),
    )


def share(found: Sequence[bool | None]) -> float | None:
    """How many of those that were judged are right."""
    judged = [it for it in found if it is not None]
    return sum(judged) / len(judged) if judged else None


def scores_by_group(judged: Sequence[Judged], groups: Sequence[str]) -> dict[str | None, Scores]:
    """The scores of each group, and under None those of all."""
    found: dict[str | None, Scores] = {
        group: scores([it for it in judged if it[0].question.group == group]) for group in groups
    }
    return found | {None: scores(judged)}
