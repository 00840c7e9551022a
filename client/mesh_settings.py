"""How the mesh of this machine is to run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from client.errors import InputError

STAGES = ("reasoner", "speech", "codec")
SERVICES = (*STAGES, "orchestrator")
GATEWAY = "gateway"
"""In front of the orchestrators, where a mesh is to speak HTTP."""

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

    `replicas` says how many processes a service has, where it is not one; further ones take the ports after the first
    one's. `host` and `port` are the orchestrator's; the stages listen on 127.0.0.1 only. `metrics_port` is the
    orchestrator's, the reasoner, speech, codec and gateway take those after it. `http_port` is the gateway's, which
    listens where the orchestrator does; None: there is no gateway. `threads` is for each process of the reasoner
    and of speech. `memory_gib` is what all stages may take together, in GiB. `journal` is where sessions
    are kept, which several orchestrators need.
    """

    checkpoint: str = "mini"
    device: Device = Device.AUTO
    dtype: DType = DType.AUTO
    placement: Placement = Placement.SEPARATE
    replicas: Mapping[str, int] = field(default_factory=dict)
    slots: int | None = None
    memory_gib: float | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    reasoner_port: int = 0
    speech_port: int = 0
    codec_port: int = 0
    metrics_port: int = 0
    http_port: int | None = None
    voices: Path | None = None
    default_voice: str | None = None
    journal: str | None = None

    def __post_init__(self) -> None:
        if self.placement is Placement.COLOCATED and any(self.replica_count(stage) > 1 for stage in STAGES):
            raise InputError("several replicas of a stage need a process for each: give --placement separate")
        has_journal = self.journal is not None or "CHROMA_ORCHESTRATOR_JOURNAL" in os.environ
        if self.replica_count("orchestrator") > 1 and not has_journal:
            raise InputError(
                "several orchestrators need a journal, or a session ends with the one that it is at: give --journal "
                "with a file or redis://host:port/db"
            )

    @property
    def stage_processes(self) -> dict[str, tuple[str, ...]]:
        """The stages of each process that holds any, by the process's module."""
        match self.placement:
            case Placement.SEPARATE:
                return {stage: (stage,) for stage in STAGES}
            case Placement.COLOCATED:
                return {"colocated": STAGES}

    def replica_count(self, service: str) -> int:
        """Processes of a service, or of the module that holds several."""
        return self.replicas.get(service, 1)

    def replica_name(self, service: str, index: int) -> str:
        """What one of a service's replicas is called: like the service if it is the only one."""
        return service if self.replica_count(service) == 1 else f"{service}-{index}"

    def flags(
        self, process: str, stage_addresses: Mapping[str, str], index: int = 0, ports: Mapping[str, int] | None = None
    ) -> list[str]:
        """The command line flags of a process: the gateway's, an orchestrator's, or those of one that holds stages.

        `stage_addresses` are those of what it calls: stages, or orchestrators. `index` counts the replicas of the same
        service. `ports` are those that it had before, as "port" and "metrics-port", each behind "<stage>-" where the
        process holds several.
        """
        if process == "orchestrator":
            flags = [*self._shared_flags(self.host), *self._listening_flags("", process, index)]
            flags += self._orchestrator_flags(stage_addresses)
        elif process == GATEWAY:
            flags = [*self._shared_flags(self.host), *self._listening_flags("", process, index)]
            flags += ["--orchestrator-address", stage_addresses["orchestrator"]]
        else:
            flags = [*self._shared_flags("127.0.0.1"), "--checkpoint", self.checkpoint, "--device", self.device]
            if process != "codec":
                flags += ["--dtype", self.dtype]
            if self.slots is not None:
                flags += ["--slots", str(self.slots)]
            for stage in self.stage_processes[process]:
                prefix = "" if process == stage else f"{stage}-"
                flags += self._listening_flags(prefix, stage, index)
                flags += self._thread_flags(prefix, stage)
                flags += self._memory_flags(prefix, stage)
        for name, port in (ports or {}).items():
            flags[flags.index(f"--{name}") + 1] = str(port)
        return flags

    @property
    def fixed_addresses(self) -> list[tuple[str, int]]:
        """Host and port of everything that is to listen at a certain place."""
        services = SERVICES if self.http_port is None else (*SERVICES, GATEWAY)
        replicas = [(service, index) for service in services for index in range(self.replica_count(service))]
        places = [
            ("127.0.0.1" if service in STAGES else self.host, port)
            for service, index in replicas
            for port in (self._port(service, index), self._metrics_port(service, index))
        ]
        return [(host, port) for host, port in places if port]

    def _port(self, service: str, index: int) -> int:
        first = {
            "orchestrator": self.port,
            "reasoner": self.reasoner_port,
            "speech": self.speech_port,
            "codec": self.codec_port,
            GATEWAY: self.http_port or 0,
        }[service]
        return first + index if first else 0

    def _metrics_port(self, service: str, index: int) -> int:
        order = ("orchestrator", *STAGES, GATEWAY)
        before = sum(self.replica_count(other) for other in order[: order.index(service)])
        return self.metrics_port + before + index if self.metrics_port else 0

    def _shared_flags(self, host: str) -> list[str]:
        return ["--host", host, "--log-format", "json", "--grace-seconds", str(GRACE_SECONDS)]

    def _listening_flags(self, prefix: str, service: str, index: int) -> list[str]:
        ports = {"port": self._port(service, index), "metrics-port": self._metrics_port(service, index)}
        return [word for name, port in ports.items() for word in (f"--{prefix}{name}", str(port))]

    def _orchestrator_flags(self, stage_addresses: Mapping[str, str]) -> list[str]:
        flags = [word for stage in STAGES for word in (f"--{stage}-address", stage_addresses[stage])]
        if (count := self.replica_count("orchestrator")) > 1:
            flags += ["--orchestrator-count", str(count)]
        if self.voices is not None:
            flags += ["--voices", str(self.voices)]
        if self.default_voice is not None:
            flags += ["--default-voice", self.default_voice]
        if self.journal is not None:
            flags += ["--journal", self.journal]
        return flags

    def _thread_flags(self, prefix: str, stage: str) -> list[str]:
        if self.threads is None and f"CHROMA_{stage.upper()}_THREADS" in os.environ:
            return []  # the service reads it there
        # The reasoner and speech work at the same time, and so do their replicas.
        fair = max(1, (os.cpu_count() or 1) // (self.replica_count("reasoner") + self.replica_count("speech")))
        threads = 1 if stage == "codec" else self.threads or fair
        return [f"--{prefix}threads", str(threads)]

    def _memory_flags(self, prefix: str, stage: str) -> list[str]:
        share = MEMORY_SHARES[stage] / self.replica_count(stage)
        if self.memory_gib is not None:
            return [f"--{prefix}memory-gib", f"{self.memory_gib * share / sum(MEMORY_SHARES.values()):.6g}"]
        if f"CHROMA_{stage.upper()}_MEMORY_SHARE" in os.environ:
            return []  # the service reads it there
        return [f"--{prefix}memory-share", f"{share:.6g}"]


def read_replicas(text: str) -> dict[str, int]:
    """How many processes each service has, of "speech=2,codec=2"; InputError for anything else."""
    replicas = {}
    for part in text.split(","):
        service, _, count = part.partition("=")
        if service not in SERVICES or not count.isascii() or not count.isdigit() or not 1 <= int(count) <= 64:
            raise InputError(
                f"--replicas must be as speech=2,codec=2, of {', '.join(SERVICES)} with 1 to 64 each, got {part!r}"
            )
        replicas[service] = int(count)
    return replicas
