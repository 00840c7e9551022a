"""Settings of the process that holds all three stages."""

from pydantic import Field

from services.inference.device import DeviceName, DtypeName
from services.runtime.settings import ProcessSettings

SHARED = (
    "log_level", "log_format", "checkpoint", "device", "slots", "host", "grace_seconds", "otlp_endpoint", "trace_ratio",
)  # fmt: skip
OF_TRANSFORMERS = ("dtype",)
OF_ONE_STAGE = ("port", "metrics_port", "threads", "memory_gib", "memory_share")


class ColocatedSettings(ProcessSettings):
    """Reasoner, speech and codec as servers of one process.

    What is given here goes to every stage that has it. What is left out is each stage's own choice: its variable, as in
    CHROMA_SPEECH_SLOTS, or its default. A setting that is not listed here is such a variable; python -m services.speech
    --help lists them.
    """

    checkpoint: str | None = Field(None, description="directory in the published layout, or random:<shape>[:<seed>]")
    device: DeviceName | None = Field(None, description="where the models run; auto is CUDA where there is one")
    dtype: DtypeName | None = Field(None, description="precision of reasoner and speech")
    slots: int | None = Field(None, description="streams that each stage serves at once")
    host: str | None = Field(None, description="address that all servers listen on")
    grace_seconds: float | None = Field(None, description="time that open streams get to end after SIGTERM, in seconds")
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector that traces of turns go to")
    trace_ratio: float | None = Field(None, description="part of the turns that is traced")
    reasoner_port: int | None = Field(None, description="the reasoner's port for gRPC; 0 takes any free one")
    reasoner_metrics_port: int | None = Field(None, description="the reasoner's port for Prometheus metrics")
    reasoner_threads: int | None = Field(None, description="CPU threads of the reasoner")
    reasoner_memory_gib: float | None = Field(None, description="what the reasoner may take on the device, in GiB")
    reasoner_memory_share: float | None = Field(None, description="part of the device that the reasoner may take")
    speech_port: int | None = Field(None, description="the speech stage's port for gRPC; 0 takes any free one")
    speech_metrics_port: int | None = Field(None, description="the speech stage's port for Prometheus metrics")
    speech_threads: int | None = Field(None, description="CPU threads of the speech stage")
    speech_memory_gib: float | None = Field(None, description="what the speech stage may take on the device, in GiB")
    speech_memory_share: float | None = Field(None, description="part of the device that the speech stage may take")
    codec_port: int | None = Field(None, description="the codec's port for gRPC; 0 takes any free one")
    codec_metrics_port: int | None = Field(None, description="the codec's port for Prometheus metrics")
    codec_threads: int | None = Field(None, description="CPU threads of the codec")
    codec_memory_gib: float | None = Field(None, description="what the codec may take on the device, in GiB")
    codec_memory_share: float | None = Field(None, description="part of the device that the codec may take")

    def flags(self, stage: str) -> list[str]:
        """What a stage is told here, as the command line of its own process."""
        names = SHARED if stage == "codec" else SHARED + OF_TRANSFORMERS
        fields = {name: name for name in names} | {name: f"{stage}_{name}" for name in OF_ONE_STAGE}
        told = {name: getattr(self, field) for name, field in fields.items()}
        return [f"--{name.replace('_', '-')}={value}" for name, value in told.items() if value is not None]
