"""Whose request it is: the API key, which the orchestrator judges."""

from starlette.requests import HTTPConnection

from services.gateway.errors import Refusal

SUBPROTOCOL_PREFIX = "openai-insecure-api-key."
"""Browsers cannot set headers on a WebSocket; OpenAI's clients offer the key as a subprotocol."""


def bearer(connection: HTTPConnection) -> str | None:
    """The key of a request or a socket: its Authorization header, a subprotocol, or `?api_key`; None without one."""
    header = connection.headers.get("authorization")
    if header is not None:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise wrong_key("Authorization must be 'Bearer <API key>'")
        return _checked(key.strip())
    if connection.scope["type"] == "websocket":
        for protocol in connection.scope["subprotocols"]:
            if protocol.startswith(SUBPROTOCOL_PREFIX):
                return _checked(protocol.removeprefix(SUBPROTOCOL_PREFIX))
        if in_query := connection.query_params.get("api_key"):
            return _checked(in_query)
    return None


def _checked(key: str) -> str:
    if not key.isascii() or not key.isprintable():
        raise wrong_key("an API key is one line of ASCII")
    return key


def wrong_key(message: str) -> Refusal:
    """A key that cannot be one."""
    return Refusal(401, "authentication_error", message, code="invalid_api_key")
