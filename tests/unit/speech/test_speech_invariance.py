"""A reply's codes are the same whatever else is in the batch, however its voice's prompt was cut, and cached or not.

So are the keys and values that it leaves: they tell of a last bit long before a code does.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.checkpoint_spec import open_checkpoint
from services.inference.tokenizer import Tokenizer
from services.speech import weights
from services.speech.engine import Codes, Sampling, SpeechEngine, SpeechStep, SpeechStream, Voice
from services.speech.model import SpeechModel
from tests.conftest import GOLDEN, started
from tests.unit.stream_visits import DEVICES, Visit, random_visits, threads, visit

GREEDY = Sampling(0.0, 0, 0)
ALONE = Visit()
# In `small` four query heads share a key-value head: a frame without a step is then run without what leads up to one.
CHECKPOINTS = {"golden": str(GOLDEN / "checkpoint"), "small": "random:small"}


@dataclass(frozen=True, eq=False)
class Speaker:
    """One reply that is to be spoken: its frames follow from this alone."""

    voice: Voice
    steps: list[SpeechStep]
    sampling: Sampling
    frame_count: int


@dataclass(frozen=True)
class Speech:
    """A model and what a test asks it to say."""

    model: SpeechModel
    tokenizer: Tokenizer
    speakers: list[Speaker]

    def engine(self, *, slot_count: int, prefill_chunk: int, voice_cache_bytes: int) -> SpeechEngine:
        return SpeechEngine(
            self.model, self.tokenizer, slot_count=slot_count, queue_limit=len(self.speakers), context_length=1024,
            prefill_chunk=prefill_chunk, voice_cache_bytes=voice_cache_bytes,
        )  # fmt: skip


def voices(code_count: int) -> list[Voice]:
    """A short one, a longer one with the same transcript, and one beyond a step's shortest reach."""
    codes = np.random.default_rng(0).integers(1, code_count, (520, 8)).tolist()
    return [Voice("The quick brown fox.", codes[:3]), Voice("The quick brown fox.", codes[:17]), Voice("Hi.", codes)]


def speakers(model: SpeechModel) -> list[Speaker]:
    """Ten replies: three voices, and as many ways to draw; most run out of steps before they end."""
    samplings = [GREEDY, Sampling(1.0, 50, 7), Sampling(0.7, 0, 2**64 - 1), Sampling(1.3, 5, 8), GREEDY]
    width, vocabulary = model.config.backbone.hidden_size, model.config.vocabulary_size
    many, found = voices(model.config.code_count), []
    for number in range(10):
        chance = np.random.default_rng(number)
        steps = [
            SpeechStep(int(chance.integers(20, vocabulary // 2)), chance.normal(0, 1, width).astype(np.float32), False)
            for _ in range(2 + number % 3)
        ]
        voice = many[2] if number == 4 else many[number % 2]
        found.append(Speaker(voice, steps, samplings[number % 5], 5 + number % 4))
    return found


@pytest.fixture(scope="module")
def new_speech() -> Callable[[str, str], Speech]:
    """Makes the golden or a random model on a device, in bfloat16 where that is not a CPU; each once."""
    made: dict[tuple[str, str], Speech] = {}

    def make(checkpoint: str, device: str) -> Speech:
        if (checkpoint, device) not in made:
            opened = open_checkpoint(CHECKPOINTS[checkpoint])
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
            model = weights.load(opened, torch.device(device), dtype)
            made[checkpoint, device] = Speech(model, Tokenizer(opened.folder), speakers(model))
        return made[checkpoint, device]

    return make


@dataclass(frozen=True)
class Spoken:
    """What a reply was: its codes, and a digest of the keys and values that it left where it stayed to its end."""

    codes: list[Codes]
    left: bytes


async def speak(engine: SpeechEngine, speaker: Speaker, plan: Visit = ALONE) -> Spoken:
    stream = SpeechStream(speaker.voice, speaker.sampling, speaker.frame_count)
    stream.transcript_ids = engine.transcript_ids(speaker.voice)

    async def feed() -> None:
        for step in speaker.steps:
            await stream.send(step)
            await asyncio.sleep(0)
        stream.end()

    left: list[bytes] = []

    def look() -> None:
        columns = engine.step.cache.read(stream.slot, stream.column)
        left.append(sha256(columns.cpu().view(torch.uint8).numpy().tobytes()).digest())

    frames = await visit(engine, stream, feed, plan, look)
    return Spoken([frame.codes for frame in frames], left[0] if plan.leave_after is None else b"")


@pytest.fixture(scope="module")
def alone(new_speech: Callable[[str, str], Speech]) -> Callable[..., Any]:
    """Each reply in an engine that was never used before; run once for each kind of engine."""
    known: dict[tuple[Any, ...], list[Spoken]] = {}

    async def speak_alone(checkpoint: str, device: str, **shape: int) -> list[Spoken]:
        key = (checkpoint, device, torch.get_num_threads(), *shape.values())
        if key not in known:
            speech = new_speech(checkpoint, device)
            known[key] = []
            for speaker in speech.speakers:
                async with started(speech.engine(**shape, voice_cache_bytes=0)) as engine:
                    known[key].append(await speak(engine, speaker))
        return known[key]

    return speak_alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("checkpoint", "thread_count", "slot_count", "prefill_chunk", "voice_cache_bytes"),
    [
        ("golden", 1, 1, 16, 2**24),
        ("golden", 1, 2, 64, 0),
        ("golden", 1, 3, 4, 2**24),
        ("golden", 1, 5, 64, 2**24),
        ("golden", 1, 8, 16, 0),
        ("golden", 2, 1, 64, 2**24),
        ("golden", 2, 2, 16, 2**24),
        ("golden", 2, 3, 64, 0),
        ("golden", 2, 5, 4, 2**24),
        ("golden", 2, 8, 64, 2**24),
        ("small", 2, 8, 64, 2**24),
    ],
)
async def test_replies_that_come_and_go_equal_those_spoken_alone(
    new_speech: Callable[[str, str], Speech],
    alone: Callable[..., Any],
    device: str,
    checkpoint: str,
    thread_count: int,
    slot_count: int,
    prefill_chunk: int,
    voice_cache_bytes: int,
) -> None:
    speech = new_speech(checkpoint, device)
    shape = {"slot_count": slot_count, "prefill_chunk": prefill_chunk}
    # Only on a CPU does a row's result not even depend on how many slots there are, or on the chunks' size.
    shape_alone = {"slot_count": 1, "prefill_chunk": 64} if device == "cpu" else shape
    with threads(thread_count):
        expected = await alone(checkpoint, device, **shape_alone)
        assert [len(reply.codes) for reply in expected] == [speaker.frame_count for speaker in speech.speakers]
        engine = speech.engine(**shape, voice_cache_bytes=voice_cache_bytes)
        async with started(engine):
            for seed in range(2):
                plans = random_visits(slot_count + 10 * prefill_chunk + seed, len(speech.speakers))
                heard = await asyncio.gather(*map(partial(speak, engine), speech.speakers, plans))
                for reply, whole, plan in zip(heard, expected, plans, strict=True):
                    assert reply.codes == whole.codes[: plan.leave_after]
                    assert plan.leave_after is not None or reply.left == whole.left
    assert (len(engine.voices) > 0) == (voice_cache_bytes > 0)
