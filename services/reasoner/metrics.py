"""What the reasoner counts and times."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS, CacheMetrics, SlotMetrics


class ReasonerMetrics:
    """The reasoner's metric families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.slots = SlotMetrics("reasoner", registry)
        self.first_token = Histogram(
            "chroma_reasoner_first_token_seconds",
            "From the end of the input to the first step (TTFT): features, audio encoder, prefill; in seconds.",
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        self.steps = Counter("chroma_reasoner_steps_total", "Steps that were sent.", registry=registry)
        self.prompt_tokens = Counter(
            "chroma_reasoner_prompt_tokens_total", "Positions of the prompts, audio included.", registry=registry
        )
        self._prefixes = CacheMetrics(
            "chroma_reasoner_prefix", "Prompts, by whether a slot held how they begin", registry
        )
        self._prefix_positions = Counter(
            "chroma_reasoner_prefix_positions_total",
            "Positions of prompts that a slot still held, so that they were not run again.",
            registry=registry,
        )

    def count_prefix(self, found_count: int) -> None:
        """Counts a prompt of which `found_count` positions were found in a slot."""
        self._prefixes.count(found_count > 0)
        self._prefix_positions.inc(found_count)
