"""The plain transformers loop is a second oracle: greedily it gives the engines' codes and sound."""

from dataclasses import astuple

import numpy as np
import torch

from services.bench.baseline import Baseline, PlainSampling
from services.bench.conversation import Conversation
from services.bench.direct import speak
from services.bench.engines import ModelSettings, running
from services.bench.measurement import plain_prompt
from services.inference.checkpoint_spec import open_checkpoint
from tests.unit.bench.conftest import GREEDY, SHAPE, WALL, ask


def baseline_of(model: ModelSettings) -> Baseline:
    return Baseline(open_checkpoint(model.checkpoint), torch.device("cpu"), torch.float32, WALL)


async def test_greedy_codes_and_sound_are_the_engines(model: ModelSettings) -> None:
    baseline = baseline_of(model)
    async with running(model, 1) as engines:
        conversation = Conversation(SHAPE, engines)
        spoken = await speak(engines, ask(conversation, GREEDY), WALL)
        prompt = plain_prompt(conversation)
    reply = baseline.reply(prompt, None, frame_count=SHAPE.frame_count, step_count=SHAPE.step_count)
    assert reply.codes.tolist() == [frame.codes for frame in spoken.frames]
    assert min(astuple(reply.cost)) > 0
    np.testing.assert_allclose(reply.samples.numpy(), spoken.samples, rtol=0, atol=1e-4)


async def test_sampled_codes_are_codes(tiny: ModelSettings) -> None:
    baseline = baseline_of(tiny)
    async with running(tiny, 1) as engines:
        prompt = plain_prompt(Conversation(SHAPE, engines))
        code_count = engines.codec.codec.codebook_size
    torch.manual_seed(0)
    greedy, drawn = (
        baseline.reply(prompt, sampling, frame_count=SHAPE.frame_count, step_count=SHAPE.step_count)
        for sampling in (None, PlainSampling(temperature=1.0, top_k=50))
    )
    assert drawn.codes.shape == greedy.codes.shape
    assert 0 <= int(drawn.codes.min()) <= int(drawn.codes.max()) < code_count
    assert drawn.codes.tolist() != greedy.codes.tolist()
