"""TLS and mutual TLS between real servers and channels: who is refused, and files that change."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from client import MeshError, connect
from client.access import Access
from client.channel import open_channel as open_client_channel
from client.errors import InputError
from services.orchestrator.service import OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.runtime.channel import open_channel
from services.runtime.file_value import FileUnusable
from services.runtime.server import CannotStart, RunningServer, running
from services.runtime.settings import ServiceSettings, load
from services.runtime.stream import RequestStream
from services.runtime.tls import ClientTls, ServerTls
from tests.contract.certificates import Authority, replace
from tests.contract.fake_mesh import CODEBOOK_COUNT, FakeCodec, Signal

CODEC = "chroma_mesh.codec.v1.CodecService"
OPEN = codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen())
END = codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())
LONG_SECONDS = 60  # no call of these takes so long: it only keeps a mistake from hanging


class Codec(codec_pb2_grpc.CodecServiceServicer):
    """Tells who calls, and holds a stream open until its end."""

    async def Encode(self, request: Any, context: Any) -> codec_pb2.EncodeResponse:
        return codec_pb2.EncodeResponse()

    async def Decode(self, requests: Any, context: Any) -> None:
        stream = RequestStream(requests)
        await stream.open()
        await context.write(codec_pb2.DecodeResponse(opened=codec_pb2.DecodeOpened()))
        async for _ in stream:
            pass
        await context.write(codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished()))


async def nothing() -> None:
    pass


@asynccontextmanager
async def served(tls: ServerTls | None, **settings: Any) -> AsyncIterator[RunningServer]:
    files = {} if tls is None else {"tls_certificate": tls.certificate, "tls_key": tls.key, "tls_ca": tls.ca}
    async with running(
        stage="codec",
        settings=ServiceSettings(**files, **settings),
        add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(Codec(), server),
        services=[CODEC],
        prepare=nothing,
        close=nothing,
        registry=CollectorRegistry(),
    ) as server:
        yield server


async def encode(channel: grpc.aio.Channel) -> None:
    await codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest(), timeout=LONG_SECONDS)


async def is_served(address: str, tls: ClientTls | None) -> bool:
    """Whether a new connection is served; one that is refused is UNAVAILABLE at once."""
    async with open_channel(address, tls=tls) as channel:
        call = codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest(), timeout=LONG_SECONDS)
        code = await call.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        return code is grpc.StatusCode.OK


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "mesh")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@pytest.mark.parametrize("is_mutual", [False, True])
async def test_calls_and_health_probes_pass_over_tls(authority: Authority, is_mutual: bool) -> None:
    tls = authority.client() if is_mutual else ClientTls(authority.ca)
    async with (
        served(authority.server(is_mutual=is_mutual)) as server,
        open_channel(server.address, tls=tls) as channel,
    ):
        await encode(channel)
        health = health_pb2_grpc.HealthStub(channel)
        checked = await health.Check(health_pb2.HealthCheckRequest(service=CODEC))
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service=CODEC))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


Callers = Callable[[Authority, Authority], ClientTls | None]


def of_a_stranger(mesh: Authority, stranger: Authority) -> ClientTls:
    return changed(stranger.client(), ca=mesh.ca)


REFUSED: dict[str, tuple[bool, bool, Callers]] = {
    # what: (the server asks for certificates, its own has expired, the caller's files)
    "a caller without TLS": (False, False, lambda mesh, stranger: None),
    "a caller without a certificate": (True, False, lambda mesh, stranger: ClientTls(mesh.ca)),
    "a caller with an expired certificate": (True, False, lambda mesh, stranger: mesh.client(is_expired=True)),
    "a caller with a stranger's certificate": (
        True,
        False,
        of_a_stranger,
    ),
    "a server with an expired certificate": (False, True, lambda mesh, stranger: ClientTls(mesh.ca)),
    "a server whose authority is unknown": (False, False, lambda mesh, stranger: ClientTls(stranger.ca)),
    "a server of another name": (False, False, lambda mesh, stranger: ClientTls(mesh.ca, name="speech.test")),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_it_is_refused(authority: Authority, stranger: Authority, what: str) -> None:
    is_mutual, is_expired, caller = REFUSED[what]
    async with served(authority.server(is_mutual=is_mutual, is_expired=is_expired)) as server:
        assert not await is_served(server.address, caller(authority, stranger))


async def test_a_caller_with_tls_refuses_a_server_without(authority: Authority) -> None:
    async with served(None) as server:
        assert not await is_served(server.address, ClientTls(authority.ca))


async def test_replicas_may_be_listed_by_address_when_their_name_is_given(authority: Authority) -> None:
    named = authority.issue("named", "speech.test")
    tls = ServerTls(named.certificate, named.key)
    async with served(tls) as one, served(tls) as other:
        addresses = f"{one.address},{other.address}"
        assert not await is_served(addresses, ClientTls(authority.ca))
        assert await is_served(addresses, ClientTls(authority.ca, name="speech.test"))


async def test_new_connections_have_a_servers_new_certificate_and_old_ones_go_on(
    authority: Authority, stranger: Authority
) -> None:
    tls = authority.server()
    async with served(tls) as server, open_channel(server.address, tls=ClientTls(authority.ca)) as before:
        call = codec_pb2_grpc.CodecServiceStub(before).Decode(timeout=LONG_SECONDS)
        await call.write(OPEN)
        assert (await call.read()).HasField("opened")
        renewed = stranger.server()
        replace(tls.key, renewed.key.read_bytes())
        # The key is there before its certificate: until both are, the old ones serve.
        assert await is_served(server.address, ClientTls(authority.ca))
        replace(tls.certificate, renewed.certificate.read_bytes())
        assert not await is_served(server.address, ClientTls(authority.ca))
        assert await is_served(server.address, ClientTls(stranger.ca))
        await encode(before)
        await call.write(END)
        assert (await call.read()).HasField("finished")


async def test_a_servers_new_authority_counts_for_new_connections(authority: Authority, stranger: Authority) -> None:
    tls = authority.server(is_mutual=True)
    ours, theirs = authority.client(), changed(stranger.client(), ca=authority.ca)
    trusted = authority.folder / "trusted.pem"
    replace(trusted, authority.ca.read_bytes())
    async with served(changed(tls, ca=trusted)) as server:
        assert [await is_served(server.address, caller) for caller in (ours, theirs)] == [True, False]
        replace(trusted, stranger.ca.read_bytes())
        assert [await is_served(server.address, caller) for caller in (ours, theirs)] == [False, True]


async def test_new_calls_have_a_callers_new_certificate_and_old_ones_go_on(authority: Authority) -> None:
    tls = authority.server(is_mutual=True)
    caller = authority.client(is_expired=True)
    async with served(tls) as server, open_channel(server.address, tls=caller) as channel:
        stub = codec_pb2_grpc.CodecServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Encode(codec_pb2.EncodeRequest(), timeout=LONG_SECONDS)
        authority.client()
        await stub.Encode(codec_pb2.EncodeRequest(), timeout=LONG_SECONDS)
        call = stub.Decode(timeout=LONG_SECONDS)
        await call.write(OPEN)
        assert (await call.read()).HasField("opened")
        authority.client(is_expired=True)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Encode(codec_pb2.EncodeRequest(), timeout=LONG_SECONDS)
        await call.write(END)
        assert (await call.read()).HasField("finished")
        assert await call.code() is grpc.StatusCode.OK


async def test_files_that_became_no_good_change_nothing_and_are_logged_once(authority: Authority) -> None:
    tls, caller = authority.server(is_mutual=True), authority.client()
    with structlog.testing.capture_logs() as lines:
        async with served(tls) as server:
            for path in (tls.certificate, tls.key):
                replace(path, b"nothing of a certificate")
            for path in (caller.ca, caller.certificate):
                assert path is not None
            assert await is_served(server.address, caller)
            assert await is_served(server.address, caller)
    (told,) = [line for line in lines if "can't be used" in line["event"]]
    assert str(tls.certificate) in told["reason"]
    assert "nothing of" not in str(lines)


@pytest.mark.parametrize("content", [b"", b"nothing", None])
async def test_a_server_does_not_start_with_files_that_are_no_good(authority: Authority, content: bytes | None) -> None:
    tls = authority.server()
    if content is None:
        tls.certificate.unlink()
    else:
        tls.certificate.write_bytes(content)
    with pytest.raises(CannotStart, match=str(tls.certificate)):
        async with served(tls):
            pytest.fail("it must not come up")


async def test_a_key_must_be_its_certificates(authority: Authority) -> None:
    tls, other = authority.server(), authority.client()
    assert other.key is not None
    with pytest.raises(CannotStart, match="certificate and its key"):
        async with served(changed(tls, key=other.key)):
            pytest.fail("it must not come up")
    with pytest.raises(FileUnusable, match="certificate and its key"):
        open_channel("127.0.0.1:1", tls=changed(other, key=tls.key))
    with pytest.raises(FileUnusable, match="authorities"):
        open_channel("127.0.0.1:1", tls=ClientTls(tls.key))


async def test_a_channel_that_no_call_uses_any_more_is_let_go(authority: Authority) -> None:
    tls, caller = authority.server(is_mutual=True), authority.client()
    async with served(tls) as server, open_channel(server.address, tls=caller) as channel:
        renewed: Any = channel._channel
        calls = []
        for _ in range(3):
            call = codec_pb2_grpc.CodecServiceStub(channel).Decode(timeout=LONG_SECONDS)
            await call.write(OPEN)
            assert (await call.read()).HasField("opened")
            calls.append(call)
            authority.client()
        await encode(channel)
        assert len(renewed._retired) == 3
        for call in calls:
            await call.write(END)
            assert (await call.read()).HasField("finished")
            assert await call.code() is grpc.StatusCode.OK
        await asyncio.sleep(0)
        assert not renewed._retired


async def test_the_client_connects_with_an_authority_and_a_certificate(
    authority: Authority, stranger: Authority
) -> None:
    identity = authority.issue("person", "person.test")
    async with served(authority.server(is_mutual=True)) as server:
        known = Access(ca=authority.ca, certificate=identity.certificate, key=identity.key)
        async with open_client_channel(server.address, known) as channel:
            await encode(channel)
        for refused in (Access(), Access(tls=True), Access(ca=authority.ca), changed(known, ca=stranger.ca)):
            async with open_client_channel(server.address, refused) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await encode(channel)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_client_says_why_a_certificate_is_no_good(authority: Authority, stranger: Authority) -> None:
    async def said(tls: ServerTls, ca: Path) -> str:
        async with served(tls) as server, connect(server.address, Access(ca=ca)) as mesh:
            with pytest.raises(MeshError) as raised:
                await mesh.is_ready()
        assert raised.value.reason == "UNTRUSTED"
        return raised.value.message

    misnamed = authority.issue("misnamed", "speech.test")
    assert "expired" in await said(authority.server(is_expired=True), authority.ca)
    assert "another name" in await said(ServerTls(misnamed.certificate, misnamed.key), authority.ca)
    assert "issuer" in await said(authority.server(), stranger.ca)


async def test_the_orchestrator_shows_its_certificate_to_the_stages(authority: Authority) -> None:
    tls = authority.server(is_mutual=True)
    codec = FakeCodec(Signal())
    audio_format = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24_000)
    async with running(
        stage="codec",
        settings=ServiceSettings(tls_certificate=tls.certificate, tls_key=tls.key, tls_ca=tls.ca),
        add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server),
        services=[CODEC],
        prepare=nothing,
        close=nothing,
        registry=CollectorRegistry(),
    ) as server:
        settings = OrchestratorSettings(
            reasoner_address="127.0.0.1:1",
            speech_address="127.0.0.1:1",
            codec_address=server.address,
            stages_tls_ca=authority.ca,
            stages_tls_certificate=(known := authority.client()).certificate,
            stages_tls_key=known.key,
        )
        service = OrchestratorService(settings, CollectorRegistry())
        try:
            await service._stages.learn(audio_format)
            assert service._stages.codec_facts.codebook_count == CODEBOOK_COUNT
        finally:
            await service.close()


@pytest.mark.parametrize(
    ("access", "said"),
    [
        (Access(api_key="k3y"), "not sent to mesh.test:443 unencrypted"),  # pragma: allowlist secret
        (Access(api_key="two\nlines", tls=True), "one line of ASCII"),  # pragma: allowlist secret
        (Access(certificate=Path("c"), key=Path("k")), "over TLS only"),
        (Access(tls=True, certificate=Path("c")), "give both"),
        (Access(ca=Path("/nowhere/ca.pem")), "cannot read /nowhere/ca.pem"),
    ],
)
def test_access_that_makes_no_sense_is_refused(access: Access, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_client_channel("mesh.test:443", access)
    assert "k3y" not in repr(access)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-certificate=a"], "tls_certificate and tls_key must be given together"),
        (["--tls-key=a"], "tls_certificate and tls_key must be given together"),
        (["--tls-ca=a"], "tls_ca needs tls_certificate and tls_key"),
        (["--stages-tls-key=a"], "stages_tls_certificate and stages_tls_key must be given together"),
        (["--stages-tls-name=a"], "stages_tls_certificate and stages_tls_name need stages_tls_ca"),
    ],
)
def test_settings_must_be_whole(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    addresses = [f"--{stage}-address=127.0.0.1:1" for stage in ("reasoner", "speech", "codec")]
    with pytest.raises(SystemExit):
        load(OrchestratorSettings, [*addresses, *flags], stage="orchestrator")
    assert capsys.readouterr().err == f"orchestrator: {said}\n"


def test_settings_become_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TLS_CERTIFICATE": "c", "TLS_KEY": "k", "TLS_CA": "a", "STAGES_TLS_CA": "s"}.items():
        monkeypatch.setenv(f"CHROMA_ORCHESTRATOR_{name}", value)
    addresses = [f"--{stage}-address=127.0.0.1:1" for stage in ("reasoner", "speech", "codec")]
    settings = load(OrchestratorSettings, addresses, stage="orchestrator")
    assert settings.tls == ServerTls(Path("c"), Path("k"), Path("a"))
    assert settings.stages_tls == ClientTls(Path("s"))
