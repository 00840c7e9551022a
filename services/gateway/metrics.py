"""What the gateway counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS

REQUEST_BUCKETS = (
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip

Way = Literal["chat", "realtime"]
"""How a reply is asked for."""

WAYS: tuple[Way, ...] = ("chat", "realtime")

OTHER = "other"
"""The route of a request that no route takes, and a method that none has."""

METHODS = ("GET", "POST", "DELETE")


class GatewayMetrics:
    """Requests, sockets, and the first sound of the replies that they were given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "chroma_gateway_requests_total",
            "Requests that were answered; 499 are those whose client went away before.",
            labelnames=["route", "method", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "chroma_gateway_request_seconds",
            "From a request's arrival to the last byte of its answer, in seconds.",
            labelnames=["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._open_requests = Gauge("chroma_gateway_requests_in_progress", "Requests under way.", registry=registry)
        self._open_sockets = Gauge("chroma_gateway_sockets_in_use", "Open WebSockets.", registry=registry)
        self._first_audio = Histogram(
            "chroma_gateway_first_audio_seconds",
            "From the end of a user turn (chat: from the request's arrival) to the reply's first sound leaving the "
            "gateway or, of an answer in one piece, arriving there, in seconds.",
            labelnames=["way"],
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        for way in WAYS:
            self._first_audio.labels(way)

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Counts a request as under way within the block."""
        with self._open_requests.track_inprogress():
            yield

    @contextmanager
    def open_socket(self) -> Iterator[None]:
        """Counts a WebSocket as open within the block."""
        with self._open_sockets.track_inprogress():
            yield

    def count_request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Counts a request that is done; `route` is the path as the app has it, None when it has no such path."""
        route = OTHER if route is None else route
        self._requests.labels(route, method if method in METHODS else OTHER, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_first_audio(self, way: Way, seconds: float) -> None:
        """Counts the time to a reply's first sound."""
        self._first_audio.labels(way).observe(seconds)
