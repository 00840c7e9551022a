"""Whether the process is up, and whether the mesh behind it is."""

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import exposition
from starlette.responses import JSONResponse, Response

from client.errors import MeshError
from services.gateway.errors import Refusal, mesh_refusal
from services.gateway.front import front_of

READY_SECONDS = 5.0

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "not now; the error says why"}})
async def ready(request: Request) -> JSONResponse:
    """Requests can be answered: an orchestrator serves, and it serves only when every stage does."""
    front = front_of(request)
    if front.drain.started.is_set():
        raise Refusal(503, "server_error", "the gateway is being shut down", code="draining")
    try:
        async with asyncio.timeout(READY_SECONDS):
            is_ready = await front.mesh(None).is_ready()
    except TimeoutError:
        raise Refusal(503, "server_error", f"no orchestrator answers within {READY_SECONDS:g} s") from None
    except MeshError as error:
        raise mesh_refusal(error) from None
    if not is_ready:
        raise Refusal(503, "server_error", "the orchestrator is not ready", code="loading")
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """The process's Prometheus metrics, the same as at its metrics port."""
    encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
    return Response(encode(front_of(request).registry), headers={"Content-Type": content_type})
