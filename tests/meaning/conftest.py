"""Real meshes on the miniature, which is what `chroma-mesh up` runs unasked."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import RealMesh, cli, start_mesh, stop_mesh

__all__ = ["cli"]


@pytest.fixture(scope="session")
def mesh() -> Iterator[RealMesh]:
    """A running mesh, for tests that leave it as it is."""
    mesh = start_mesh()
    try:
        yield mesh
    finally:
        stop_mesh(mesh)


@pytest.fixture
def own_mesh() -> Iterator[RealMesh]:
    """A running mesh that the test may break."""
    mesh = start_mesh()
    try:
        yield mesh
    finally:
        stop_mesh(mesh)
