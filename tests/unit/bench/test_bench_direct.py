"""Replies in one process: the bytes that the engines give one after another, alone or beside each other."""

from dataclasses import replace

import numpy as np
import pytest

from services.bench.conversation import Conversation
from services.bench.direct import Ask, Spoken, burst, speak, speech_step, speech_stream
from services.bench.engines import ModelSettings, StageEngines, running
from services.bench.shape import CannotMeasure
from services.codec.engine import DecodeStream
from services.reasoner.engine import ReasonerStream
from tests.unit.bench.conftest import GREEDY, SAMPLED, SHAPE, WALL, ask


async def one_after_another(engines: StageEngines, asked: Ask) -> Spoken:
    spoken = Spoken()
    async with engines.reasoner.open(ReasonerStream(max_step_count=asked.step_count)) as reasoning:
        await reasoning.send(asked.turns)
        reasoning.end()
        spoken.steps = [step async for step in reasoning]
    async with engines.speech.open(speech_stream(engines, asked.voice, asked.sampling, asked.frame_count)) as speaking:
        for step in spoken.steps:
            await speaking.send(speech_step(step))
        speaking.end()
        spoken.frames = [frame async for frame in speaking]
    async with engines.codec.open(DecodeStream()) as playing:
        for frame in spoken.frames:
            await playing.send(frame.codes)
        playing.end()
        spoken.sounds = [samples async for samples in playing]
    return spoken


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_sound_is_that_of_the_engines_one_after_another(model: ModelSettings, sampling: object) -> None:
    async with running(model, 3) as engines:
        conversation = Conversation(SHAPE, engines)
        asked = ask(conversation, sampling)
        expected = await one_after_another(engines, asked)
        spoken = await speak(engines, asked, WALL)
    assert [frame.codes for frame in spoken.frames] == [frame.codes for frame in expected.frames]
    assert spoken.samples.tobytes() == expected.samples.tobytes()
    assert len(spoken.samples) == SHAPE.frame_count * engines.codec.codec.samples_per_frame
    assert 0 < spoken.first_audio_seconds <= spoken.total_seconds


async def test_a_burst_answers_all_its_sessions(tiny: ModelSettings) -> None:
    async with running(tiny, 3) as engines:
        conversation = Conversation(SHAPE, engines)
        answered = await burst(engines, conversation, SAMPLED, WALL, sessions=3, first_turn=1)
    assert answered.frame_count == 3 * SHAPE.frame_count
    assert len(answered.first_audio_seconds) == 3
    assert 0 < max(answered.first_audio_seconds) <= answered.total_seconds


async def test_no_two_turns_sound_alike(tiny: ModelSettings) -> None:
    async with running(tiny, 1) as engines:
        conversation = Conversation(SHAPE, engines)
        first, again, second = (conversation.turns(index)[0].parts[0] for index in (0, 0, 1))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert not np.array_equal(first.samples, second.samples)


async def test_a_reply_that_ends_early_is_not_measured(tiny: ModelSettings) -> None:
    async with running(tiny, 1) as engines:
        asked = ask(Conversation(SHAPE, engines), GREEDY)
        spoken = await speak(engines, asked, WALL)
        reasoner = engines.reasoner.model
        reasoner.config = replace(reasoner.config, end_token_id=spoken.steps[0].token_id)
        with pytest.raises(CannotMeasure, match="ended after 9 and 1"):
            await speak(engines, asked, WALL)
