"""A stage is as large as its memory allows: planned before it is loaded, and what was planned is what it takes."""

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.codec import __main__ as codec
from services.codec.compiled_weights import compiled_bytes
from services.codec.engine import DecodeStream
from services.codec.memory import CodecMemory
from services.codec.service import MAXIMUM_SOUND_SECONDS
from services.codec.settings import CodecSettings
from services.codec.streaming_decoder import DecodeState
from services.inference.device import BadSetting
from services.inference.memory import held_bytes, module_bytes
from services.inference.memory_budget import GIB, MIB, DeviceMemory
from services.inference.product import laid_out_bytes
from services.inference.random_checkpoint import RandomCheckpoint
from services.inference.slots import SlotEngine
from services.reasoner import __main__ as reasoner
from services.reasoner.engine import ReasonerStream
from services.reasoner.prompt import Clip, Turn
from services.reasoner.settings import ReasonerSettings
from services.speech import __main__ as speech
from services.speech.engine import Sampling, SpeechStep, SpeechStream, Voice
from services.speech.settings import SpeechSettings
from services.stage import memory
from services.stage.settings import StageSettings

CPU = torch.device("cpu")
SETTINGS: dict[str, type[StageSettings]] = {
    "reasoner": ReasonerSettings,
    "speech": SpeechSettings,
    "codec": CodecSettings,
}
STAGES = {"reasoner": reasoner, "speech": speech, "codec": codec}
SMALL: dict[str, Any] = {"checkpoint": "random:tiny", "device": "cpu", "slots": 3}


def built(stage: str, **settings: Any) -> tuple[SlotEngine[Any], dict[str, Any]]:
    """An engine, and what was logged about its memory."""
    with structlog.testing.capture_logs() as lines:
        engine = STAGES[stage].build(SETTINGS[stage](**(SMALL | settings)))
    (line,) = [line for line in lines if line["event"] == "memory"]
    assert line["stage"] == stage
    return engine, line


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes are free, of twice as many."""

    def set_free(count: int) -> None:
        monkeypatch.setattr(memory, "device_memory", lambda device: DeviceMemory(2 * count, count))

    return set_free


# --- what is planned is what is allocated


@pytest.mark.parametrize("context_length", [64, 1024])
def test_the_reasoners_bytes_are_those_of_its_tensors(context_length: int) -> None:
    engine, plan = built("reasoner", context_length=context_length)
    assert plan["context_length"] == engine.context_length == context_length
    assert plan["slots"] * plan["slot_bytes"] == held_bytes(engine.step.cache)
    laid_out = laid_out_bytes(engine.model, engine.model.device, torch.float32)
    assert plan["weights_bytes"] == module_bytes(engine.model) + laid_out


@pytest.mark.parametrize("context_length", [64, 1024])
def test_the_speech_stages_bytes_are_those_of_its_tensors(context_length: int) -> None:
    engine, plan = built("speech", context_length=context_length, voice_cache_mib=3)
    assert plan["context_length"] == engine.context_length == context_length
    held = held_bytes(engine.step.cache) + held_bytes(engine.step.depth_cache)
    assert plan["slots"] * plan["slot_bytes"] == held
    laid_out = laid_out_bytes(engine.model, engine.model.device, torch.float32)
    assert plan["weights_bytes"] == module_bytes(engine.model) + laid_out
    assert plan["voice_cache_bytes"] == 3 * MIB


def test_the_codecs_bytes_are_those_of_its_tensors() -> None:
    before = {id(thing) for thing in gc.get_objects() if type(thing) is DecodeState}
    engine, plan = built("codec")
    engine.warm()
    states = [thing for thing in gc.get_objects() if type(thing) is DecodeState and id(thing) not in before]
    tensors = [tensor for state in states for tensor in (state.positions, state.cache.entries, state.edges)]
    held = sum(tensor.nbytes for tensor in {id(t): t for t in tensors if t._base is None}.values())
    assert plan["slots"] == engine.slot_count == 3
    assert plan["slots"] * plan["slot_bytes"] == held
    modules = module_bytes(engine.codec.mimi, engine.codec._decoder)
    assert plan["weights_bytes"] == modules + compiled_bytes(engine.codec._decoder)


# --- what is set aside for steps is enough


class PeakBytes(TorchDispatchMode):
    """The most bytes that were alive at once in tensors made while it is entered; on the thread that entered it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Runs the operation and looks at what is there then."""
        given = {self._storage(tensor) for tensor in tree_leaves((arguments, keywords)) if torch.is_tensor(tensor)}
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if torch.is_tensor(tensor) and (storage := self._storage(tensor)) not in given:
                self._alive[storage] = tensor.untyped_storage().nbytes()
        self._alive = {storage: count for storage, count in self._alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return made

    @staticmethod
    def _storage(tensor: torch.Tensor) -> StorageWeakRef:
        return StorageWeakRef(tensor.untyped_storage())


@asynccontextmanager
async def watched(engine: SlotEngine[Any]) -> AsyncIterator[PeakBytes]:
    """Runs an engine, and watches what its steps allocate on the device thread once it is warm."""
    engine.start()
    try:
        await engine.call(engine.warm)
        peak = PeakBytes()
        await engine.call(peak.__enter__)
        try:
            yield peak
        finally:
            await engine.call(lambda: peak.__exit__(None, None, None))
    finally:
        await asyncio.to_thread(engine.close)


async def drained(engine: SlotEngine[Any], stream: Any, *inputs: Any) -> list[Any]:
    """What a stream gives for these inputs."""
    async with engine.open(stream):
        for given in inputs:
            await stream.send(given)
        stream.end()
        return [output async for output in stream]


async def all_at_once(engine: SlotEngine[Any], replies: list[tuple[Any, ...]]) -> None:
    """Runs replies side by side."""
    async with asyncio.TaskGroup() as tasks:
        for stream, *inputs in replies:
            tasks.create_task(drained(engine, stream, *inputs))


async def test_the_reasoners_workspace_holds_its_steps() -> None:
    engine, plan = built("reasoner", context_length=512)
    sound = Clip(np.random.default_rng(1).uniform(-0.1, 0.1, 18 * 16000).astype(np.float32))
    turns = [Turn("user", (sound,))]
    async with watched(engine) as peak:
        await all_at_once(engine, [(ReasonerStream(max_step_count=9), turns) for _ in range(3)])
    assert 0 < peak.peak <= plan["workspace_bytes"]


async def test_the_speech_stages_workspace_holds_its_steps() -> None:
    engine, plan = built("speech", context_length=512, voice_cache_mib=0)
    codes, hidden = engine.model.config.codebook_count, engine.model.config.backbone.hidden_size
    frames = np.random.default_rng(1).integers(0, 2048, (450, codes)).tolist()
    steps = [SpeechStep(5, np.ones(hidden, np.float32), is_end=index == 4) for index in range(5)]
    replies = []
    for seed in range(3):
        stream = SpeechStream(Voice("A voice.", frames), Sampling(0.7, 0, seed), max_frame_count=9)
        stream.transcript_ids = engine.transcript_ids(stream.voice)
        replies.append((stream, *steps))
    async with watched(engine) as peak:
        await all_at_once(engine, replies)
    assert 0 < peak.peak <= plan["workspace_bytes"]


async def test_the_codecs_workspace_holds_its_steps() -> None:
    engine, plan = built("codec")
    frame = [0] * engine.codec.codebook_count
    sound = np.zeros(int(MAXIMUM_SOUND_SECONDS * engine.codec.sample_rate_hz), np.float32)
    async with watched(engine) as peak:
        await engine.encode(sound)
        await all_at_once(engine, [(DecodeStream(), frame, frame) for _ in range(3)])
    assert 0 < peak.peak <= plan["workspace_bytes"]


# --- how many slots, and how long


@pytest.mark.parametrize("stage", STAGES)
def test_where_there_is_room_there_are_as_many_slots_as_there_may_be(stage: str, free: Callable[[int], None]) -> None:
    free(8 * GIB)
    engine, plan = built(stage, slots=None)
    assert engine.slot_count == plan["slots"] == memory.MOST_SLOTS["cpu"]
    assert plan["total_bytes"] <= plan["budget_bytes"] == int(0.9 * 8 * GIB)
    assert plan["summary"] in plan["detail"]
    if stage != "codec":
        limits = {"reasoner": 4096, "speech": 2048}
        assert plan["context_length"] == engine.context_length == limits[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_in_a_small_memory_there_are_fewer_slots(stage: str, free: Callable[[int], None]) -> None:
    _, two = built(stage, slots=2, **({} if stage == "codec" else {"context_length": 1024}))
    free(int((two["total_bytes"] + 1) / 0.9) + 1)
    engine, plan = built(stage, slots=None)
    assert plan["total_bytes"] == two["total_bytes"] <= plan["budget_bytes"]
    assert engine.slot_count == plan["slots"] == 2
    assert plan["context_length"] == two["context_length"]


def test_on_cuda_there_are_more_slots_than_a_cpu_keeps_up_with(free: Callable[[int], None]) -> None:
    free(64 * GIB)
    demand = CodecMemory(
        codec.weights.read_config(RandomCheckpoint("tiny").config),
        torch.device("cuda"),
        maximum_seconds=MAXIMUM_SOUND_SECONDS,
    )
    settings = StageSettings(checkpoint="random:tiny")
    assert memory.plan_memory("codec", settings, demand, torch.device("cuda"), [demand.window]).slots == 128


# --- refusals


@pytest.mark.parametrize(
    ("stage", "settings", "sentence"),
    [
        ("reasoner", {"memory_gib": 1e-4}, r"the weights alone take .*; the budget is 0\.10 MiB \(memory_gib\)"),
        ("speech", {"memory_gib": 0.1}, r".* voices 256 MiB\); the budget is 102 MiB .* holds not a single slot"),
        ("codec", {"memory_gib": 0.05}, r".* workspace .*; the budget is 51\.2 MiB"),
        ("reasoner", {"slots": 1000, "memory_gib": 0.5}, r".* hold 1000 slots × 1024 .* holds \d+ slots × 1024 pos"),
        ("reasoner", {"context_length": 5000}, r"context_length is 5000; expected at most the model's 4096"),
    ],
)
def test_what_can_not_be_held_is_refused_before_it_is_loaded(
    stage: str, settings: dict[str, Any], sentence: str, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(8 * GIB)
    monkeypatch.setattr(STAGES[stage].weights, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(BadSetting, match=sentence):
        built(stage, **({"slots": None} | settings))


def test_the_published_models_size_is_known_without_loading_it(free: Callable[[int], None]) -> None:
    free(12 * GIB)
    with pytest.raises(BadSetting, match=r"the weights alone take 28\.9 GiB; the budget is 10\.8 GiB \(90% of what"):
        built("reasoner", checkpoint="random:chroma-4b", dtype="float32")


def test_a_service_that_can_not_hold_one_stream_ends_with_a_sentence() -> None:
    command = [sys.executable, "-P", "-m", "services.speech", "--checkpoint", "random:small", "--device", "cpu"]
    ended = subprocess.run([*command, "--memory-gib", "0.01"], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    failed = json.loads(ended.stdout.splitlines()[-1])
    assert (failed["event"], failed["level"]) == ("failed", "error")
    assert failed["reason"].endswith("MiB; the budget is 10.2 MiB (memory_gib)")
    assert "exception" not in failed
