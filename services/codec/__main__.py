"""`python -m services.codec`."""

import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.codec import weights
from services.codec.engine import CodecEngine
from services.codec.metrics import CodecMetrics
from services.codec.service import SERVICE_NAME, CodecService
from services.codec.settings import CodecSettings
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.device import resolve_device
from services.runtime.settings import load
from services.stage.process import serve_stage

STAGE = "codec"


def build(settings: CodecSettings) -> CodecEngine:
    """Loads the codec."""
    codec = weights.load(open_checkpoint(settings.checkpoint), resolve_device(settings.device))
    return CodecEngine(codec, slot_count=settings.slots, queue_limit=settings.queue_limit)


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
