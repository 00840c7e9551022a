"""What the evaluation needs beyond the client."""

import importlib.util

from client.errors import ClientError

PACKAGES = ("matplotlib", "pocketsphinx", "psutil", "resemblyzer")


def check_evaluate_installed() -> None:
    """Refuses to ask anything where nothing could judge the answers."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ClientError(
            f"the evaluation cannot run without {', '.join(missing)}: pip install 'chroma-mesh[evaluate]'"
        )
