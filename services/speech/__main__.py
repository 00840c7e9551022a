"""`python -m services.speech`."""

import sys

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from services.inference.checkpoint_spec import open_checkpoint
from services.inference.device import resolve_device, resolve_dtype
from services.inference.tokenizer import Tokenizer
from services.runtime.settings import load
from services.speech import weights
from services.speech.engine import SpeechEngine
from services.speech.memory import SpeechMemory
from services.speech.metrics import SpeechMetrics
from services.speech.sampling_defaults import read_sampling_defaults
from services.speech.service import SERVICE_NAME, SpeechService
from services.speech.settings import SpeechSettings
from services.stage.memory import plan_memory
from services.stage.process import serve_stage

STAGE = "speech"


def build(settings: SpeechSettings) -> SpeechEngine:
    """Plans the memory of backbone and depth decoder, then loads them."""
    checkpoint = open_checkpoint(settings.checkpoint)
    if settings.rope_scaling == "config" and (unscaled := weights.unscaled_stacks(checkpoint.config)):
        structlog.get_logger().warning("no rope scaling in config.json", sections=unscaled, setting="rope_scaling")
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    config = weights.read_config(checkpoint.config, settings.rope_scaling)
    demand = SpeechMemory(
        config, device, dtype, prefill_chunk=settings.prefill_chunk, voice_cache_mib=settings.voice_cache_mib
    )
    plan = plan_memory(STAGE, settings, demand, device, settings.context_lengths(config.backbone.rope.max_positions))
    model = weights.load(
        checkpoint,
        device,
        dtype,
        depth_positions=settings.depth_positions,
        rope_scaling=settings.rope_scaling,
    )
    tokenizer = Tokenizer(checkpoint.folder)
    tokenizer.check_fits(model.config.vocabulary_size)
    return SpeechEngine(
        model,
        tokenizer,
        slot_count=plan.slots,
        queue_limit=settings.queue_limit,
        context_length=plan.context_length,
        prefill_chunk=settings.prefill_chunk,
        voice_cache_bytes=plan.voice_cache_bytes,
        sampling_defaults=read_sampling_defaults(checkpoint.folder, model.config.code_count),
    )


def main() -> None:
    """Serves the speech stage until it is told to stop."""
    settings = load(SpeechSettings, sys.argv[1:], stage=STAGE)
    registry = CollectorRegistry()
    uvloop.run(
        serve_stage(
            stage=STAGE,
            settings=settings,
            service=SpeechService(SpeechMetrics(registry)),
            services=[SERVICE_NAME],
            build=lambda: build(settings),
            warm=SpeechEngine.warm,
            registry=registry,
        )
    )


if __name__ == "__main__":
    main()
