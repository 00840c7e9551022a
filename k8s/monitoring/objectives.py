"""What listeners are promised, and the alerts for a budget of broken promises that burns too fast."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from k8s.monitoring.rule import Alert, Recording, Severity
from k8s.monitoring.spans import Spans, span

MINUTE, HOUR, DAY = 60, 3_600, 86_400

FIRST_AUDIO_SECONDS = 0.4
UNDER_RUN_SECONDS = 0.05


@dataclass(frozen=True)
class Objective:
    """A share of replies, of 30 days, that are to be good.

    `bad` is the share of bad ones over a span; `promise` says what a good one is, `broken` what a bad one sounds like.
    """

    name: str
    alert: str
    target: float
    bad: Callable[[str], str]
    promise: str
    broken: str

    def record(self, seconds: float) -> str:
        """The series with the share of bad replies over so many seconds."""
        return f"chroma:{self.name}_bad:ratio_rate{span(seconds)}"


@dataclass(frozen=True)
class Burn:
    """A rate at which the budget of 30 days is used up: `factor` 1 uses it up in just that time.

    Both spans must show it: the long one that it matters, the short one that it goes on.
    """

    long_seconds: int
    short_seconds: int
    factor: float
    lasting_seconds: int
    severity: Severity


# From 2 % of the budget in an hour to 10 % in three days.
BURNS = (
    Burn(1 * HOUR, 5 * MINUTE, 14.4, 2 * MINUTE, "critical"),
    Burn(6 * HOUR, 30 * MINUTE, 6, 15 * MINUTE, "critical"),
    Burn(1 * DAY, 2 * HOUR, 3, 1 * HOUR, "warning"),
    Burn(3 * DAY, 6 * HOUR, 1, 3 * HOUR, "warning"),
)
# Of fewer replies in the long span a share says nothing: one of three is no 33 %.
LEAST_REPLIES = 20


def slower_than(histogram: str, edge: float) -> Callable[[str], str]:
    """The share of a histogram's observations above one of its edges, over a span."""
    return lambda over: (
        f'1 - sum by (namespace) (rate({histogram}_bucket{{le="{edge}"}}[{over}])) '
        f"/ (sum by (namespace) (rate({histogram}_count[{over}])) > 0)"
    )


def failed_replies(over: str) -> str:
    """The share of replies that a user asked for and did not get whole, over a span."""
    replies = "chroma_orchestrator_replies_total"
    return (
        f'sum by (namespace) (rate({replies}{{reason=~"unavailable|late|failed"}}[{over}])) '
        f"/ (sum by (namespace) (rate({replies}[{over}])) > 0)"
    )


FIRST_AUDIO = Objective(
    "first_audio",
    "ChromaFirstAudioLate",
    0.99,
    slower_than("chroma_orchestrator_first_audio_seconds", FIRST_AUDIO_SECONDS),
    f"the first sound within {FIRST_AUDIO_SECONDS * 1000:.0f} ms of the end of the user's turn",
    "Listeners wait before they hear anything",
)
CONTINUITY = Objective(
    "continuity",
    "ChromaSoundBreaksUp",
    0.99,
    slower_than("chroma_orchestrator_under_run_seconds", UNDER_RUN_SECONDS),
    f"at most {UNDER_RUN_SECONDS * 1000:.0f} ms of silence within the sound (C50)",
    "Listeners hear gaps",
)
ANSWERED = Objective(
    "answered",
    "ChromaRepliesFail",
    0.999,
    failed_replies,
    "a reply that does not fail",
    "Listeners get no reply, or half of one",
)
OBJECTIVES = (FIRST_AUDIO, CONTINUITY, ANSWERED)


def recordings(spans: Spans) -> Iterator[Recording]:
    """The share of bad replies over every span that an alert looks at."""
    lengths = sorted({seconds for burn in BURNS for seconds in (burn.long_seconds, burn.short_seconds)})
    for objective in OBJECTIVES:
        for seconds in lengths:
            yield Recording(objective.record(seconds), objective.bad(spans(seconds)))


def alerts(spans: Spans) -> Iterator[Alert]:
    """An alert for every objective and burn."""
    for objective in OBJECTIVES:
        for burn in BURNS:
            yield burn_alert(objective, burn, spans)


def burn_alert(objective: Objective, burn: Burn, spans: Spans) -> Alert:
    """Fires while both spans have more bad replies than the burn allows."""
    allowed = f"{burn.factor * (1 - objective.target):.6g}"
    enough = f"sum by (namespace) (increase(chroma_orchestrator_replies_total[{spans(burn.long_seconds)}]))"
    return Alert(
        objective.alert,
        f"{objective.record(burn.long_seconds)} > {allowed} and {objective.record(burn.short_seconds)} > {allowed} "
        f"and on (namespace) {enough} >= {LEAST_REPLIES}",
        spans(burn.lasting_seconds),
        burn.severity,
        f"{objective.broken} in {{{{ $labels.namespace }}}}",
        f"Promised to {objective.target * 100:g} % of replies: {objective.promise}. "
        f"In the last {span(burn.long_seconds)} {{{{ $value | humanizePercentage }}}} were worse, "
        f"{burn.factor:g} times what 30 days allow or more.",
        {"span": span(burn.long_seconds)},
    )
