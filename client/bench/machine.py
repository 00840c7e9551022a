"""The machine that a benchmark ran on."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from client.bench.gpu_memory import GpuCard, gpu_cards

PACKAGES = ("chroma-mesh", "grpcio", "protobuf", "numpy", "torch", "transformers")
SETTING_PREFIXES = ("CHROMA_REASONER_", "CHROMA_SPEECH_", "CHROMA_CODEC_", "OMP_", "MKL_", "CUDA_VISIBLE_DEVICES")
"""Environment variables that change how fast a stage is."""


@dataclass(frozen=True)
class Machine:
    """What figures depend on; of the machine that ran the command, which need not be the mesh's."""

    system: str
    cpu: str
    core_count: int
    usable_core_count: int
    memory_bytes: int
    python: str
    versions: dict[str, str]
    environment: dict[str, str]
    gpus: list[GpuCard]


async def this_machine() -> Machine:
    """The facts of the machine that this runs on."""
    return Machine(
        system=platform.platform(),
        cpu=cpu_name(),
        core_count=os.cpu_count() or 1,
        usable_core_count=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0,
        memory_bytes=psutil.virtual_memory().total,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions={package: version for package in PACKAGES if (version := version_of(package))},
        environment={name: value for name, value in os.environ.items() if name.startswith(SETTING_PREFIXES)},
        gpus=await gpu_cards(),
    )


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The CPU's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()
