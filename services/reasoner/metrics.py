"""What the reasoner counts and times."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS, SlotMetrics


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
