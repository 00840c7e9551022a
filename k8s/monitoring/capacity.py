"""The board for how many more can come: slots, replicas, cards."""

from k8s.monitoring.panels import MESH, RATE, Board, Limits, Lines, Query, Unit

# The exporter of NVIDIA's GPU operator, whose own labels give way to Prometheus's.
CARDS = 'exported_namespace=~"$namespace"'
CARD = "{{Hostname}} {{gpu}}"


def hits(lookups: str) -> str:
    """The share of looks into a cache that found something."""
    found = f'sum(rate({lookups}{{{MESH}, outcome="hit"}}[{RATE}]))'
    return f"{found} / (sum(rate({lookups}{{{MESH}}}[{RATE}])) > 0)"


CAPACITY = Board(
    "chroma-capacity",
    "Chroma mesh · cards and capacity",
    "How full the stages are, and what their cards do.",
    [
        (
            "Slots",
            [
                Lines(
                    "Slots in use, of all",
                    "Replies that a stage makes at this moment; replicas are added from 70 % on.",
                    Unit.SHARE,
                    [Query(f"chroma:slots_in_use:ratio{{{MESH}}}", "{{stage}}")],
                    8,
                    Limits(0.7, 0.9),
                    maximum=1,
                ),
                Lines(
                    "Sessions that there is room for",
                    "What each stage can still carry; the least of them is what the mesh can.",
                    Unit.COUNT,
                    [
                        Query(
                            f"max by (stage) (chroma_orchestrator_capacity_sessions{{{MESH}}}) "
                            f"- on () group_left () sum(chroma_orchestrator_sessions_in_use{{{MESH}}})",
                            "{{stage}}",
                        )
                    ],
                    8,
                ),
                Lines(
                    "Replicas",
                    "Pods that are scraped, and those that the orchestrators reach.",
                    Unit.COUNT,
                    [
                        Query(f"sum by (stage) (chroma:targets:count{{{MESH}}})", "{{stage}} scraped"),
                        Query(f"min by (stage) (chroma_orchestrator_replicas{{{MESH}}})", "{{stage}} reached"),
                    ],
                    8,
                ),
            ],
        ),
        (
            "Work",
            [
                Lines(
                    "Streams in a step, mean",
                    "A step costs a card nearly the same for one stream as for many: the more, the cheaper each.",
                    Unit.COUNT,
                    [Query(f"chroma:batch_size:mean5m{{{MESH}}}", "{{stage}}")],
                    8,
                ),
                Lines(
                    "Steps",
                    "Steps a second; a speech stage that serves anybody makes at least 12.5 for each replica.",
                    Unit.PER_SECOND,
                    [Query(f"chroma:steps:rate5m{{{MESH}}}", "{{stage}}")],
                    8,
                ),
                Lines(
                    "Found in caches",
                    "Prompts of which a slot still held the beginning, voices whose prefill was kept.",
                    Unit.SHARE,
                    [
                        Query(hits("chroma_reasoner_prefix_lookups_total"), "conversations"),
                        Query(hits("chroma_speech_voice_lookups_total"), "voices"),
                    ],
                    8,
                    maximum=1,
                ),
            ],
        ),
        (
            "Cards",
            [
                Lines(
                    "Memory that is left",
                    "Of each replica's card, or of its container on a CPU; stages take what they plan at the start.",
                    Unit.SHARE,
                    [Query(f"chroma:device_memory_free:ratio{{{MESH}}}", "{{pod}}")],
                    8,
                    Limits(0.06, 0.03, is_floor=True),
                ),
                Lines(
                    "Cards at work",
                    "Share of time in which anything ran on a card; says little of how much more would fit.",
                    Unit.PERCENT,
                    [Query(f"max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL{{{CARDS}}})", CARD)],
                    8,
                    maximum=100,
                ),
                Lines(
                    "Memory traffic of cards",
                    "Share of time in which a card's memory was read or written: what bounds a step.",
                    Unit.PERCENT,
                    [Query(f"max by (Hostname, gpu) (DCGM_FI_DEV_MEM_COPY_UTIL{{{CARDS}}})", CARD)],
                    8,
                    maximum=100,
                ),
            ],
        ),
    ],
)
