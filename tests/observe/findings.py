"""Whether everything that is asked of Prometheus has an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from k8s.monitoring.generated_files import BOARDS
from k8s.monitoring.rule import Alert, Recording
from k8s.monitoring.rules import groups
from tests.observe.prometheus import Prometheus, Sample
from tests.observe.promql import asked, filled

# What has no data on a machine without a card, or while nothing goes wrong, and why.
SILENT = {
    "DCGM_FI_DEV_GPU_UTIL": "the exporter of NVIDIA's GPU operator has it: there is no card here",
    "DCGM_FI_DEV_MEM_COPY_UTIL": "the exporter of NVIDIA's GPU operator has it: there is no card here",
    'chroma_gateway_requests_total{status=~"5.."}': "no request has failed",
}
STEP_SECONDS = 1.0


@dataclass(frozen=True)
class Finding:
    """What a rule or a panel gave; `excuse` is why it may give nothing."""

    name: str
    query: str
    samples: Sequence[Sample]
    excuse: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether there should be data, and is none."""
        return not self.excuse and not any(sample.value is not None for sample in self.samples)


async def recordings(prometheus: Prometheus, begin: float, end: float) -> list[Finding]:
    """What the recording rules gave between two moments."""
    found = []
    for group in groups():
        for rule in group.rules:
            if isinstance(rule, Recording):
                labels = ", ".join(f'{name}="{value}"' for name, value in rule.labels.items())
                query = f"{rule.record}{{{labels}}}"
                samples = await prometheus.since(query, begin, end, step_seconds=STEP_SECONDS)
                found.append(Finding(query, rule.expr, samples, excuse(rule.expr)))
    return found


async def panels(prometheus: Prometheus, begin: float, end: float, *, rate_seconds: float) -> list[Finding]:
    """What the queries of all boards gave between two moments."""
    found = []
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                text = filled(query.expr, __rate_interval=f"{rate_seconds:g}s")
                samples = await prometheus.since(text, begin, end, step_seconds=STEP_SECONDS)
                name = f"{board.uid} · {panel.title}" + (f" · {query.legend}" if len(panel.queries) > 1 else "")
                found.append(Finding(name, query.expr, samples, excuse(query.expr)))
    return found


async def ingredients(prometheus: Prometheus, begin: float, end: float) -> list[Finding]:
    """What the alerts look at: their own answer is nothing while all is well."""
    series = {
        selector.text: f"{rule.name} looks at {selector.text}"
        for group in groups()
        for rule in group.rules
        if isinstance(rule, Alert)
        for selector in asked(rule.expr).selectors
    }
    return [
        Finding(name, text, await prometheus.since(text, begin, end, step_seconds=STEP_SECONDS), excuse(text))
        for text, name in series.items()
    ]


def excuse(query: str) -> str:
    """Why the query may give nothing; "" where it may not."""
    for selector in asked(query).selectors:
        bare = selector.text.replace('namespace=~"chroma-mesh"', "").replace("{,", "{").replace(",}", "}")
        for silent, why in SILENT.items():
            if bare.startswith(silent):
                return why
    return ""
