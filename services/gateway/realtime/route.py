"""`/v1/realtime`: who may open a socket."""

from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket

from client.errors import MeshError
from services.gateway.authorization import bearer
from services.gateway.errors import Refusal, mesh_refusal
from services.gateway.front import Front, front_of
from services.gateway.models import check_model
from services.gateway.realtime.server_events import ErrorTold
from services.gateway.realtime.session_config import ReplyConfig, SessionConfig
from services.gateway.realtime.socket import Socket
from services.gateway.voice_names import VoiceNames

SUBPROTOCOL = "realtime"

WRONG_KEY, WRONG_REQUEST = 3000, 4000
"""How OpenAI closes a socket that it refuses."""

router = APIRouter(prefix="/v1")


@router.websocket("/realtime")
async def realtime(websocket: WebSocket) -> None:
    """One conversation in OpenAI's Realtime protocol; docs/realtime.md has the events."""
    front = front_of(websocket)
    try:
        with front.sockets.one():
            await _serve(websocket, front)
    except Refusal as refusal:
        await websocket.send_denial_response(refusal.response())


async def _serve(websocket: WebSocket, front: Front) -> None:
    """Raises Refusal for what is refused before the socket is accepted."""
    _check_origin(websocket, front)
    if front.drain.started.is_set():
        raise Refusal(503, "server_error", "the gateway is being shut down", code="draining", retry_seconds=1)
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None
    try:
        model = websocket.query_params.get("model", front.settings.model_name)
        check_model(front, model)
        mesh = front.mesh(bearer(websocket))
        voices = await VoiceNames.of(mesh)
    except MeshError as error:
        refusal = mesh_refusal(error)
        if refusal.status not in (401, 403):
            raise refusal from None
    except Refusal as wrong:
        refusal = wrong
    else:
        await websocket.accept(subprotocol)
        reply = ReplyConfig(voices.default, voices)
        await Socket(websocket).run(mesh, SessionConfig(model, reply), front.drain, front.metrics, front.writer)
        return
    # A browser is not told why a socket was not accepted.
    await websocket.accept(subprotocol)
    await websocket.send_text(ErrorTold({**refusal.body, "event_id": None}).message())
    code = WRONG_KEY if refusal.status in (401, 403) else WRONG_REQUEST
    await websocket.close(code, f"{refusal.type}.{refusal.code}")


def _check_origin(websocket: WebSocket, front: Front) -> None:
    """Refuses web pages from elsewhere: what keeps them from other requests (CORS) knows no sockets."""
    origin, allowed = websocket.headers.get("origin"), front.settings.cors_origins
    if origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != websocket.headers.get("host"):
        message = f"pages of {origin[:80]} may not call; cors_origins says which may"
        raise Refusal(403, "permission_error", message, code="origin_not_allowed")
