"""The probes beside the metrics: the loop turns, and the service serves."""

import asyncio
from http import HTTPStatus
from threading import Event
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.runtime import probe as probe_module
from services.runtime.metrics import serve_metrics
from services.runtime.probe import Probe
from services.runtime.server import running
from services.runtime.settings import ServiceSettings


def status(port: int, path: str) -> int:
    """The status of a GET."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return int(answer.status)
    except HTTPError as refusal:
        refusal.close()
        return refusal.code


@pytest.mark.parametrize(("is_serving", "ready"), [(True, HTTPStatus.OK), (False, HTTPStatus.SERVICE_UNAVAILABLE)])
async def test_a_service_is_ready_while_it_serves_and_healthy_in_any_case(is_serving: bool, ready: int) -> None:
    with serve_metrics(CollectorRegistry(), "127.0.0.1", 0, Probe(lambda: is_serving)) as port:
        assert await asyncio.to_thread(status, port, "/ready") == ready
        assert await asyncio.to_thread(status, port, "/health") == HTTPStatus.OK


async def test_a_loop_that_hangs_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "ANSWER_SECONDS", 0.01)
    asked, answers = Event(), []
    probe = Probe(lambda: True)

    def ask() -> None:
        answers.extend([probe("/ready"), probe("/health")])
        asked.set()

    asking = asyncio.get_running_loop().run_in_executor(None, ask)
    assert asked.wait(60)  # the loop stands still meanwhile
    await asking
    assert answers == [HTTPStatus.SERVICE_UNAVAILABLE] * 2


async def test_other_paths_have_the_metrics() -> None:
    registry = CollectorRegistry()
    Counter("heard", "Sounds.", registry=registry).inc()

    def scrape(port: int) -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())

    with serve_metrics(registry, "127.0.0.1", 0, Probe(lambda: True)) as port:
        assert "heard_total 1.0" in await asyncio.to_thread(scrape, port)


async def test_a_service_is_ready_once_it_is_prepared() -> None:
    may_load = asyncio.Event()

    async def nothing() -> None:
        pass

    async with running(
        stage="stage",
        settings=ServiceSettings(),
        add=lambda _: None,
        services=[],
        prepare=may_load.wait,
        close=nothing,
        registry=CollectorRegistry(),
        wait_ready=False,
    ) as server:
        port = server.metrics_port
        assert await asyncio.to_thread(status, port, "/ready") == HTTPStatus.SERVICE_UNAVAILABLE
        assert await asyncio.to_thread(status, port, "/health") == HTTPStatus.OK
        may_load.set()
        await server.prepared
        assert await asyncio.to_thread(status, port, "/ready") == HTTPStatus.OK
