"""The command line reaches a mesh that asks for certificates and keys, and makes keys for it."""

import asyncio
import os
import sys
import tomllib
from pathlib import Path

from services.runtime.api_keys import Quota, read_keys
from services.runtime.settings import ServiceSettings
from tests.contract.certificates import Authority
from tests.contract.keyed_mesh import keyed_mesh


async def chroma_mesh(*words: str, **variables: str) -> tuple[int, str, str]:
    """The command's status and what it said on stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", *words),
        env={**os.environ, "COLUMNS": "200", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_shows_a_certificate_and_a_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, person = authority.server(is_mutual=True), authority.issue("person", "person.test")
    front = ServiceSettings(tls_certificate=server.certificate, tls_key=server.key, tls_ca=server.ca)
    async with keyed_mesh(tmp_path, front=front) as mesh:
        files = ("--ca", str(authority.ca), "--certificate", str(person.certificate), "--key", str(person.key))
        voices = ("voices", "--address", mesh.address)
        alice = mesh.keys.secrets["alice"]
        status, out, _ = await chroma_mesh(*files, "--api-key", alice, *voices)
        assert (status, "birch" in out) == (0, True)
        status, out, _ = await chroma_mesh(
            *voices,
            CHROMA_TLS_CA=str(authority.ca),
            CHROMA_TLS_CERTIFICATE=str(person.certificate),
            CHROMA_TLS_KEY=str(person.key),
            CHROMA_API_KEY=alice,
        )
        assert (status, "birch" in out) == (0, True)
        status, _, err = await chroma_mesh(*files, *voices)
        assert (status, "API key" in err) == (1, True)
        bench = ("bench", "--address", mesh.address, "--sessions", "1", "--replies", "1", "--steps", "1")
        status, out, err = await chroma_mesh(
            *files, "--api-key", alice, *bench, "--steps", "1", "--user-seconds", "0.1"
        )
        assert (status, "1 session " in out) == (0, True), err


async def test_a_key_that_it_made_is_one_that_the_mesh_takes(tmp_path: Path) -> None:
    status, out, _ = await chroma_mesh(
        *("key", "new", "a_b-1", "--scope", "converse", "--sessions", "3", "--audio-per-minute", "60"),
        *("--audio-per-hour", "600", "--audio-per-day", "6000.5"),
    )
    assert status == 0
    entry = out[out.index("[keys.") :]
    (tmp_path / "keys.toml").write_text(entry)
    (key,) = read_keys(tmp_path / "keys.toml").values()
    assert (key.caller.key_id, key.scopes) == ("a_b-1", {"converse"})
    assert key.caller.quota == Quota(3, 60, 600, 6000.5)
    secret = next(line for line in out.splitlines() if line.startswith("chroma_"))
    assert secret not in entry
    assert secret not in str(tomllib.loads(entry))
    status, _, err = await chroma_mesh("key", "new", "A b")
    assert (status, "an id must be 1 to 64" in err) == (2, True)
