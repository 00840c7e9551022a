"""The life of a stage's engine: loaded off the event loop, warmed on its own thread, ended whatever happened."""

import threading
from collections.abc import Callable

import grpc
import pytest
import torch
from chroma_mesh.stage.v1 import stage_pb2, stage_pb2_grpc

from services.inference.checkpoint import CheckpointError
from services.inference.device import BadSetting
from services.inference.slots import SlotEngine, Stream
from services.runtime.interceptors import replica_name
from services.runtime.server import CannotStart
from services.stage.process import StageLife
from services.stage.settings import StageSettings

SETTINGS = StageSettings(checkpoint="random:tiny")


class IdleEngine(SlotEngine[Stream[int, int]]):
    """An engine without a model."""

    def __init__(self) -> None:
        super().__init__(1, 1, "idle-device", device=torch.device("cpu"))

    def join(self, stream: Stream[int, int]) -> None:
        """Nothing to prepare."""

    def leave(self, stream: Stream[int, int]) -> None:
        """Nothing to forget."""

    def advance(self) -> bool:
        return False


class Recorder:
    """A servicer that notes what happens, and on which thread."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.engine: IdleEngine | None = None

    def add_to(self, server: object) -> None:
        self.note("added")

    def attach(self, engine: IdleEngine) -> None:
        self.engine = engine
        self.note("attached")

    def note(self, what: str) -> None:
        name = threading.current_thread().name
        self.events.append(f"{what} on {name if name in ('MainThread', 'idle-device') else 'another thread'}")

    def build(self) -> IdleEngine:
        self.note("built")
        return IdleEngine()

    def warm(self, engine: IdleEngine) -> None:
        self.note("warmed")


def life(recorder: Recorder, settings: StageSettings = SETTINGS, **parts: Callable[..., object]) -> StageLife:
    return StageLife(settings, recorder, parts.get("build", recorder.build), parts.get("warm", recorder.warm))


def device_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "idle-device"]


async def test_the_servicer_gets_an_engine_that_is_loaded_warm_and_running() -> None:
    recorder = Recorder()
    stage = life(recorder)
    await stage.prepare()
    assert recorder.events == ["built on another thread", "warmed on idle-device", "attached on MainThread"]
    assert recorder.engine is not None
    assert await recorder.engine.call(lambda: threading.current_thread().name) == "idle-device"
    await stage.close()
    assert not device_threads()


async def test_a_replica_tells_how_much_it_carries() -> None:
    stage, server = life(Recorder()), grpc.aio.server()
    stage.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await stage.prepare()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        told = await stage_pb2_grpc.StageServiceStub(channel).GetCapacity(stage_pb2.GetCapacityRequest())
    assert (told.replica, told.slot_count) == (replica_name(), 1)
    await server.stop(None)
    await stage.close()


@pytest.mark.parametrize("refusal", [CheckpointError("no such directory"), BadSetting("no CUDA device")])
async def test_what_can_not_be_loaded_is_said_in_one_line(refusal: Exception) -> None:
    def fail() -> IdleEngine:
        raise refusal

    recorder = Recorder()
    stage = life(recorder, build=fail)
    with pytest.raises(CannotStart, match=str(refusal)):
        await stage.prepare()
    await stage.close()
    assert recorder.events == []


async def test_an_engine_that_can_not_be_warmed_is_not_attached_and_is_ended() -> None:
    def fail(_: IdleEngine) -> None:
        raise RuntimeError("out of memory")

    recorder = Recorder()
    stage = life(recorder, warm=fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        await stage.prepare()
    assert recorder.engine is None
    await stage.close()
    assert not device_threads()


async def test_closing_what_was_never_prepared_is_harmless() -> None:
    await life(Recorder()).close()


async def threads_of(*settings: int | None) -> tuple[list[int], list[int]]:
    """CPU threads while each stage was built, and on its device thread once all stages of this process are up."""
    while_built: list[int] = []

    def build() -> IdleEngine:
        while_built.append(torch.get_num_threads())
        return IdleEngine()

    recorders = [Recorder() for _ in settings]
    stages = [
        life(recorder, SETTINGS.model_copy(update={"threads": threads}), build=build)
        for recorder, threads in zip(recorders, settings, strict=True)
    ]
    for stage in stages:
        await stage.prepare()
    on_device = [await recorder.engine.call(torch.get_num_threads) for recorder in recorders if recorder.engine]
    for stage in stages:
        await stage.close()
    return while_built, on_device


async def test_each_stage_of_a_process_computes_on_the_threads_it_was_told() -> None:
    before = torch.get_num_threads()
    assert await threads_of(3, None, 2) == ([3, before, 2], [3, before, 2])
    assert torch.get_num_threads() == before
