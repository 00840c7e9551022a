"""The frame step as one graph: it equals the plain step, and nothing is captured once it is warm."""

import asyncio
import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from services.inference.checkpoint import Checkpoint
from services.inference.graphs import Mirror
from services.speech import frame_step, weights
from services.speech.engine import Codes, Sampling, SpeechEngine, SpeechStep, SpeechStream, Voice
from services.speech.frame_step import FrameRung, FrameStep
from services.speech.model import SpeechModel
from tests.conftest import started, until_idle
from tests.unit.recorded_graph import RecordedGraphs
from tests.unit.stream_visits import needs_cuda

# Beyond the shortest reach, and not a multiple of it.
CONTEXT = 560
CODES = np.random.default_rng(0).integers(1, 2048, (515, 8)).tolist()
VOICES = [Voice("The quick brown fox.", CODES[:5]), Voice("Hi.", CODES)]
# Each kind alone and in company: greedy, few of the codes ranked, all of them.
SAMPLINGS = [
    Sampling(0.0, 0, 0), Sampling(1.0, 1, 1), Sampling(0.7, 50, 2), Sampling(1.3, 64, 3), Sampling(1.0, 65, 4),
    Sampling(0.5, 2048, 5), Sampling(0.9, 0, 6), Sampling(0.0, 7, 7),
]  # fmt: skip


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """Frame steps that are made from now on are recorded, as on CUDA."""
    recorded = RecordedGraphs()
    monkeypatch.setattr(frame_step, "graph_capture", lambda device: recorded)
    return recorded


@pytest.fixture(scope="module")
def exact_model(speech_model: SpeechModel) -> SpeechModel:
    """In float64, where torch runs the step on a CPU as it does on CUDA."""
    return copy.deepcopy(speech_model).double()


def random_steps(seed: int, count: int) -> list[SpeechStep]:
    chance = np.random.default_rng(seed)
    return [
        SpeechStep(int(chance.integers(20, 390)), chance.normal(0, 1, 48).astype(np.float32), False)
        for _ in range(count)
    ]


async def speak(engine: SpeechEngine, voice: Voice, sampling: Sampling, limit: int | None) -> list[Codes]:
    stream = SpeechStream(voice, sampling, limit)
    stream.transcript_ids = engine.transcript_ids(voice)
    async with engine.open(stream):
        for step in random_steps(sampling.seed, 4 if limit else 20):
            await stream.send(step)
        stream.end()
        codes = [frame.codes async for frame in stream]
    assert len(codes) == limit or (limit is None and stream.column > CONTEXT - 3)
    return codes


async def speak_all(engine: SpeechEngine) -> list[list[Codes]]:
    """Replies of all kinds, one after the other and together; those of the long voice up to the end of the context."""
    alone = [await speak(engine, voice, how, 3) for how in SAMPLINGS for voice in VOICES]
    short, long = VOICES
    together = [
        *(speak(engine, short, how, 9) for how in SAMPLINGS),
        *(speak(engine, long, h, None) for h in SAMPLINGS),
    ]
    return [*alone, *await asyncio.gather(*together)]


@pytest.mark.parametrize("slot_count", [1, 3])
async def test_replies_of_graphs_equal_plain_ones_and_a_warm_engine_captures_nothing(
    new_speech_engine: Callable[..., SpeechEngine],
    exact_model: SpeechModel,
    request: pytest.FixtureRequest,
    slot_count: int,
) -> None:
    shape = {"slot_count": slot_count, "context_length": CONTEXT, "queue_limit": 2 * len(SAMPLINGS)}
    async with started(new_speech_engine(exact_model, **shape)) as engine:
        expected = await speak_all(engine)
    graphs: RecordedGraphs = request.getfixturevalue("graphs")
    async with started(new_speech_engine(exact_model, **shape)) as engine:
        await engine.call(engine.warm)
        assert graphs.count == 2 * 3  # reaches, and how many logits are ranked
        graphs.closed = True
        await engine.call(engine.warm)
        assert await speak_all(engine) == expected
        await until_idle(engine)


@pytest.mark.parametrize("context_length", [1, 2, 511, 512, 513, 1000, 1024, 2048, 3000])
@pytest.mark.parametrize("code_count", [8, 64, 65, 2048])
def test_every_rung_that_a_frame_may_ask_for_is_prepared_and_no_other(
    graphs: RecordedGraphs, exact_model: SpeechModel, context_length: int, code_count: int
) -> None:
    """Whatever the highest column and the largest top_k."""
    model = copy.copy(exact_model)
    model.config = replace(model.config, code_count=code_count)
    step = FrameStep(model, slot_count=2, context_length=context_length)
    ladder = NotedLadder()
    step._ladder = ladder  # type: ignore[assignment]
    step.warm()
    prepared, ladder.rungs = ladder.rungs, []
    assert len(set(prepared)) == len(prepared)
    columns = {0, 1, context_length // 2, context_length - 1, 511, 512, 1023, 1024} & set(range(context_length))
    largest = {0, 1, 2, 50, 63, 64, 65, code_count - 1, code_count} & set(range(code_count + 1))
    for highest, top_k in product(columns, [None, *largest]):
        step.run([0], highest=highest, largest_top_k=top_k)
    assert set(ladder.rungs) == set(prepared)
    assert graphs.count == 0


class NotedLadder:
    """Notes which rungs it is asked for."""

    def __init__(self) -> None:
        self.rungs: list[FrameRung] = []

    def prepare(self, rungs: Iterable[FrameRung]) -> None:
        self.rungs.extend(rungs)

    def step(self, rung: FrameRung) -> Tensor:
        self.rungs.append(rung)
        return torch.zeros((2, 8), dtype=torch.int64)


def test_a_step_stays_where_it_is(graphs: RecordedGraphs, exact_model: SpeechModel) -> None:
    """A graph has the addresses of the capture in it."""
    step = FrameStep(exact_model, slot_count=3, context_length=64)
    step.warm()

    def places() -> list[int]:
        mirrors = [mirror.tensor for mirror in vars(step).values() if isinstance(mirror, Mirror)]
        sights = [run.sight for run in step.depth_cache.runs if run.sight is not None]
        depth = [run.columns for run in step.depth_cache.runs]
        depth += [tensor for sight in sights for tensor in (sight.cosines, sight.sines, sight.mask)]
        return [t.data_ptr() for t in (*mirrors, step.cache.entries, step.depth_cache.kv.entries, *depth)]

    before = places()
    assert len(before) == 10 + 2 + 4 * 7
    for column in range(3):
        step.begin()
        step.columns.host[1, 2] = column
        step.previous.host[1] = CODES[column]
        step.run([1], highest=column, largest_top_k=None)
    step.cache.write(2, step.cache.read(1, 3))
    step.cache.copy(2, 0, 3)
    step.clear(1)
    assert places() == before


def test_a_frame_reads_nothing_on_the_host(graphs: RecordedGraphs, exact_model: SpeechModel) -> None:
    """A recording refuses a step that does; one for each rung is made here."""
    step = FrameStep(exact_model, slot_count=2, context_length=600)
    step.warm()
    assert graphs.count == 6


@pytest.mark.parametrize("is_exact", [False, True])
def test_a_warm_step_leaves_what_slots_hold(
    graphs: RecordedGraphs, exact_model: SpeechModel, speech_model: SpeechModel, is_exact: bool
) -> None:
    step = FrameStep(exact_model if is_exact else speech_model, slot_count=2, context_length=600)
    step.cache.entries.normal_(generator=torch.Generator().manual_seed(0))
    kept = step.cache.entries[..., : step.cache.dump, :].clone()
    step.warm()
    assert step.cache.entries[..., : step.cache.dump, :].equal(kept)


async def test_compiled_code_and_torch_speak_the_same_codes(
    new_speech_engine: Callable[..., SpeechEngine], exact_model: SpeechModel
) -> None:
    """Greedy and drawn, in float32 and float64: as far as rounding does not decide, and here it does not."""
    shape = {"slot_count": 3, "context_length": CONTEXT, "queue_limit": 2 * len(SAMPLINGS)}
    async with started(new_speech_engine(**shape)) as engine:
        found = await speak_all(engine)
    async with started(new_speech_engine(exact_model, **shape)) as engine:
        expected = await speak_all(engine)
    alone = len(SAMPLINGS) * len(VOICES)
    assert found[:alone] == expected[:alone]
    for ours, theirs in zip(found[alone:], expected[alone:], strict=True):
        assert ours[:9] == theirs[:9]


@needs_cuda
@pytest.mark.parametrize("slot_count", [1, 3, 8])
def test_on_cuda_a_graph_gives_the_codes_of_the_plain_step(
    golden_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, slot_count: int
) -> None:
    """In bfloat16, all slots at once, so that the plain step has the graph's shapes."""
    model = weights.load(golden_checkpoint, torch.device("cuda"), torch.bfloat16)
    graphed = FrameStep(model, slot_count=slot_count, context_length=CONTEXT)
    monkeypatch.setattr(frame_step, "graph_capture", lambda device: None)
    plain = FrameStep(model, slot_count=slot_count, context_length=CONTEXT)
    with torch.inference_mode():
        for step in (graphed, plain):
            step.warm()
        chance = np.random.default_rng(0)
        for number, largest in enumerate([None, 50, 0, None, 64, 2048]):
            column = number * 3 + (509 if number > 2 else 0)
            previous, hidden = chance.integers(0, 2048, (slot_count, 8)), chance.normal(0, 1, (slot_count, 48))
            found = []
            for step in (graphed, plain):
                step.begin()
                step.previous.host[:slot_count], step.hidden.host[:slot_count] = previous, hidden
                step.token.host[:], step.has_step.host[:] = 30 + number, True
                step.columns.host[:] = [column, column + 1, column + 2]
                step.frame.host[:], step.seed.host[:slot_count] = number, range(slot_count)
                step.temperature.host[:] = 0.0 if largest is None else 0.8
                step.top_k.host[:] = largest or 0
                slots = range(slot_count)
                found.append(step.run(slots, highest=column + 2, largest_top_k=largest).copy())
            assert np.array_equal(*found), number
        kept = [step.cache.entries[..., :CONTEXT, :] for step in (graphed, plain)]
        assert kept[0].equal(kept[1])
