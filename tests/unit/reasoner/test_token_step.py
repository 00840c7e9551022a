"""The token step as one graph: it equals the plain step, and nothing is captured once it is warm."""

import asyncio
import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.inference.checkpoint import Checkpoint
from services.inference.graphs import Mirror
from services.reasoner import token_step, weights
from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.model import ReasonerModel
from services.reasoner.prompt import Turn
from services.reasoner.token_step import TokenRung, TokenStep
from tests.conftest import GoldenCase, started
from tests.unit.recorded_graph import RecordedGraphs
from tests.unit.stream_visits import needs_cuda

# Beyond the shortest reach, and not a multiple of it.
CONTEXT = 530

Steps = list[tuple[int, bytes]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """Token steps that are made from now on are recorded, as on CUDA."""
    recorded = RecordedGraphs()
    monkeypatch.setattr(token_step, "graph_capture", lambda device: recorded)
    return recorded


@pytest.fixture(scope="module")
def exact_model(reasoner_model: ReasonerModel) -> ReasonerModel:
    """In float64, where torch runs the step on a CPU as it does on CUDA."""
    return copy.deepcopy(reasoner_model).double()


async def write(engine: ReasonerEngine, turns: list[Turn], limit: int | None) -> Steps:
    stream = ReasonerStream(limit)
    async with engine.open(stream):
        await stream.send(turns)
        stream.end()
        steps = [(step.token_id, step.hidden_state.tobytes()) async for step in stream]
    assert stream.finish_reason == "stop" or len(steps) == limit or (limit is None and stream.column == CONTEXT)
    return steps


@pytest.mark.parametrize("slot_count", [1, 3])
async def test_replies_of_graphs_equal_plain_ones_and_a_warm_engine_captures_nothing(
    new_reasoner_engine: Callable[..., ReasonerEngine],
    exact_model: ReasonerModel,
    golden_cases: dict[str, GoldenCase],
    request: pytest.FixtureRequest,
    slot_count: int,
) -> None:
    """Also where a reply goes on to the end of the context, across the ends of shorter reaches."""
    long = golden_cases["long_speech"].turns()
    longer = [*long, Turn("assistant", ("The quick brown fox. " * 21,)), Turn("user", ("And now?",))]
    prompts = [case.turns() for case in golden_cases.values()]

    async def write_all(engine: ReasonerEngine) -> list[Steps]:
        last = write(engine, longer, None)
        return await asyncio.gather(last, *(write(engine, turns, 7) for turns in [*prompts, *prompts]))

    shape = {"slot_count": slot_count, "context_length": CONTEXT, "queue_limit": 20}
    async with started(new_reasoner_engine(exact_model, **shape)) as engine:
        expected = await write_all(engine)
    graphs: RecordedGraphs = request.getfixturevalue("graphs")
    async with started(new_reasoner_engine(exact_model, **shape)) as engine:
        await engine.call(engine.warm)
        assert graphs.count == 2
        graphs.closed = True
        await engine.call(engine.warm)
        assert await write_all(engine) == expected
    first = expected[0]
    assert len(first) > 1


@pytest.mark.parametrize("context_length", [1, 2, 511, 512, 513, 1000, 1024, 2048, 3000])
def test_every_rung_that_a_step_may_ask_for_is_prepared_and_no_other(
    graphs: RecordedGraphs, exact_model: ReasonerModel, context_length: int
) -> None:
    step = TokenStep(exact_model, slot_count=2, context_length=context_length)
    ladder = NotedLadder(exact_model.config.stack.hidden_size)
    step._ladder = ladder  # type: ignore[assignment]
    step.warm()
    prepared, ladder.rungs = ladder.rungs, []
    assert len(set(prepared)) == len(prepared)
    for highest in range(context_length):
        step.run([highest % 2], highest=highest)
    assert set(ladder.rungs) == set(prepared)
    assert graphs.count == 0


class NotedLadder:
    """Notes which rungs it is asked for."""

    def __init__(self, hidden_size: int) -> None:
        self.rungs: list[TokenRung] = []
        self._hidden_size = hidden_size

    def prepare(self, rungs: Iterable[TokenRung]) -> None:
        self.rungs.extend(rungs)

    def step(self, rung: TokenRung) -> tuple[Tensor, Tensor]:
        self.rungs.append(rung)
        return torch.zeros((rung.slots, self._hidden_size)), torch.zeros(rung.slots, dtype=torch.int64)


def test_a_step_stays_where_it_is(graphs: RecordedGraphs, exact_model: ReasonerModel) -> None:
    """A graph has the addresses of the capture in it."""
    step = TokenStep(exact_model, slot_count=3, context_length=600)
    step.warm()
    assert graphs.count == 2

    def places() -> list[int]:
        mirrors = [mirror.tensor for mirror in vars(step).values() if isinstance(mirror, Mirror)]
        return [tensor.data_ptr() for tensor in (*mirrors, step.cache.entries)]

    before = places()
    assert len(before) == 4 + 1
    for column in (0, 1, 512, 2):
        step.begin()
        step.column.host[1] = column
        step.run([1], highest=column)
    step.cache.copy(1, 0, 3)
    step.cache.slot(1).clear()
    assert places() == before


@pytest.mark.parametrize("slots", [[0], [2], [1, 3], [3, 0, 2], [0, 1, 2, 3]])
def test_compiled_code_gives_the_bytes_of_the_models_own_step(reasoner_model: ReasonerModel, slots: list[int]) -> None:
    compiled, plain = (TokenStep(reasoner_model, slot_count=4, context_length=90) for _ in range(2))
    plain._compiled = None
    for step in (compiled, plain):
        step.cache.entries.normal_(generator=torch.Generator().manual_seed(1))
    for column in (0, 1, 40, 89):
        found = []
        for step in (compiled, plain):
            step.begin()
            for slot in slots:
                step.token.host[slot] = (97 * column + 31 * slot) % len(reasoner_model.embed_tokens.weight)
                step.column.host[slot] = max(column - slot, 0)
            states, following = step.run(slots, highest=column)
            found.append([(states[slot].tobytes(), int(following[slot])) for slot in slots])
        assert found[0] == found[1]
    assert compiled.cache.entries[..., :-1, :].equal(plain.cache.entries[..., :-1, :])


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_warm_step_leaves_what_slots_hold(
    graphs: RecordedGraphs, exact_model: ReasonerModel, reasoner_model: ReasonerModel, is_compiled: bool
) -> None:
    step = TokenStep(reasoner_model if is_compiled else exact_model, slot_count=2, context_length=600)
    assert (step._compiled is not None) == is_compiled
    step.cache.entries.normal_(generator=torch.Generator().manual_seed(0))
    kept = step.cache.entries[..., : step.cache.dump, :].clone()
    step.warm()
    assert step.cache.entries[..., : step.cache.dump, :].equal(kept)


@needs_cuda
@pytest.mark.parametrize("slot_count", [1, 3, 8])
def test_on_cuda_a_graph_gives_the_bytes_of_the_plain_step(
    golden_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, slot_count: int
) -> None:
    """In bfloat16, with the last slot among them, so that the plain step has the graph's shapes."""
    model = weights.load(golden_checkpoint, torch.device("cuda"), torch.bfloat16)
    graphed = TokenStep(model, slot_count=slot_count, context_length=CONTEXT)
    monkeypatch.setattr(token_step, "graph_capture", lambda device: None)
    plain = TokenStep(model, slot_count=slot_count, context_length=CONTEXT)
    with torch.inference_mode():
        for step in (graphed, plain):
            step.warm()
        for number, column in enumerate([0, 1, 2, 511, 512, 513]):
            found: list[Any] = []
            for step in (graphed, plain):
                step.begin()
                step.token.host[:slot_count], step.column.host[:] = range(20 + number, 20 + number + slot_count), column
                found.append([array.copy() for array in step.run([slot_count - 1], highest=column)])
            for ours, theirs in zip(*found, strict=True):
                assert np.array_equal(ours, theirs), column
        kept = [step.cache.entries[..., :CONTEXT, :] for step in (graphed, plain)]
        assert kept[0].equal(kept[1])
