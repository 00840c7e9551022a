"""The three engines in this process, running."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from services.codec import __main__ as codec_stage
from services.codec.engine import CodecEngine
from services.codec.settings import CodecSettings
from services.inference.device import DeviceName, DtypeName
from services.reasoner import __main__ as reasoner_stage
from services.reasoner.engine import ReasonerEngine
from services.reasoner.settings import ReasonerSettings
from services.speech import __main__ as speech_stage
from services.speech.engine import SpeechEngine
from services.speech.settings import SpeechSettings

NO_TOKEN = -1


@dataclass(frozen=True)
class ModelSettings:
    """Which model runs where."""

    checkpoint: str
    device: DeviceName
    dtype: DtypeName


@dataclass(frozen=True)
class StageEngines:
    """An engine of each stage, all with as many slots."""

    reasoner: ReasonerEngine
    speech: SpeechEngine
    codec: CodecEngine

    @property
    def slot_count(self) -> int:
        """Streams that each of them can serve at once."""
        return self.speech.slot_count

    @property
    def frame_audio_seconds(self) -> float:
        """How long a frame sounds."""
        return self.codec.codec.samples_per_frame / self.codec.codec.sample_rate_hz


def build(model: ModelSettings, slots: int) -> StageEngines:
    """Loads the engines as their services do."""
    # A slot is free only once the device thread let it go, so the next stream may have to wait.
    codec = {"checkpoint": model.checkpoint, "device": model.device, "slots": slots, "queue_limit": slots}
    transformer = codec | {"dtype": model.dtype}
    engines = StageEngines(
        reasoner_stage.build(ReasonerSettings.model_validate(transformer)),
        speech_stage.build(SpeechSettings.model_validate(transformer)),
        codec_stage.build(CodecSettings.model_validate(codec)),
    )
    # No token ends a text, or the weights and not the shape would say how long a reply is.
    reasoner = engines.reasoner.model
    reasoner.config = replace(reasoner.config, end_token_id=NO_TOKEN)
    return engines


@asynccontextmanager
async def running(model: ModelSettings, slots: int) -> AsyncIterator[StageEngines]:
    """Runs the engines' device threads for the block, warm."""
    engines = await asyncio.to_thread(build, model, slots)
    stages = (engines.reasoner, engines.speech, engines.codec)
    try:
        for engine in stages:
            engine.start()
            await engine.call(engine.warm)
        yield engines
    finally:
        for engine in stages:
            await asyncio.to_thread(engine.close)
