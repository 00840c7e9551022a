"""What a stage counts, and how it is read."""

import asyncio
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from services.runtime import errors
from services.runtime.metrics import (
    FIRST_AUDIO_BUCKETS,
    FRAME_INTERVAL_BUCKETS,
    REASONS,
    FinishedReason,
    SlotMetrics,
    serve_metrics,
)


def finished(registry: CollectorRegistry) -> dict[str, float | None]:
    """Streams that ended, by reason."""
    name = "chroma_speech_finished_streams_total"
    return {reason: registry.get_sample_value(name, {"reason": reason}) for reason in REASONS}


def test_every_reason_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    SlotMetrics("speech", registry)
    assert finished(registry) == dict.fromkeys(REASONS, 0)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_stream_that_ended_well_counts_by_what_it_said(reason: FinishedReason) -> None:
    registry = CollectorRegistry()
    with SlotMetrics("speech", registry).count_stream() as outcome:
        outcome.reason = reason
    assert finished(registry) == {**dict.fromkeys(REASONS, 0), reason: 1}


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (errors.InvalidArgument("gap"), "invalid"),
        (errors.NotFound("voice"), "invalid"),
        (errors.Unavailable("full"), "unavailable"),
        (errors.ResourceExhausted("quota"), "unavailable"),
        (errors.Cancelled("gone", reason="ABANDONED"), "cancelled"),
        (errors.DeadlineExceeded("idle"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (errors.Internal("NaN"), "failed"),
        (ValueError("bug"), "failed"),
        (ExceptionGroup("", [errors.Cancelled("gone"), errors.InvalidArgument("gap")]), "invalid"),
        (ExceptionGroup("", [ValueError("bug"), errors.InvalidArgument("gap")]), "failed"),
    ],
)
def test_a_stream_that_failed_counts_by_its_error(failure: BaseException, reason: FinishedReason) -> None:
    registry = CollectorRegistry()

    def fail() -> None:
        with SlotMetrics("speech", registry).count_stream() as outcome:
            outcome.reason = "length"
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert finished(registry) == {**dict.fromkeys(REASONS, 0), reason: 1}


def test_slots_and_queue_are_read_over_http_until_the_end() -> None:
    registry = CollectorRegistry()
    metrics = SlotMetrics("speech", registry)
    in_use = 2
    metrics.watch(lambda: in_use, 4)
    metrics.watch_memory(lambda: 1000 - in_use, 1000)
    metrics.queue_wait.observe(0.03)
    threads = threading.active_count()
    with serve_metrics(registry, "127.0.0.1", 0) as port:
        in_use = 3
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            text = response.read().decode()
    assert "chroma_speech_slots_in_use 3.0" in text
    assert "chroma_speech_slots 4.0" in text
    assert "chroma_speech_device_memory_free_bytes 997.0" in text
    assert "chroma_speech_device_memory_bytes 1000.0" in text
    assert 'chroma_speech_queue_wait_seconds_bucket{le="0.05"} 1.0' in text
    assert threading.active_count() == threads
    with serve_metrics(registry, "127.0.0.1", port) as again:
        assert again == port


def test_buckets_ascend_and_have_the_budgets_as_edges() -> None:
    for buckets in (FIRST_AUDIO_BUCKETS, FRAME_INTERVAL_BUCKETS):
        assert list(buckets) == sorted(set(buckets))
    assert 0.08 in FRAME_INTERVAL_BUCKETS
    assert sum(0.01 <= edge <= 0.4 for edge in FIRST_AUDIO_BUCKETS) >= 15
