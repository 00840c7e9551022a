"""Prometheus metrics that every stage has, and the port they are read from."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler

from services.runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    MeshError,
    ResourceExhausted,
    Unavailable,
    most_telling,
)

# Fine where the budget of a first sample lies, from 10 to 400 ms.
FIRST_AUDIO_BUCKETS = (
    0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.225, 0.25, 0.275, 0.3, 0.35, 0.4,
    0.6, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
# Around the 80 ms that a frame lasts.
FRAME_INTERVAL_BUCKETS = (
    0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.16, 0.24, 0.5, 1.0, 5.0,
)  # fmt: skip
QUEUE_WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# A slot is free after the step that is under way, of 1 ms or of 80.
RELEASE_BUCKETS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.5, 1.0, 5.0)

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

FinishedReason = Literal["stop", "length", "cancelled", "invalid", "failed", "unavailable"]
REASONS: tuple[FinishedReason, ...] = ("stop", "length", "cancelled", "invalid", "failed", "unavailable")


# The status for a request's path; None where its answer is the metrics.
StatusOf = Callable[[str], HTTPStatus | None]


class MetricsServer(socketserver.ThreadingTCPServer):
    """Answers HTTP with a registry's metrics, and the paths of a probe with its status."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, registry: CollectorRegistry, host: str, port: int, probe: StatusOf) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _handler(registry, probe))
        except OSError as failure:
            raise OSError(f"metrics cannot listen on {host} port {port}: {failure.strerror}") from failure


def _handler(registry: CollectorRegistry, probe: StatusOf) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        def do_GET(self) -> None:
            status = probe(self.path)
            if status is None:
                super().do_GET()
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    Handler.registry = registry
    return Handler


def no_probe(_path: str) -> None:
    """Every path has the metrics."""


@contextmanager
def serve_metrics(registry: CollectorRegistry, host: str, port: int, probe: StatusOf = no_probe) -> Iterator[int]:
    """Answers GET /metrics, and what `probe` knows, on a thread of its own within the block; gives the bound port."""
    with MetricsServer(registry, host, port, probe) as server:
        # prometheus_client's own server looks only twice a second whether it is to end.
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@dataclass
class StreamOutcome:
    """How a stream ended; set `reason` when the model's own end or a limit is known."""

    reason: FinishedReason = "stop"


class CacheMetrics:
    """How often something was found in a cache."""

    def __init__(self, name: str, meaning: str, registry: CollectorRegistry) -> None:
        self._lookups = Counter(f"{name}_lookups_total", f"{meaning}.", labelnames=["outcome"], registry=registry)
        for outcome in ("hit", "miss"):  # a rate needs the zero before the first one
            self._lookups.labels(outcome)

    def count(self, is_hit: bool) -> None:
        """Counts a look."""
        self._lookups.labels("hit" if is_hit else "miss").inc()


class SlotMetrics:
    """Slots, their queue and how their streams ended: what each stage with slots counts."""

    def __init__(self, stage: str, registry: CollectorRegistry) -> None:
        self.queue_wait = Histogram(
            f"chroma_{stage}_queue_wait_seconds",
            "Time that streams waited for a slot, in seconds.",
            buckets=QUEUE_WAIT_BUCKETS,
            registry=registry,
        )
        self.release = Histogram(
            f"chroma_{stage}_slot_release_seconds",
            "From when a stream was cut, as by a barge-in, to the end of the last step it was part of, in seconds.",
            buckets=RELEASE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            f"chroma_{stage}_batch_size",
            "Streams that were part of a step, for each step.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self._slots_in_use = Gauge(f"chroma_{stage}_slots_in_use", "Slots that streams hold.", registry=registry)
        self._slots = Gauge(f"chroma_{stage}_slots", "Slots in all.", registry=registry)
        self._device_memory = Gauge(
            f"chroma_{stage}_device_memory_bytes",
            "Memory of the stage's card, or of its container on a CPU, in bytes.",
            registry=registry,
        )
        self._device_memory_free = Gauge(
            f"chroma_{stage}_device_memory_free_bytes",
            "What nobody has taken of the stage's card, or of its container on a CPU, in bytes.",
            registry=registry,
        )
        self._finished_streams = Counter(
            f"chroma_{stage}_finished_streams_total",
            "Streams that ended, by how.",
            labelnames=["reason"],
            registry=registry,
        )
        for reason in REASONS:  # a rate needs the zero before the first one
            self._finished_streams.labels(reason)

    def watch(self, in_use: Callable[[], int], total: int) -> None:
        """Reads the gauges from the engine: slots in use at each scrape, and how many there are."""
        self._slots_in_use.set_function(in_use)
        self._slots.set(total)

    def watch_memory(self, free_bytes: Callable[[], int], total_bytes: int) -> None:
        """Reads from the engine what its device has left, at each scrape, and of how much."""
        self._device_memory_free.set_function(free_bytes)
        self._device_memory.set(total_bytes)

    @contextmanager
    def count_stream(self) -> Iterator[StreamOutcome]:
        """Counts one stream by how the block ended: by `reason` when it ended well, by its exception otherwise."""
        outcome = StreamOutcome()
        try:
            yield outcome
        except BaseException as failure:
            outcome.reason = _reason(failure)
            raise
        finally:
            self._finished_streams.labels(outcome.reason).inc()


def _reason(failure: BaseException) -> FinishedReason:
    match most_telling(failure):
        case Cancelled() | DeadlineExceeded():
            return "cancelled"
        case Unavailable() | ResourceExhausted():
            return "unavailable"
        case None | Internal():
            return "failed"
        case MeshError():
            return "invalid"
