"""The ASGI application."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from client.errors import MeshError
from services.gateway import health, models, voices
from services.gateway.body_limit import BodyLimit
from services.gateway.chat import route as chat
from services.gateway.departure import ClientGone, answer_nobody
from services.gateway.drain import DrainGate
from services.gateway.errors import (
    IN_DOCUMENT,
    Refusal,
    answer_http_error,
    answer_mesh_error,
    answer_refusal,
    answer_wrong_request,
)
from services.gateway.front import Front
from services.gateway.origin import OriginGate
from services.gateway.page import page
from services.gateway.realtime import route as realtime
from services.gateway.request_log import REQUEST_ID_HEADER, RequestLog


def build_app(front: Front) -> FastAPI:
    """The application over an open front."""
    app = FastAPI(
        title="chroma-mesh",
        summary="Speech-to-speech conversations, as OpenAI's clients hold them.",
        version="1",
        docs_url=None,  # its page takes scripts from elsewhere
        redoc_url=None,
        responses=IN_DOCUMENT,
    )
    app.state.front = front
    for module in (health, models, voices, chat, realtime, page):
        app.include_router(module.router)
    app.add_exception_handler(Refusal, answer_refusal)
    app.add_exception_handler(MeshError, answer_mesh_error)
    app.add_exception_handler(ClientGone, answer_nobody)
    app.add_exception_handler(RequestValidationError, answer_wrong_request)
    app.add_exception_handler(HTTPException, answer_http_error)
    settings = front.settings

    # The last one is the outermost.
    app.add_middleware(DrainGate, drain=front.drain)
    app.add_middleware(OriginGate, allowed=settings.cors_origins)
    app.add_middleware(BodyLimit, limit_bytes=settings.body_limit_bytes, seconds=settings.body_seconds)
    app.add_middleware(RequestLog, metrics=front.metrics, writer=front.writer, is_draining=front.drain.started.is_set)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    return app
