"""Which web pages may have a browser ask for something."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.errors import Refusal

HARMLESS = ("GET", "HEAD", "OPTIONS")


class OriginGate:
    """ASGI middleware that refuses requests which a page from elsewhere made a browser send.

    Without CORS such a page cannot read an answer, but it can post a form: to a mesh on its reader's own machine that
    asks for no key, a voice. Whoever is no browser sends no Origin, and is not asked.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http" and scope["method"] not in HARMLESS and not self._may(Headers(scope=scope)):
            refusal = Refusal(403, "permission_error", "pages of this origin may not call", code="origin_not_allowed")
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _may(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or "*" in self._allowed or origin in self._allowed:
            return True
        return origin.partition("://")[2] == headers.get("host")  # a page of our own
