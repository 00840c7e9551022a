"""What the benchmark needs beyond the client."""

import importlib.util

from client.errors import ClientError

PACKAGES = ("matplotlib", "psutil")


def check_bench_installed() -> None:
    """Refuses to measure where only the client is installed."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ClientError(f"the benchmark cannot run without {', '.join(missing)}: pip install 'chroma-mesh[bench]'")
