"""`python -m services.orchestrator`: the orchestrator's process."""

import sys

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from services.orchestrator.journal import JournalError
from services.orchestrator.service import SCOPES, SERVICE, OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.runtime.api_keys import ApiKeys, admit_anybody
from services.runtime.file_value import FileUnusable
from services.runtime.logs import configure
from services.runtime.server import serve
from services.runtime.settings import load


async def run(settings: OrchestratorSettings) -> None:
    """Serves until it is told to stop."""
    registry = CollectorRegistry()
    configure("orchestrator", settings)
    log = structlog.get_logger()
    try:
        keys = None if settings.api_keys is None else ApiKeys(settings.api_keys, SCOPES)
        service = OrchestratorService(settings, registry)
    except (FileUnusable, JournalError) as refusal:
        log.error("failed", reason=str(refusal))
        raise SystemExit(1) from refusal
    if settings.journal is None:
        log.info("sessions are kept in memory: they outlive their connection, but not this process")
    if keys is None:
        log.warning("open to everybody: no file of API keys was given")
    else:
        log.info("API keys are asked for", key_count=keys.count)
    await serve(
        stage="orchestrator",
        settings=settings,
        add=service.add_to,
        services=[SERVICE],
        prepare=service.prepare,
        close=service.close,
        registry=registry,
        admit=admit_anybody if keys is None else keys.admit,
    )


if __name__ == "__main__":
    uvloop.run(run(load(OrchestratorSettings, sys.argv[1:], stage="orchestrator")))
