"""A reply's samples are the same bytes whatever else is in the batch: streams that come and go, and one alone."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from services.codec import weights
from services.codec.engine import CodecEngine, DecodeStream, Frame
from services.codec.mimi import Mimi
from services.codec.model import Codec
from services.inference.checkpoint import StoredCheckpoint
from tests.conftest import started
from tests.unit.stream_visits import DEVICES, Visit, random_visits, visit

ALONE = Visit()


@dataclass(frozen=True)
class Reply:
    """Frames that are to be heard; the first `played` were heard before, from another replica."""

    frames: list[Frame]
    played: int
    due_seconds: float


@pytest.fixture(scope="module")
def new_codec(make_mimi: Callable[..., Mimi], golden: StoredCheckpoint) -> Callable[[str, str], Codec]:
    """Makes a codec on a device; each once."""
    made: dict[tuple[str, str], Codec] = {}

    def make(name: str, device: str) -> Codec:
        if (name, device) not in made:
            target = torch.device(device)
            made[name, device] = (
                weights.load(golden, target)
                if name == "golden"
                # One whose window is shorter than the replies here, with heads that share keys.
                else Codec(make_mimi(5, num_key_value_heads=2, pad_mode="replicate").to(target), 4)
            )
        return made[name, device]

    return make


def replies(codec: Codec) -> list[Reply]:
    """Ten, of various lengths, some taken up later."""
    chance, found = np.random.default_rng(0), []
    for number in range(10):
        count = int(chance.integers(3, 14))
        frames = chance.integers(0, codec.codebook_size, (count, codec.codebook_count)).tolist()
        found.append(Reply(frames, count // 2 if number % 4 == 3 else 0, float(chance.integers(0, 3))))
    return found


async def decode(engine: CodecEngine, reply: Reply, plan: Visit = ALONE) -> list[bytes]:
    """The sound of each frame."""
    stream = DecodeStream(reply.played)
    stream.due_seconds = reply.due_seconds

    async def feed() -> None:
        for frame in reply.frames:
            await stream.send(frame)
            await asyncio.sleep(0)
        stream.end()

    return [samples.tobytes() for samples in await visit(engine, stream, feed, plan)]


@pytest.fixture(scope="module")
def alone(new_codec: Callable[[str, str], Codec]) -> Callable[..., Any]:
    """Each reply in an engine that was never used before; run once for each kind of engine."""
    known: dict[tuple[Any, ...], list[list[bytes]]] = {}

    async def decode_alone(name: str, device: str, slot_count: int) -> list[list[bytes]]:
        key = (name, device, slot_count)
        if key not in known:
            known[key], codec = [], new_codec(name, device)
            for reply in replies(codec):
                async with started(CodecEngine(codec, slot_count=slot_count, queue_limit=0)) as engine:
                    await engine.call(engine.warm)
                    known[key].append(await decode(engine, reply))
        return known[key]

    return decode_alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("slot_count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", ["golden", "small window"])
async def test_replies_that_come_and_go_equal_those_heard_alone(
    new_codec: Callable[[str, str], Codec],
    alone: Callable[..., Any],
    device: str,
    name: str,
    slot_count: int,
) -> None:
    codec = new_codec(name, device)
    asked = replies(codec)
    # Only on a CPU does a slot's sound not even depend on how many slots there are.
    expected = await alone(name, device, 1 if device == "cpu" else slot_count)
    async with started(CodecEngine(codec, slot_count=slot_count, queue_limit=len(asked))) as engine:
        await engine.call(engine.warm)
        for seed in range(2):
            plans = random_visits(slot_count + 10 * seed, len(asked))
            heard = await asyncio.gather(*map(partial(decode, engine), asked, plans))
            for sounds, whole, plan in zip(heard, expected, plans, strict=True):
                assert sounds == whole[: plan.leave_after]
    assert [len(sounds) for sounds in expected] == [len(reply.frames) - reply.played for reply in asked]
