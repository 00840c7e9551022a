"""A real mesh: four processes on the golden checkpoint, once for all tests that only talk to it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
START_SECONDS = 180
STOP_SECONDS = 60
SERVICE_LINE = re.compile(r"(\w+) +pid (\d+)  ready at (\S+) after \S+ s, metrics at (\S+)")

Cli = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    """The words that run `chroma-mesh`."""
    return [sys.executable, "-m", "client", *arguments]


@dataclass(frozen=True)
class RealService:
    """A service of a running mesh."""

    pid: int
    address: str
    metrics_address: str


@dataclass(frozen=True)
class RealMesh:
    """A mesh that `chroma-mesh up` keeps running, and its services by name."""

    process: subprocess.Popen[str]
    address: str
    services: dict[str, RealService]


def start_mesh(*arguments: str, **environment: str) -> RealMesh:
    """Starts `chroma-mesh up`, with these variables in its environment, and waits until the mesh is ready."""
    process = subprocess.Popen(
        command(
            "up",
            "--port",
            "0",
            "--http-port",
            "0",
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--threads",
            "1",
            *arguments,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
    )
    assert process.stdout is not None
    services = {}
    for line in process.stdout:
        if match := SERVICE_LINE.match(line):
            services[match[1]] = RealService(int(match[2]), match[3], match[4])
        if line.startswith("The mesh is ready at "):
            return RealMesh(process, line.split()[-1], services)
    _, err = process.communicate(timeout=STOP_SECONDS)
    raise AssertionError(f"the mesh did not start: {err}")


def stop_mesh(mesh: RealMesh) -> None:
    """Stops a mesh whatever its state."""
    mesh.process.send_signal(signal.SIGTERM)
    try:
        mesh.process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        mesh.process.kill()  # its services end with it
        mesh.process.communicate()
        raise


@pytest.fixture(scope="session")
def mesh() -> Iterator[RealMesh]:
    """A running mesh on the golden checkpoint in float32, for tests that leave it as it is."""
    mesh = start_mesh("--checkpoint", str(GOLDEN / "checkpoint"))
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


@pytest.fixture
def own_mesh() -> Iterator[RealMesh]:
    """A running mesh that the test may break."""
    mesh = start_mesh("--checkpoint", str(GOLDEN / "checkpoint"))
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


@pytest.fixture(scope="session")
def colocated_mesh() -> Iterator[RealMesh]:
    """As `mesh`, with all stages in one process."""
    mesh = start_mesh("--checkpoint", str(GOLDEN / "checkpoint"), "--placement", "colocated")
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


@pytest.fixture
def golden() -> Path:
    """The golden checkpoint and its cases."""
    return GOLDEN


@pytest.fixture
def cli() -> Cli:
    """Runs `chroma-mesh` to its end: `cli("voices", "--address", address)`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=START_SECONDS, check=False
        )

    return run
