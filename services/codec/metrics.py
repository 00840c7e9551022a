"""What the codec counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.runtime.metrics import FIRST_AUDIO_BUCKETS, FRAME_INTERVAL_BUCKETS, SlotMetrics

_ENCODE_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class CodecMetrics:
    """The codec's metrics, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.slots = SlotMetrics("codec", registry)
        self.first_audio = Histogram(
            "chroma_codec_first_audio_seconds",
            "From a reply's first frame to its sound, in seconds.",
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )
        self.frame_interval = Histogram(
            "chroma_codec_frame_interval_seconds",
            "From the sound of one frame to that of the next, in seconds; 0 for frames sent together.",
            buckets=FRAME_INTERVAL_BUCKETS,
            registry=registry,
        )
        self.frames = Counter(
            "chroma_codec_frames_total",
            "Frames whose sound was sent.",
            registry=registry,
        )
        self.encode = Histogram(
            "chroma_codec_encode_seconds",
            "Time to encode a voice's example, waiting included, in seconds.",
            buckets=_ENCODE_BUCKETS,
            registry=registry,
        )
