"""One series a question for all stages, whose own metrics have the stage in their names."""

from collections.abc import Iterator
from dataclasses import dataclass

from k8s.monitoring.rule import Recording
from k8s.monitoring.spans import Spans

MINUTE = 60
STAGES = ("reasoner", "speech", "codec")
JOB_PREFIX = "chroma-"
"""Of the label `job` of everything that is scraped, before the service's name."""

SLOW_QUEUE_SECONDS = 0.025


@dataclass(frozen=True)
class Lateness:
    """From when on a stage's piece of sound comes late, in seconds after the one before it, and why then."""

    histogram: str
    edge: float
    why: str


# The reasoner's steps have no time of their own: speech waits for them, and shows it.
LATENESS = {
    "speech": Lateness(
        "chroma_speech_frame_interval_seconds",
        0.24,
        "a reply that is paced comes by two frames every 160 ms, so 240 ms are late for any",
    ),
    "codec": Lateness(
        "chroma_codec_frame_interval_seconds",
        1.0,
        "of a paced reply up to 0.8 s of sound leave together, so a second is late for any",
    ),
}


def recordings(spans: Spans) -> Iterator[Recording]:
    """Slots, queue, lateness, memory and replicas, with the label `stage`."""
    recent = spans(5 * MINUTE)
    for stage in STAGES:
        labels = {"stage": stage}
        in_use, slots = f"chroma_{stage}_slots_in_use", f"chroma_{stage}_slots"
        wait = f"chroma_{stage}_queue_wait_seconds"
        batch = f"chroma_{stage}_batch_size"
        memory = f"chroma_{stage}_device_memory"
        yield Recording(
            "chroma:slots_in_use:ratio",
            f"sum by (namespace) ({in_use}) / (sum by (namespace) ({slots}) > 0)",
            labels,
        )
        yield Recording(
            "chroma:queue_slow:ratio_rate5m",
            f'1 - sum by (namespace) (rate({wait}_bucket{{le="{SLOW_QUEUE_SECONDS}"}}[{recent}])) '
            f"/ (sum by (namespace) (rate({wait}_count[{recent}])) > 0)",
            labels,
        )
        yield Recording(
            "chroma:batch_size:mean5m",
            f"sum by (namespace) (rate({batch}_sum[{recent}])) "
            f"/ (sum by (namespace) (rate({batch}_count[{recent}])) > 0)",
            labels,
        )
        yield Recording("chroma:steps:rate5m", f"sum by (namespace) (rate({batch}_count[{recent}]))", labels)
        yield Recording(
            "chroma:device_memory_free:ratio", f"min by (namespace, pod) ({memory}_free_bytes / {memory}_bytes)", labels
        )
        yield Recording("chroma:targets:count", f'count by (namespace) (up{{job="{JOB_PREFIX}{stage}"}})', labels)
    for stage, late in LATENESS.items():
        yield Recording(
            "chroma:frames_late:ratio_rate5m",
            f'1 - sum by (namespace) (rate({late.histogram}_bucket{{le="{late.edge}"}}[{recent}])) '
            f"/ (sum by (namespace) (rate({late.histogram}_count[{recent}])) > 0)",
            {"stage": stage},
        )
    yield Recording(
        "chroma:sessions_in_use:ratio",
        "sum by (namespace) (chroma_orchestrator_sessions_in_use) "
        "/ (min by (namespace) (max by (namespace, stage) (chroma_orchestrator_capacity_sessions)) > 0)",
    )
