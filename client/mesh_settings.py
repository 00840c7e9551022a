"""How the mesh of this machine is to run."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

STAGES = ("reasoner", "speech", "codec")
SERVICES = (*STAGES, "orchestrator")
GRACE_SECONDS = 5
"""What open streams get to finish when the mesh is stopped."""

MEMORY_SHARES = {"reasoner": 0.55, "speech": 0.23, "codec": 0.12}
"""Parts of a device's memory for stages that share it, in proportion to what the published model's take with one slot;
the rest is for libraries, which every process loads."""


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


class Placement(StrEnum):
    """Processes of the stages: one each, or one for all three, which then need not take turns on a GPU."""

    SEPARATE = "separate"
    COLOCATED = "colocated"


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How to run a mesh; None leaves a setting to the service, ports of 0 are any free ones.

    `host` and `port` are the orchestrator's; the stages listen on 127.0.0.1 only. `metrics_port` is the orchestrator's,
    the reasoner, speech and codec take the three after it. `threads` is for the reasoner and for speech.
    `memory_gib` is what the three stages may take together, in GiB.
    """

    checkpoint: str = "random:tiny"
    device: Device = Device.AUTO
    dtype: DType = DType.AUTO
    placement: Placement = Placement.SEPARATE
    slots: int | None = None
    memory_gib: float | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    reasoner_port: int = 0
    speech_port: int = 0
    codec_port: int = 0
    metrics_port: int = 0
    voices: Path | None = None
    default_voice: str | None = None

    @property
    def stage_processes(self) -> dict[str, tuple[str, ...]]:
        """The stages of each process that holds any, by the process's module."""
        match self.placement:
            case Placement.SEPARATE:
                return {stage: (stage,) for stage in STAGES}
            case Placement.COLOCATED:
                return {"colocated": STAGES}

    def flags(self, process: str, stage_addresses: dict[str, str]) -> list[str]:
        """The command line flags of a process: the orchestrator's, or those of one that holds stages."""
        if process == "orchestrator":
            own = [*self._listening_flags("", self.port, 0), *self._orchestrator_flags(stage_addresses)]
            return [*self._shared_flags(self.host), *own]
        flags = [*self._shared_flags("127.0.0.1"), "--checkpoint", self.checkpoint, "--device", self.device]
        if process != "codec":
            flags += ["--dtype", self.dtype]
        if self.slots is not None:
            flags += ["--slots", str(self.slots)]
        for stage in self.stage_processes[process]:
            prefix = "" if process == stage else f"{stage}-"
            flags += self._listening_flags(prefix, self._stage_port(stage), 1 + STAGES.index(stage))
            flags += self._thread_flags(prefix, stage)
            flags += self._memory_flags(prefix, stage)
        return flags

    @property
    def fixed_addresses(self) -> list[tuple[str, int]]:
        """Host and port of everything that is to listen at a certain place."""
        ports = [(self.host, self.port)]
        ports += [("127.0.0.1", self._stage_port(stage)) for stage in STAGES]
        if self.metrics_port:
            ports += [(self.host, self.metrics_port)]
            ports += [("127.0.0.1", self.metrics_port + 1 + index) for index in range(len(STAGES))]
        return [(host, port) for host, port in ports if port]

    def _stage_port(self, stage: str) -> int:
        return {"reasoner": self.reasoner_port, "speech": self.speech_port, "codec": self.codec_port}[stage]

    def _shared_flags(self, host: str) -> list[str]:
        return ["--host", host, "--log-format", "json", "--grace-seconds", str(GRACE_SECONDS)]

    def _listening_flags(self, prefix: str, port: int, metrics_offset: int) -> list[str]:
        metrics_port = self.metrics_port + metrics_offset if self.metrics_port else 0
        return [f"--{prefix}port", str(port), f"--{prefix}metrics-port", str(metrics_port)]

    def _orchestrator_flags(self, stage_addresses: dict[str, str]) -> list[str]:
        flags = [word for stage in STAGES for word in (f"--{stage}-address", stage_addresses[stage])]
        if self.voices is not None:
            flags += ["--voices", str(self.voices)]
        if self.default_voice is not None:
            flags += ["--default-voice", self.default_voice]
        return flags

    def _thread_flags(self, prefix: str, stage: str) -> list[str]:
        if self.threads is None and f"CHROMA_{stage.upper()}_THREADS" in os.environ:
            return []  # the service reads it there
        fair = max(1, (os.cpu_count() or 1) // 2)  # the reasoner and speech work at the same time
        threads = 1 if stage == "codec" else self.threads or fair
        return [f"--{prefix}threads", str(threads)]

    def _memory_flags(self, prefix: str, stage: str) -> list[str]:
        share = MEMORY_SHARES[stage]
        if self.memory_gib is not None:
            return [f"--{prefix}memory-gib", f"{self.memory_gib * share / sum(MEMORY_SHARES.values()):.6g}"]
        if f"CHROMA_{stage.upper()}_MEMORY_SHARE" in os.environ:
            return []  # the service reads it there
        return [f"--{prefix}memory-share", str(share)]
