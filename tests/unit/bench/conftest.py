"""Small conversations, and the engines of a checkpoint."""

import pytest

from services.bench.clock import clock
from services.bench.conversation import Conversation
from services.bench.direct import Ask
from services.bench.engines import ModelSettings
from services.bench.shape import ReplyShape
from services.speech.engine import Sampling
from tests.conftest import GOLDEN

CHECKPOINTS = {"random": "random:tiny", "golden": str(GOLDEN / "checkpoint")}
SHAPE = ReplyShape(frame_count=9, step_count=3, voice_seconds=0.4, user_seconds=0.5)
GREEDY = Sampling(temperature=0.0, top_k=0, seed=0)
WALL = clock("wall")
SAMPLED = Sampling(temperature=0.7, top_k=50, seed=5)


@pytest.fixture(params=CHECKPOINTS)
def model(request: pytest.FixtureRequest) -> ModelSettings:
    """Each small checkpoint in turn."""
    return ModelSettings(CHECKPOINTS[request.param], "cpu", "float32")


@pytest.fixture
def tiny() -> ModelSettings:
    """The smallest random one."""
    return ModelSettings(CHECKPOINTS["random"], "cpu", "float32")


def ask(conversation: Conversation, sampling: Sampling, turn: int = 0) -> Ask:
    """A reply of the conversation's shape."""
    shape = conversation.shape
    return Ask(conversation.turns(turn), conversation.voice(), sampling, shape.frame_count, shape.step_count)
