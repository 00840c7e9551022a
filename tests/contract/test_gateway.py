"""The gateway's own pages over a real HTTP server: health, models, errors, limits, keys."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import Gateway, running_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    mesh = Mesh()
    async with mesh.running(), running_gateway(mesh.address) as gateway:
        yield gateway


async def test_health_and_readiness(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json() == {"status": "ready"}
        assert (await client.get("/metrics")).status_code == 200


async def test_there_is_one_model(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["chroma-4b"]
        assert (await client.get("/v1/models/chroma-4b")).json() == listed["data"][0]
        missing = await client.get("/v1/models/gpt")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_a_large_body_is_refused_before_it_has_come(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/v1/models", content=b"x" * (33 * 1024 * 1024))
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert (await client.get("/health")).status_code == 200
