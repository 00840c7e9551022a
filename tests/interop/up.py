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


@dataclass(frozen=True)
class RunningMesh:
    """`url` is the base URL of OpenAI's clients."""

    url: str


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
            urls = (match[1] for line in process.stdout if (match := re.search(r"HTTP, .*(http://\S+)", line)))
            url = next(urls, None)
            assert url is not None, "the mesh did not start"
            yield RunningMesh(url)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=STOP_SECONDS)
