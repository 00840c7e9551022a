"""`/v1/audio/voices` over a real HTTP server, with and without API keys."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
from openai import AsyncOpenAI

from client.connection import connect
from tests.conftest import BUILTIN_VOICES
from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import running_gateway
from tests.contract.keyed_mesh import keyed_mesh

NOBODY = "none"  # the client must have a key, the mesh asks for none


def example(seconds: float = 2, rate: int = 24_000, kind: str = "WAV") -> bytes:
    written = io.BytesIO()
    noise = np.random.default_rng(0).integers(-3000, 3000, round(seconds * rate), dtype=np.int16)
    soundfile.write(written, noise, rate, format=kind)
    return written.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_voices_come_are_used_and_go(tmp_path: Path) -> None:
    async with (
        Mesh().running() as mesh,
        running_gateway(mesh.address) as gateway,
        httpx2.AsyncClient(base_url=f"{gateway.url}/v1") as http,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=NOBODY) as openai,
        connect(mesh.address) as direct,
    ):
        listed = (await http.get("/audio/voices")).json()
        assert [voice["id"] for voice in listed["data"]] == [*BUILTIN_VOICES]
        assert (await http.get("/audio/voices/ash")).json() == listed["data"][0]

        new = {"name": "mine", "transcript": "it is me", "audio": f"data:audio/wav;base64,{in_base64(example())}"}
        made = (await http.post("/audio/voices", json=new)).json()
        assert (made["id"], made["name"], made["transcript"], made["example_seconds"]) == (
            "mine",
            "mine",
            "it is me",
            2,
        )
        assert (await http.post("/audio/voices", json=new)).status_code == 409

        form = {"name": "ours", "transcript": "it is us", "shared": "true"}
        flac = example(1.5, 48_000, "FLAC")
        made = (await http.post("/audio/voices", data=form, files={"file": ("a.flac", flac)})).json()
        assert (made["id"], made["example_seconds"]) == ("ours", 1.5)
        theirs = await openai.audio.voices.create(
            name="theirs", consent="cons_1", audio_sample=example(), extra_body={"transcript": "it is them"}
        )
        assert (theirs.id, theirs.object) == ("theirs", "audio.voice")

        assert {"mine", "ours", "theirs"} <= {voice.name for voice in await direct.voices()}
        answer = await http.post(
            "/chat/completions",
            json={
                "model": "chroma-4b",
                "messages": [{"role": "user", "content": "hello"}],
                "audio": {"voice": "ours"},
            },
        )
        assert answer.status_code == 200
        assert mesh.speech.heard[-1].open.voice_prompt.transcript == "it is us"

        assert (await http.delete("/audio/voices/mine")).json() == {
            "id": "mine",
            "object": "audio.voice",
            "deleted": True,
        }
        assert (await openai.audio.voices.delete("theirs")).deleted
        assert (await http.delete("/audio/voices/mine")).status_code == 404
        assert (await http.get("/audio/voices/mine")).status_code == 404
        assert (await http.delete("/audio/voices/ash")).status_code == 409


async def test_what_is_no_voice_is_refused() -> None:
    good: dict[str, Any] = {"name": "mine", "transcript": "it is me", "audio": in_base64(example())}
    form = {"name": "mine", "transcript": "it is me"}
    file = {"file": ("a.wav", example())}
    async with (
        Mesh().running() as mesh,
        running_gateway(mesh.address) as gateway,
        httpx2.AsyncClient(base_url=f"{gateway.url}/v1/audio") as http,
    ):
        for told, status, param in (
            ({"json": {**good, "name": "Mine!"}}, 400, "name"),
            ({"json": {**good, "transcript": ""}}, 400, "transcript"),
            ({"json": {**good, "transcript": " "}}, 400, "example.transcript"),
            ({"json": {**good, "audio": "http://127.0.0.1/a.wav"}}, 400, "audio"),
            ({"json": {**good, "audio": in_base64(example(31))}}, 400, "audio"),
            ({"json": {**good, "shared": "yes"}}, 400, "shared"),
            ({"json": []}, 400, None),
            ({"content": b"\xff", "headers": {"Content-Type": "application/json"}}, 400, None),
            ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, None),
            ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, None),
            ({"data": form}, 415, None),
            ({"files": {"name": (None, "mine"), "transcript": (None, "me")}}, 400, None),
            ({"data": form, "files": {**file, "audio_sample": ("b.wav", example())}}, 400, None),
            ({"data": form, "files": {"file": (None, "text")}}, 400, None),
            ({"data": form, "files": {"file": ("a.wav", b"none")}}, 400, "file"),
            ({"data": {**form, "name": "Mine!"}, "files": file}, 400, "name"),
            ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, None),
            ({"content": b"half a form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, None),
            (
                {"content": b"--x\r\nno header", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
                400,
                None,
            ),
        ):
            answer = await http.post("/voices", **told)
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param), told
        assert (await http.post("/voices", data=form, files=file)).status_code == 200


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_voice_is_its_keys_alone_unless_it_is_shared(tmp_path: Path, is_shared: bool) -> None:
    async with keyed_mesh(tmp_path) as mesh, running_gateway(mesh.address) as gateway:
        url = f"{gateway.url}/v1/audio"
        alice, bob = (
            httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {mesh.keys.secrets[key_id]}"})
            for key_id in ("alice", "bob")
        )
        async with alice, bob, httpx2.AsyncClient(base_url=url) as nobody:
            new = {"name": "mine", "transcript": "it is me", "audio": in_base64(example()), "shared": is_shared}
            refused = await nobody.post("/voices", json=new)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert (await alice.post("/voices", json=new)).json()["is_private"] is not is_shared
            assert (await bob.get("/voices/mine")).status_code == (200 if is_shared else 404)
            assert (await bob.delete("/voices/mine")).status_code == (403 if is_shared else 404)
            assert (await alice.delete("/voices/mine")).status_code == 200
