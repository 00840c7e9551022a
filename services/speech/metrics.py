"""What the speech stage counts and times."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS, FRAME_INTERVAL_BUCKETS, CacheMetrics, SlotMetrics


class SpeechMetrics:
    """The speech stage's metric families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.slots = SlotMetrics("speech", registry)
        self.first_frame = Histogram(
            "chroma_speech_first_frame_seconds",
            "From the first step's arrival to the first frame (TTFF), in seconds.",
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        self.frame_interval = Histogram(
            "chroma_speech_frame_interval_seconds",
            "Between two frames of a reply, waiting for steps included, in seconds; a frame lasts 0.08.",
            buckets=FRAME_INTERVAL_BUCKETS,
            registry=registry,
        )
        self.voices = CacheMetrics(
            "chroma_speech_voice", "Voice prompts, by whether their keys and values were kept from before", registry
        )
        self.frames = Counter("chroma_speech_frames_total", "Frames that were sent.", registry=registry)
