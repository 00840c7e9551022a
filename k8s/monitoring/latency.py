"""The board for a bad TTFA: which stage, and what in it."""

from k8s.monitoring.objectives import FIRST_AUDIO_SECONDS
from k8s.monitoring.panels import MESH, RATE, Board, HeatMap, Limits, Lines, Query, Unit
from k8s.monitoring.stages import STAGES

FIRST_AUDIO = "chroma_orchestrator_first_audio_seconds"
PART = "chroma_orchestrator_turn_part_seconds"
TTFA_LIMITS = Limits(FIRST_AUDIO_SECONDS / 2, FIRST_AUDIO_SECONDS)
FRAME_SECONDS = 0.08


def quantile(share: float, histogram: str, by: str = "", *, labels: str = MESH) -> str:
    """A quantile of a histogram, for each value of the label `by`."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({histogram}_bucket{{{labels}}}[{RATE}])))"


def mean(histogram: str, by: str = "") -> str:
    """The mean of a histogram, for each value of the label `by`."""
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({histogram}_sum{{{MESH}}}[{RATE}])) / {total} (rate({histogram}_count{{{MESH}}}[{RATE}]))"


LATENCY = Board(
    "chroma-latency",
    "Chroma mesh · latency by stage",
    "Where the time to the first sound goes, stage by stage.",
    [
        (
            "The time to the first sound",
            [
                Lines(
                    "TTFA and its parts, mean",
                    "Every turn's parts add up to its TTFA, from the end of the user's turn on: *_lost, *_queue and "
                    "*_hop are waits, the others work.",
                    Unit.SECONDS,
                    [
                        Query(mean(PART, "part"), "{{part}}"),
                        Query(mean(FIRST_AUDIO), "TTFA"),
                    ],
                    16,
                    TTFA_LIMITS,
                    height=11,
                    is_stacked=True,
                    hidden_in_stack="TTFA",
                ),
                Lines(
                    "TTFA",
                    "Half of all turns, 19 of 20, 99 of 100.",
                    Unit.SECONDS,
                    [Query(quantile(share, FIRST_AUDIO), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)],
                    8,
                    TTFA_LIMITS,
                    height=11,
                ),
            ],
        ),
        (
            "What the stages say themselves, p95",
            [
                Lines(
                    "Reasoner: end of the turn to the first step (TTFT)",
                    "Features, encoder and prefill of what was left when the turn ended, and one step.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, "chroma_reasoner_first_token_seconds"), "p95")],
                    8,
                    Limits(0.1, 0.2),
                ),
                Lines(
                    "Speech: first step to the first frame (TTFF)",
                    "What is left of the voice's prefill, and one frame.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, "chroma_speech_first_frame_seconds"), "p95")],
                    8,
                    Limits(0.05, 0.1),
                ),
                Lines(
                    "Codec: first frame to its sound",
                    "One frame's sound.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, "chroma_codec_first_audio_seconds"), "p95")],
                    8,
                    Limits(0.02, 0.05),
                ),
            ],
        ),
        (
            "Between the stages",
            [
                Lines(
                    "Wait for a slot, p95",
                    "Time that streams of a stage stood in its queue; 25 ms are a sign of too few replicas.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, f"chroma_{stage}_queue_wait_seconds"), stage) for stage in STAGES],
                    8,
                    Limits(0.025, 0.1),
                ),
                Lines(
                    "Hops, p95",
                    "Wire there and back and the event loops at both ends, until the first output.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, "chroma_orchestrator_hop_seconds", "to"), "to {{to}}")],
                    8,
                    Limits(0.005, 0.02),
                ),
                Lines(
                    "Barge-in: stop to the last call's end, p95",
                    "A reply that is spoken over stops within a frame, 80 ms.",
                    Unit.SECONDS,
                    [Query(quantile(0.95, "chroma_orchestrator_reply_stop_seconds"), "orchestrator")]
                    + [Query(quantile(0.95, f"chroma_{stage}_slot_release_seconds"), stage) for stage in STAGES],
                    8,
                    Limits(0.04, FRAME_SECONDS),
                ),
            ],
        ),
        (
            "After the first sound",
            [
                HeatMap(
                    "Time between two frames of speech",
                    "A frame lasts 80 ms; a paced reply comes by two frames every 160 ms.",
                    Unit.SECONDS,
                    [
                        Query(
                            f"sum by (le) (increase(chroma_speech_frame_interval_seconds_bucket{{{MESH}}}[{RATE}]))",
                            "{{le}}",
                        )
                    ],
                    12,
                ),
                HeatMap(
                    "Time between pieces of sound, a frame",
                    "What leaves for the listener: the same after the codec and the pace.",
                    Unit.SECONDS,
                    [
                        Query(
                            "sum by (le) "
                            f"(increase(chroma_orchestrator_frame_interval_seconds_bucket{{{MESH}}}[{RATE}]))",
                            "{{le}}",
                        )
                    ],
                    12,
                ),
            ],
        ),
    ],
)
