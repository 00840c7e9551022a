"""`python -m services.codec`."""

import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.codec import weights
from services.codec.engine import CodecEngine
from services.codec.memory import CodecMemory
from services.codec.metrics import CodecMetrics
from services.codec.service import MAXIMUM_SOUND_SECONDS, SERVICE_NAME, CodecService
from services.codec.settings import CodecSettings
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.device import resolve_device
from services.runtime.settings import load
from services.stage.memory import plan_memory
from services.stage.process import serve_stage

STAGE = "codec"


def build(settings: CodecSettings) -> CodecEngine:
    """Plans the codec's memory, then loads it."""
    checkpoint = open_checkpoint(settings.checkpoint)
    device = resolve_device(settings.device)
    demand = CodecMemory(weights.read_config(checkpoint.config), device, maximum_seconds=MAXIMUM_SOUND_SECONDS)
    plan = plan_memory(STAGE, settings, demand, device, [demand.window])
    return CodecEngine(weights.load(checkpoint, device), slot_count=plan.slots, queue_limit=settings.queue_limit)


def main() -> None:
    """Serves the codec until it is told to stop."""
    settings = load(CodecSettings, sys.argv[1:], stage=STAGE)
    registry = CollectorRegistry()
    uvloop.run(
        serve_stage(
            stage=STAGE,
            settings=settings,
            service=CodecService(CodecMetrics(registry)),
            services=[SERVICE_NAME],
            build=lambda: build(settings),
            warm=CodecEngine.warm,
            registry=registry,
        )
    )


if __name__ == "__main__":
    main()
