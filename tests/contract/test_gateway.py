"""The gateway's own pages over a real HTTP server: health, models, errors, limits, keys, the drain."""

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from websockets.asyncio.client import connect

from tests.contract.certificates import Authority, replace
from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.keyed_mesh import keyed_mesh

HELLO = {"model": "chroma-4b", "messages": [{"role": "user", "content": "a secret word"}]}


async def test_health_and_readiness(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json() == {"status": "ready"}
        assert (await client.get("/metrics")).status_code == 200


async def test_there_is_one_model(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["chroma-4b"]
        assert (await client.get("/v1/models/chroma-4b")).json() == listed["data"][0]
        missing = await client.get("/v1/models/gpt")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_a_large_body_is_refused_before_it_has_come(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/v1/models", content=b"x" * (33 * 1024 * 1024))
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert (await client.get("/health")).status_code == 200


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_what_no_route_takes_is_refused_in_the_same_form(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        for method, path, status, code, allow in (
            ("GET", "/v1/none", 404, "unknown_url", None),
            ("GET", "/v1/../none\u00e9", 404, "unknown_url", None),
            ("PUT", "/v1/models", 405, "method_not_allowed", "GET"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
            ("PUT", "/v1/audio/voices/ash", 405, "method_not_allowed", "GET, DELETE"),
        ):
            answer = await client.request(method, path)
            error = error_of(answer)
            assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
            assert answer.headers.get("allow") == allow
            assert answer.headers["x-request-id"].startswith("req_")


async def test_a_body_of_very_many_values_is_refused_before_it_is_read(gateway: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, headers={"Content-Type": "application/json"}) as client:
        many = b'{"messages": [' + b"[]," * 5_000_000 + b"0]}"
        answer = await client.post("/v1/chat/completions", content=many)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


async def test_a_request_that_does_not_come_is_given_up() -> None:
    async with running_gateway("127.0.0.1:1", body_seconds=0.1) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.address.split(":"))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        head = await reader.readuntil(b"\r\n")
        writer.close()
        assert b"408" in head


async def test_a_mesh_that_is_not_there_is_told(gateway: Gateway) -> None:
    async with running_gateway("127.0.0.1:1") as alone, httpx2.AsyncClient(base_url=alone.url) as client:
        assert (await client.get("/health")).status_code == 200
        for answer in (
            await client.get("/ready"),
            await client.get("/v1/models"),
            await client.post("/v1/chat/completions", json=HELLO),
            await client.post("/v1/chat/completions", json={**HELLO, "stream": True}),
        ):
            assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in answer.text


async def test_who_has_no_place_is_told_when_to_try_again() -> None:
    async with (
        Mesh().running(session_limit=1) as mesh,
        running_gateway(mesh.address) as gateway,
        mesh.converse(),
        httpx2.AsyncClient(base_url=gateway.url) as client,
    ):
        answer = await client.post("/v1/chat/completions", json=HELLO)
        error = error_of(answer)
        assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "sessions_in_use")
        assert int(answer.headers["retry-after"]) >= 1


async def test_keys_are_asked_for_and_passed_on(tmp_path: Path) -> None:
    async with keyed_mesh(tmp_path) as mesh, running_gateway(mesh.address) as gateway:
        key = mesh.keys.secrets["alice"]
        async with httpx2.AsyncClient(base_url=gateway.url) as client:
            for header, status in (
                (None, 401),
                (f"Bearer {key}x", 401),
                ("Bearer", 401),
                (f"Basic {key}", 401),
                (f"bearer  {key}", 200),
                (f"Bearer {key}", 200),
            ):
                headers = {} if header is None else {"Authorization": header}
                for answer in (
                    await client.get("/v1/models", headers=headers),
                    await client.post("/v1/chat/completions", json={**HELLO, "return_audio": False}, headers=headers),
                ):
                    assert answer.status_code == status, header
                    if status == 401:
                        assert error_of(answer)["type"] == "authentication_error"
            assert (await client.get("/health")).status_code == 200


async def test_it_serves_over_tls_with_the_certificate_as_it_is_now(mesh: Mesh, tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    shown = old.issue("gateway")
    async with running_gateway(mesh.address, tls_certificate=shown.certificate, tls_key=shown.key) as gateway:

        async def ask(authority: Authority) -> int:
            trusted = ssl.create_default_context(cafile=authority.ca)
            async with httpx2.AsyncClient(base_url=gateway.url, verify=trusted) as client:
                return (await client.get("/health")).status_code

        assert await ask(old) == 200
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(new)
        fresh = new.issue("gateway")
        replace(shown.key, fresh.key.read_bytes())
        replace(shown.certificate, fresh.certificate.read_bytes())
        assert await ask(new) == 200
        trusted = ssl.create_default_context(cafile=new.ca)
        async with connect(f"{gateway.socket_url}/v1/realtime", ssl=trusted) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"


async def test_a_callers_trace_goes_on_in_the_mesh(gateway: Gateway, mesh: Mesh) -> None:
    trace = "0af76519" * 4
    parent = f"00-{trace}-{'b7' * 8}-01"
    request = {"model": "chroma-4b", "messages": [{"role": "user", "content": "hello"}]}
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/v1/chat/completions", json=request, headers={"traceparent": parent})
    assert answer.status_code == 200
    traces = {heard.metadata["traceparent"].split("-")[1] for heard in mesh.reasoner.heard}
    assert traces == {trace}


async def test_pages_from_elsewhere_may_call_only_where_that_is_set(gateway: Gateway) -> None:
    preflight = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    origin = {"Origin": "https://app.example"}
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        assert (await client.options("/v1/chat/completions", headers=preflight)).status_code == 405
        answer = await client.get("/v1/models", headers=origin)
        assert "access-control-allow-origin" not in answer.headers
        form, file = {"name": "mine", "transcript": "me"}, {"file": ("a.wav", b"")}
        for headers, status in ((origin, 403), ({"Origin": "null"}, 403), ({"Origin": gateway.url}, 400), ({}, 400)):
            answer = await client.post("/v1/audio/voices", data=form, files=file, headers=headers)
            assert (answer.status_code, bool(error_of(answer)["message"])) == (status, True)
    address = gateway.front.settings.orchestrator_address
    async with (
        running_gateway(address, cors_origins=["https://app.example"]) as open_one,
        httpx2.AsyncClient(base_url=open_one.url) as client,
    ):
        answer = await client.options("/v1/chat/completions", headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin["Origin"])
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
        refused = await client.post("/v1/chat/completions", json={}, headers=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, origin["Origin"])
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
        other = await client.get("/v1/models", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_request_is_a_line_with_ids_and_no_content_and_is_counted(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(route: str, method: str, status: int) -> float | None:
        labels = {"route": route, "method": method, "status": str(status)}
        return gateway.front.registry.get_sample_value("chroma_gateway_requests_total", labels)

    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with httpx2.AsyncClient(base_url=gateway.url) as client:
            answer = await client.post("/v1/chat/completions?api_key=secret", json=HELLO, headers={"X-A": "secret"})
            assert answer.status_code == 200
            await client.get("/secret/path")
            await client.get("/v1/models/secret")
            await client.request("PURGE", "/v1/models")
            await client.get("/health")
            metrics = (await client.get("/metrics")).text
    told = [line for line in lines if line["event"] == "request"]
    assert [line["route"] for line in told] == ["/v1/chat/completions", None, "/v1/models/{model}", "/v1/models"]
    assert (told[0]["status"], told[0]["method"]) == (200, "POST")
    assert told[0]["request_id"] == answer.headers["x-request-id"]
    (opened,) = (line["session_id"] for line in lines if line["event"] == "session opened")
    assert told[0]["session_id"] == opened
    assert "secret" not in json.dumps(lines, default=str)
    assert "secret" not in metrics
    assert count("/v1/chat/completions", "POST", 200) == count("other", "GET", 404) == 1
    assert count("/v1/models/{model}", "GET", 404) == count("/v1/models", "other", 405) == 1
    first_audio = "chroma_gateway_first_audio_seconds_count"
    assert gateway.front.registry.get_sample_value(first_audio, {"way": "chat"}) == 1
    assert gateway.front.registry.get_sample_value("chroma_gateway_requests_in_progress") == 0


async def test_an_error_of_ours_is_told_in_the_same_form(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("services.gateway.front.Front.mesh", fail)
    with structlog.testing.capture_logs() as lines:
        async with httpx2.AsyncClient(base_url=gateway.url) as client:
            answer = await client.get("/v1/models")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    assert [line["event"] for line in lines] == ["request failed", "request"]


async def test_the_openapi_document_is_true(gateway: Gateway, tmp_path: Path) -> None:
    """The configuration says what it is not asked, for a document cannot say it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", Path(__file__).with_name("schemathesis.toml"),
        "run", f"{gateway.url}/openapi.json", "--max-examples", "2", "--warnings", "off", "--no-color",
        "--suppress-health-check", "all", "--generation-database", "none",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_a_process_that_is_told_to_stop_finishes_its_streams() -> None:
    """And takes no others, whose clients are told to go elsewhere."""
    gate = asyncio.Event()

    async def hold(index: int) -> None:
        if index >= 4:
            await gate.wait()

    async with Mesh().running() as mesh:
        mesh.codec.hook = hold
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", "--orchestrator-address", mesh.address,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said: dict[str, Any] = {}
            while said.get("event") != "listening":
                said = json.loads(await process.stdout.readline())
            url = f"http://{said['address']}"
            async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
                body = {**HELLO, "stream": True, "modalities": ["text", "audio"]}
                async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                    lines = stream.aiter_lines()
                    while "data" not in await anext(lines):
                        pass
                    process.send_signal(signal.SIGTERM)
                    while (await client.get("/ready")).status_code == 200:
                        pass
                    refused = await client.post("/v1/chat/completions", json=HELLO)
                    assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
                    assert "retry-after" in refused.headers
                    assert (await client.get("/health")).status_code == 200
                    gate.set()
                    rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
