"""The gateway's own spans: requests above the turns that they ask for, responses of a socket below theirs."""

import asyncio
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from services.runtime.tracing import Span
from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import running_gateway
from tests.contract.realtime_socket import open_socket
from tests.contract.test_tracing import PARENT, Collector, Recorder, attributes, collecting

HELLO: dict[str, Any] = {"model": "chroma-4b", "messages": [{"role": "user", "content": "hello"}]}
TRACE_ID, PARENT_ID = PARENT.split("-")[1:3]
SERVER = trace_pb2.Span.SPAN_KIND_SERVER


async def ask(url: str, *, traceparent: str | None = None, body: dict[str, Any] = HELLO) -> httpx2.Response:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
        for path in ("/health", "/metrics"):
            await client.get(path)
        return await client.post("/v1/chat/completions", json=body)


def only(collector: Collector) -> trace_pb2.Span:
    ((service, span),) = collector.services
    assert service == "gateway"
    return span


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("traceparent", [None, PARENT])
async def test_a_request_is_a_span_and_its_turn_is_below_it(is_streamed: bool, traceparent: str | None) -> None:
    recorder = Recorder()
    async with collecting() as (collector, endpoint), Mesh().running(writer=recorder) as mesh:
        async with running_gateway(mesh.address, otlp_endpoint=endpoint) as gateway:
            answer = await ask(gateway.url, traceparent=traceparent, body={**HELLO, "stream": is_streamed})
        await mesh.until_quiet()
    request, turn = only(collector), recorder.turn()
    assert (request.name, request.kind) == ("request", SERVER)
    assert attributes(request) == {
        "chroma.request_id": answer.headers["x-request-id"],
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }
    assert [event.name for event in request.events] == ["first_audio"]
    assert request.parent_span_id.hex() == ("" if traceparent is None else PARENT_ID)
    assert turn.parent is not None
    assert (turn.parent.trace_id, turn.parent.span_id) == (request.trace_id.hex(), request.span_id.hex())
    assert traceparent is None or turn.context.trace_id == TRACE_ID


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_request_that_the_mesh_fails_says_so(is_streamed: bool) -> None:
    async with (
        collecting() as (collector, endpoint),
        running_gateway("127.0.0.1:1", otlp_endpoint=endpoint) as gateway,
    ):
        answer = await ask(gateway.url, body={**HELLO, "stream": is_streamed})
    assert answer.status_code == 503
    request = only(collector)
    assert attributes(request)["http.response.status_code"] == 503
    assert request.status.message == "status 503"


async def test_the_gateway_chooses_which_requests_are_traced_unless_their_caller_does() -> None:
    recorder = Recorder()
    async with collecting() as (collector, endpoint), Mesh().running(writer=recorder) as mesh:
        async with running_gateway(mesh.address, otlp_endpoint=endpoint, trace_ratio=0) as gateway:
            assert (await ask(gateway.url)).status_code == 200
            assert (await ask(gateway.url, traceparent=PARENT.removesuffix("01") + "00")).status_code == 200
            await mesh.until_quiet()
            assert not recorder.spans, "what the gateway does not choose, the orchestrator does not either"
            assert (await ask(gateway.url, traceparent=PARENT)).status_code == 200
        await mesh.until_quiet()
    assert only(collector).trace_id.hex() == recorder.turn().context.trace_id == TRACE_ID


async def two_responses(url: str) -> list[str]:
    """The ids of the responses to two turns on one socket."""
    ids = []
    async with open_socket(url) as socket:
        for text in ("hello", "and again"):
            ids.append((await socket.ask(text))[-1]["response"]["id"])
    return ids


def are_below(collector: Collector, turns: list[Span]) -> None:
    for (service, response), turn in zip(collector.services, turns, strict=True):
        assert service == "gateway"
        assert (response.name, response.kind) == ("response", SERVER)
        assert response.trace_id.hex() == turn.context.trace_id
        assert response.parent_span_id.hex() == turn.context.span_id
        assert [event.name for event in response.events] == ["first_audio"]
        assert attributes(response)["chroma.reason"] == "stop"


async def test_a_response_of_a_socket_is_a_span_of_the_trace_of_its_turn() -> None:
    recorder = Recorder()
    async with collecting() as (collector, endpoint), Mesh().running(writer=recorder) as mesh:
        async with running_gateway(mesh.address, otlp_endpoint=endpoint) as gateway:
            ids = await two_responses(gateway.socket_url)
        await mesh.until_quiet()
    are_below(collector, recorder.spans)
    assert [attributes(span)["chroma.response_id"] for span in collector.spans] == ids
    assert len({span.trace_id for span in collector.spans}) == len(ids), "each turn is a trace"


async def test_a_turn_that_is_not_traced_has_no_span_of_the_gateway() -> None:
    recorder = Recorder(is_sampling=False)
    async with (
        collecting() as (collector, endpoint),
        Mesh().running(writer=recorder) as mesh,
        running_gateway(mesh.address, otlp_endpoint=endpoint) as gateway,
    ):
        await two_responses(gateway.socket_url)
    assert not collector.services


async def test_a_response_that_nobody_waits_for_any_more_ends_its_span() -> None:
    recorder = Recorder()
    async with collecting() as (collector, endpoint), Mesh().running(writer=recorder) as mesh:

        async def hold(index: int) -> None:
            if index == 3:
                await asyncio.Event().wait()

        mesh.codec.hook = hold
        async with running_gateway(mesh.address, otlp_endpoint=endpoint) as gateway:
            async with open_socket(gateway.socket_url) as socket:
                await socket.type("hello")
                await socket.send("response.create")
                await socket.until("response.output_audio.delta")
            await mesh.until_quiet()
    assert attributes(only(collector))["chroma.reason"] == "abandoned"
