"""The ASGI application."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from client.errors import MeshError
from services.gateway import health, models
from services.gateway.body_limit import BodyLimit
from services.gateway.drain import DrainGate
from services.gateway.errors import (
    Refusal,
    answer_http_error,
    answer_mesh_error,
    answer_refusal,
    answer_wrong_request,
)
from services.gateway.front import Front


def build_app(front: Front) -> FastAPI:
    """The application over an open front."""
    app = FastAPI(
        title="chroma-mesh",
        summary="Speech-to-speech conversations, as OpenAI's clients hold them.",
        version="1",
        docs_url=None,  # its page takes scripts from elsewhere
        redoc_url=None,
    )
    app.state.front = front
    for module in (health, models):
        app.include_router(module.router)
    app.add_exception_handler(Refusal, answer_refusal)
    app.add_exception_handler(MeshError, answer_mesh_error)
    app.add_exception_handler(RequestValidationError, answer_wrong_request)
    app.add_exception_handler(HTTPException, answer_http_error)
    settings = front.settings

    app.add_middleware(DrainGate, drain=front.drain)
    app.add_middleware(BodyLimit, limit_bytes=settings.body_limit_bytes, seconds=settings.body_seconds)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app
