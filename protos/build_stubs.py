"""Makes the Python stubs under generated/ from the protos; runs when the project is built or installed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent


def build_stubs() -> None:
    """Writes generated/chroma_mesh with one importable package for each proto package."""
    source, target = ROOT / "protos", ROOT / "generated"
    target.mkdir(exist_ok=True)
    protos = sorted(str(path.relative_to(source)) for path in source.rglob("*.proto"))
    flags = [f"--proto_path={source}", *(f"--{kind}={target}" for kind in ("python_out", "pyi_out", "grpc_python_out"))]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *protos], check=True)
    package = target / "chroma_mesh"
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir() and path.name != "__pycache__")):
        (folder / "__init__.py").touch()


class StubsHook(BuildHookInterface[Any]):
    """hatchling calls this before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Runs protoc."""
        build_stubs()


if __name__ == "__main__":
    build_stubs()
