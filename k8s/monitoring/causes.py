"""Alerts on what makes replies late, broken or lost, before or while listeners hear it."""

from collections.abc import Iterator

from k8s.monitoring.rule import Alert
from k8s.monitoring.spans import Spans
from k8s.monitoring.stages import JOB_PREFIX, SLOW_QUEUE_SECONDS

SECOND, MINUTE = 1, 60

SATURATED_SHARE = 0.9
SLOW_QUEUE_SHARE = 0.05
LATE_FRAMES_SHARE = 0.01
LEAST_FREE_SHARE = 0.03
GATEWAY_ERROR_SHARE = 0.05
REFUSED_COUNT = 5
LOST_COUNT = 5
STALLED_COUNT = 3

OF_STAGE = "{{ $labels.stage }} of {{ $labels.namespace }}"


def alerts(spans: Spans) -> Iterator[Alert]:
    """What is gone, what is full, what is slow, what is broken."""
    yield from gone(spans)
    yield from full(spans)
    yield from slow(spans)
    yield from broken(spans)


def gone(spans: Spans) -> Iterator[Alert]:
    """Services and replicas that do not answer."""
    yield Alert(
        "ChromaServiceDown",
        f'sum by (namespace, job) (up{{job=~"{JOB_PREFIX}.+"}}) == 0 or absent(up{{job="{JOB_PREFIX}orchestrator"}})',
        spans(1 * MINUTE),
        "critical",
        "Nothing of {{ $labels.job }} answers",
        "No replica of {{ $labels.job }} has answered a scrape for a minute, or there is none.",
    )
    yield Alert(
        "ChromaStageGone",
        "max by (namespace, stage) (chroma_orchestrator_capacity_sessions) == 0",
        spans(30 * SECOND),
        "critical",
        f"No orchestrator reaches a replica of {OF_STAGE}",
        "No replica of the stage answers any orchestrator: no session is admitted, no reply is made.",
    )
    yield Alert(
        "ChromaTargetDown",
        f'up{{job=~"{JOB_PREFIX}.+"}} == 0',
        spans(2 * MINUTE),
        "warning",
        "{{ $labels.pod }} of {{ $labels.namespace }} does not answer",
        "{{ $labels.instance }} has answered no scrape for two minutes: it crashes, hangs, or its machine is gone.",
    )
    yield Alert(
        "ChromaReplicasLost",
        "min by (namespace, stage) (chroma_orchestrator_replicas) "
        "< on (namespace, stage) max by (namespace, stage) (chroma:targets:count)",
        spans(10 * MINUTE),
        "warning",
        f"Replicas of {OF_STAGE} take no work",
        "An orchestrator reaches {{ $value }} of its replicas, and there are more pods than that.",
    )


def full(spans: Spans) -> Iterator[Alert]:
    """What has no room left."""
    recent = spans(5 * MINUTE)
    yield Alert(
        "ChromaNearlyFull",
        f"chroma:sessions_in_use:ratio > {SATURATED_SHARE}",
        spans(5 * MINUTE),
        "warning",
        "{{ $labels.namespace }} has hardly room for another session",
        "{{ $value | humanizePercentage }} of the sessions that the narrowest stage can carry are open.",
    )
    yield Alert(
        "ChromaSessionsRefused",
        f"sum by (namespace, reason) (increase(chroma_orchestrator_sessions_refused_total[{recent}])) "
        f">= {REFUSED_COUNT}",
        spans(1 * MINUTE),
        "critical",
        "Callers of {{ $labels.namespace }} are turned away",
        "{{ $value | humanize }} sessions were refused in 5 minutes: {{ $labels.reason }}.",
    )
    yield Alert(
        "ChromaStageSaturated",
        f"chroma:slots_in_use:ratio > {SATURATED_SHARE}",
        spans(5 * MINUTE),
        "warning",
        f"The slots of {OF_STAGE} are used up",
        "{{ $value | humanizePercentage }} of its slots have made replies for 5 minutes.",
    )
    yield Alert(
        "ChromaQueueWait",
        f"chroma:queue_slow:ratio_rate5m > {SLOW_QUEUE_SHARE}",
        spans(5 * MINUTE),
        "warning",
        f"Replies wait for a slot of {OF_STAGE}",
        f"{{{{ $value | humanizePercentage }}}} of its streams waited longer than {SLOW_QUEUE_SECONDS * 1000:g} ms.",
    )
    yield Alert(
        "ChromaDeviceMemory",
        f"chroma:device_memory_free:ratio < {LEAST_FREE_SHARE}",
        spans(5 * MINUTE),
        "warning",
        "{{ $labels.pod }} of {{ $labels.namespace }} has hardly memory left on its device",
        "{{ $value | humanizePercentage }} of the memory of its card, or of its container on a CPU, is free.",
    )


def slow(spans: Spans) -> Iterator[Alert]:
    """What comes late."""
    yield Alert(
        "ChromaFramesLate",
        f"chroma:frames_late:ratio_rate5m > {LATE_FRAMES_SHARE}",
        spans(5 * MINUTE),
        "warning",
        f"Sound of {OF_STAGE} comes late",
        "{{ $value | humanizePercentage }} of its frames came later than any pace explains.",
    )


def broken(spans: Spans) -> Iterator[Alert]:
    """What fails, and is made up for until it can't be."""
    lately = spans(15 * MINUTE)
    yield Alert(
        "ChromaCallsLost",
        f'sum by (namespace, stage) (increase(chroma_orchestrator_lost_calls_total{{cause="gone"}}[{lately}])) '
        f">= {LOST_COUNT}",
        spans(0),
        "warning",
        f"Replies lose their replica of {OF_STAGE}",
        "{{ $value | humanize }} calls broke off in 15 minutes and were made again at another replica.",
    )
    yield Alert(
        "ChromaStalls",
        f'sum by (namespace, stage) (increase(chroma_orchestrator_lost_calls_total{{cause="stalled"}}[{lately}])) '
        f">= {STALLED_COUNT}",
        spans(0),
        "warning",
        f"Replicas of {OF_STAGE} fall silent",
        "{{ $value | humanize }} calls were silent for too long in 15 minutes and were made again elsewhere.",
    )
    yield Alert(
        "ChromaRecoveryGivenUp",
        f'sum by (namespace, stage) (increase(chroma_orchestrator_recoveries_total{{outcome="gave_up"}}[{lately}])) '
        ">= 1",
        spans(0),
        "warning",
        f"Replies that lost their replica of {OF_STAGE} were given up",
        "{{ $value | humanize }} replies of the last 15 minutes ended as FAILED, after all attempts that are allowed.",
    )
    yield Alert(
        "ChromaJournalFails",
        f"sum by (namespace) (increase(chroma_orchestrator_journal_failures_total[{lately}])) >= 1",
        spans(0),
        "warning",
        "The journal of {{ $labels.namespace }} takes no sessions",
        "{{ $value | humanize }} writes failed in 15 minutes: these sessions end with their orchestrator.",
    )
    recent = spans(5 * MINUTE)
    yield Alert(
        "ChromaGatewayErrors",
        f'sum by (namespace) (rate(chroma_gateway_requests_total{{status=~"5.."}}[{recent}])) '
        f"/ (sum by (namespace) (rate(chroma_gateway_requests_total[{recent}])) > 0) > {GATEWAY_ERROR_SHARE}",
        spans(5 * MINUTE),
        "warning",
        "The gateway of {{ $labels.namespace }} answers with errors",
        "{{ $value | humanizePercentage }} of its requests ended with a status of 500 or more.",
    )
