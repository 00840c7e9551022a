"""All rules, from the tables beside this."""

from k8s.monitoring import causes, objectives, stages
from k8s.monitoring.rule import Group
from k8s.monitoring.spans import Spans

EVERY_SECONDS = 15


def groups(speed: float = 1.0) -> tuple[Group, ...]:
    """The groups of a rule file; with another speed every span is so many times shorter, for a drill."""
    spans = Spans(speed)
    every = spans(EVERY_SECONDS)
    return (
        Group("chroma-objectives", every, (*objectives.recordings(spans), *objectives.alerts(spans))),
        Group("chroma-stages", every, tuple(stages.recordings(spans))),
        Group("chroma-causes", every, tuple(causes.alerts(spans))),
    )
