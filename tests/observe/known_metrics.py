"""The metrics that there are: those of the services' own registries, those that rules record, and the cluster's."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from k8s.monitoring.rule import Recording
from k8s.monitoring.rules import groups
from services.codec.metrics import CodecMetrics
from services.gateway.metrics import GatewayMetrics
from services.orchestrator.metrics import OrchestratorMetrics
from services.reasoner.metrics import ReasonerMetrics
from services.speech.metrics import SpeechMetrics

# What Prometheus puts on everything that it scrapes.
TARGET_LABELS = frozenset({"namespace", "job", "pod", "instance"})


@dataclass(frozen=True)
class Known:
    """A series: its labels, and the values that they have from the start, where they do."""

    labels: frozenset[str]
    values: dict[str, frozenset[str]] = field(default_factory=dict)


# Who brings it is said where it is used.
OTHERS = {
    "up": Known(TARGET_LABELS),
    "ALERTS": Known(TARGET_LABELS | {"alertname", "alertstate", "severity", "stage"}),
    "DCGM_FI_DEV_GPU_UTIL": Known(frozenset({"exported_namespace", "Hostname", "gpu"})),
    "DCGM_FI_DEV_MEM_COPY_UTIL": Known(frozenset({"exported_namespace", "Hostname", "gpu"})),
}


def registries() -> Iterator[CollectorRegistry]:
    """A registry of each service, as its process makes it."""
    for metrics in (ReasonerMetrics, SpeechMetrics, CodecMetrics, GatewayMetrics):
        registry = CollectorRegistry()
        metrics(registry)
        yield registry
    registry = CollectorRegistry()
    OrchestratorMetrics(registry, session_limit=1)
    yield registry


def known_metrics() -> dict[str, Known]:
    """Everything that a query may ask for, by name."""
    known = dict(OTHERS)
    for registry in registries():
        for name, collector in registry._names_to_collectors.items():
            samples = [s for family in collector.collect() for s in family.samples if s.name == name]
            names = frozenset(collector._labelnames) | ({"le"} if name.endswith("_bucket") else set())
            values = {label: frozenset(s.labels[label] for s in samples if label in s.labels) for label in names}
            known[name] = Known(TARGET_LABELS | names, {label: found for label, found in values.items() if found})
    for group in groups():
        for rule in group.rules:
            if isinstance(rule, Recording):
                known[rule.record] = Known(frozenset({"namespace", "pod", *rule.labels}))
    return known
