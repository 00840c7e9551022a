"""The process of a stage that holds a model."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import grpc
import torch
import transformers
from prometheus_client import CollectorRegistry

from services.inference.checkpoint import CheckpointError
from services.inference.device import BadSetting
from services.inference.slots import SlotEngine
from services.runtime.server import CannotStart, serve
from services.stage.capacity import CapacityService
from services.stage.settings import StageSettings

Engine = TypeVar("Engine", bound=SlotEngine[Any])


class StageService(Protocol):
    """A stage's servicer: it is on the server before the model is there, so the engine comes later."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the servicer on the server."""

    def attach(self, engine: Any) -> None:
        """Gives the servicer its engine; calls come after this."""


async def serve_stage(
    *,
    stage: str,
    settings: StageSettings,
    service: StageService,
    services: Sequence[str],
    build: Callable[[], Engine],
    warm: Callable[[Engine], None],
    registry: CollectorRegistry,
) -> None:
    """Serves a stage: `build` loads its engine off the event loop, `warm` runs once on the device thread."""
    life = StageLife(settings, service, build, warm)
    await serve(
        stage=stage,
        settings=settings,
        add=life.add_to,
        services=services,
        prepare=life.prepare,
        close=life.close,
        registry=registry,
    )


class StageLife:
    """Loads a stage's engine and ends it; its servers tell how much it can carry."""

    def __init__(
        self,
        settings: StageSettings,
        service: StageService,
        build: Callable[[], Engine],
        warm: Callable[[Engine], None],
    ) -> None:
        self._settings = settings
        self._service = service
        self._build = build
        self._warm = warm
        self._engine: SlotEngine[Any] | None = None
        self._capacity = CapacityService()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the stage's servicers on the server."""
        self._service.add_to(server)
        self._capacity.add_to(server)

    async def prepare(self) -> None:
        """Loads, warms and attaches the engine."""
        # Its own handler writes plain text to stderr; through the root logger its warnings become JSON lines.
        transformers.logging.disable_default_handler()
        transformers.logging.enable_propagation()
        fix_convolutions()
        # Nobody sets the number of this thread, the event loop's: it stays the library's choice.
        thread_count = self._settings.threads or torch.get_num_threads()

        def load() -> Any:
            compute_on(thread_count)
            return self._build()

        try:
            engine = await asyncio.to_thread(load)
        except (CheckpointError, BadSetting) as refusal:
            raise CannotStart(str(refusal)) from refusal
        engine.start()
        self._engine = engine
        await engine.call(lambda: compute_on(thread_count))
        await engine.call(lambda: self._warm(engine))
        self._capacity.slot_count = engine.slot_count
        self._service.attach(engine)

    async def close(self) -> None:
        """Ends the device thread, if it was started."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)


def compute_on(thread_count: int) -> None:
    """Makes the calling thread compute on so many CPU threads, whatever other threads of the process are told."""
    torch.get_num_threads()  # or the thread's first computation would take over what was set last, by any of them
    torch.set_num_threads(thread_count)


def fix_convolutions() -> None:
    """Lets CUDA's convolutions give the same bits each time, in whole float32; for all threads of the process."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
