"""Where not all slots are decoded at a time: the listener who would be the first to hear nothing comes first."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

import services.codec.engine as engine_module
import services.inference.slots as slots_module
from services.codec.engine import CodecEngine, DecodeStream
from services.codec.mimi import Mimi
from services.codec.model import Codec
from tests.conftest import started

FRAME = [0, 0, 0, 0]


@dataclass
class NotedDecoder:
    """Decodes nothing, and notes which slots had a frame decoded together."""

    width: int
    run: int
    rounds: list[list[int]] = field(default_factory=list)

    def reset(self, slot: int) -> None:
        """Nothing to forget."""

    def step(self, frames: Mapping[int, Sequence[Sequence[int]]]) -> dict[int, list[NDArray[np.float32]]]:
        """Silence for each."""
        self.rounds.append([slot for slot, following in frames.items() for _ in following])
        return {slot: [np.zeros(1, np.float32) for _ in following] for slot, following in frames.items()}


@dataclass
class Listener:
    """When it needs its first sound, what it has heard before, and how many frames it is given."""

    due_seconds: float
    frame_count: int = 3
    played: int = 0


class Clock:
    """A clock that goes on by a microsecond when it is looked at."""

    def __init__(self) -> None:
        self._ticks = count()

    def perf_counter(self) -> float:
        """Seconds."""
        return 1000.0 + 1e-6 * next(self._ticks)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (engine_module, slots_module):
        monkeypatch.setattr(module, "time", clock)


@pytest.fixture
def codec(make_mimi: Callable[..., Mimi]) -> Codec:
    return Codec(make_mimi(5), 4)


async def decoded(codec: Codec, listeners: list[Listener], width: int, run: int = 1) -> list[list[int]]:
    """The listeners of each round, once for each frame; they have all their frames at hand from the first round on."""
    decoder = NotedDecoder(width, run)
    engine = CodecEngine(codec, slot_count=len(listeners), queue_limit=0)
    engine._decoder = decoder
    streams = [DecodeStream(listener.played) for listener in listeners]

    def hand_out_frames() -> None:
        for stream, listener in zip(streams, listeners, strict=True):
            stream.inbox.extend([FRAME] * listener.frame_count)
            stream.ended = True

    async with started(engine), AsyncExitStack() as slots:
        for stream, listener in zip(streams, listeners, strict=True):
            stream.due_seconds = listener.due_seconds
            await slots.enter_async_context(engine.open(stream))
        await engine.call(hand_out_frames)
        for stream, listener in zip(streams, listeners, strict=True):
            assert len([samples async for samples in stream]) == listener.frame_count - listener.played
    numbers = {stream.slot: number for number, stream in enumerate(streams)}
    return [[numbers[slot] for slot in together] for together in decoder.rounds]


async def test_the_one_that_is_due_first_is_decoded_first(codec: Codec) -> None:
    listeners = [Listener(2000.0), Listener(0.0), Listener(1000.0), Listener(3000.0)]
    assert await decoded(codec, listeners, 1) == [[1]] * 3 + [[2]] * 3 + [[0]] * 3 + [[3]] * 3
    assert await decoded(codec, listeners, 2) == [[1, 2]] * 3 + [[0, 3]] * 3


async def test_where_all_are_decoded_at_a_time_none_waits(codec: Codec) -> None:
    assert await decoded(codec, [Listener(2.0, 2), Listener(0.0, 3), Listener(1.0, 1)], 3) == [[1, 2, 0], [1, 0], [1]]


async def test_who_has_a_frame_in_hand_lets_the_next_one_have_one(codec: Codec) -> None:
    assert await decoded(codec, [Listener(0.0), Listener(0.0), Listener(0.0)], 1) == [[0], [1], [2]] * 3


async def test_a_listener_that_waited_beyond_its_time_does_not_hold_up_the_others_to_catch_up(codec: Codec) -> None:
    """From the first sound on frames last as long as they last, however late it was."""
    assert await decoded(codec, [Listener(0.0), Listener(-100.0)], 1) == [[1], [0]] * 3


async def test_what_was_heard_before_is_gone_through_before_it_is_due(codec: Codec) -> None:
    listeners = [Listener(0.0), Listener(0.0, frame_count=5, played=2)]
    assert await decoded(codec, listeners, 1) == [[1], [1], [0], [1], [0], [1], [0], [1]]


async def test_where_a_slot_may_have_several_frames_at_a_time_each_comes_when_it_is_due(codec: Codec) -> None:
    early, late = Listener(0.0, frame_count=5), Listener(1000.0, frame_count=4)
    assert await decoded(codec, [late, early], 8, run=3) == [[1, 1, 1, 0, 0, 0], [1, 1, 0]]
    assert await decoded(codec, [late, early], 4, run=4) == [[1, 1, 1, 1], [1, 0, 0, 0], [0]]
    assert await decoded(codec, [Listener(0.0), Listener(0.0), Listener(0.0)], 4, run=4) == [
        [0, 0, 1, 2],
        [1, 1, 2, 0],
        [2],
    ]
