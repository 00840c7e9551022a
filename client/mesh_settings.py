"""How the mesh of this machine is to run."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

STAGES = ("reasoner", "speech", "codec")
SERVICES = (*STAGES, "orchestrator")
GRACE_SECONDS = 5
"""What open streams get to finish when the mesh is stopped."""


class Device(StrEnum):
    """Where models run; auto takes a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    """Numbers of the reasoner and of speech; auto is bfloat16 on a GPU and float32 on a CPU."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How to run a mesh; None leaves a setting to the service, ports of 0 are any free ones.

    `host` and `port` are the orchestrator's; the stages listen on 127.0.0.1 only. `metrics_port` is the orchestrator's,
    the reasoner, speech and codec take the three after it. `threads` is for the reasoner and for speech.
    """

    checkpoint: str = "random:tiny"
    device: Device = Device.AUTO
    dtype: DType = DType.AUTO
    slots: int | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    reasoner_port: int = 0
    speech_port: int = 0
    codec_port: int = 0
    metrics_port: int = 0
    voices: Path | None = None
    default_voice: str | None = None

    def flags(self, service: str, stage_addresses: dict[str, str]) -> list[str]:
        """The command line flags of a service."""
        if service == "orchestrator":
            return [*self._shared_flags(self.host, self.port, 0), *self._orchestrator_flags(stage_addresses)]
        port = {"reasoner": self.reasoner_port, "speech": self.speech_port, "codec": self.codec_port}[service]
        flags = self._shared_flags("127.0.0.1", port, 1 + STAGES.index(service))
        flags += ["--checkpoint", self.checkpoint, "--device", self.device]
        if service != "codec":
            flags += ["--dtype", self.dtype]
        if self.slots is not None:
            flags += ["--slots", str(self.slots)]
        return [*flags, *self._thread_flags(service)]

    @property
    def fixed_addresses(self) -> list[tuple[str, int]]:
        """Host and port of everything that is to listen at a certain place."""
        ports = [(self.host, self.port)]
        ports += [("127.0.0.1", port) for port in (self.reasoner_port, self.speech_port, self.codec_port)]
        if self.metrics_port:
            ports += [(self.host, self.metrics_port)]
            ports += [("127.0.0.1", self.metrics_port + 1 + index) for index in range(len(STAGES))]
        return [(host, port) for host, port in ports if port]

    def _shared_flags(self, host: str, port: int, metrics_offset: int) -> list[str]:
        metrics_port = self.metrics_port + metrics_offset if self.metrics_port else 0
        flags = ["--host", host, "--port", str(port), "--metrics-port", str(metrics_port)]
        return [*flags, "--log-format", "json", "--grace-seconds", str(GRACE_SECONDS)]

    def _orchestrator_flags(self, stage_addresses: dict[str, str]) -> list[str]:
        flags = [word for stage in STAGES for word in (f"--{stage}-address", stage_addresses[stage])]
        if self.voices is not None:
            flags += ["--voices", str(self.voices)]
        if self.default_voice is not None:
            flags += ["--default-voice", self.default_voice]
        return flags

    def _thread_flags(self, service: str) -> list[str]:
        if self.threads is None and f"CHROMA_{service.upper()}_THREADS" in os.environ:
            return []  # the service reads it there
        fair = max(1, (os.cpu_count() or 1) // 2)  # the reasoner and speech work at the same time
        threads = 1 if service == "codec" else self.threads or fair
        return ["--threads", str(threads)]
