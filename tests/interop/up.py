"""A mesh that `chroma-mesh up` runs, with its gateway."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOP_SECONDS = 60
ADDRESSES = re.compile(r"mesh is ready at ([\d.:]+).*HTTP, [^\n]*(http://\S+)", re.DOTALL)


@dataclass(frozen=True)
class RunningMesh:
    """`url` is the base URL of OpenAI's clients, `address` where the orchestrator listens."""

    url: str
    address: str


@contextmanager
def running_mesh(*arguments: str) -> Iterator[RunningMesh]:
    """Runs a mesh on any free ports within the block."""
    words = [sys.executable, "-m", "client", "up", "--port", "0", "--http-port", "0", "--device", "cpu"]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*words, "--threads", "1", *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            while not (found := ADDRESSES.search(told)):
                line = process.stdout.readline()
                assert line, "the mesh did not start"
                told += line
            yield RunningMesh(address=found[1], url=found[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=STOP_SECONDS)
