"""`chroma-mesh checkpoint`: random weights."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.supervisor import check_server_installed


def checkpoint(
    spec: Annotated[str, typer.Argument(help="random:tiny, random:small or random:chroma-4b, optionally with :SEED.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write a random checkpoint in the published layout."""
    check_server_installed()
    command = [sys.executable, "-P", "-m", "services.checkpoints", spec, "--out", str(out)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
