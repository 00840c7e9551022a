"""`python -m services.reasoner`."""

import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.inference.checkpoint_spec import open_checkpoint
from services.inference.device import resolve_device, resolve_dtype
from services.inference.tokenizer import Tokenizer
from services.reasoner import weights
from services.reasoner.engine import ReasonerEngine
from services.reasoner.features import MelFeatures
from services.reasoner.memory import ReasonerMemory
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.service import SERVICE_NAME, ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.runtime.settings import load
from services.stage.memory import plan_memory
from services.stage.process import serve_stage

STAGE = "reasoner"


def build(settings: ReasonerSettings) -> ReasonerEngine:
    """Plans the reasoner's memory, then loads it."""
    checkpoint = open_checkpoint(settings.checkpoint)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    config = weights.read_config(checkpoint.config)
    demand = ReasonerMemory(config, device, dtype, prefill_chunk=settings.prefill_chunk)
    plan = plan_memory(STAGE, settings, demand, device, settings.context_lengths(config.stack.rope.max_positions))
    model = weights.load(checkpoint, device, dtype)
    tokenizer = Tokenizer(checkpoint.folder)
    tokenizer.check_fits(model.config.vocabulary_size)
    return ReasonerEngine(
        model,
        tokenizer,
        MelFeatures(checkpoint.folder),
        slot_count=plan.slots,
        queue_limit=settings.queue_limit,
        context_length=plan.context_length,
        prefill_chunk=settings.prefill_chunk,
    )


def main() -> None:
    """Serves the reasoner until it is told to stop."""
    settings = load(ReasonerSettings, sys.argv[1:], stage=STAGE)
    registry = CollectorRegistry()
    uvloop.run(
        serve_stage(
            stage=STAGE,
            settings=settings,
            service=ReasonerService(ReasonerMetrics(registry)),
            services=[SERVICE_NAME],
            build=lambda: build(settings),
            warm=ReasonerEngine.warm,
            registry=registry,
        )
    )


if __name__ == "__main__":
    main()
