"""API keys at the front, through the SDK: who is let in, to what, and how much of it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from client import Access, Mesh, MeshError, VoiceExample, connect
from client.api_key import Scope
from client.events import ReplyEnded
from services.orchestrator.service import SCOPES
from services.runtime import interceptors
from services.runtime.api_keys import ApiKeys, Caller, read_keys
from services.runtime.errors import PermissionDenied, from_rpc_error
from services.runtime.file_value import FileUnusable
from tests.conftest import BUILTIN_VOICES
from tests.contract.fake_mesh import SAMPLES_PER_FRAME, FakeReasoner
from tests.contract.keyed_mesh import KeyedMesh, KeyFile, keyed_mesh
from tests.contract.still_clock import StillClock

UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, NOT_FOUND = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
)
SAMPLES = np.linspace(-0.5, 0.5, 12_000, dtype=np.float32)
EXAMPLE = VoiceExample("it is me", SAMPLES)
# What the fake stages reply.
FRAME_COUNT = 2 * (FakeReasoner.step_count + 1)
REPLY_SECONDS = FRAME_COUNT * SAMPLES_PER_FRAME / 24_000


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[KeyedMesh]:
    async with keyed_mesh(tmp_path) as mesh:
        yield mesh


async def refused(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(MeshError) as raised:
        await call
    return raised.value


async def converse(mesh: Mesh, **settings: Any) -> None:
    """Opens a session and ends it."""
    async with mesh.session(**settings):
        pass


async def ask(session: Any) -> ReplyEnded:
    """One turn of text, answered."""
    await session.send_text("hello")
    await session.end_turn()
    return [event async for event in session.reply()][-1]


RPCS: dict[str, Callable[[Mesh], Awaitable[Any]]] = {
    "Converse": converse,
    "ListVoices": lambda mesh: mesh.voices(),
    "CreateVoice": lambda mesh: mesh.add_voice("new", EXAMPLE),
    "DeleteVoice": lambda mesh: mesh.remove_voice("new"),
}


def test_every_rpc_is_tried_here() -> None:
    service = pb.DESCRIPTOR.services_by_name["OrchestratorService"]
    assert {f"/{service.full_name}/{name}" for name in RPCS} == set(SCOPES)
    assert {method.name for method in service.methods} == set(RPCS)


@pytest.mark.parametrize("rpc", RPCS)
async def test_without_a_key_or_with_a_wrong_one_nothing_is_open(mesh: KeyedMesh, rpc: str) -> None:
    async with mesh.connect(None) as nobody:
        error = await refused(RPCS[rpc](nobody))
    assert (error.code, error.reason) == (UNAUTHENTICATED, "NO_KEY")
    alice = mesh.keys.secrets["alice"]
    wrong = [
        alice[:-1] + ("A" if alice[-1] != "A" else "B"),
        alice.replace("alice", "bob"),
        alice.replace("alice", "eve"),
    ]
    messages = set()
    for key in [*wrong, alice + "A", alice.upper(), "chroma_alice_", "x"]:
        async with connect(mesh.address, Access(api_key=key)) as stranger:
            error = await refused(RPCS[rpc](stranger))
        assert (error.code, error.reason) == (PERMISSION_DENIED, "WRONG_KEY")
        messages.add(error.message)
    assert len(messages) == 1  # which of it was wrong nobody is told
    assert not mesh.fakes.reasoner.heard


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic KEY"},
        {"authorization": "KEY"},
        {"x-api-key": "KEY"},
    ],
)
async def test_a_key_comes_as_a_bearer(mesh: KeyedMesh, metadata: dict[str, str]) -> None:
    alice = mesh.keys.secrets["alice"]
    given = [(name, value.replace("KEY", alice)) for name, value in metadata.items()]
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        bearer = ("authorization", f"Bearer {alice}")
        assert (await stub.ListVoices(pb.ListVoicesRequest(), metadata=(bearer,))).voices
        assert (await stub.ListVoices(pb.ListVoicesRequest(), metadata=((bearer[0], f"bearer {alice}"),))).voices
        for wrong in (given, [bearer, bearer]):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ListVoices(pb.ListVoicesRequest(), metadata=wrong)
            assert (raised.value.code(), from_rpc_error(raised.value).reason) == (UNAUTHENTICATED, "NO_KEY")


async def test_health_and_reflection_ask_for_no_key(mesh: KeyedMesh) -> None:
    async with mesh.connect(None) as nobody:
        assert await nobody.is_ready()
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (listed,) = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
        assert listed.list_services_response.service


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_opens_what_its_scopes_say(mesh: KeyedMesh, scope: Scope) -> None:
    mesh.keys.add("carol", scope)
    needed = {"Converse": "converse", "ListVoices": "voices:read"}
    async with mesh.connect("carol") as carol:
        for rpc, call in RPCS.items():
            if needed.get(rpc, "voices:write") == scope:
                await call(carol)
                continue
            error = await refused(call(carol))
            assert (error.code, error.reason) == (PERMISSION_DENIED, "SCOPE_MISSING")


def test_a_method_without_a_scope_is_open_to_nobody(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    metadata = [("authorization", f"Bearer {keys.add('alice')}")]
    assert ApiKeys(keys.path, {"/a/B": "converse"}).admit("/a/B", metadata) == Caller("alice")
    with pytest.raises(PermissionDenied):
        ApiKeys(keys.path, {"/a/B": "converse"}).admit("/a/C", metadata)


async def test_keys_come_and_go_with_the_file(mesh: KeyedMesh) -> None:
    before = mesh.keys.secrets["alice"]
    mesh.keys.remove("bob")
    after = mesh.keys.add("alice")
    for key, is_known in ((before, False), (mesh.keys.secrets["bob"], False), (after, True)):
        async with connect(mesh.address, Access(api_key=key)) as other:
            if is_known:
                assert await other.voices()
            else:
                assert (await refused(other.voices())).reason == "WRONG_KEY"
    with structlog.testing.capture_logs() as lines:
        mesh.keys.path.write_text(f'[keys.alice]\nsha256 = ["{after}"]\nscopes = []')
        async with mesh.connect("alice") as alice:
            assert await alice.voices()
            assert await alice.voices()
    (told,) = [line for line in lines if "can't be used" in line["event"]]
    assert "keys.alice.sha256.0" in told["reason"]
    assert after not in str(lines)


@pytest.mark.parametrize("how", ["removed", "replaced", "without its scope"])
async def test_a_session_ends_when_its_key_is_revoked(
    mesh: KeyedMesh, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(interceptors, "ASK_AGAIN_SECONDS", 0.01)

    async def outlive_the_key() -> None:
        async with mesh.connect("alice") as alice, alice.session() as session:
            await ask(session)
            match how:
                case "removed":
                    mesh.keys.remove("alice")
                case "replaced":
                    mesh.keys.add("alice")
                case _:
                    mesh.keys.limit("alice", "voices:read")
            await session.next_event()

    async with mesh.connect("bob") as bob, bob.session() as other:
        error = await refused(outlive_the_key())
        assert (error.code, error.reason) == (PERMISSION_DENIED, "KEY_REVOKED")
        await ask(other)


def test_a_key_may_be_replaced_while_both_are_good(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    secrets = [keys.add("alice"), keys.add("alice")]
    digests = [hashlib.sha256(secret.encode()).hexdigest() for secret in secrets]
    keys.path.write_text(f'[keys.alice]\nsha256 = {digests}\nscopes = ["converse"]')
    for secret in secrets:
        assert ApiKeys(keys.path, {"/a/B": "converse"}).admit("/a/B", [("authorization", f"Bearer {secret}")])


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "keys: Field required"),
        ("[keys", "must be TOML"),
        ("keys = 3", "keys: Input should be"),
        ('[keys."a b"]\nscopes=[]\nsha256=["SECRET"]', "keys"),
        ("[keys.a]\nscopes=[]", "keys.a.sha256: Field required"),
        ("[keys.a]\nscopes=[]\nsha256=[]", "keys.a.sha256: List should have"),
        ('[keys.a]\nscopes=[]\nsha256=["SECRET"]', "keys.a.sha256.0: String should match"),
        (f'[keys.a]\nscopes=["SECRET"]\nsha256=["{DIGEST}"]', "keys.a.scopes.0: Input should be"),
        (f'[keys.a]\nscopes=[]\nsha256=["{DIGEST}"]\nsessions=0', "keys.a.sessions: Input should be"),
        (f'[keys.a]\nscopes=[]\nsha256=["{DIGEST}"]\naudio_seconds_per_day=0', "keys.a.audio_seconds_per_day: Input"),
        (f'[keys.a]\nscopes=[]\nsha256=["{DIGEST}"]\nadmin=true', "keys.a.admin: Extra inputs"),
        (b"\xff", "must be UTF-8"),
    ],
)
def test_a_file_that_is_no_good_is_named_without_what_is_in_it(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileUnusable) as raised:
        read_keys(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)
    assert "SECRET" not in str(raised.value)
    with pytest.raises(FileUnusable, match="cannot be read"):
        read_keys(tmp_path / "none.toml")


async def test_a_key_has_its_sessions_at_a_time_and_others_have_theirs(tmp_path: Path) -> None:
    async with keyed_mesh(tmp_path, key_session_limit=1) as mesh:
        mesh.keys.add("carol", sessions=2)
        async with mesh.connect("alice") as alice, mesh.connect("carol") as carol:
            async with carol.session(), carol.session():
                error = await refused(converse(carol))
                assert (error.code, error.reason) == (RESOURCE_EXHAUSTED, "KEY_SESSIONS_IN_USE")
                assert error.retry_seconds is not None
                assert error.retry_seconds > 0
                async with alice.session():
                    assert (await refused(converse(alice))).reason == "KEY_SESSIONS_IN_USE"
                    mesh.keys.add("carol", sessions=3)
                    async with mesh.connect("carol") as more:
                        await converse(more)
            await converse(alice)


async def test_what_was_said_is_answered_before_a_session_ends_for_want_of_audio(tmp_path: Path) -> None:
    clock = StillClock()
    async with keyed_mesh(tmp_path, clock=clock) as mesh:
        mesh.keys.add("carol", audio_seconds_per_minute=0.95, audio_seconds_per_day=600)
        opened = asyncio.Event()

        async def wait(index: int) -> None:
            await opened.wait()

        mesh.fakes.speech.hook = wait
        async with mesh.connect("carol") as carol:

            async def say_more() -> None:
                async with carol.session() as session:
                    await session.send_audio(np.zeros(16_000, np.int16))
                    await session.end_turn()
                    await session.send_audio(np.zeros(160, np.int16))
                    opened.set()
                    assert [event async for event in session.reply()][-1].frame_count == FRAME_COUNT
                    await session.next_event()

            error = await refused(say_more())
            assert (error.code, error.reason) == (RESOURCE_EXHAUSTED, "KEY_AUDIO_USED")
            # 1 s was heard, and the reply was made.
            wait_seconds = (1 + REPLY_SECONDS - 0.95) * 60 / 0.95
            assert error.retry_seconds == pytest.approx(wait_seconds)
            for call in (converse(carol), carol.add_voice("new", EXAMPLE)):
                assert (await refused(call)).reason == "KEY_AUDIO_USED"
            clock.move(wait_seconds + 0.001)
            async with carol.session() as session:
                assert (await ask(session)).frame_count == FRAME_COUNT
            # Another key has its own.
            async with mesh.connect("alice") as alice:
                await converse(alice)


async def test_examples_and_history_are_heard_as_well(tmp_path: Path) -> None:
    clock = StillClock()
    async with keyed_mesh(tmp_path, clock=clock) as mesh:
        mesh.keys.add("carol", audio_seconds_per_hour=1)
        async with mesh.connect("carol") as carol:
            await carol.add_voice("half-a-second", EXAMPLE)
            await converse(carol, voice=EXAMPLE)
            error = await refused(converse(carol))
            assert (error.reason, error.retry_seconds) == ("KEY_AUDIO_USED", pytest.approx(1))
            assert [voice.name for voice in await carol.voices()] == sorted([*BUILTIN_VOICES, "half-a-second"])


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_voice_is_its_keys_alone_and_to_others_as_if_it_did_not_exist(tmp_path: Path, is_kept: bool) -> None:
    async with (
        keyed_mesh(tmp_path, voices=tmp_path / "voices" if is_kept else None) as mesh,
        mesh.connect("alice") as alice,
        mesh.connect("bob") as bob,
    ):
        made = await alice.add_voice("mine", EXAMPLE)
        assert made.is_private
        assert {voice.name: voice.is_private for voice in await alice.voices()} == {
            **dict.fromkeys(BUILTIN_VOICES, False),
            "mine": True,
        }
        assert [voice.name for voice in await bob.voices()] == [*BUILTIN_VOICES]
        for call in (lambda name: converse(bob, voice=name), bob.remove_voice):
            hidden, missing = await refused(call("mine")), await refused(call("none"))
            assert (hidden.code, hidden.reason) == (NOT_FOUND, "VOICE_NOT_FOUND")
            assert hidden.message == missing.message.replace("none", "mine")
        # Neither does its name stand in anybody's way.
        other = VoiceExample("it is bob", SAMPLES)
        await bob.add_voice("mine", other)
        prompts = []
        for caller in (alice, bob):
            async with caller.session(voice="mine") as session:
                await ask(session)
            prompts.append(mesh.fakes.speech.heard[-1].open.voice_prompt.transcript)
        assert prompts == ["it is me", "it is bob"]
        await bob.remove_voice("mine")
        await converse(alice, voice="mine")
        assert (await refused(alice.add_voice("mine", EXAMPLE))).reason == "VOICE_EXISTS"


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_shared_voice_is_everybodys_to_use_and_its_keys_to_remove(tmp_path: Path, is_kept: bool) -> None:
    async with (
        keyed_mesh(tmp_path, voices=tmp_path / "voices" if is_kept else None) as mesh,
        mesh.connect("alice") as alice,
        mesh.connect("bob") as bob,
    ):
        await bob.add_voice("ours", VoiceExample("it is bob", SAMPLES))
        assert not (await alice.add_voice("ours", EXAMPLE, shared=True)).is_private
        # Bob's own one of that name hides it from him alone.
        assert [voice.transcript for voice in await bob.voices() if voice.name == "ours"] == ["it is bob"]
        await bob.remove_voice("ours")
        await converse(bob, voice="ours")
        assert [voice.transcript for voice in await bob.voices() if voice.name == "ours"] == ["it is me"]
        error = await refused(bob.remove_voice("ours"))
        assert (error.code, error.reason) == (PERMISSION_DENIED, "NOT_OWNER")
        assert (await refused(bob.add_voice("ours", EXAMPLE))).reason == "VOICE_EXISTS"
        await alice.remove_voice("ours")
        assert (await refused(converse(bob, voice="ours"))).code is NOT_FOUND


async def test_voices_of_keys_stay_their_own_on_a_mesh_that_asks_for_none(tmp_path: Path) -> None:
    async with (
        keyed_mesh(tmp_path, voices=tmp_path / "voices") as mesh,
        mesh.connect("alice") as alice,
        connect(mesh.fakes.address) as anybody,
    ):
        await alice.add_voice("mine", EXAMPLE)
        await alice.add_voice("shared", EXAMPLE, shared=True)
        await anybody.add_voice("open", EXAMPLE)
        assert [voice.name for voice in await anybody.voices()] == sorted([*BUILTIN_VOICES, "open", "shared"])
        assert (await refused(anybody.remove_voice("shared"))).reason == "NOT_OWNER"
        await anybody.remove_voice("open")
        # One that was made without a key, or put there by hand, is everybody's to use and no key's to remove.
        await anybody.add_voice("open", EXAMPLE)
        await converse(alice, voice="open")
        assert (await refused(alice.remove_voice("open"))).reason == "NOT_OWNER"


PATHS = ("../alice/mine", "alice/mine", "/etc/passwd", "file:///etc/passwd", "http://a/b", "mine.json", "")


def files_below(folder: Path) -> list[Path]:
    """Everything in a folder."""
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", PATHS)
async def test_a_name_never_becomes_a_path_of_its_own(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "voices"
    async with (
        keyed_mesh(tmp_path, voices=folder) as mesh,
        mesh.connect("alice") as alice,
        mesh.connect("bob") as bob,
    ):
        await alice.add_voice("mine", EXAMPLE)
        before = files_below(tmp_path)
        assert (await refused(bob.add_voice(name, EXAMPLE))).reason == "BAD_NAME"
        for call in (converse(bob, voice=name), bob.remove_voice(name)):
            assert (await refused(call)).code is NOT_FOUND
        assert files_below(tmp_path) == before
