"""The board for whoever is on call: do listeners hear what they should?"""

from k8s.monitoring.objectives import ANSWERED, BURNS, CONTINUITY, FIRST_AUDIO, MINUTE, Objective
from k8s.monitoring.panels import MESH, RATE, Board, HeatMap, Limits, Lines, Number, Query, Unit

LATEST = 5 * MINUTE


def promise(objective: Objective, title: str) -> Number:
    """How many of the latest replies were as promised."""
    return Number(
        title,
        f"Of the replies of the last 5 minutes: {objective.promise}. Promised to {objective.target * 100:g} %.",
        Unit.SHARE,
        [Query(f"1 - {objective.record(LATEST)}{{{MESH}}}", "{{namespace}}")],
        5,
        Limits(objective.target, round(1 - BURNS[0].factor * (1 - objective.target), 6), is_floor=True),
    )


def heat(metric: str) -> Query:
    """The buckets of a histogram of the orchestrator."""
    return Query(f"sum by (le) (increase(chroma_orchestrator_{metric}_bucket{{{MESH}}}[{RATE}]))", "{{le}}")


OVERVIEW = Board(
    "chroma-overview",
    "Chroma mesh · overview",
    "What listeners hear, and whether callers get in.",
    [
        (
            "As promised?",
            [
                promise(FIRST_AUDIO, "First sound in time"),
                promise(CONTINUITY, "C50: without gaps"),
                promise(ANSWERED, "Replies that do not fail"),
                Number(
                    "Room taken",
                    "Open sessions, of those that the narrowest stage can carry; the next are refused at 100 %.",
                    Unit.SHARE,
                    [Query(f"chroma:sessions_in_use:ratio{{{MESH}}}", "{{namespace}}")],
                    5,
                    Limits(0.8, 0.9),
                ),
                Number(
                    "Alerts",
                    "Alerts that fire now.",
                    Unit.COUNT,
                    [Query('count(ALERTS{alertname=~"Chroma.+", alertstate="firing"}) or vector(0)')],
                    4,
                    Limits(1, 3),
                ),
            ],
        ),
        (
            "What is heard",
            [
                HeatMap(
                    "TTFA: end of the user's turn to the first sound",
                    "Replies by how long their listeners waited; 400 ms are promised.",
                    Unit.SECONDS,
                    [heat("first_audio_seconds")],
                    12,
                ),
                HeatMap(
                    "RTF: how fast sound is made",
                    "Time in which a reply's sound was made ÷ how long it lasts; at 1 the listener catches up with it.",
                    Unit.RATIO,
                    [heat("reply_rtf")],
                    12,
                ),
                HeatMap(
                    "Under-run: silence within a reply",
                    "Replies by the greatest shortfall of a player that starts at the first packet; C50: the share up "
                    "to 50 ms.",
                    Unit.SECONDS,
                    [heat("under_run_seconds")],
                    12,
                ),
                Lines(
                    "Replies that ended, by how",
                    "stop and length are whole replies, cancelled is the user's will; unavailable, late and failed are "
                    "ours.",
                    Unit.PER_SECOND,
                    [
                        Query(
                            f"sum by (reason) (rate(chroma_orchestrator_replies_total{{{MESH}}}[{RATE}]))", "{{reason}}"
                        )
                    ],
                    12,
                    is_stacked=True,
                ),
            ],
        ),
        (
            "Who gets in, and what is made up for",
            [
                Lines(
                    "Sessions",
                    "Open sessions, and how many each stage can carry: the lowest line is where callers are refused.",
                    Unit.COUNT,
                    [
                        Query(f"sum(chroma_orchestrator_sessions_in_use{{{MESH}}})", "open"),
                        Query(
                            f"max by (stage) (chroma_orchestrator_capacity_sessions{{{MESH}}})", "{{stage}} can carry"
                        ),
                    ],
                    8,
                ),
                Lines(
                    "Errors",
                    "Sessions that were refused, calls to stages that broke off, writes that the journal did not take, "
                    "requests that the gateway failed.",
                    Unit.PER_SECOND,
                    [
                        Query(
                            f"sum by (reason) (rate(chroma_orchestrator_sessions_refused_total{{{MESH}}}[{RATE}]))",
                            "refused: {{reason}}",
                        ),
                        Query(
                            f"sum by (stage, cause) (rate(chroma_orchestrator_lost_calls_total{{{MESH}}}[{RATE}]))",
                            "{{stage}} {{cause}}",
                        ),
                        Query(
                            f"sum(rate(chroma_orchestrator_journal_failures_total{{{MESH}}}[{RATE}]))", "journal failed"
                        ),
                        Query(
                            f'sum(rate(chroma_gateway_requests_total{{{MESH}, status=~"5.."}}[{RATE}]))',
                            "gateway failed",
                        ),
                    ],
                    8,
                ),
                Lines(
                    "Recoveries",
                    "Replies that lost a replica and went on at another one; gave_up are replies that ended there.",
                    Unit.PER_SECOND,
                    [
                        Query(
                            f"sum by (stage, outcome) (rate(chroma_orchestrator_recoveries_total{{{MESH}}}[{RATE}]))",
                            "{{stage}} {{outcome}}",
                        )
                    ],
                    8,
                ),
            ],
        ),
    ],
)
