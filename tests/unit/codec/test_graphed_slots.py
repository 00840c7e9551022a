"""All slots in one graph: each is heard as by the decoder of a CPU, whatever is recorded and who else is there."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from services.codec import slot_decoder
from services.codec.mimi import Mimi
from services.codec.model import Codec
from services.codec.slot_decoder import GraphedSlots, SlotDecoder
from services.codec.streaming_decoder import StreamingDecoder, exact_float32
from tests.unit.recorded_graph import RecordedGraphs
from tests.unit.stream_visits import needs_cuda

Sounds = list[list[np.ndarray]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """Graphs are recorded, as on CUDA."""
    recorded = RecordedGraphs()
    monkeypatch.setattr(slot_decoder, "graph_capture", lambda device: recorded)
    return recorded


@pytest.fixture(scope="module")
def mimi(make_mimi: Callable[..., Mimi]) -> Mimi:
    """One whose window is shorter than the replies here."""
    return make_mimi(5, num_key_value_heads=2, pad_mode="replicate")


@pytest.fixture
def replies(mimi: Mimi, random_codes: Callable[..., Tensor]) -> list[list[list[int]]]:
    return [random_codes(Codec(mimi, 4), 3 + 4 * seed, seed).tolist() for seed in range(6)]


def hear(decoder: SlotDecoder, slot_count: int, replies: list[list[list[int]]]) -> Sounds:
    """The sound of each frame of replies that take the slots one after the other, each missing rounds at random."""
    chance, waiting = random.Random(slot_count), list(range(len(replies)))
    heard: Sounds = [[] for _ in replies]
    live: dict[int, int] = {}
    while waiting or live:
        for slot in range(slot_count):
            if slot not in live and waiting and chance.random() < 0.6:
                decoder.reset(slot)
                live[slot] = waiting.pop(0)
        left = {slot: replies[n][len(heard[n]) :] for slot, n in live.items()}
        due = {slot: frames[: chance.randint(1, 3)] for slot, frames in left.items() if chance.random() < 0.7}
        for slot, sound in decoder.step(due).items():
            heard[live[slot]] += sound
            if len(heard[live[slot]]) == len(replies[live[slot]]):
                del live[slot]
    return heard


def streaming(mimi: Mimi) -> StreamingDecoder:
    with exact_float32():
        return StreamingDecoder(mimi, 4)


def equal(one: Sounds, other: Sounds) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("slot_count", [1, 2, 3, 5])
def test_slots_of_a_graph_are_heard_as_by_the_decoder_of_a_cpu(
    graphs: RecordedGraphs, mimi: Mimi, replies: list[list[list[int]]], slot_count: int
) -> None:
    expected = hear(Codec(mimi, 4).slot_decoder(1), 1, replies)
    decoder = GraphedSlots(streaming(mimi), slot_count)
    assert (decoder.width, graphs.count) == (slot_count, 1)
    graphs.closed = True
    heard = hear(decoder, slot_count, replies)
    for ours, theirs in zip(heard, expected, strict=True):
        np.testing.assert_allclose(np.stack(ours), np.stack(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("slot_count", [1, 3])
def test_a_graph_gives_the_samples_of_the_plain_step(
    mimi: Mimi, replies: list[list[list[int]]], slot_count: int, request: pytest.FixtureRequest
) -> None:
    plain = hear(GraphedSlots(streaming(mimi), slot_count), slot_count, replies)
    request.getfixturevalue("graphs")
    assert equal(hear(GraphedSlots(streaming(mimi), slot_count), slot_count, replies), plain)


def test_a_graph_stays_where_it_is(graphs: RecordedGraphs, mimi: Mimi, replies: list[list[list[int]]]) -> None:
    """A graph has the addresses of the capture in it."""
    decoder = GraphedSlots(streaming(mimi), 2)
    state, mirrors = decoder._state, (decoder._codes, decoder._executed)

    def places() -> list[int]:
        tensors = [state.positions, state.cache.entries, state.edges, *(mirror.tensor for mirror in mirrors)]
        return [tensor.data_ptr() for tensor in tensors]

    before = places()
    hear(decoder, 2, replies)
    assert places() == before
    assert decoder._state is state


@needs_cuda
@pytest.mark.parametrize("slot_count", [1, 3, 8])
def test_on_cuda_a_graph_gives_the_samples_of_the_plain_step(
    make_mimi: Callable[..., Mimi],
    replies: list[list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    slot_count: int,
) -> None:
    decoder = streaming(make_mimi(5, num_key_value_heads=2, pad_mode="replicate").to("cuda"))
    graphed = hear(GraphedSlots(decoder, slot_count), slot_count, replies)
    monkeypatch.setattr(slot_decoder, "graph_capture", lambda device: None)
    assert equal(graphed, hear(GraphedSlots(decoder, slot_count), slot_count, replies))
