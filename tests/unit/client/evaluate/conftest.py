"""Made-up answers and judgements."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from client.evaluate.evaluation_set import Question
from client.evaluate.examination import Answer
from client.evaluate.judgement import Judgement
from client.events import FinishReason, ReplyEnded, Timings
from client.pcm import VOICE_RATE_HZ, Samples
from client.talk import HeardReply, Turn

NewAnswer = Callable[..., Answer]
NewJudgement = Callable[..., Judgement]

NOTHING_HEARD = np.zeros(0, np.float32)
NO_TIME = Timings(0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="session")
def new_answer() -> NewAnswer:
    """Makes an answer to a question: a reply of this text and sound, or with `failure` none."""

    def make(
        text: str = "four",
        samples: Samples = NOTHING_HEARD,
        *,
        index: int = 0,
        expected: str | None = "four",
        reference_seconds: float | None = None,
        group: str = "anew",
        voice: str = "ash",
        reason: FinishReason = FinishReason.STOP,
        failure: str | None = None,
        ttfa_seconds: float | None = 0.1,
    ) -> Answer:
        question = Question("two and two", "two and two", group, expected, reference_seconds)
        ended = ReplyEnded(turn_index=0, reason=reason, text=text, frame_count=1, step_count=1, timings=NO_TIME)
        turn = Turn("two and two", "two and two")
        reply = HeardReply(turn, samples, VOICE_RATE_HZ, ended, ttfa_seconds, 0.2)
        return Answer(index, index, 0, voice, question, None if failure else reply, failure)

    return make


@pytest.fixture(scope="session")
def new_judgement() -> NewJudgement:
    """Makes a judgement that finds all right, but for what is given."""

    def make(**differing: Any) -> Judgement:
        perfect = {
            "exact": True,
            "choice": True,
            "answered": True,
            "voice": True,
            "ended": True,
            "word_count": 3,
            "error_count": 0,
            "chosen": "four",
            "heard": "four",
            "similarities": {},
            "length_ratio": 1.0,
        }
        return Judgement(**(perfect | differing))

    return make
