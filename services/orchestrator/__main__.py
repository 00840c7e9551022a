"""`python -m services.orchestrator`: the orchestrator's process."""

import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.orchestrator.service import SERVICE, OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.runtime.server import serve
from services.runtime.settings import load


async def run(settings: OrchestratorSettings) -> None:
    """Serves until it is told to stop."""
    registry = CollectorRegistry()
    service = OrchestratorService(settings, registry)
    await serve(
        stage="orchestrator",
        settings=settings,
        add=service.add_to,
        services=[SERVICE],
        prepare=service.prepare,
        close=service.close,
        registry=registry,
    )


if __name__ == "__main__":
    uvloop.run(run(load(OrchestratorSettings, sys.argv[1:], stage="orchestrator")))
