"""Settings of the codec."""

from services.stage.settings import StageSettings


class CodecSettings(StageSettings):
    """What the codec can be told; it computes in float32 everywhere."""
