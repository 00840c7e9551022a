"""The stages that a process may hold together, each as its own process would serve it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry

from services.codec.__main__ import build as build_codec
from services.codec.engine import CodecEngine
from services.codec.metrics import CodecMetrics
from services.codec.service import SERVICE_NAME as CODEC
from services.codec.service import CodecService
from services.codec.settings import CodecSettings
from services.colocated.loading import Prepare
from services.colocated.settings import ColocatedSettings
from services.inference.slots import SlotEngine
from services.reasoner.__main__ import build as build_reasoner
from services.reasoner.engine import ReasonerEngine
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.service import SERVICE_NAME as REASONER
from services.reasoner.service import ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.runtime.server import RunningServer, running
from services.runtime.settings import load
from services.speech.__main__ import build as build_speech
from services.speech.engine import SpeechEngine
from services.speech.metrics import SpeechMetrics
from services.speech.service import SERVICE_NAME as SPEECH
from services.speech.service import SpeechService
from services.speech.settings import SpeechSettings
from services.stage.process import StageLife, StageService
from services.stage.settings import StageSettings

Settings = TypeVar("Settings", bound=StageSettings)
Engine = TypeVar("Engine", bound=SlotEngine[Any])


@dataclass(frozen=True)
class ColocatedStage(Generic[Settings, Engine]):
    """What a stage's server is made from: `service` takes the registry of its metrics."""

    name: str
    service_name: str
    settings_class: type[Settings]
    build: Callable[[Settings], Engine]
    warm: Callable[[Engine], None]
    service: Callable[[CollectorRegistry], StageService]

    def server(
        self, told: ColocatedSettings, load_in_turn: Callable[[Prepare], Awaitable[None]]
    ) -> AbstractAsyncContextManager[RunningServer]:
        """The stage's server, with a registry of its own; a setting that is refused ends the process."""
        settings = load(self.settings_class, told.flags(self.name), stage=self.name)
        registry = CollectorRegistry()
        service = self.service(registry)
        life = StageLife(settings, service, partial(self.build, settings), self.warm)
        return running(
            stage=self.name,
            settings=settings,
            add=life.add_to,
            services=[self.service_name],
            prepare=partial(load_in_turn, life.prepare),
            close=life.close,
            registry=registry,
            wait_ready=False,
        )


STAGES: tuple[ColocatedStage[Any, Any], ...] = (
    ColocatedStage(
        "reasoner",
        REASONER,
        ReasonerSettings,
        build_reasoner,
        ReasonerEngine.warm,
        lambda registry: ReasonerService(ReasonerMetrics(registry)),
    ),
    ColocatedStage(
        "speech",
        SPEECH,
        SpeechSettings,
        build_speech,
        SpeechEngine.warm,
        lambda registry: SpeechService(SpeechMetrics(registry)),
    ),
    ColocatedStage(
        "codec",
        CODEC,
        CodecSettings,
        build_codec,
        CodecEngine.warm,
        lambda registry: CodecService(CodecMetrics(registry)),
    ),
)
