"""One run over all that is measured: round after round, so that a busy machine is unfair to nobody."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from services.bench.baseline import Baseline, PlainPrompt, PlainSampling
from services.bench.clock import Clock
from services.bench.conversation import Conversation
from services.bench.direct import Ask, Burst, burst, speak
from services.bench.engine_cost import EngineCost
from services.bench.engines import ModelSettings, StageEngines, running
from services.bench.floor import Floor
from services.bench.shape import Cost, ReplyShape
from services.bench.speech_profile import write_profile
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.device import resolve_device, resolve_dtype
from services.speech.engine import Sampling

SAMPLED = Sampling(temperature=0.7, top_k=50, seed=1)
GREEDY = Sampling(temperature=0.0, top_k=0, seed=0)
PLAIN_SAMPLED = PlainSampling(SAMPLED.temperature, SAMPLED.top_k)

Progress = Callable[[str], None]
"""Is told what is measured next."""


@dataclass(frozen=True)
class Round:
    """What everything cost once.

    floor, engine, baseline: one stream and engines of one slot. floor_batch, engine_batch: rounds of all slots, all of
    them live. engine_lone: the same engines with one live slot. direct, direct_batch: whole replies of the engines with
    many slots, for one session and for as many as there are slots.
    """

    floor: Cost
    engine: Cost
    engine_greedy: Cost
    baseline: Cost
    baseline_greedy: Cost
    floor_batch: Cost
    engine_lone: Cost
    engine_batch: Cost
    direct: Burst
    direct_batch: Burst


PARTS_COUNT = len(fields(Round))
"""How often progress is told in each round."""


class Measurement:
    """All that a round needs, loaded and warm; `prepared` makes it."""

    def __init__(
        self,
        shape: ReplyShape,
        clock: Clock,
        single: EngineCost,
        batch: EngineCost,
        baseline: Baseline,
        prompt: PlainPrompt,
    ) -> None:
        self.shape, self.clock = shape, clock
        self.single, self.batch = single, batch
        self._floor = Floor(single.engines, 1, clock)
        self._floor_batch = Floor(batch.engines, batch.engines.slot_count, clock)
        self._baseline, self._prompt = baseline, prompt
        self._next_turn = 1

    async def round(self, progress: Progress) -> Round:
        """Measures everything once."""
        slots = self.batch.engines.slot_count
        progress("floor")
        floor = self._floor.measure(self.shape)
        progress("engines")
        engine = await self.single.measure(SAMPLED, 1)
        progress("engines, greedy")
        greedy = replace(engine, speech_frame_seconds=await self.single.speech(GREEDY, 1))
        progress("baseline")
        baseline = self._plain_cost(PLAIN_SAMPLED)
        progress("baseline, greedy")
        baseline_greedy = self._plain_cost(None)
        progress(f"floor of {slots} slots")
        floor_batch = self._floor_batch.measure(self.shape)
        progress(f"engines of {slots} slots, 1 stream")
        engine_lone = await self.batch.measure(SAMPLED, 1)
        progress(f"engines of {slots} slots, {slots} streams")
        engine_batch = await self.batch.measure(SAMPLED, slots)
        progress("direct, 1 session")
        direct = await self._burst(1)
        progress(f"direct, {slots} sessions")
        direct_batch = await self._burst(slots)
        return Round(
            floor=floor,
            engine=engine,
            engine_greedy=greedy,
            baseline=baseline,
            baseline_greedy=baseline_greedy,
            floor_batch=floor_batch,
            engine_lone=engine_lone,
            engine_batch=engine_batch,
            direct=direct,
            direct_batch=direct_batch,
        )

    async def write_profile(self, path: Path) -> None:
        """Writes down where the time of the speech engine's rounds goes, with one slot and with many."""
        slots = self.batch.engines.slot_count
        await write_profile(path, [(self.single, 1), (self.batch, slots)], SAMPLED)

    def _plain_cost(self, sampling: PlainSampling | None) -> Cost:
        shape = self.shape
        return self._baseline.reply(
            self._prompt, sampling, frame_count=shape.frame_count + 1, step_count=shape.step_count + 1
        ).cost

    async def _burst(self, sessions: int) -> Burst:
        first, self._next_turn = self._next_turn, self._next_turn + sessions
        return await burst(
            self.batch.engines, self.batch.conversation, SAMPLED, self.clock, sessions=sessions, first_turn=first
        )


@asynccontextmanager
async def prepared(model: ModelSettings, shape: ReplyShape, clock: Clock, slots: int) -> AsyncIterator[Measurement]:
    """Loads everything and speaks one reply with each set of engines, which the rounds take their inputs from."""
    async with running(model, 1) as single, running(model, slots) as batch:
        device = resolve_device(model.device)
        baseline = Baseline(open_checkpoint(model.checkpoint), device, resolve_dtype(model.dtype, device), clock)
        one, many = await _recorded(single, shape, clock), await _recorded(batch, shape, clock)
        yield Measurement(shape, clock, one, many, baseline, plain_prompt(one.conversation))


def plain_prompt(conversation: Conversation) -> PlainPrompt:
    """The first turn of a conversation and its voice, as the baseline takes them."""
    engines, voice, prompt = conversation.engines, conversation.voice(), conversation.prompt(0)
    return PlainPrompt(
        token_ids=prompt.token_ids,
        mels=[engines.reasoner.features.extract(clip.samples) for clip in conversation.clips(0)],
        transcript_ids=engines.speech.transcript_ids(voice),
        voice_frames=voice.frames,
    )


async def _recorded(engines: StageEngines, shape: ReplyShape, clock: Clock) -> EngineCost:
    conversation = Conversation(shape, engines)
    ask = Ask(conversation.turns(0), conversation.voice(), SAMPLED, shape.frame_count + 1, shape.step_count + 1)
    return EngineCost(engines, conversation, await speak(engines, ask, clock), clock)
