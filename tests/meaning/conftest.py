"""Real meshes on the miniature that is shipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import mini
from tests.integration.conftest import RealMesh, cli, start_mesh, stop_mesh

__all__ = ["cli"]

CHECKPOINT = Path(mini.__file__).parent / "checkpoint"


@pytest.fixture(scope="session")
def mesh() -> Iterator[RealMesh]:
    """A running mesh, for tests that leave it as it is."""
    mesh = start_mesh("--checkpoint", str(CHECKPOINT))
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


@pytest.fixture
def own_mesh() -> Iterator[RealMesh]:
    """A running mesh that the test may break."""
    mesh = start_mesh("--checkpoint", str(CHECKPOINT))
    try:
        yield mesh
    finally:
        stop_mesh(mesh)
