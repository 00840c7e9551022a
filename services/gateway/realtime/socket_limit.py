"""How many sockets there are."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.gateway.errors import Refusal
from services.gateway.metrics import GatewayMetrics

RETRY_SECONDS = 5.0


class SocketLimit:
    """Refuses a further socket when there are as many as there may be."""

    def __init__(self, limit: int, metrics: GatewayMetrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more is open within the block; raises Refusal."""
        if self._count >= self._limit:
            raise Refusal(
                503,
                "server_error",
                f"the gateway has {self._limit} sockets open, and takes no more",
                code="too_many_sockets",
                retry_seconds=RETRY_SECONDS,
            )
        self._count += 1
        try:
            with self._metrics.open_socket():
                yield
        finally:
            self._count -= 1
