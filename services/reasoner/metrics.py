"""What the reasoner counts and times."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS, CacheMetrics, SlotMetrics


class ReasonerMetrics:
    """The reasoner's metric families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.slots = SlotMetrics("reasoner", registry)
        self.first_token = Histogram(
            "chroma_reasoner_first_token_seconds",
            "From the end of the input to the first step (TTFT): what was left of features, audio encoder and prefill; "
            "in seconds.",
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        self.steps = Counter("chroma_reasoner_steps_total", "Steps that were sent.", registry=registry)
        self.prompt_tokens = Counter(
            "chroma_reasoner_prompt_tokens_total", "Positions of the prompts, audio included.", registry=registry
        )
        self._audio_blocks = Counter(
            "chroma_reasoner_audio_blocks_total",
            "Blocks of sound that were encoded, up to 2 s each.",
            registry=registry,
        )
        self._redone_audio_blocks = Counter(
            "chroma_reasoner_redone_audio_blocks_total",
            "Blocks among these that were encoded again, because something louder came later.",
            registry=registry,
        )
        self._prefixes = CacheMetrics(
            "chroma_reasoner_prefix", "Prompts, by whether a slot held how they begin", registry
        )
        self._prefix_positions = Counter(
            "chroma_reasoner_prefix_positions_total",
            "Positions of prompts that a slot still held, so that they were not run again.",
            registry=registry,
        )

    def count_blocks(self, encoded_count: int, redone_count: int) -> None:
        """Counts the blocks that were encoded for a stream, and how many of them again."""
        self._audio_blocks.inc(encoded_count)
        self._redone_audio_blocks.inc(redone_count)

    def count_prefix(self, found_count: int) -> None:
        """Counts a prompt of which `found_count` positions were found in a slot."""
        self._prefixes.count(found_count > 0)
        self._prefix_positions.inc(found_count)
