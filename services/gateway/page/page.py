"""The page to talk to the mesh with: its files, which load nothing from elsewhere."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FILES = Path(__file__).parent / "static"

HEADERS = {
    # Scripts, styles and connections of this origin alone; AudioWorklets are scripts.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time and answered with 304, so that only files of one version ever meet.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return await _file("index.html", request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def part(request: Request, name: str) -> Response:
    """A script, a style or a picture of the page."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await StaticFiles(directory=FILES, check_dir=False).get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
