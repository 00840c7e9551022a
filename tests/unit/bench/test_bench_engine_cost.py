"""Each engine alone: all its streams, to the end of the shape, live together."""

import math
from dataclasses import astuple, replace

import pytest

from services.bench.conversation import Conversation
from services.bench.direct import speak
from services.bench.engine_cost import EngineCost
from services.bench.engines import ModelSettings, running
from services.bench.shape import CannotMeasure
from tests.conftest import until_idle
from tests.unit.bench.conftest import SAMPLED, SHAPE, WALL, ask

# More than a stream gives before anybody reads: that all are live at once is then no matter of luck.
LONG = replace(SHAPE, frame_count=200, step_count=100)


@pytest.mark.parametrize("stream_count", [1, 3])
async def test_every_part_has_a_cost_and_leaves_the_engines_idle(tiny: ModelSettings, stream_count: int) -> None:
    async with running(tiny, 3) as engines:
        conversation = Conversation(LONG, engines)
        cost = EngineCost(engines, conversation, await speak(engines, ask(conversation, SAMPLED), WALL), WALL)
        measured = await cost.measure(SAMPLED, stream_count)
        for engine in (engines.reasoner, engines.speech, engines.codec):
            await until_idle(engine)
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in astuple(measured))


async def test_streams_that_end_early_are_not_measured(tiny: ModelSettings) -> None:
    async with running(tiny, 1) as engines:
        conversation = Conversation(SHAPE, engines)
        cost = EngineCost(engines, conversation, await speak(engines, ask(conversation, SAMPLED), WALL), WALL)
        reasoner = engines.reasoner.model
        reasoner.config = replace(reasoner.config, end_token_id=cost.spoken.steps[0].token_id)
        with pytest.raises(CannotMeasure, match="ended after 1 of 3 outputs"):
            await cost.reasoner(1)
